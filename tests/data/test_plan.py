"""The law of the epoch plan: an update holds the same at any number of ranks, and an epoch is everything, once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.data.plan import EpochPlan, micro_batch_sizes, update_count

DURATIONS = st.lists(st.floats(0.125, 40.0, width=32), min_size=1, max_size=60).map(np.array)
SECONDS = st.floats(0.5, 200.0)
WORLDS = (1, 2, 3, 8)


def make_plan(durations, **settings):
    defaults = {"seconds_per_update": 60.0, "batch_seconds": 20.0, "seed": 1, "epoch": 0}
    return EpochPlan(durations, **{**defaults, **settings})


def padded(durations, rows) -> float:
    return len(rows) * float(durations[rows].max())


def set_partitions(items):
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for partition in set_partitions(rest):
        yield [[first], *partition]
        for place in range(len(partition)):
            yield [*partition[:place], [first, *partition[place]], *partition[place + 1 :]]


@settings(deadline=None)
@given(DURATIONS, SECONDS, SECONDS, st.integers(1, 9), st.booleans())
def test_an_epoch_is_every_utterance_once_at_any_world_size(durations, update, batch, bucket, shuffle):
    plan = make_plan(durations, seconds_per_update=update, batch_seconds=batch, bucket=bucket, shuffle=shuffle)
    assert plan.updates == update_count(durations, update)
    for world in WORLDS:
        seen = []
        for number in range(plan.updates):
            batches = plan.micro_batches(number, world)
            rows = np.concatenate(batches)
            assert sorted(rows) == sorted(plan.update(number))
            assert len(rows) > 0
            # Over the ranks, every W-th micro-batch each, nothing is lost or doubled.
            shares = [np.concatenate([rows[:0], *batches[rank::world]]) for rank in range(world)]
            seen.extend(np.concatenate(shares))
        assert sorted(seen) == list(range(len(durations)))


@settings(deadline=None)
@given(DURATIONS, SECONDS, st.integers(1, 8))
def test_micro_batches_are_bounded_and_come_in_multiples_of_the_world_size(durations, batch, world):
    plan = make_plan(durations, seconds_per_update=80.0, batch_seconds=batch)
    for number in range(plan.updates):
        batches = plan.micro_batches(number, world)
        for rows in batches:
            assert len(rows) == 1 or padded(durations, rows) <= batch * (1 + 1e-4)
        assert len(batches) % world == 0 or len(batches) == len(plan.update(number))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.5, 10.0), min_size=1, max_size=6).map(lambda d: np.sort(d)[::-1]),
    st.floats(2.0, 30.0),
    st.integers(1, 3),
)
def test_micro_batches_are_as_few_and_as_even_as_any_partition_allows(durations, batch, world):
    sizes = micro_batch_sizes(durations, batch, world)
    feasible = [
        partition
        for partition in set_partitions(list(range(len(durations))))
        if all(len(rows) == 1 or padded(durations, rows) <= batch * (1 + 1e-6) for rows in partition)
    ]
    fewest = min(map(len, feasible))
    wanted = min(-(-fewest // world) * world, len(durations))
    assert len(sizes) == wanted
    bounds = np.cumsum([0, *sizes])
    costliest = max(padded(durations, np.arange(a, b)) for a, b in pairwise(bounds))
    best = min(max(padded(durations, rows) for rows in partition) for partition in feasible if len(partition) == wanted)
    assert costliest == pytest.approx(best, rel=1e-4)


def test_updates_hold_about_the_audio_that_was_asked_for():
    durations = np.random.default_rng(0).uniform(1, 17, 3000)
    for bucket in (1, 8, 100):
        plan = make_plan(durations, seconds_per_update=200.0, bucket=bucket)
        share = durations.sum() / plan.updates
        audio = [durations[plan.update(number)].sum() for number in range(plan.updates)]
        assert abs(share - 200) < 2
        assert max(abs(seconds - share) for seconds in audio) <= 2 * durations.max()


def test_a_plan_is_a_function_of_seed_epoch_and_salt():
    durations = np.random.default_rng(0).uniform(1, 17, 200)

    def order(**settings):
        plan = make_plan(durations, **settings)
        return [tuple(plan.update(number)) for number in range(plan.updates)]

    assert order() == order()
    others = [order(seed=2), order(epoch=1), order(salt=1), order(seed=-1)]
    assert all(other != order() for other in others)
    assert len({tuple(map(tuple, other)) for other in others}) == len(others)


def test_the_number_of_updates_can_be_held_while_durations_change():
    durations = np.random.default_rng(0).uniform(1, 17, 200)
    for speed in (0.9, 1.1):
        plan = make_plan(durations / speed, updates=17)
        assert plan.updates == 17
        assert sorted(np.concatenate([plan.update(number) for number in range(17)])) == list(range(200))


def test_buckets_save_padding_where_an_update_is_one_micro_batch():
    durations = np.random.default_rng(0).uniform(1, 17, 2000)

    def padding(bucket):
        plan = make_plan(durations, seconds_per_update=60.0, batch_seconds=200.0, bucket=bucket)
        batches = [rows for number in range(plan.updates) for rows in plan.micro_batches(number)]
        return sum(padded(durations, rows) for rows in batches) / durations.sum()

    assert padding(16) < 1.1 < 1.3 < padding(1)


def test_without_shuffling_every_epoch_is_the_same_and_in_order():
    durations = np.full(30, 2.0)
    plans = [make_plan(durations, shuffle=False, epoch=epoch, seconds_per_update=10.0) for epoch in (0, 5)]
    rows = [[set(plan.update(number)) for number in range(plan.updates)] for plan in plans]
    assert rows[0] == rows[1] == [set(range(start, start + 5)) for start in range(0, 30, 5)]
