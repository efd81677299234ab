"""Long recordings as overlapping windows, whose frames are stitched to one sequence.

Neighbouring windows share twice a context; of the shared frames each window gives up the half at its edge, where it has
not heard enough of what comes before or after. Windows begin at whole frames, so that where an encoder hears no
farther than the context, the stitched frames equal those of the whole recording.

Shapes: S samples, T frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from asrkit.errors import AsrkitError

CHUNK_SECONDS = 30.0
"""About the longest utterance that models are trained on."""
CONTEXT_SECONDS = 3.0

_Frames = TypeVar("_Frames", bound=np.ndarray)


@dataclass(frozen=True)
class Window:
    """A stretch of a recording."""

    wave: np.ndarray
    """Audio, float32 (S,)."""
    first: int
    """The first of the window's frames that is kept."""
    end: int | None
    """The frame behind the last that is kept; None keeps all to the end."""

    def keep(self, frames: _Frames) -> _Frames:
        """Return what of the window's frames (T, …) goes into the recording's."""
        return frames[self.first : self.end]  # type: ignore[return-value]


@dataclass(frozen=True)
class Chunking:
    """How recordings are divided."""

    frame_samples: int
    """Samples from one encoder frame to the next."""
    chunk: int
    """Frames of a window."""
    context: int
    """Frames at each edge that belong to a neighbour; none at a recording's own ends."""

    @classmethod
    def of(cls, frame_samples: int, sample_rate: int, chunk_seconds: float, context_seconds: float) -> Chunking:
        """Return the chunking in frames.

        Raises:
            AsrkitError: if the contexts leave nothing of a chunk.
        """
        rate = sample_rate / frame_samples
        # The last frames of a window lack samples behind its end: a context of none would lose them.
        chunking = cls(frame_samples, round(chunk_seconds * rate), max(2, round(context_seconds * rate)))
        if chunking.chunk <= 2 * chunking.context:
            what = f"chunks of {chunk_seconds:g} s with {context_seconds:g} s of context on both sides"
            raise AsrkitError(what, mend=f"chunks longer than {2 * chunking.context / rate:g} s")
        return chunking

    def windows(self, blocks: Iterable[np.ndarray]) -> Iterator[Window]:
        """Divide a recording that comes in blocks (any sizes); one no longer than a chunk is one window."""
        size = self.chunk * self.frame_samples
        hop = size - 2 * self.context * self.frame_samples
        waiting = np.zeros(0, np.float32)
        first = 0
        for block in blocks:
            waiting = np.concatenate([waiting, block])
            # Only what follows shows that a window is not the last.
            while len(waiting) > size:
                yield Window(waiting[:size].copy(), first, self.chunk - self.context)
                waiting, first = waiting[hop:], self.context
        if len(waiting):
            yield Window(waiting, first, None)
