"""Terms of an objective, and the ratios that are logged.

What is minimised is the sum over terms of weight * sum / global count, where the count is taken over all micro-batches and
ranks of an update. It is known before the forward pass that is differentiated (`Prepared.counts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One additive part of an objective on one micro-batch."""

    sum: Tensor
    """The micro-batch's sum, a scalar in float32 that carries the gradient."""
    weight: float = 1.0
    """What the term is multiplied with."""


@dataclass(frozen=True)
class Ratio:
    """A figure for the log: Σ numerator / Σ denominator over micro-batches, ranks and updates."""

    numerator: Tensor | float
    """Scalar, without gradient."""
    denominator: Tensor | float
    """Scalar, without gradient."""


@dataclass(frozen=True)
class Prepared:
    """What `Method.prepare` fixes for a micro-batch before the differentiated forward pass."""

    draws: Any
    """Masks, negatives, noise, pseudo-labels: whatever the losses need and must not draw themselves."""
    counts: Mapping[str, Tensor]
    """The denominator of each term, by the term's name: scalars on the device."""


@dataclass(frozen=True)
class Losses:
    """What `Method.losses` returns for a micro-batch."""

    terms: Mapping[str, Term]
    """By name; each name has its count in `Prepared.counts`."""
    metrics: Mapping[str, Ratio] = field(default_factory=dict)
    """Figures for the log, by name."""
