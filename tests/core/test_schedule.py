"""Learning-rate schedules against their closed forms."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrkit.core.schedule import SCHEDULES, Schedule, ScheduleConfig
from asrkit.errors import AsrkitError

PEAK = 3e-4


def rates(config: ScheduleConfig, updates: int) -> list[float]:
    schedule = Schedule(config, updates)
    return [schedule.rate(update) for update in range(updates)]


def test_tri_stage_is_the_closed_form() -> None:
    config = ScheduleConfig(PEAK, "tri_stage", warmup=0.1, hold=0.4, initial_scale=0.01, final_scale=0.05)
    for update, rate in enumerate(rates(config, 1000)):
        if update < 100:
            expected = PEAK * (0.01 + 0.99 * update / 100)
        elif update < 500:
            expected = PEAK
        else:
            expected = PEAK * math.exp(math.log(0.05) * (update - 500) / 500)
        assert rate == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_polynomial_is_the_closed_form(power: float) -> None:
    config = ScheduleConfig(PEAK, "polynomial", warmup=0.08, initial_scale=0.0, final_scale=0.1, power=power)
    for update, rate in enumerate(rates(config, 500)):
        if update < 40:
            expected = PEAK * update / 40
        else:
            expected = PEAK * (0.1 + 0.9 * (1 - (update - 40) / 460) ** power)
        assert rate == pytest.approx(expected, rel=1e-12, abs=1e-20)


def test_cosine_and_constant_are_their_closed_forms() -> None:
    cosine = rates(ScheduleConfig(PEAK, "cosine", warmup=0.0, final_scale=0.2), 100)
    for update, rate in enumerate(cosine):
        assert rate == pytest.approx(PEAK * (0.6 + 0.4 * math.cos(math.pi * update / 100)), rel=1e-12)
    constant = rates(ScheduleConfig(PEAK, "constant", warmup=0.2, initial_scale=0.5), 10)
    assert constant == pytest.approx([PEAK * 0.5, PEAK * 0.75] + [PEAK] * 8)


@given(
    name=st.sampled_from(SCHEDULES),
    updates=st.integers(1, 300),
    border=st.integers(0, 300),
    warmup=st.floats(0, 0.5),
    hold=st.floats(0, 0.5),
)
def test_phases_share_one_curve_that_never_leaves_its_bounds(
    name: str, updates: int, border: int, warmup: float, hold: float
) -> None:
    border = min(border, updates)
    config = ScheduleConfig(PEAK, name, warmup, hold, initial_scale=0.01, final_scale=0.05)
    whole = Schedule(config, updates)
    rest = Schedule(config, updates, offset=border)
    assert [rest.rate(update) for update in range(updates - border)] == [
        whole.rate(update) for update in range(border, updates)
    ]
    for update in range(updates + 5):
        assert 0.01 - 1e-12 <= whole.factor(update) <= 1 + 1e-12


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "cosin"}, "cosine"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"warmup": -0.1}, "warmup"),
        ({"warmup": 0.7, "hold": 0.5}, "warmup"),
        ({"final_scale": -1.0}, "final_scale"),
        ({"final_scale": 0.0}, "final_scale"),
    ],
)
def test_impossible_schedules_are_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(AsrkitError, match=named):
        ScheduleConfig(**changes)  # type: ignore[arg-type]


def test_shares_that_round_to_one_are_accepted() -> None:
    ScheduleConfig(warmup=0.3, hold=0.7 - 1e-17, name="tri_stage")
    ScheduleConfig(warmup=0.1 + 0.2, hold=0.7)
