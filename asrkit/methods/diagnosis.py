"""A joint update whose two gradients are measured apart before they are added.

Shapes: all gradients have their parameters' shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.step import Accumulate, Engine, Ready, Step, Totals, reduce_gradients
from asrkit.core.term import Ratio
from asrkit.data.batch import Batch
from asrkit.methods.joint import THETA, JointMethod


@dataclass(frozen=True)
class Diagnose:
    """`Accumulate`, but in some updates the streams' gradients are kept apart, measured, and added afterwards.

    The unlabelled stream's backward pass then runs with γ left out, so that its gradient on θ is known at γ = 0 too; γ
    comes in when the two are added. Metrics, means over the measured updates: grad_norm_sup and grad_norm_unsup, the norms
    on θ of ∇L_sup and ∇L_unsup, and grad_cosine, the cosine of the angle between them. They cost a copy of θ's gradient and a
    reduction over ranks of their own.
    """

    every: int
    """Joint updates from one measurement to the next."""

    def run(
        self,
        method: Method,
        micro_batches: Mapping[str, Sequence[Batch]],
        clock: Clock,
        engine: Engine,
        totals: Totals,
    ) -> None:
        """See `Step.run`."""
        assert isinstance(method, JointMethod)
        if method.joint_update(clock) % self.every:
            Accumulate().run(method, micro_batches, clock, engine, totals)
            return
        ready = Ready.make(method, micro_batches, clock, engine, totals)
        gradients = {}
        with method.gradients_apart():
            for stream in micro_batches:
                ready.backward(stream, totals)
                # What is measured are the gradients of the whole update, not a rank's share.
                reduce_gradients(method, engine)
                gradients[stream] = _take(method)
        groups = method.groups()
        theta = [parameter for name in THETA for parameter in groups.get(name, ())]
        supervised, unsupervised = gradients["labelled"], gradients["unlabelled"]
        scale = engine.scale(torch.ones((), dtype=torch.float64, device=method.device))
        totals.add(_figures(theta, supervised, unsupervised, scale, method.weight))
        gamma = method.gamma(clock)
        on_theta = set(theta)
        for parameter in method.parameters():
            factor = gamma if parameter in on_theta else 1.0
            parameter.grad = _sum(supervised.get(parameter), unsupervised.get(parameter), factor)


def joint_step(every: int) -> Step:
    """Return the step of a joint phase that measures every so many updates; 0 never measures."""
    return Diagnose(every) if every else Accumulate()


def _take(method: Method) -> dict[Tensor, Tensor]:
    """Return the gradients that there are, by parameter, and leave none behind."""
    taken: dict[Tensor, Tensor] = {}
    for parameter in method.parameters():
        if parameter.grad is not None:
            taken[parameter] = parameter.grad
            parameter.grad = None
    return taken


def _sum(one: Tensor | None, other: Tensor | None, factor: float) -> Tensor | None:
    """Return one + factor * other in place; with factor 0 the other is as good as absent, as in a backward pass."""
    if other is None or factor == 0.0:
        return one
    other = other.mul_(factor)
    return other if one is None else one.add_(other)


def _figures(
    theta: Sequence[Tensor],
    supervised: Mapping[Tensor, Tensor],
    unsupervised: Mapping[Tensor, Tensor],
    scale: Tensor,
    weight: float,
) -> dict[str, Ratio]:
    """Return norms and cosine; gradients carry fp16's loss scale, the unsupervised ones the loss's weight too."""
    squares, others, products = (torch.zeros((), dtype=torch.float64, device=scale.device) for _ in range(3))
    for parameter in theta:
        one, other = supervised.get(parameter), unsupervised.get(parameter)
        if one is not None:
            squares += one.double().square().sum()
        if other is not None:
            others += other.double().square().sum()
        if one is not None and other is not None:
            products += (one.double() * other.double()).sum()
    norm, other_norm = squares.sqrt(), others.sqrt()
    cosine = products / (norm * other_norm).clamp(min=torch.finfo(torch.float64).tiny)
    return {
        "grad_norm_sup": Ratio(norm / scale, 1.0),
        "grad_norm_unsup": Ratio(other_norm / (scale * weight), 1.0),
        "grad_cosine": Ratio(cosine, 1.0),
    }
