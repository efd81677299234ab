"""Side-by-side measurements: contenders take turns, so that a slow moment of the machine hits all of them alike.

A benchmark builds its contenders (functions without arguments that do the same amount of work in every call), calls
`compare`, and hands what it got to `report`. Times are wall times of a whole call, the device's queue drained; memory is what
a call allocates at its peak above what was there before it, counted by torch's allocator on a GPU and from the profiler's
allocation events on a CPU.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from asrkit.files import write_text
from asrkit.training.environment import environment


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
    return Ratio(f"time of {of} / ({' + '.join(to)})", median, (first, third), limit)


def memory_ratio(found: Mapping[str, Measurement], of: str, to: Sequence[str], limit: float | None = None) -> Ratio:
    """Return the peak memory of one contender divided by the largest of others'."""
    value = found[of].peak_bytes / max(found[name].peak_bytes for name in to)
    return Ratio(f"memory of {of} / max({', '.join(to)})", value, (value, value), limit)


def report(
    title: str,
    settings: Mapping[str, Any],
    found: Mapping[str, Measurement],
    ratios: Sequence[Ratio],
    *,
    device: torch.device,
    output: Path | None = None,
    amount: float | None = None,
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

    Returns:
        Whether every ratio that has a limit keeps it.
    """
    machine = environment(device, 1)
    if device.type == "cpu":
        machine["processor"] = _processor()
    print(title)
    for name, value in {**settings, **machine}.items():
        print(f"  {name}: {value}")
    print(f"\n{'':30}  median s   quartiles s          peak memory{'' if amount is None else '   audio s/s'}")
    for name, one in found.items():
        low, high = one.spread
        rate = "" if amount is None else f"  {amount / one.median:10.1f}"
        print(f"{name:30}  {one.median:8.4f}   {low:8.4f} to {high:8.4f}  {one.peak_bytes / 2**20:9.1f} MiB{rate}")
    for one_ratio in ratios:
        low, high = one_ratio.spread
        verdict = "" if one_ratio.limit is None else f"   limit {one_ratio.limit:g}: {_verdict(one_ratio)}"
        print(f"{one_ratio.name}: {one_ratio.median:.3f} ({low:.3f} to {high:.3f}){verdict}")
    if output is not None:
        whole = {
            "title": title,
            "settings": dict(settings),
            "machine": machine,
            "contenders": {
                name: {
                    "median": one.median,
                    "quartiles": one.spread,
                    **asdict(one),
                    **({} if amount is None else {"audio_seconds_per_second": amount / one.median}),
                }
                for name, one in found.items()
            },
            "ratios": [asdict(one) for one in ratios],
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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
