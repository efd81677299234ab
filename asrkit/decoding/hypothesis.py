"""What a decoder returns, and the interface that all decoders share.

Shapes: T frames, V units (with blank), L units of a hypothesis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from asrkit.decoding.timestamps import Word, time_words
from asrkit.text.units import Units


@dataclass(frozen=True)
class Hypothesis:
    """One reading of an utterance."""

    text: str
    """Words separated by single spaces."""
    units: tuple[int, ...]
    """A unit sequence that spells the text, blanks and repeats collapsed."""
    spans: tuple[tuple[int, int], ...]
    """For each word of the text, where its units begin and end in `units`."""
    score: float
    """What decides: acoustic + lm_weight * lm + word_score * words (+ rescore_weight * rescored)."""
    acoustic: float
    """Natural log of the CTC probability, summed over the frame paths that the decoder kept."""
    lm: float = 0.0
    """Log10 probability of the n-gram, end of sentence included; 0 without one."""
    rescored: float | None = None
    """Log10 probability of the neural language model, where one was asked."""
    words: tuple[Word, ...] = ()
    """The words with their times, once `Decoder.decode` has aligned them."""


class Decoder(ABC):
    """Turns an utterance's unit scores into readings, best first."""

    name: str
    """As in `--decoder` and results.json."""
    weights: tuple[str, ...] = ()
    """Which of `lm_weight` and `word_score` change what it finds: what there is to tune."""

    def __init__(self, units: Units, frame_rate: float) -> None:
        """Take the units that scores are for, and the encoder's frames per second."""
        self.units = units
        self.frame_rate = frame_rate

    @abstractmethod
    def search(self, log_probs: np.ndarray) -> list[Hypothesis]:
        """Return at least one reading, best first, all texts different, without word times.

        Args:
            log_probs: natural log-probabilities of the units, float32 (T, V). T may be 0.
        """

    def decode(self, log_probs: np.ndarray) -> list[Hypothesis]:
        """Return the readings of `search` with word times and confidences."""
        return [self.timed(hypothesis, log_probs) for hypothesis in self.search(log_probs)]

    def timed(self, hypothesis: Hypothesis, log_probs: np.ndarray) -> Hypothesis:
        """Return a reading with word times and confidences; ``log_probs`` as for `search`."""
        texts = hypothesis.text.split()
        words = time_words(
            texts, hypothesis.units, hypothesis.spans, log_probs, blank=self.units.blank, frame_rate=self.frame_rate
        )
        return replace(hypothesis, words=words)


def word_spans(units: Units, sequence: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return for each word of ``units.decode(sequence)`` the half-open range of its units.

    Characters are divided at the boundary symbol and at white space, BPE pieces before one that begins with it. Without a boundary
    each phone is a word of the text, and all other text is a single word.
    """
    spans: list[tuple[int, int]] = []
    begin: int | None = None
    for place, unit in enumerate(sequence):
        if begin is not None and (units.divides(unit) or units.begins(unit)):
            spans.append((begin, place))
            begin = None
        if begin is None and not units.divides(unit):
            begin = place
    if begin is not None:
        spans.append((begin, len(sequence)))
    return tuple(spans)


def merge_texts(hypotheses: Iterable[Hypothesis], limit: int) -> list[Hypothesis]:
    """Return the ``limit`` best readings, those of the same text made one: its paths' probabilities add up.

    The reading with the best score lends the units.
    """
    merged: dict[str, Hypothesis] = {}
    for hypothesis in sorted(hypotheses, key=lambda h: -h.score):
        kept = merged.get(hypothesis.text)
        if kept is None:
            merged[hypothesis.text] = hypothesis
        else:
            gain = float(np.logaddexp(kept.acoustic, hypothesis.acoustic)) - kept.acoustic
            merged[hypothesis.text] = replace(kept, acoustic=kept.acoustic + gain, score=kept.score + gain)
    return sorted(merged.values(), key=lambda h: (-h.score, h.text))[:limit]
