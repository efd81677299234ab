"""Learning-rate schedules: the rate as a function of the phase's update.

Sources: tri-stage is Baevski et al. 2020, section 4.3, with the exponential decay of fairseq's code (its docstring's formula
differs); polynomial decay is the schedule of fairseq's wav2vec 2.0 pre-training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from asrkit.errors import AsrkitError, nearest

SCHEDULES = ("constant", "polynomial", "tri_stage", "cosine")


@dataclass
class ScheduleConfig:
    """How the learning rate moves over a phase."""

    learning_rate: float = 5e-5
    """The peak rate."""
    name: str = "tri_stage"
    """constant, polynomial, tri_stage or cosine."""
    warmup: float = 0.1
    """Share of the updates in which the rate rises linearly."""
    hold: float = 0.4
    """tri_stage: share of the updates at the peak; the rest is decay."""
    initial_scale: float = 0.01
    """Factor of the peak rate at the first update."""
    final_scale: float = 0.05
    """Factor of the peak rate at the last update (polynomial: 0 in wav2vec 2.0)."""
    power: float = 1.0
    """polynomial: exponent of the decay; 1 is linear."""

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise AsrkitError(f"schedule.learning_rate is {self.learning_rate}", mend="0 or more")
        if self.name not in SCHEDULES:
            raise AsrkitError(f"unknown schedule '{self.name}'", mend=nearest(self.name, SCHEDULES))
        if self.warmup < 0 or self.hold < 0:
            raise AsrkitError("schedule.warmup and schedule.hold are shares of the updates: 0 or more")
        # The sum is compared with a tolerance: an exact float test refuses [0.3, 0.6, 0.1].
        if self.warmup + (self.hold if self.name == "tri_stage" else 0.0) > 1 + 1e-9:
            raise AsrkitError("schedule.warmup + schedule.hold is more than 1", mend="lower one of them")
        if self.initial_scale < 0 or self.final_scale < 0:
            raise AsrkitError("schedule.initial_scale and schedule.final_scale are 0 or more")
        if self.name == "tri_stage" and self.final_scale == 0:
            raise AsrkitError(
                "schedule.final_scale is 0 under tri_stage", mend="its decay is exponential: use e.g. 0.05"
            )


@dataclass(frozen=True)
class Schedule:
    """A schedule over ``updates`` updates; ``offset`` are updates already done when the phase begins."""

    config: ScheduleConfig
    updates: int
    offset: int = 0

    def rate(self, phase_update: int) -> float:
        """Return the learning rate of the update number ``phase_update`` (from 0)."""
        return self.config.learning_rate * self.factor(phase_update)

    def factor(self, phase_update: int) -> float:
        """Return the factor of the peak rate for the update number ``phase_update`` (from 0)."""
        config, total = self.config, max(self.updates, 1)
        update = min(phase_update + self.offset, total)
        warmup = round(config.warmup * total)
        if update < warmup:
            return config.initial_scale + (1.0 - config.initial_scale) * update / warmup
        if config.name == "constant":
            return 1.0
        hold = round(config.hold * total) if config.name == "tri_stage" else 0
        if update < warmup + hold:
            return 1.0
        rest = total - warmup - hold
        done = (update - warmup - hold) / rest if rest > 0 else 1.0
        if config.name == "tri_stage":
            return math.exp(math.log(config.final_scale) * done)
        if config.name == "cosine":
            return config.final_scale + (1.0 - config.final_scale) * 0.5 * (1.0 + math.cos(math.pi * done))
        return config.final_scale + (1.0 - config.final_scale) * (1.0 - done) ** config.power
