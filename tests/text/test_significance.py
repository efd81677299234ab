"""Intervals and tests on systems whose true error rates are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.errors import AsrkitError
from asrkit.text.significance import compare, matched_pairs, segments, wer_interval
from asrkit.text.speakers import by_speaker, guess_speakers
from asrkit.text.wer import ErrorCounts, Score, score

WORDS = st.lists(st.sampled_from("abc"), max_size=8).map(" ".join)


def simulate(rates: tuple[float, ...], speakers: int, seed: int, spread: float = 0.05) -> list[Score]:
    """Systems that get words wrong at given rates, plus what each speaker adds to all of them alike."""
    generator = np.random.default_rng(seed)
    references, hypotheses = {}, [{} for _ in rates]
    for speaker in range(speakers):
        harder = generator.uniform(-spread, spread)
        for number in range(4):
            utterance_id = f"{speaker}-{number}"
            references[utterance_id] = " ".join("w" * 10)
            for rate, texts in zip(rates, hypotheses, strict=True):
                wrong = generator.random(10) < rate + harder
                texts[utterance_id] = " ".join("x" if bad else "w" for bad in wrong)
    return [score(references, texts) for texts in hypotheses]


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    covered, trials, rate = 0, 400, 0.2
    for trial in range(trials):
        harder = generator.uniform(-0.1, 0.1, size=30)
        wrong = generator.binomial(200, rate + harder)
        groups = [ErrorCounts(words=200, substitutions=int(n)) for n in wrong]
        found = wer_interval(groups, draws=400, level=0.9, seed=trial)
        covered += found.low <= rate <= found.high
    # Binomial noise of 400 trials is 1.5 %; percentile intervals of 30 groups are a little narrow.
    assert 0.83 <= covered / trials <= 0.95


def test_an_interval_is_that_of_all_possible_draws() -> None:
    pairs = [(1, 10), (4, 12), (2, 40), (9, 20)]
    every = [sum(e for e, _ in drawn) / sum(w for _, w in drawn) for drawn in itertools.product(pairs, repeat=4)]
    groups = [ErrorCounts(words=words, deletions=errors) for errors, words in pairs]
    found = wer_interval(groups, draws=200_000)
    assert np.allclose([found.low, found.high], np.quantile(every, [0.025, 0.975]), atol=0.01)
    assert found.low < sum(groups, ErrorCounts()).wer < found.high
    alike = wer_interval([ErrorCounts(words=10 * n, deletions=n) for n in (1, 2, 3)])
    assert (alike.low, alike.high) == (0.1, 0.1)


def test_drawing_utterances_instead_of_speakers_would_be_too_sure() -> None:
    (scored,) = simulate((0.2,), speakers=40, seed=3, spread=0.19)
    speakers = guess_speakers(u.id for u in scored.utterances)
    right = wer_interval(list(by_speaker(scored, speakers).values()))
    naive = wer_interval([u.counts for u in scored.utterances])
    assert right.high - right.low > 1.2 * (naive.high - naive.low)


def test_a_system_does_not_differ_from_itself() -> None:
    (scored,) = simulate((0.3,), speakers=5, seed=2)
    found = compare(scored, scored, guess_speakers(u.id for u in scored.utterances))
    assert (found.difference, found.p, found.matched_pairs.p) == (0.0, 1.0, 1.0)
    assert found.interval.low <= 0 <= found.interval.high
    assert found.better == 0.0


def test_equal_systems_are_rarely_called_different_and_unequal_ones_nearly_always() -> None:
    alarms = {"bootstrap": 0, "pairs": 0}
    for seed in range(60):
        first, second = simulate((0.2, 0.2), speakers=12, seed=seed)
        found = compare(first, second, guess_speakers(u.id for u in first.utterances), draws=300)
        alarms["bootstrap"] += found.p < 0.05
        alarms["pairs"] += found.matched_pairs.p < 0.05
    assert max(alarms.values()) <= 10
    first, second = simulate((0.25, 0.15), speakers=30, seed=1)
    speakers = guess_speakers(u.id for u in first.utterances)
    found, mirrored = compare(first, second, speakers), compare(second, first, speakers)
    assert found.difference == pytest.approx(second.total.wer - first.total.wer)
    assert found.p < 0.01
    assert found.matched_pairs.p < 0.01
    assert found.interval.high < 0 < mirrored.interval.low
    assert found.matched_pairs.mean == pytest.approx(-mirrored.matched_pairs.mean)
    assert found.matched_pairs.p == pytest.approx(mirrored.matched_pairs.p)


def aligned(reference: str, *hypotheses: str) -> list[tuple[int, int]]:
    first, second = (score({"u": reference}, {"u": text}).utterances[0].alignment for text in hypotheses)
    return list(segments(first, second))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a b c d e f", "a b c d e f", []),
        ("x b c d e f", "a b c d e y", [(1, 0), (0, 1)]),
        ("x b y d e f", "a b c d e f", [(2, 0)]),
        ("x b c y e f", "a b c d e f", [(1, 0), (1, 0)]),
        # An insertion between two words that are right is no end of a segment.
        ("x b z c y e f", "a b c d e f", [(3, 0)]),
        ("a b c d e f z", "z a b c d e f", [(0, 1), (1, 0)]),
        ("", "a b c d e f", [(6, 0)]),
    ],
)
def test_segments_end_where_both_have_two_words_right(first: str, second: str, expected: list[tuple[int, int]]) -> None:
    assert aligned("a b c d e f", first, second) == expected


@settings(deadline=None, max_examples=100)
@given(reference=WORDS, first=WORDS, second=WORDS)
def test_segments_hold_every_error_once(reference: str, first: str, second: str) -> None:
    found = aligned(reference, first, second)
    for texts, column in ((first, 0), (second, 1)):
        assert sum(pair[column] for pair in found) == score({"u": reference}, {"u": texts}).total.word_errors
    assert all(pair != (0, 0) for pair in found)


def test_matched_pairs_by_hand() -> None:
    references = {str(n): "a" for n in range(8)}
    first = score(references, references | {"0": "x", "1": "x", "2": "x", "3": "x", "4": "x"})
    second = score(references, references | {"4": "x", "5": "x"})
    found = matched_pairs(first, second)
    # Differences -1 -1 -1 -1 0 +1.
    assert (found.segments, found.mean) == (6, -0.5)
    assert found.deviation == pytest.approx(math.sqrt((4 * 0.25 + 0.25 + 2.25) / 5))
    w = 0.5 / (found.deviation / math.sqrt(6))
    assert found.p == pytest.approx(2 * (0.5 - 0.5 * math.erf(w / math.sqrt(2))))
    alike = matched_pairs(score(references, dict.fromkeys(references, "x")), score(references, references))
    assert (alike.deviation, alike.p) == (0.0, 2 * 0.5**8)


def test_what_cannot_be_compared() -> None:
    one, other = score({"u": "a b"}, {"u": "a"}), score({"v": "a"}, {"v": "a"})
    with pytest.raises(AsrkitError, match="different references, first 'u'"):
        matched_pairs(one, other)
    with pytest.raises(AsrkitError, match="at least two"):
        wer_interval([ErrorCounts(words=3)])
    with pytest.raises(AsrkitError, match="0 bootstrap draws"):
        wer_interval([ErrorCounts(words=3)] * 2, draws=0)
