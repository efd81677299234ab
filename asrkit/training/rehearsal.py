"""The costliest batches before training: a run that would end for lack of memory after a night ends at once.

A copy of the model that is thrown away afterwards goes forward and backward on noise of the size of the longest and of the
fullest micro-batch of each phase, with the labels of the utterance that has most. The run itself is not touched.
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.phase import Phase
from asrkit.data.batch import SAMPLE_RATE, Batch
from asrkit.data.stream import Stream
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine
from asrkit.training.generators import undisturbed
from asrkit.training.memory import MemoryGuard

log = logging.getLogger("asrkit.training")


@dataclass(frozen=True)
class Rehearsed:
    """What a phase's costliest micro-batch took."""

    phase: str
    """The phase's name."""
    batches: str
    """The micro-batch of each stream, such as ``labelled 12 x 16.7 s``."""
    seconds: float
    """Forward and backward."""
    peak_bytes: int
    """Most memory in use: of the GPU, or of this process."""


def rehearse(
    build: Callable[[], Method],
    streams: Mapping[str, Stream],
    engine: TrainingEngine,
    memory: MemoryGuard,
    moments: bool = True,
) -> list[Rehearsed]:
    """Run the costliest micro-batches of every phase.

    Args:
        build: makes the run's method anew, on the device.
        streams: the run's streams.
        engine: the run's engine.
        memory: cuts what does not fit, and will cut the like in the run.
        moments: whether to hold the memory of the optimiser's moments too.

    Raises:
        AsrkitError: if an utterance alone does not fit.
    """
    found: list[Rehearsed] = []
    with undisturbed(engine.device):
        method = build()
        method.rehearse()
        held = _moments(method, engine.device) if moments else None
        known = set()
        for phase in method.phases():
            kind = (phase.name, phase.streams, tuple(phase.schedules))
            # Phases that come again and again (an outer epoch's) are tried once.
            if phase.length and kind not in known:
                known.add(kind)
                found += _rehearse_phase(method, phase, streams, engine, memory)
        del method, held
        if engine.device.type == "cuda":
            torch.cuda.empty_cache()
    memory.halved = 0
    return found


def _rehearse_phase(
    method: Method,
    phase: Phase,
    streams: Mapping[str, Stream],
    engine: TrainingEngine,
    memory: MemoryGuard,
) -> list[Rehearsed]:
    for name, parameters in method.groups().items():
        for parameter in parameters:
            parameter.requires_grad_(name in phase.schedules)
    # Each rank tries what it may get, without waiting for the others.
    alone = TrainingEngine(engine.device, engine.precision, Ranks())
    clock = Clock(0, 0, phase.name, 0, phase.length)
    found = []
    for kinds in zip(*(streams[name].costliest() for name in phase.streams), strict=True):
        batches = {name: [batch] for name, batch in zip(phase.streams, kinds, strict=True)}
        _synchronise(engine.device)
        began = time.perf_counter()
        memory.run(phase.step, method.train(), batches, clock, alone, "rehearsal")
        _synchronise(engine.device)
        seconds = time.perf_counter() - began
        for parameter in method.parameters():
            parameter.grad = None
        found.append(Rehearsed(phase.name, _names(batches), seconds, peak_bytes(engine.device)))
    return found


def tell(found: Sequence[Rehearsed], device: torch.device) -> None:
    """Log the most memory that a rehearsal took."""
    most = max(found, key=lambda one: one.peak_bytes)
    room = f" of {torch.cuda.get_device_properties(device).total_memory / 2**30:.1f}" if device.type == "cuda" else ""
    log.info("memory: %.1f%s GiB at most (%s: %s)", most.peak_bytes / 2**30, room, most.phase, most.batches)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that has been in use on a GPU, or else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _moments(method: Method, device: torch.device) -> torch.Tensor | None:
    """Hold the memory that the optimiser's pairs of moments will take; the copy of the model itself stands for one of them."""
    if device.type != "cuda":
        return None
    moments = 2 * len({phase.moments for phase in method.phases()})
    size = sum(p.numel() * p.element_size() for p in method.parameters())
    return torch.empty((moments - 1) * size, dtype=torch.uint8, device=device)


def _names(batches: Mapping[str, Sequence[Batch]]) -> str:
    sizes = {name: (len(each[0].ids), each[0].waves.shape[1] / SAMPLE_RATE) for name, each in batches.items()}
    return ", ".join(f"{name} {rows} x {seconds:.1f} s" for name, (rows, seconds) in sizes.items())
