"""What the tests of decoders share: small language models, random scores, and decoding by trying every path."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from asrkit.decoding.arpa import read_arpa, write_arpa
from asrkit.decoding.config import BeamConfig
from asrkit.decoding.kneser_ney import estimate
from asrkit.decoding.ngram import NGram
from asrkit.text.units import Units

UNLIMITED = {"beam": 1_000_000, "nbest": 1_000_000, "threshold": float("inf"), "token_floor": -float("inf")}


def unlimited(lm_weight: float = 0.0, word_score: float = 0.0) -> BeamConfig:
    return BeamConfig(lm_weight=lm_weight, word_score=word_score, **UNLIMITED)


def random_scores(rng: np.random.Generator, frames: int, units: int, sharpness: float = 1.0) -> np.ndarray:
    logits = sharpness * rng.normal(size=(frames, units))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def train(sentences: Sequence[str], order: int, path: Path) -> NGram:
    write_arpa(path, estimate([sentence.split() for sentence in sentences], order))
    return read_arpa(path)


def every_text(
    scores: np.ndarray, units: Units, readings: Callable[[tuple[int, ...]], set[str]] | None = None
) -> dict[str, float]:
    """Return the log-probability of each text: the sum over all paths of frames whose collapsed units spell it."""
    totals: dict[str, float] = {}
    for path in itertools.product(range(len(units)), repeat=len(scores)):
        score = sum(float(scores[frame, unit]) for frame, unit in enumerate(path))
        collapsed = tuple(unit for unit, _ in itertools.groupby(path) if unit != units.blank)
        for text in {units.decode(collapsed)} if readings is None else readings(collapsed):
            totals[text] = float(np.logaddexp(totals.get(text, -np.inf), score))
    return totals
