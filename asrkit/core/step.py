"""How losses become gradients.

A Step alone calls backward and reduces over ranks. It leaves in `.grad` the direction that the optimiser takes. Another way of
making a direction (inner loops, per-task gradients) is another Step; the loop does not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from asrkit.core.clock import Clock
from asrkit.core.term import Prepared, Ratio
from asrkit.data.batch import Batch

if TYPE_CHECKING:
    from asrkit.core.method import Method


class Engine(Protocol):
    """What a Step is lent by the training floor."""

    @property
    def world_size(self) -> int:
        """Number of processes that train together."""
        ...

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forward passes run at the run's precision."""
        ...

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss as backward should see it (fp16's loss scale; otherwise unchanged)."""
        ...

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        """Add each tensor over all ranks, in place, in flat buckets."""
        ...

    def gather(self, thing: Any) -> list[Any]:
        """Return every rank's ``thing``, in the order of ranks: small Python objects, not tensors."""
        ...


@dataclass
class Totals:
    """Sums of numerators and denominators by metric name, kept on the device until they are logged."""

    values: dict[str, tuple[Tensor | float, Tensor | float]]

    def add(self, metrics: Mapping[str, Ratio]) -> None:
        """Add a micro-batch's figures."""
        for name, ratio in metrics.items():
            numerator, denominator = self.values.get(name, (0.0, 0.0))
            self.values[name] = (numerator + ratio.numerator, denominator + ratio.denominator)


class Step(Protocol):
    """Turns one update's micro-batches into gradients."""

    def run(
        self,
        method: Method,
        micro_batches: Mapping[str, Sequence[Batch]],
        clock: Clock,
        engine: Engine,
        totals: Totals,
    ) -> None:
        """Leave the update's direction in `.grad` of the parameters that require it; add figures to ``totals``.

        Args:
            method: in training mode; parameters outside the phase's groups have requires_grad off.
            micro_batches: this rank's share of the update, by stream; a rank may have none.
            clock: where the run stands.
            engine: precision and reduction.
            totals: this rank's figures; the loop reduces them when it logs.
        """
        ...


class Accumulate:
    """One backward pass per micro-batch, each graph freed at once, one reduction over ranks at the end."""

    def run(
        self,
        method: Method,
        micro_batches: Mapping[str, Sequence[Batch]],
        clock: Clock,
        engine: Engine,
        totals: Totals,
    ) -> None:
        """See `Step.run`."""
        ready = Ready.make(method, micro_batches, clock, engine, totals)
        for stream in micro_batches:
            ready.backward(stream, totals)
        reduce_gradients(method, engine)


@dataclass(frozen=True)
class Ready:
    """An update that is prepared on every rank: what is left is one backward pass per micro-batch, stream by stream."""

    method: Method
    micro_batches: Mapping[str, Sequence[Batch]]
    clock: Clock
    engine: Engine
    prepared: Mapping[str, Sequence[Prepared]]
    """What `Method.prepare` fixed, by stream, one for each micro-batch."""
    counts: Mapping[tuple[str, str], Tensor]
    """The terms' counts over all micro-batches and ranks, by (stream, term)."""

    @classmethod
    def make(
        cls,
        method: Method,
        micro_batches: Mapping[str, Sequence[Batch]],
        clock: Clock,
        engine: Engine,
        totals: Totals,
    ) -> Ready:
        """Prepare every micro-batch and add the terms' counts over ranks; the arguments are those of `Step.run`."""
        prepared: dict[str, list[Prepared]] = {}
        for stream, batches in micro_batches.items():
            with torch.no_grad(), engine.autocast():
                prepared[stream] = [method.prepare(stream, batch, clock) for batch in batches]
        counts = global_counts(prepared, method, engine)
        # Every rank brings its share of the update, one without audio too.
        totals.add({"loss": Ratio(0.0, 1.0 / engine.world_size)})
        return cls(method, micro_batches, clock, engine, prepared, counts)

    def backward(self, stream: str, totals: Totals, weight: float = 1.0) -> None:
        """Add this rank's gradient of a stream's terms to `.grad`, each graph freed at once; figures go to ``totals``.

        ``weight`` is what the stream's whole objective is multiplied with.
        """
        for batch, ready in zip(self.micro_batches[stream], self.prepared[stream], strict=True):
            with self.engine.autocast():
                losses = self.method.losses(stream, batch, ready.draws, self.clock)
            objective = torch.zeros((), device=self.method.device)
            for name, term in losses.terms.items():
                # The clamp keeps an update without a single masked frame or label at zero instead of 0/0.
                share = term.sum / self.counts[stream, name].clamp(min=1e-8)
                objective = objective + weight * term.weight * share
                totals.add({name: Ratio(term.sum.detach(), ready.counts[name])})
            if objective.requires_grad:
                self.engine.scale(objective).backward()
            totals.add({"loss": Ratio(objective.detach(), 0.0), **losses.metrics})


def global_counts(
    prepared: Mapping[str, Sequence[Prepared]], method: Method, engine: Engine
) -> dict[tuple[str, str], Tensor]:
    """Return the terms' counts over all micro-batches and ranks, by (stream, term): one small reduction per update."""
    names = [(stream, term) for stream in prepared for term in method.terms(stream)]
    totals = torch.zeros(len(names), dtype=torch.float64, device=method.device)
    for place, (stream, term) in enumerate(names):
        for ready in prepared[stream]:
            totals[place] += ready.counts[term]
    engine.reduce([totals])
    return {name: totals[place].float() for place, name in enumerate(names)}


def reduce_gradients(method: Method, engine: Engine) -> None:
    """Add gradients over ranks. A parameter without gradient on every rank keeps None, as it would in one process."""
    parameters = [p for p in method.parameters() if p.requires_grad]
    if engine.world_size == 1 or not parameters:
        return
    present = torch.tensor([float(p.grad is not None) for p in parameters], device=method.device)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    engine.reduce([present, *(p.grad for p in parameters if p.grad is not None)])
    for parameter, ranks in zip(parameters, present.tolist(), strict=True):
        if ranks == 0:
            parameter.grad = None
