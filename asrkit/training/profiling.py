"""Where the time of a step goes: a table of its parts, the costliest operators, and a trace for chrome://tracing or Perfetto."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from asrkit.core.phase import Phase
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.training.config import ExperimentConfig
from asrkit.training.loop import Trainer
from asrkit.training.trial import trial

TRACE, TABLE = "trace.json.gz", "table.txt"
PARTS = {
    "data": "waiting for data",
    "prepare": "masks, labels, counts",
    "forward": "forward",
    "step": "backward",
    "reduce": "exchange between processes",
    "optimiser": "clipping and optimiser",
    "after": "averages, caches",
    "rest": "everything else",
}
_WARM_UP, _TIMED, _TRACED = 2, 5, 3
_OPERATORS = 12


class Stopwatch:
    """Seconds by part of a step; a part inside another one counts for itself alone. Waits for the device at every border."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside to a part."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def watch(self, thing: object, attribute: str, part: str) -> None:
        """Count calls of a method of an object to a part."""
        function = getattr(thing, attribute)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.part(part):
                return function(*arguments, **options)

        object.__setattr__(thing, attribute, timed)  # steps are frozen dataclasses

    def drawn(self, source: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """Return the source; waiting for it counts as ``data``."""
        while True:
            with self.part("data"):
                batches = next(source)
            yield batches

    def _turn(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def profile_run(config: ExperimentConfig, console: Console) -> Path:
    """Profile a few updates of a run's last phase; print the tables, and write them and a trace to EXP/profile.

    Returns:
        The folder.

    Raises:
        AsrkitError: for whatever would end the run before or in its first updates, or if nothing can be written.
    """
    folder = Path(config.exp_dir) / "profile"
    with trial(config, console) as trainer:
        phase = [phase for phase in trainer.method.phases() if phase.length][-1]
        trainer.enter(phase)
        sources = {name: iter(trainer.streams[name]) for name in phase.streams}
        for _ in range(_WARM_UP):
            trainer.step(phase, sources)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (trainer.engine.device.type == "cuda")
        with profile(activities=activities) as recorded:
            for _ in range(_TRACED):
                trainer.step(phase, sources)
        stopwatch = _time(trainer, phase, sources)
        if trainer.engine.ranks.is_first:
            tables = [_parts_table(stopwatch, phase), _operators_table(recorded, trainer.engine.device)]
            _write(folder, recorded, tables)
            for table in tables:
                console.print(table)
            console.print(f"{folder / TRACE}: open it at https://ui.perfetto.dev", markup=False, soft_wrap=True)
    return folder


def _time(trainer: Trainer, phase: Phase, sources: Mapping[str, Iterator[list[Batch]]]) -> Stopwatch:
    stopwatch = Stopwatch(trainer.engine.device)
    stopwatch.watch(trainer.method, "prepare", "prepare")
    stopwatch.watch(trainer.method, "losses", "forward")
    stopwatch.watch(trainer.method, "after_update", "after")
    stopwatch.watch(trainer.engine, "reduce", "reduce")
    stopwatch.watch(trainer.optimiser, "update", "optimiser")
    watched = {name: stopwatch.drawn(source) for name, source in sources.items()}
    stopwatch.watch(phase.step, "run", "step")
    for _ in range(_TIMED):
        with stopwatch.part("rest"):
            trainer.step(phase, watched)
    return stopwatch


def _parts_table(stopwatch: Stopwatch, phase: Phase) -> Table:
    whole = sum(stopwatch.seconds.values())
    table = Table(title=f"an update of the phase {phase.name}: {whole / _TIMED:.3f} s", title_justify="left")
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in stopwatch.seconds.items():
        table.add_row(PARTS[name], f"{1000 * seconds / _TIMED:.1f}", f"{seconds / whole:.1%}")
    return table


def _operators_table(recorded: profile, device: torch.device) -> Table:
    on_gpu = device.type == "cuda"
    averages = recorded.key_averages()
    own = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in averages}
    calls = {event.key: event.count for event in averages}
    whole = sum(own.values()) or 1.0
    table = Table(title=f"operators, by their own time on the {'GPU' if on_gpu else 'CPU'}", title_justify="left")
    table.add_column("operator", overflow="fold")
    for heading in ("calls per update", "ms per update", "share"):
        table.add_column(heading, justify="right")
    for name in sorted(own, key=lambda key: -own[key])[:_OPERATORS]:
        milliseconds = own[name] / 1000 / _TRACED
        table.add_row(name, f"{calls[name] / _TRACED:.0f}", f"{milliseconds:.1f}", f"{own[name] / whole:.1%}")
    return table


def _write(folder: Path, recorded: profile, tables: list[Table]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(folder / TRACE))
        with open(folder / TABLE, "w", encoding="utf-8") as file:
            plain = Console(file=file, width=120, emoji=False)
            for table in tables:
                plain.print(table)
    except OSError as error:
        raise AsrkitError(f"cannot be written: {error.strerror or error}", where=folder) from error
