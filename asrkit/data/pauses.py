"""Where to cut a long recording: at its quietest moments.

Shapes: F energy frames of 10 ms.
"""

from __future__ import annotations

import numpy as np

FRAMES_PER_SECOND = 100
_PAUSE_FRAMES = 20


def cut_at_pauses(energy: np.ndarray, hop: int, start: int, end: int, longest: int) -> list[int]:
    """Cut the samples [start, end) into pieces of at most ``longest`` and return each piece's end.

    ``energy`` (F,) is the mean square of each ``hop`` samples of the whole recording. Each cut is made in the middle
    of the quietest 0.2 s between half of ``longest`` and ``longest`` behind the cut before, and so that what remains
    is not shorter than half of ``longest`` either: no piece is. The pieces tile the stretch, and no sample is lost.
    """
    quiet = _smooth(energy)
    ends: list[int] = []
    while end - start > longest:
        low = start + longest // 2
        high = min(start + longest, end - longest // 2)
        first = -(-low // hop)
        last = min(high // hop, len(quiet) - 1)
        # Frame boundaries within the window; a window narrower than a frame leaves only its own limits.
        start = hop * (first + int(np.argmin(quiet[first : last + 1]))) if first <= last else high
        ends.append(start)
    return [*ends, end]


def _smooth(energy: np.ndarray) -> np.ndarray:
    """Return the mean energy around the beginning of each frame, shape (F,), the sums in float64."""
    half = _PAUSE_FRAMES // 2
    sums = np.concatenate([[0.0], np.cumsum(energy, dtype=np.float64)])
    at = np.arange(len(energy))
    low, high = np.maximum(at - half, 0), np.minimum(at + half, len(energy))
    return (sums[high] - sums[low]) / np.maximum(high - low, 1)
