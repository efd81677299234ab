"""A stretch of training with one set of streams, schedules and one Step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asrkit.core.schedule import Schedule
from asrkit.core.step import Step
from asrkit.errors import AsrkitError


@dataclass(frozen=True)
class Phase:
    """A stretch of training."""

    name: str
    """Shown in the progress bar and the log; methods tell phases apart by it."""
    length: int
    """In updates."""
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
        if self.length < 0:
            raise AsrkitError(f"phase '{self.name}' has {self.length} updates", mend="0 or more")
