"""γ over time, by definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrkit.errors import AsrkitError
from asrkit.methods.penalty import PenaltyConfig, penalty


def course(config: PenaltyConfig, total: int) -> list[float]:
    return [penalty(config, done, total) for done in range(total)]


def test_the_default_is_the_authors() -> None:
    found = course(PenaltyConfig(), 600)
    assert found[0] == 0.0
    assert found[100] == pytest.approx(0.2)
    assert found[200] == pytest.approx(0.4)
    assert found[499] == pytest.approx(0.998)
    assert found[500:] == [1.0] * 100


@given(st.floats(0, 2), st.floats(0, 0.5), st.floats(0, 3), st.integers(1, 50))
def test_by_definition(start: float, slope: float, more: float, total: int) -> None:
    maximum = start + more
    linear = [start + slope * done for done in range(total)]
    wave = [start + more * (1 - math.cos(math.pi * done / max(total - 1, 1))) / 2 for done in range(total)]
    wanted = {
        "linear": linear,
        "capped": [min(value, maximum) for value in linear],
        "constant": [start] * total,
        "cosine": wave,
    }
    for name, values in wanted.items():
        found = course(PenaltyConfig(name=name, start=start, slope=slope, maximum=maximum), total)
        assert found == pytest.approx(values, abs=1e-12)
        assert found == sorted(found), "γ never falls"
    if total > 1:
        assert wave[-1] == pytest.approx(maximum)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "square"}, "gamma.name"),
        ({"by": "year"}, "gamma.by"),
        ({"start": -0.1}, "gamma.start"),
        ({"slope": -0.1}, "gamma.slope"),
        ({"start": 2.0}, "gamma.maximum"),
    ],
)
def test_impossible_courses_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(AsrkitError, match=named):
        PenaltyConfig(**changes)
