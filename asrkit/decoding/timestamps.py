"""When the words of a known unit sequence are spoken: the best CTC path through it (Viterbi).

Shapes: T frames, V units (with blank), L units of the sequence.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asrkit.errors import AsrkitError


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


def align(log_probs: np.ndarray, sequence: Sequence[int], blank: int = 0) -> np.ndarray:
    """Return the frames of each unit on the most probable path that collapses to ``sequence``.

    Args:
        log_probs: natural log-probabilities, (T, V).
        sequence: L unit indices, without blanks.
        blank: index of the blank.

    Returns:
        First frame and the frame behind the last, int64 (L, 2).

    Raises:
        AsrkitError: if there are too few frames for the sequence: T < L + its direct repeats.
    """
    length = len(sequence)
    repeats = sum(a == b for a, b in itertools.pairwise(sequence))
    if len(log_probs) < length + repeats:
        raise AsrkitError(f"{length} units cannot be aligned with {len(log_probs)} frames")
    if length == 0:
        return np.zeros((0, 2), dtype=np.int64)
    # States: blank, unit, blank, unit, …, blank.
    labels = np.full(2 * length + 1, blank)
    labels[1::2] = sequence
    skips = np.zeros(len(labels), dtype=bool)
    skips[3::2] = labels[3::2] != labels[1:-2:2]
    # A score of minus infinity (a unit ruled out) must not make all paths equal.
    emissions = np.maximum(np.asarray(log_probs, dtype=np.float64)[:, labels], -1e9)
    scores = np.full(len(labels), -np.inf)
    scores[:2] = emissions[0, :2]
    steps = np.zeros(emissions.shape, dtype=np.int8)
    for frame in range(1, len(emissions)):
        arrivals = np.full((3, len(labels)), -np.inf)
        arrivals[0] = scores
        arrivals[1, 1:] = scores[:-1]
        arrivals[2, 2:] = np.where(skips[2:], scores[:-2], -np.inf)
        steps[frame] = arrivals.argmax(0)
        scores = arrivals.max(0) + emissions[frame]
    state = len(labels) - 1 if scores[-1] >= scores[-2] else len(labels) - 2
    spans = np.zeros((length, 2), dtype=np.int64)
    for frame in range(len(emissions) - 1, -1, -1):
        if state % 2:
            if spans[state // 2, 1] == 0:
                spans[state // 2, 1] = frame + 1
            spans[state // 2, 0] = frame
        state -= int(steps[frame, state])
    return spans


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
    frames = align(log_probs, sequence, blank)
    peaks = [float(log_probs[a:b, unit].max()) for unit, (a, b) in zip(sequence, frames, strict=True)]
    words = []
    for text, (begin, end) in zip(texts, spans, strict=True):
        confidence = float(np.exp(np.mean(peaks[begin:end])))
        times = frames[begin, 0] / frame_rate, frames[end - 1, 1] / frame_rate
        words.append(Word(text, round(float(times[0]), 3), round(float(times[1]), 3), round(min(1.0, confidence), 4)))
    return tuple(words)
