"""From the best path of a recording to its words in time.

Shapes: T frames, V units (with blank).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

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
class BestPath:
    """The best unit of each frame."""

    units: np.ndarray
    """Unit indices, int64 (T,)."""
    scores: np.ndarray
    """Their natural log-probabilities, float32 (T,)."""

    @classmethod
    def of(cls, log_probs: np.ndarray) -> BestPath:
        """Return the best path through log-probabilities (T, V)."""
        best = log_probs.argmax(-1) if len(log_probs) else np.zeros(0, np.int64)
        return cls(best, np.take_along_axis(log_probs, best[:, None], 1)[:, 0] if len(log_probs) else best.astype("f4"))

    @classmethod
    def join(cls, paths: Sequence[BestPath]) -> BestPath:
        """Return paths, at least one, one after the other."""
        return cls(np.concatenate([p.units for p in paths]), np.concatenate([p.scores for p in paths]))

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Yield (unit, first frame, frame behind the last) of each stretch of one unit, blanks too."""
        edges = np.flatnonzero(np.diff(self.units)) + 1
        bounds = [0, *edges.tolist(), len(self.units)] if len(self.units) else [0]
        for begin, end in itertools.pairwise(bounds):
            yield int(self.units[begin]), begin, end

    def words(self, units: Units, seconds_per_frame: float, *, first: int = 0) -> list[Word]:
        """Read the path as words in time, its first frame being the recording's frame ``first``."""
        runs = [run for run in self.runs() if run[0] not in units.silent]
        sequence = [unit for unit, _, _ in runs]
        peaks = [float(self.scores[begin:end].max()) for _, begin, end in runs]
        words = []
        for text, (begin, end) in zip(units.decode(sequence).split(), word_spans(units, sequence), strict=True):
            start, stop = ((first + frame) * seconds_per_frame for frame in (runs[begin][1], runs[end - 1][2]))
            words.append(Word.of(text, start, stop, peaks[begin:end]))
        return words


def read_transcript(
    stretches: Iterable[tuple[int, BestPath]], units: Units, seconds_per_frame: float, duration: float
) -> Transcript:
    """Return the transcript of a recording.

    Args:
        stretches: its best path, divided where no word goes on, each part with its first frame.
        units: what the path's indices mean.
        seconds_per_frame: from one frame to the next.
        duration: of the recording, in seconds; no word ends later.
    """
    words = [
        replace(word, start=min(word.start, duration), end=min(word.end, duration))
        for first, path in stretches
        for word in path.words(units, seconds_per_frame, first=first)
    ]
    return Transcript(" ".join(word.text for word in words), tuple(words), duration)
