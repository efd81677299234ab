"""How far a word error rate may be off, and whether two systems differ by more than chance.

Utterances of one speaker share a fate, so the bootstrap draws speakers, not utterances.

Sources: Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation" (percentile
interval, and the paired form for two systems); Gillick and Cox 1989, "Some statistical issues in the comparison of
speech recognition algorithms" (the matched-pairs test, with the segments of Pallett et al. 1990, "Tools for the
analysis of benchmark speech recognition tests").

Shapes: G groups (speakers), D draws, K columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asrkit.errors import AsrkitError
from asrkit.text.wer import Edit, ErrorCounts, Score, UtteranceScore

DRAWS = 10_000
LEVEL = 0.95
_BLOCK = 1 << 22
_BUFFER = 2
"""Words in a row that both systems have right where a segment ends (Pallett et al.)."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    """Lower bound."""
    high: float
    """Upper bound."""
    level: float
    """Share of the draws inside."""
    draws: int
    """How often the groups were drawn."""
    groups: int
    """How many groups there were to draw from."""


@dataclass(frozen=True)
class MatchedPairs:
    """The matched-pairs sentence-segment word error (MAPSSWE) test of two systems."""

    segments: int
    """Stretches in which at least one of the systems errs, apart from each other by words that both have right."""
    mean: float
    """Mean over segments of the second system's errors less the first's."""
    deviation: float
    """Standard deviation of the same."""
    p: float
    """Two-sided probability of a difference this large if the systems were equally good."""


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same references."""

    difference: float
    """WER of the second less WER of the first: negative where the second is better."""
    interval: Interval
    """The paired bootstrap's interval of the difference."""
    p: float
    """The paired bootstrap's two-sided p-value."""
    better: float
    """Share of the draws in which the second system has the lower WER (Bisani and Ney's probability of improvement)."""
    matched_pairs: MatchedPairs
    """The MAPSSWE test."""


def wer_interval(groups: Sequence[ErrorCounts], *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0) -> Interval:
    """Return the percentile bootstrap's interval of the word error rate.

    Args:
        groups: each speaker's totals; speakers are drawn with replacement, as many as there are.
        draws: how many times.
        level: share of the draws inside the interval.
        seed: the draws follow from it.

    Raises:
        AsrkitError: fewer than two groups: one says nothing about others.
    """
    _check(len(groups), draws)
    errors, words = _resample([[g.word_errors, g.words] for g in groups], draws, seed).T
    return _interval(errors / np.maximum(words, 1), level, len(groups))


def compare(
    first: Score,
    second: Score,
    speakers: Mapping[str, str],
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Comparison:
    """Compare two systems.

    Args:
        first: one system's errors.
        second: the other's, on the same references.
        speakers: what is drawn together: each utterance's speaker, or its own id.
        draws: draws of the paired bootstrap.
        level: share of the draws inside its interval.
        seed: the draws follow from it.

    Raises:
        AsrkitError: the references differ, or there are fewer than two groups.
    """
    totals: dict[str, list[int]] = {}
    for one, other in _pairs(first, second):
        row = totals.setdefault(speakers[one.id], [0, 0, 0])
        for column, number in enumerate((one.counts.word_errors, other.counts.word_errors, one.counts.words)):
            row[column] += number
    _check(len(totals), draws)
    errors, others, words = _resample(list(totals.values()), draws, seed).T
    differences = (others - errors) / np.maximum(words, 1)
    # One is added to both so that no finite number of draws gives a probability of zero (Davison and Hinkley 1997).
    tails = [(int(np.sum(tail)) + 1) / (draws + 1) for tail in (differences <= 0, differences >= 0)]
    return Comparison(
        difference=second.total.wer - first.total.wer,
        interval=_interval(differences, level, len(totals)),
        p=min(1.0, 2 * min(tails)),
        better=float(np.mean(differences < 0)),
        matched_pairs=matched_pairs(first, second),
    )


def matched_pairs(first: Score, second: Score) -> MatchedPairs:
    """Test by segments whether two systems make equally many errors (MAPSSWE).

    Raises:
        AsrkitError: the references differ.
    """
    differences = np.array(
        [
            others - errors
            for one, other in _pairs(first, second)
            for errors, others in segments(one.alignment, other.alignment)
        ],
        dtype=np.float64,
    )
    count = len(differences)
    mean = float(differences.mean()) if count else 0.0
    deviation = float(differences.std(ddof=1)) if count > 1 else 0.0
    if deviation > 0:
        p = math.erfc(abs(mean) * math.sqrt(count / 2) / deviation)
    elif mean != 0:
        # All segments differ alike and a variance cannot be told: the exact sign test.
        p = min(1.0, 2 * 0.5**count)
    else:
        p = 1.0
    return MatchedPairs(count, mean, deviation, p)


def segments(first: Sequence[Edit], second: Sequence[Edit]) -> Iterator[tuple[int, int]]:
    """Yield both systems' word errors in each segment of one utterance, given their alignments to its reference.

    A segment holds an error of at least one system and ends where both have two words in a row right, without an
    insertion between them, or with the utterance.
    """
    (wrong, extra), (others_wrong, others_extra) = _errors_by_place(first), _errors_by_place(second)
    errors = others = right = 0
    for place, (more, others_more) in enumerate(zip(extra, others_extra, strict=True)):
        if more or others_more:
            errors, others, right = errors + more, others + others_more, 0
        if place == len(wrong):
            break
        if wrong[place] or others_wrong[place]:
            errors, others, right = errors + wrong[place], others + others_wrong[place], 0
            continue
        right += 1
        if right == _BUFFER and (errors or others):
            yield errors, others
            errors = others = 0
    if errors or others:
        yield errors, others


def _errors_by_place(alignment: Sequence[Edit]) -> tuple[list[int], list[int]]:
    """Return for each reference word whether it is wrong, and how many words are inserted before each and at the end."""
    wrong: list[int] = []
    extra = [0]
    for edit in alignment:
        if edit.kind == "insert":
            extra[-1] += edit.size
        else:
            wrong += [int(edit.kind != "equal")] * edit.size
            extra += [0] * edit.size
    return wrong, extra


def _pairs(first: Score, second: Score) -> Iterator[tuple[UtteranceScore, UtteranceScore]]:
    """Yield both systems' scores of each utterance in the first's order."""
    found = {utterance.id: utterance for utterance in second.utterances}
    if len(found) != len(first.utterances):
        raise AsrkitError("the two systems were scored on different utterances")
    for one in first.utterances:
        other = found.get(one.id)
        if other is None or other.counts.words != one.counts.words:
            raise AsrkitError(f"the two systems were scored on different references, first '{one.id}'")
        yield one, other


def _check(groups: int, draws: int) -> None:
    if groups < 2:
        raise AsrkitError("a bootstrap needs at least two speakers or utterances")
    if draws < 1:
        raise AsrkitError(f"{draws} bootstrap draws", mend="1 or more; 10000 are usual")


def _resample(rows: Sequence[Sequence[int]], draws: int, seed: int) -> np.ndarray:
    """Return the column sums (D, K) of ``rows`` (G, K) drawn with replacement, G of them each time."""
    table = np.asarray(rows, dtype=np.int64)
    generator = np.random.default_rng(seed)
    shares = np.full(len(table), 1 / len(table))
    # How often each row was drawn, times the table: much smaller than the rows themselves.
    size = max(1, _BLOCK // len(table))
    blocks = [generator.multinomial(len(table), shares, min(size, draws - n)) @ table for n in range(0, draws, size)]
    return np.concatenate(blocks)


def _interval(values: np.ndarray, level: float, groups: int) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, len(values), groups)
