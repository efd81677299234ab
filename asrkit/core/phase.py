"""A stretch of training with one set of streams, schedules and one Step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asrkit.core.schedule import Schedule
from asrkit.core.step import Step
from asrkit.errors import AsrkitError


@dataclass(frozen=True)
class Passes:
    """A length stated as passes over a stream."""

    stream: str
    """The stream's name."""
    count: float
    """How often the stream is gone through."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training."""

    name: str
    """Shown in the progress bar and the log; methods tell phases apart by it."""
    length: int | Passes
    """In updates, or in passes over a stream."""
    streams: tuple[str, ...]
    """The streams from which every update takes one update's worth of audio."""
    schedules: Mapping[str, Schedule]
    """Per parameter group; a group that is absent is left untouched (gradient None, no weight decay)."""
    step: Step
    """How losses become gradients."""
    moments: str = ""
    """Which set of the optimiser's moments it goes by: phases of the same name go on with what the last of them left."""
    milestone: bool = True
    """Validate and save when the phase ends; off suits phases that come by the hundred. A run's last phase does both."""

    def __post_init__(self) -> None:
        if isinstance(self.length, int) and self.length < 0:
            raise AsrkitError(f"phase '{self.name}' has {self.length} updates", mend="0 or more")

    def updates(self, updates_per_epoch: Mapping[str, int]) -> int:
        """Return the phase's length in updates, given each stream's updates per epoch."""
        if isinstance(self.length, int):
            return self.length
        return max(1, round(self.length.count * updates_per_epoch[self.length.stream]))
