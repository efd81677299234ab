"""When the words of a known unit sequence are spoken: the best CTC path through it (Viterbi).

Shapes: T frames, V units (with blank), L units of the sequence.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torchaudio.functional import forced_align

from asrkit.errors import AsrkitError

_MOST_STATES = 4_000_000_000
"""Frames times states of the alignment, a byte each."""
_RULED_OUT = -1e4


@dataclass(frozen=True)
class Word:
    """A word in time."""

    text: str
    """The word."""
    start: float
    """Seconds from the beginning of the utterance to the first frame of its first unit."""
    end: float
    """Seconds to the end of the last frame of its last unit."""
    confidence: float
    """Between 0 and 1: the geometric mean over its units of each unit's highest posterior among its frames."""

    @classmethod
    def of(cls, text: str, start: float, end: float, peaks: Sequence[float]) -> Word:
        """Return a word, given its times in seconds and each unit's highest log-probability; figures are rounded."""
        confidence = min(1.0, float(np.exp(np.mean(peaks))))
        return cls(text, round(float(start), 3), round(float(end), 3), round(confidence, 4))


def align(log_probs: np.ndarray, sequence: Sequence[int], blank: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames of each unit on the most probable path that collapses to ``sequence``, and the path's scores.

    Args:
        log_probs: natural log-probabilities, float32 (T, V).
        sequence: L unit indices, no blank among them.
        blank: index of the blank.

    Returns:
        First frame and frame behind the last of each unit, int64 (L, 2); log-probability of each frame's unit, (T,).

    Raises:
        AsrkitError: if there are too few frames for the sequence, T < L + its direct repeats, or both are too long for the memory.
    """
    frames, length = len(log_probs), len(sequence)
    if frames < length + sum(a == b for a, b in pairwise(sequence)):
        raise AsrkitError(
            f"{frames} frames of audio are too few for {length} units", mend="does the text belong to it?"
        )
    if frames * (2 * length + 1) > _MOST_STATES:
        raise AsrkitError(f"{frames} frames and {length} units are too much to align at once", mend="cut the recording")
    if length == 0:
        return np.zeros((0, 2), np.int64), np.ascontiguousarray(log_probs[:, blank])
    # A score of minus infinity (a unit ruled out) must not make all paths equal.
    emissions = torch.from_numpy(np.maximum(log_probs, _RULED_OUT, dtype=np.float32))
    with warnings.catch_warnings():
        # torchaudio 2.9 announced this function's end and later took that back (pytorch/audio pull request 4147).
        warnings.simplefilter("ignore")
        path, scores = forced_align(emissions[None], torch.tensor([list(sequence)]), blank=blank)
    units = path[0].numpy()
    edges = np.flatnonzero(np.diff(units)) + 1
    bounds = [0, *edges.tolist(), frames]
    spans = [(begin, end) for begin, end in pairwise(bounds) if units[begin] != blank]
    return np.array(spans, dtype=np.int64), scores[0].numpy()


def time_words(
    texts: Sequence[str],
    sequence: Sequence[int],
    spans: Sequence[tuple[int, int]],
    log_probs: np.ndarray,
    *,
    blank: int,
    frame_rate: float,
) -> tuple[Word, ...]:
    """Return words with times and confidences.

    Args:
        texts: the words.
        sequence: the units of all words, as for `align`.
        spans: each word's half-open range in ``sequence``.
        log_probs: natural log-probabilities, (T, V).
        blank: index of the blank.
        frame_rate: frames per second.

    Raises:
        AsrkitError: as `align`.
    """
    frames, _ = align(log_probs, sequence, blank)
    peaks = [float(log_probs[a:b, unit].max()) for unit, (a, b) in zip(sequence, frames, strict=True)]
    words = []
    for text, (begin, end) in zip(texts, spans, strict=True):
        times = frames[begin, 0] / frame_rate, frames[end - 1, 1] / frame_rate
        words.append(Word.of(text, *times, peaks[begin:end]))
    return tuple(words)
