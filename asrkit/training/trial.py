"""A few updates of a run, for its time and memory, in a folder that vanishes: the run itself is neither begun nor touched."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from asrkit.core.clock import Clock
from asrkit.core.phase import Phase
from asrkit.data.stream import Stream
from asrkit.errors import AsrkitError
from asrkit.training.checkpoint import Checkpoints
from asrkit.training.config import ExperimentConfig
from asrkit.training.experiment import begin, enter, make_trainer, rehearse_run
from asrkit.training.log import clock_text
from asrkit.training.loop import Trainer
from asrkit.training.rehearsal import Rehearsed, peak_bytes

_WARM_UP = 1
_MEASURED = 2
_PLANNED = 50


@contextmanager
def trial(config: ExperimentConfig, console: Console) -> Iterator[Trainer]:
    """Give a trainer of the run that ``config`` describes, at its beginning, whose folder is a temporary one.

    It lies where the run's own would, or above: on a disk that all machines share, and that has room for a checkpoint.
    """
    wanted = Path(config.exp_dir)
    beside = wanted.absolute().parent
    while not beside.exists():
        beside = beside.parent
    try:
        temporary = tempfile.TemporaryDirectory(prefix=f".{wanted.name}-trial-", dir=beside)
    except OSError as error:
        raise AsrkitError(f"cannot be written: {error.strerror or error}", where=beside) from error
    with temporary as own, enter(config, Path(own), console) as engine:
        folder = Path(engine.ranks.gather(own)[0])
        initial = begin(config, folder, engine.ranks)
        engine.ranks.barrier()
        trainer = make_trainer(config, folder, engine, console, initial, fresh=True)
        config.exp_dir = str(wanted)
        try:
            yield trainer
        finally:
            for stream in trainer.streams.values():
                stream.close()
        engine.ranks.barrier()


@dataclass(frozen=True)
class PhaseCost:
    """What a phase will take."""

    name: str
    updates: int
    seconds: float
    """Per update."""
    wait: float
    """Share of it that is spent waiting for data."""


def dry_run(config: ExperimentConfig, console: Console) -> float:
    """Try a run's config, data, memory and first updates; print what the whole of it will take.

    Returns:
        The estimate of the whole run's seconds.

    Raises:
        AsrkitError: for whatever would end the run before or in its first updates.
    """
    with trial(config, console) as trainer:
        rehearsed = rehearse_run(config, trainer)
        phases = [phase for phase in trainer.method.phases() if phase.length]
        # Phases that come again and again (an outer epoch's) are tried once.
        first = {phase.name: phase for phase in reversed(phases)}
        costs = {name: _measure(trainer, phase) for name, phase in reversed(first.items())}
        checkpoint_bytes = _checkpoint_bytes(trainer)
        validation = _validation_seconds(trainer, phases[-1])
        validations = _validations(phases, config.training.validate_every) if trainer.dev_batches else 0
        whole = sum(costs[phase.name].seconds * phase.length for phase in phases) + validations * validation
        if trainer.engine.ranks.is_first:
            totals = {name: sum(phase.length for phase in phases if phase.name == name) for name in costs}
            console.print(_data_table(trainer))
            console.print(_memory_table(rehearsed, trainer))
            console.print(_time_table(list(costs.values()), totals, validations, validation, whole))
            _print_disk(console, config, checkpoint_bytes)
    return whole


def _validations(phases: Sequence[Phase], every: int) -> int:
    """Return how often a run looks at the dev sets: every so many updates, and at the end of phases that are milestones."""
    ends = accumulate(phase.length for phase in phases)
    milestones = [end for end, phase in zip(ends, phases, strict=True) if phase.milestone or phase is phases[-1]]
    return sum(phase.length for phase in phases) // every + sum(end % every > 0 for end in milestones)


def _measure(trainer: Trainer, phase: Phase) -> PhaseCost:
    trainer.enter(phase)
    sources = {name: iter(trainer.streams[name]) for name in phase.streams}
    trainer.phase_update = 0
    for _ in range(_WARM_UP):
        trainer.step(phase, sources)
    trainer.window = dict.fromkeys(trainer.window, 0)
    seconds = []
    for _ in range(_MEASURED):
        began = time.perf_counter()
        trainer.step(phase, sources)
        if trainer.engine.device.type == "cuda":
            torch.cuda.synchronize(trainer.engine.device)
        seconds.append(time.perf_counter() - began)
    wait = trainer.window["wait"] / max(trainer.window["seconds"], 1e-9)
    return PhaseCost(phase.name, phase.length, statistics.mean(seconds), wait)


def _validation_seconds(trainer: Trainer, phase: Phase) -> float:
    if not trainer.dev_batches:
        return 0.0
    clock = Clock(trainer.seed, trainer.update, phase.name, 0, 1)
    trainer.method.eval()
    device = trainer.engine.device
    began = time.perf_counter()
    with torch.inference_mode(), trainer.engine.autocast():
        trainer.method.validate(trainer.dev_batches[0].to(device), clock)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    # The first batch has the longest utterances; the others hold as much padded audio.
    return (time.perf_counter() - began) * len(trainer.dev_batches)


def _checkpoint_bytes(trainer: Trainer) -> int:
    with trainer.writer:
        trainer.save(best=False, finished=False)
    path = Checkpoints(trainer.exp_dir).named("last")
    if path is None:
        return 0
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def _data_table(trainer: Trainer) -> Table:
    table = Table(title="data", title_justify="left")
    table.add_column("stream")
    for heading in ("utterances", "hours per epoch", "updates per epoch", "micro-batches each"):
        table.add_column(heading, justify="right")
    for name, stream in trainer.streams.items():
        hours = f"{stream.seconds_per_epoch / 3600:,.2f}"
        cut = _micro_batches(stream)
        table.add_row(name, f"{len(stream):,}", hours, f"{stream.updates_per_epoch:,}", f"{cut:.1f}")
    return table


def _micro_batches(stream: Stream) -> float:
    plan = stream.plan(0)
    sample = range(0, plan.updates, max(1, plan.updates // _PLANNED))
    return statistics.mean(len(plan.micro_batches(update, stream.world_size)) for update in sample)


def _memory_table(rehearsed: Sequence[Rehearsed], trainer: Trainer) -> Table:
    device = trainer.engine.device
    table = Table(
        title=f"memory ({'GPU' if device.type == 'cuda' else 'this process, data included'})", title_justify="left"
    )
    table.add_column("phase")
    table.add_column("costliest batch")
    table.add_column("seconds", justify="right")
    table.add_column("GiB at most", justify="right")
    for one in rehearsed:
        table.add_row(one.phase, one.batches, f"{one.seconds:.2f}", f"{one.peak_bytes / 2**30:.2f}")
    table.add_row("the first updates", "", "", f"{peak_bytes(device) / 2**30:.2f}")
    return table


def _time_table(
    costs: Sequence[PhaseCost], updates: dict[str, int], validations: int, validation: float, whole: float
) -> Table:
    table = Table(title="time", title_justify="left")
    table.add_column("")
    for heading in ("times", "seconds each", "waiting for data", "in all"):
        table.add_column(heading, justify="right")
    for cost in costs:
        times = updates[cost.name]
        share = f"{cost.wait:.0%}"
        table.add_row(cost.name, f"{times:,}", f"{cost.seconds:.3f}", share, clock_text(times * cost.seconds))
    table.add_row("validation", f"{validations:,}", f"{validation:.3f}", "", clock_text(validations * validation))
    table.add_row("the run", "", "", "", clock_text(whole))
    return table


def _print_disk(console: Console, config: ExperimentConfig, checkpoint_bytes: int) -> None:
    folder = Path(config.exp_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    needed = checkpoint_bytes * (config.training.keep_checkpoints + 2)
    free = shutil.disk_usage(folder).free
    verdict = "" if needed < free else ": NOT ENOUGH"
    console.print(
        f"disk: checkpoints of {checkpoint_bytes / 2**20:,.1f} MiB, {needed / 2**30:,.2f} GiB in all; "
        f"{free / 2**30:,.1f} GiB are free in {folder}{verdict}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
