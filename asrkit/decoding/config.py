"""Settings of beam search, the same for every decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

from asrkit.errors import AsrkitError


@dataclass(frozen=True)
class BeamConfig:
    """How wide to search, and how much the language model weighs."""

    beam: int = 100
    """Prefixes that are kept after each frame."""
    lm_weight: float = 2.0
    """Weight of the language model's log10 probability against the natural log of the CTC probability, as in
    flashlight and the weights published for it."""
    word_score: float = 0.0
    """Added per word: positive values favour more and shorter words."""
    nbest: int = 1
    """Readings that are returned."""
    threshold: float = 50.0
    """Prefixes whose score is so much below the best one's are dropped."""
    token_floor: float = -12.0
    """Units with a lower log-probability in a frame are not tried there (built-in decoder)."""

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise AsrkitError(f"a beam of {self.beam}", mend="1 or more")
        if self.nbest < 1:
            raise AsrkitError(f"nbest is {self.nbest}", mend="1 or more")
        if not (math.isfinite(self.lm_weight) and math.isfinite(self.word_score)):
            raise AsrkitError(f"weights are {self.lm_weight} and {self.word_score}", mend="finite numbers")
        if self.lm_weight < 0:
            raise AsrkitError(f"the language model's weight is {self.lm_weight}", mend="0 or more")
