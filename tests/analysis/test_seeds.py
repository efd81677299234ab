"""The interval of a difference over seeds and speakers."""

from __future__ import annotations

import numpy as np
import pytest

from asrkit.analysis.seeds import difference_over_seeds
from asrkit.errors import AsrkitError


def test_a_constant_difference_is_certain() -> None:
    words = [100] * 6
    first = [[10, 20, 30, 40, 50, 60]] * 3
    second = [[errors - 5 for errors in row] for row in first[:2]]
    interval = difference_over_seeds(first, second, words)
    assert (interval.low, interval.high) == pytest.approx((-0.05, -0.05))
    assert interval.groups == 6


def test_the_same_system_differs_by_its_seeds_alone() -> None:
    words = [50, 80, 70]
    rows = [[5, 9, 7], [8, 12, 10], [6, 10, 8]]
    interval = difference_over_seeds(rows, rows, words)
    assert interval.low < 0 < interval.high
    single = difference_over_seeds(rows[:1], rows[:1], words)
    assert (single.low, single.high) == (0.0, 0.0)


def test_swapping_the_systems_mirrors_the_interval() -> None:
    random = np.random.default_rng(4)
    first, second = random.integers(0, 30, (4, 8)).tolist(), random.integers(0, 20, (4, 8)).tolist()
    words = random.integers(40, 60, 8).tolist()
    one = difference_over_seeds(first, second, words, draws=40_000)
    other = difference_over_seeds(second, first, words, draws=40_000)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-2)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Systems of known rates, errors that speakers and seeds share: 95 % of the intervals should hold the difference."""
    random = np.random.default_rng(7)
    held = 0
    for trial in range(200):
        speakers = random.normal(0, 0.02, 30)
        words = np.full(30, 200)

        def rates(mean: float, speakers: np.ndarray = speakers) -> np.ndarray:
            seeds = random.normal(0, 0.004, (8, 1))
            return np.clip(mean + speakers + random.normal(0, 0.01, 30) + seeds, 0, 1)

        first, second = (random.binomial(200, rates(mean)) for mean in (0.2, 0.17))
        interval = difference_over_seeds(first.tolist(), second.tolist(), words.tolist(), draws=400, seed=trial)
        held += interval.low <= -0.03 <= interval.high
    assert 0.88 <= held / 200 <= 0.99


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(AsrkitError, match="same speakers"):
        difference_over_seeds([[1, 2]], [[1, 2, 3]], [5, 5, 5])
    with pytest.raises(AsrkitError, match="two speakers"):
        difference_over_seeds([[1]], [[1]], [5])
    with pytest.raises(AsrkitError, match="same speakers"):
        difference_over_seeds([], [[1, 2]], [5, 5])
