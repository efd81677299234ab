"""The penalty γ of bilevel training over time.

Source: Shen and Chen 2023 (arXiv 2302.05185) for the penalty; "linear from 0, +0.002 per epoch, at most 1" is how the
authors' code of BL-JUST (Saif et al. 2024, arXiv 2401.06980) raises it. The other courses are asrkit's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from asrkit.errors import AsrkitError, nearest

COURSES = ("linear", "capped", "constant", "cosine")
UNITS = ("epoch", "update")


@dataclass
class PenaltyConfig:
    """γ as a function of t, the outer epochs or joint updates done before."""

    name: str = "capped"
    """linear: start + slope t; capped: the same up to maximum; constant: start; cosine: from start to maximum."""
    by: str = "epoch"
    """epoch (outer epochs) or update (joint updates): what t counts."""
    start: float = 0.0
    """γ at t = 0."""
    slope: float = 0.002
    """linear and capped: what an outer epoch, or a joint update, adds."""
    maximum: float = 1.0
    """capped: where γ stops growing; cosine: γ in the last outer epoch, or at the last joint update."""

    def __post_init__(self) -> None:
        if self.name not in COURSES:
            raise AsrkitError(f"gamma.name is '{self.name}'", mend=nearest(self.name, COURSES))
        if self.by not in UNITS:
            raise AsrkitError(f"gamma.by is '{self.by}'", mend=nearest(self.by, UNITS))
        for key in ("start", "slope", "maximum"):
            if getattr(self, key) < 0:
                raise AsrkitError(f"gamma.{key} is {getattr(self, key)}", mend="0 or more")
        if self.name in ("capped", "cosine") and self.maximum < self.start:
            raise AsrkitError(f"gamma.maximum {self.maximum} is below gamma.start {self.start}")


def penalty(config: PenaltyConfig, done: int, total: int) -> float:
    """Return γ.

    Args:
        config: its course.
        done: outer epochs or joint updates before this one, whichever the course counts.
        total: how many of them there are.
    """
    if config.name == "constant":
        return config.start
    if config.name == "cosine":
        share = min(done / max(total - 1, 1), 1.0)
        return config.start + (config.maximum - config.start) * 0.5 * (1.0 - math.cos(math.pi * share))
    value = config.start + config.slope * done
    return min(value, config.maximum) if config.name == "capped" else value
