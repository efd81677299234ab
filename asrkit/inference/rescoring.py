"""A second language model chooses among the best readings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from asrkit.decoding.hypothesis import Hypothesis

Scorer = Callable[[Sequence[str]], list[float]]
"""Gives the log10 probabilities of texts."""


def add_scores(nbest: Sequence[Sequence[Hypothesis]], scorer: Scorer) -> list[list[Hypothesis]]:
    """Return the readings with `rescored` filled, in their order; each text is scored once."""
    texts = list(dict.fromkeys(hypothesis.text for readings in nbest for hypothesis in readings))
    found = dict(zip(texts, scorer(texts), strict=True))
    return [[replace(hypothesis, rescored=found[hypothesis.text]) for hypothesis in readings] for readings in nbest]


def rank(readings: Sequence[Hypothesis], weight: float) -> list[Hypothesis]:
    """Return the readings, best first, once the second model's log10 probability counts ``weight`` times."""
    weighted = [replace(reading, score=reading.score + weight * (reading.rescored or 0.0)) for reading in readings]
    return sorted(weighted, key=lambda reading: -reading.score)
