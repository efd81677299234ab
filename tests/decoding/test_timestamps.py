"""Word times: the best path of all, and what they mean."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.decoding.config import BeamConfig
from asrkit.decoding.greedy import GreedyDecoder
from asrkit.decoding.hypothesis import word_spans
from asrkit.decoding.prefix_beam import PrefixBeamDecoder
from asrkit.decoding.timestamps import align
from asrkit.errors import AsrkitError
from asrkit.text.units import BLANK, Units
from tests.decoding.common import random_scores

UNITS = Units((BLANK, "|", "A", "B"))
SPACED = Units((BLANK, "|", "A", " ", "\u3000", "B"))
UNBOUNDED = Units((BLANK, " ", "A", "B"), boundary=None)
"""As imported models may have them."""


@given(targets=st.lists(st.sampled_from([0, 1, 3]), max_size=3), frames=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_best_of_all_paths(targets: list[int], frames: int, seed: int) -> None:
    blank, units = 2, 4
    log_probs = random_scores(np.random.default_rng(seed), frames, units)
    best = max(
        (
            sum(log_probs[t, u] for t, u in enumerate(path))
            for path in itertools.product(range(units), repeat=frames)
            if [u for u, _ in itertools.groupby(path) if u != blank] == targets
        ),
        default=None,
    )
    if best is None:
        with pytest.raises(AsrkitError, match="too few"):
            align(log_probs, targets, blank)
        return
    spans, scores = align(log_probs, targets, blank)
    assert scores.sum() == pytest.approx(best, abs=1e-4)
    assert len(spans) == len(targets)
    path = np.full(frames, blank)
    for unit, (begin, end) in zip(targets, spans, strict=True):
        path[begin:end] = unit
    assert [u for u, _ in itertools.groupby(path.tolist()) if u != blank] == targets
    assert sum(log_probs[t, u] for t, u in enumerate(path)) == pytest.approx(best, abs=1e-4)


def test_a_unit_that_is_ruled_out_does_not_blur_the_rest() -> None:
    scores = one_hot([0, 2, 2, 0, 3, 0])
    scores[:, 1] = -np.inf
    assert align(scores, [2, 3])[0].tolist() == [[1, 3], [4, 5]]
    first, _, last = align(scores, [2, 1, 3])[0].tolist()
    assert (first[0], last) == (1, [4, 5])


def one_hot(path: list[int], probability: float = 0.97) -> np.ndarray:
    scores = np.full((len(path), 4), np.log((1 - probability) / 3), dtype=np.float32)
    scores[np.arange(len(path)), path] = np.log(probability)
    return scores


def test_times_and_confidences_of_a_plain_case() -> None:
    scores = one_hot([0, 2, 2, 0, 3, 1, 0, 3, 3, 0])
    for decoder in (GreedyDecoder(UNITS, 50.0), PrefixBeamDecoder(UNITS, 50.0, BeamConfig(nbest=3))):
        best = decoder.decode(scores)[0]
        assert best.text == "AB B"
        assert [(w.text, w.start, w.end) for w in best.words] == [("AB", 0.02, 0.1), ("B", 0.14, 0.18)]
        assert all(w.confidence == pytest.approx(0.97, abs=1e-3) for w in best.words)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.sampled_from([UNITS, SPACED, UNBOUNDED]))
def test_words_are_those_of_the_text_and_in_order(seed: int, frames: int, units: Units) -> None:
    scores = random_scores(np.random.default_rng(seed), frames, len(units), sharpness=2.0)
    for decoder in (GreedyDecoder(units, 50.0), PrefixBeamDecoder(units, 50.0, BeamConfig(beam=20, nbest=5))):
        for hypothesis in decoder.decode(scores):
            assert [word.text for word in hypothesis.words] == hypothesis.text.split()
            times = [time for word in hypothesis.words for time in (word.start, word.end)]
            assert times == sorted(times)
            assert all(0 <= time <= frames / 50 + 1e-6 for time in times)
            assert all(0 < word.confidence <= 1 for word in hypothesis.words)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=10))
def test_spans_spell_the_words(places: list[int]) -> None:
    pieces = Units.train_bpe(["AB ABA", "ABA AB B", "B A"], 6)
    phones = Units((BLANK, "p", "q", "r"), boundary=None, kind="phone", lexicon={"X": ("p", "q", "r")})
    for units in (UNITS, Units((BLANK, "A", "B"), boundary=None), SPACED, UNBOUNDED, pieces, phones):
        sequence = [unit for place in places if (unit := place % len(units)) != units.blank]
        spelt = [units.decode(sequence[a:b]) for a, b in word_spans(units, sequence)]
        assert [word for word in spelt if word] == units.decode(sequence).split()
        assert all(spelt)
