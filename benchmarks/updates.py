"""What benchmarks of training share: noise that costs what speech costs, and whole updates of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count, repeat

import numpy as np

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.step import Totals
from asrkit.data.batch import SAMPLE_RATE, Batch
from asrkit.data.collate import Example, collate
from asrkit.text.units import Units
from asrkit.training.engine import TrainingEngine
from asrkit.training.optimiser import Optimiser, OptimiserConfig

UNITS = Units(("<blank>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"))
UTTERANCE = 5.0
"""Mean seconds of an utterance; they are half to one and a half times as long."""
LABELS = 14
"""Characters per second of a transcript, as in LibriSpeech."""


def batch(seconds: float, seed: int) -> Batch:
    """Return noise of about so many seconds, with transcripts."""
    random = np.random.default_rng(seed)
    examples: list[Example] = []
    while seconds > 0:
        length = min(max(seconds, 1.0), UTTERANCE * random.uniform(0.5, 1.5))
        target = random.integers(2, len(UNITS), int(length * LABELS)).tolist()
        wave = random.standard_normal(int(length * SAMPLE_RATE)).astype(np.float32)
        examples.append(Example(f"{seed}-{len(examples)}", wave, target, ""))
        seconds -= length
    return collate(examples, epoch=0)


def utterances(lengths: Sequence[float], seed: int) -> Batch:
    """Return noise of so many seconds each, with transcripts."""
    random = np.random.default_rng(seed)
    examples = []
    for number, length in enumerate(lengths):
        wave = random.standard_normal(int(length * SAMPLE_RATE)).astype(np.float32)
        target = random.integers(2, len(UNITS), int(length * LABELS)).tolist()
        examples.append(Example(f"{seed}-{number}", wave, target, ""))
    return collate(examples, epoch=0)


def update(
    method: Method,
    batches: Mapping[str, Sequence[Batch]],
    engine: TrainingEngine,
    phase: str = "",
    *,
    optimiser_config: OptimiserConfig | None = None,
    advance: bool = False,
) -> Callable[[], None]:
    """Return a function that does one update of the phase of a name, or of the method's last.

    Args:
        method: what is trained.
        batches: micro-batches by stream, the same ones in every update.
        engine: device and precision.
        phase: its name.
        optimiser_config: None for asrkit's defaults.
        advance: let the clock move on from update to update, so that LayerDrop draws anew in each.
    """
    phases = [one for one in method.phases() if not phase or one.name == phase]
    stretch = phases[-1]
    method.to(engine.device).train()
    optimiser = Optimiser(method, optimiser_config or OptimiserConfig())
    ready = {name: [one.to(engine.device) for one in several] for name, several in batches.items()}
    optimiser.enter(stretch)

    numbers = count(10) if advance else repeat(10)

    def run() -> None:
        number = next(numbers)
        clock = Clock(1, number, stretch.name, number, 1000)
        stretch.step.run(method, ready, clock, engine, Totals({}))
        optimiser.update(stretch, number, engine)
        method.after_update(clock, engine)

    return run
