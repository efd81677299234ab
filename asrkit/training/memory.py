"""What to do when memory runs out: the same update again in smaller pieces, and beforehand, a rehearsal of the costliest ones.

The terms' counts are known before any gradient is taken and are summed over all micro-batches, so that an update's gradient is
the same however it is cut into micro-batches. (Exempt are what is defined on a micro-batch: wav2vec 2.0's diversity term, masks
with `batch_minimum` and batch norm; and dropout, which is drawn for each piece anew.)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.step import Engine, Step, Totals
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError

log = logging.getLogger("asrkit.training")

MicroBatches = Mapping[str, Sequence[Batch]]

_SMALL = 1 << 16
"""Numbers in a reduction up to which its result is kept: counts are that few, gradients are more."""


class MemoryGuard:
    """Runs Steps. One that runs out of memory is run again with its micro-batches in halves, on this rank alone."""

    def __init__(self) -> None:
        self.halved = 0
        """How often an update was begun again since this was set to 0."""
        self.failed: int | None = None
        """Samples of the smallest micro-batch that did not fit; such are cut beforehand."""

    def run(
        self,
        step: Step,
        method: Method,
        micro_batches: MicroBatches,
        clock: Clock,
        engine: Engine,
        what: str = "",
    ) -> Totals:
        """Run the step and return its figures; the other arguments are those of `Step.run`.

        Args:
            what: how messages call the update; its number if empty.

        Raises:
            AsrkitError: if an utterance alone does not fit, or the step cannot be repeated.
        """
        what = what or f"update {clock.update}"
        again = _Again(engine)
        batches = {name: self._cut(each) for name, each in micro_batches.items()}
        while True:
            totals = Totals({})
            try:
                step.run(method, batches, clock, again, totals)
                return totals
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                problem = str(error).strip().splitlines()[0]
            # Out here, the error's traceback no longer holds on to what the step had allocated.
            for parameter in method.parameters():
                parameter.grad = None
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            batches = self._halve(batches, what, problem, again)

    def _cut(self, batches: Sequence[Batch]) -> list[Batch]:
        if self.failed is None:
            return list(batches)
        return [part for batch in batches for part in _until_below(batch, self.failed)]

    def _halve(self, batches: dict[str, list[Batch]], what: str, problem: str, again: _Again) -> dict[str, list[Batch]]:
        largest = max((batch.waves.numel() for each in batches.values() for batch in each), default=0)
        parts = {
            name: [p for batch in each for p in _until_below(batch, largest // 2 + 1)] for name, each in batches.items()
        }
        if not again.possible or all(len(parts[name]) == len(batches[name]) for name in batches):
            mend = "an utterance does not fit: see the stream's max_seconds and crop_seconds"
            if not again.possible:
                mend = "lower data.batch_seconds: the result stays the same"
            raise AsrkitError(f"out of memory, {what}: {problem}", mend=mend)
        self.failed = min(largest, self.failed or largest)
        self.halved += 1
        again.rewind()
        log.warning(
            "%s: out of memory (%s); micro-batches of %d samples and more are computed in halves from now on: "
            "the result is the same, a lower data.batch_seconds would be faster",
            what, problem, self.failed,
        )  # fmt: skip
        return parts


class _Again:
    """An engine for a Step that may have to be run again: what all ranks have exchanged already is not exchanged twice."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.possible = True
        """Whether the step has not got so far yet that it cannot be run again."""
        self._known: list[list[Any]] = []
        self._place = 0

    def rewind(self) -> None:
        """Begin again."""
        self._place = 0

    @property
    def world_size(self) -> int:
        return self.engine.world_size

    def autocast(self) -> AbstractContextManager[object]:
        return self.engine.autocast()

    def scale(self, loss: Tensor) -> Tensor:
        return self.engine.scale(loss)

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        if self.world_size == 1:
            self.engine.reduce(tensors)
            return
        if self._place < len(self._known):
            for tensor, total in zip(tensors, self._next(), strict=True):
                tensor.copy_(total)
            return
        if sum(tensor.numel() for tensor in tensors) > _SMALL:
            self.possible = False
        self.engine.reduce(tensors)
        if self.possible:
            self._note([tensor.clone() for tensor in tensors])

    def gather(self, thing: Any) -> list[Any]:
        if self._place < len(self._known):
            return self._next()
        found = self.engine.gather(thing)
        self._note(found)
        return found

    def _next(self) -> list[Any]:
        self._place += 1
        return self._known[self._place - 1]

    def _note(self, found: list[Any]) -> None:
        self._known.append(found)
        self._place += 1


def out_of_memory(error: RuntimeError) -> bool:
    """Whether this is one of the ways in which torch says that memory has run out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return any(part in text for part in ("can't allocate memory", "ALLOC_FAILED", "out of memory"))


def _until_below(batch: Batch, samples: int) -> list[Batch]:
    """Return the batch cut in halves, and these again, until a piece has less than so many samples or one utterance."""
    rows = len(batch.ids)
    if batch.waves.numel() < samples or rows == 1:
        return [batch]
    halves = (range(rows // 2), range(rows // 2, rows))
    return [part for half in halves for part in _until_below(batch.rows(half), samples)]
