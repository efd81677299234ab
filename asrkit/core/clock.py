"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Where a run stands when an update is computed."""

    seed: int
    """The run's seed: with an utterance's key and the epoch it fixes every random draw."""
    update: int
    """Updates done before this one, over all phases."""
    phase: str
    """The phase's name."""
    phase_update: int
    """Updates done before this one within the phase."""
    phase_updates: int
    """Updates that the phase will take."""

    @property
    def progress(self) -> float:
        """Share of the phase that is done, in [0, 1)."""
        return self.phase_update / max(self.phase_updates, 1)
