"""From the best path of a recording to its words in time.

Shapes: T frames, V units (with blank).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from asrkit.decoding.hypothesis import word_spans
from asrkit.decoding.timestamps import Word
from asrkit.text.units import Units


@dataclass(frozen=True)
class Transcript:
    """What was said in a recording, and when."""

    text: str
    """Words separated by single spaces."""
    words: tuple[Word, ...]
    """The words in time, in seconds from the recording's beginning."""
    duration: float
    """Seconds of audio."""


@dataclass(frozen=True)
class Path:
    """The best unit of each frame."""

    units: np.ndarray
    """Unit indices, int64 (T,)."""
    scores: np.ndarray
    """Their natural log-probabilities, float32 (T,)."""

    @classmethod
    def of(cls, log_probs: np.ndarray) -> Path:
        """Return the best path through log-probabilities (T, V)."""
        best = log_probs.argmax(-1) if len(log_probs) else np.zeros(0, np.int64)
        return cls(best, np.take_along_axis(log_probs, best[:, None], 1)[:, 0] if len(log_probs) else best.astype("f4"))

    @classmethod
    def join(cls, paths: list[Path]) -> Path:
        """Return paths one after the other."""
        if not paths:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.float32))
        return cls(np.concatenate([p.units for p in paths]), np.concatenate([p.scores for p in paths]))

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Yield (unit, first frame, frame behind the last) of each stretch of one unit, blanks too."""
        edges = np.flatnonzero(np.diff(self.units)) + 1
        bounds = [0, *edges.tolist(), len(self.units)] if len(self.units) else [0]
        for begin, end in itertools.pairwise(bounds):
            yield int(self.units[begin]), begin, end

    def transcript(self, units: Units, seconds_per_frame: float, duration: float) -> Transcript:
        """Read the path as text with word times; no word ends behind ``duration`` seconds."""
        runs = [run for run in self.runs() if run[0] not in units.silent]
        sequence = [unit for unit, _, _ in runs]
        text = units.decode(sequence)
        peaks = [float(self.scores[begin:end].max()) for _, begin, end in runs]
        words = []
        for spelt, (begin, end) in zip(text.split(), word_spans(units, sequence), strict=True):
            confidence = float(np.exp(np.mean(peaks[begin:end])))
            start = min(runs[begin][1] * seconds_per_frame, duration)
            stop = min(runs[end - 1][2] * seconds_per_frame, duration)
            words.append(Word(spelt, round(start, 3), round(stop, 3), round(min(1.0, confidence), 4)))
        return Transcript(text, tuple(words), duration)
