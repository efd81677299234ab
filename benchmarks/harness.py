"""Side-by-side measurements: contenders take turns, so that a slow moment of the machine hits all of them alike.

A benchmark builds its contenders (functions without arguments that do the same amount of work in every call), calls
`compare`, and hands what it got to `report`. Times are wall times of a whole call, the device's queue drained; memory is what
a call allocates at its peak above what was there before it, counted by torch's allocator on a GPU and from the profiler's
allocation events on a CPU.
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from flops import FORMULA, Work
from torch.profiler import ProfilerActivity, profile

from asrkit.files import write_text
from asrkit.inference.results import commit
from asrkit.training.environment import environment

NEIGHBOURS = ("transformers", "fairseq2")
"""Packages whose versions belong to a measurement, beside those of asrkit itself."""


@dataclass(frozen=True)
class Measurement:
    """What one contender took."""

    seconds: list[float]
    """Of each round."""
    peak_bytes: int
    """Most memory allocated at once during a call, above what was there before."""

    @property
    def median(self) -> float:
        """Middle of the rounds' seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile of the rounds' seconds."""
        first, _, third = statistics.quantiles(self.seconds, n=4)
        return first, third


@dataclass(frozen=True)
class Ratio:
    """One contender against the sum of others, round by round."""

    name: str
    median: float
    spread: tuple[float, float]
    limit: float | None
    """What the ratio should not exceed; None where nothing is promised."""


def compare(
    contenders: Mapping[str, Callable[[], Any]], *, device: torch.device, rounds: int = 20, warm_up: int = 3
) -> dict[str, Measurement]:
    """Time contenders by turns and measure each one's peak memory.

    Args:
        contenders: by name; each is called once per round.
        device: where they run.
        rounds: timed calls of each, at least 2.
        warm_up: calls of each before: kernels are chosen, caches filled, clocks raised.
    """
    for _ in range(warm_up):
        for run in contenders.values():
            run()
    peaks = {name: peak_bytes(run, device) for name, run in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        # Whoever comes first changes, so that nobody always runs in another's warm caches.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(_seconds(contenders[name], device))
    return {name: Measurement(seconds[name], peaks[name]) for name in names}


def ratio(found: Mapping[str, Measurement], of: str, to: Sequence[str], limit: float | None = None) -> Ratio:
    """Return the time of one contender divided by the sum of others' times in the same round.

    Args:
        found: what `compare` gave.
        of: the contender.
        to: the others.
        limit: what the ratio should not exceed.
    """
    parts = zip(*(found[name].seconds for name in (of, *to)), strict=True)
    values = [own / sum(others) for own, *others in parts]
    first, median, third = statistics.quantiles(values, n=4)
    divisor = to[0] if len(to) == 1 else f"({' + '.join(to)})"
    return Ratio(f"time of {of} / {divisor}", median, (first, third), limit)


def memory_ratio(found: Mapping[str, Measurement], of: str, to: Sequence[str], limit: float | None = None) -> Ratio:
    """Return the peak memory of one contender divided by the largest of others'."""
    value = found[of].peak_bytes / max(found[name].peak_bytes for name in to)
    divisor = to[0] if len(to) == 1 else f"max({', '.join(to)})"
    return Ratio(f"memory of {of} / {divisor}", value, (value, value), limit)


def against(found: Mapping[str, Measurement], own: str) -> list[Ratio]:
    """Return time and memory of every other contender divided by those of ``own``."""
    others = [name for name in found if name != own]
    return [one for name in others for one in (ratio(found, name, [own]), memory_ratio(found, name, [own]))]


def report(
    title: str,
    settings: Mapping[str, Any],
    found: Mapping[str, Measurement],
    ratios: Sequence[Ratio],
    *,
    device: torch.device,
    output: Path | None = None,
    amount: float | None = None,
    work: Work | None = None,
    absent: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> bool:
    """Print a table of times, memory and ratios with the machine and versions; write the same as JSON.

    Args:
        title: what was measured.
        settings: under which circumstances.
        found: what `compare` gave.
        ratios: what is to be told of it.
        device: where it ran.
        output: the JSON file.
        amount: seconds of audio that a call deals with, to tell how many per second that makes.
        work: what a call asks of the machine, to tell its utilisation (MFU).
        absent: contenders that could not be had, and why.
        notes: what a reader must know to judge the figures.

    Returns:
        Whether every ratio that has a limit keeps it.
    """
    machine = _machine(device)
    print(title)
    for name, value in {**settings, **machine}.items():
        print(f"  {name}: {value}")
    columns = ["", "  median s   quartiles s          peak memory"]
    columns += ["" if amount is None else "   audio s/s", "" if work is None else "     MFU"]
    print("\n{:30}{}{}{}".format(*columns))
    rates: dict[str, dict[str, float]] = {}
    for name, one in found.items():
        low, high = one.spread
        rates[name] = {} if amount is None else {"audio_seconds_per_second": amount / one.median}
        line = "" if amount is None else f"  {amount / one.median:10.1f}"
        if work is not None:
            rates[name]["mfu"] = work.utilisation(one.median)
            line += f"  {100 * rates[name]['mfu']:5.1f} %"
        print(f"{name:30}  {one.median:8.4f}   {low:8.4f} to {high:8.4f}  {one.peak_bytes / 2**20:9.1f} MiB{line}")
    for name, reason in (absent or {}).items():
        print(f"{name:30}  absent: {reason}")
    for one_ratio in ratios:
        low, high = one_ratio.spread
        verdict = "" if one_ratio.limit is None else f"   limit {one_ratio.limit:g}: {_verdict(one_ratio)}"
        print(f"{one_ratio.name}: {one_ratio.median:.3f} ({low:.3f} to {high:.3f}){verdict}")
    if work is not None:
        notes = [*notes, str(work), FORMULA]
    for note in notes:
        print(note)
    if output is not None:
        whole = {
            "title": title,
            "command": _command(),
            "commit": commit(),
            "settings": dict(settings),
            "machine": machine,
            "contenders": {
                name: {"median": one.median, "quartiles": one.spread, **asdict(one), **rates[name]}
                for name, one in found.items()
            },
            "absent": dict(absent or {}),
            "ratios": [asdict(one) for one in ratios],
            "notes": list(notes),
        }
        write_text(output, json.dumps(whole, indent=1) + "\n")
    return all(one.limit is None or one.median <= one.limit for one in ratios)


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Return the most memory that a call holds at once, above what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    results = recorded.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _verdict(one: Ratio) -> str:
    return "kept" if one.limit is None or one.median <= one.limit else "EXCEEDED"


def _machine(device: torch.device) -> dict[str, str]:
    """Return what is measured on and with."""
    machine = environment(device, 1)
    if device.type == "cpu":
        machine["processor"] = _processor()
    for package in NEIGHBOURS:
        try:
            machine[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return machine


def _command() -> str:
    """Return what was called, without where the results go."""
    script, *arguments = sys.argv
    if "--output" in arguments:
        place = arguments.index("--output")
        del arguments[place : place + 2]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *arguments])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
