"""Who is missing, where and doing what, told by those that wait."""

from __future__ import annotations

import threading
import time

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from asrkit.errors import AsrkitError
from asrkit.training.watch import Watch


def watches(count: int, timeout: float = 60.0) -> list[Watch]:
    store = dist.HashStore()
    return [Watch(rank, count, timeout, store) for rank in range(count)]


def meet(*those: Watch) -> None:
    for one in those:
        with one.meeting():
            pass


def test_who_moves_is_left_alone() -> None:
    (one, other) = watches(2)
    meet(one, other)
    assert one.look(one.moved + 60.0) is None
    assert other.look(other.moved + 59.0) is None


@given(count=st.integers(2, 6), missing=st.integers(0, 5), met=st.integers(0, 4), step=st.integers(0, 10**6))
def test_every_rank_names_the_one_that_is_missing(count: int, missing: int, met: int, step: int) -> None:
    missing %= count
    ranks = watches(count)
    for one in ranks:
        one.note("reading data", step, "joint")
    for _ in range(met):
        meet(*ranks)
    meet(*(one for one in ranks if one.rank != missing))
    for one in ranks:
        one.look(one.moved)
    for one in ranks:
        said = one.look(one.moved + 61.0)
        assert said is not None
        place = f"step {step}, phase joint, reading data"
        if one.rank == missing:
            assert said == f"rank {missing} has not got on for 1 min ({place}): the others wait for it"
        else:
            assert said == f"rank {one.rank} has not got on for 1 min ({place}): it waits for rank {missing} ({place})"


def test_one_that_never_came_and_none_that_is_behind() -> None:
    here, _ = watches(2)
    assert (here.look(here.moved + 61.0) or "").endswith("it waits for rank 1 (has never told where it is)")
    both = watches(2)
    for one in both:
        one.look(one.moved)
    assert (both[0].look(both[0].moved + 61.0) or "").endswith("nor have the others: all have come equally far")


def test_a_lost_process_is_told_in_a_line_and_a_lack_of_memory_is_not_taken_for_one() -> None:
    (one,) = watches(1)
    one.note("computing an update", 7, "semi")
    with (
        pytest.raises(
            AsrkitError, match=r"rank 0 has lost another process \(step 7, phase semi, computing an update\): gone"
        ),
        one.meeting(),
    ):
        raise RuntimeError("gone\nwith many lines")
    with pytest.raises(torch.OutOfMemoryError), one.meeting():
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_who_has_stopped_leaves_no_thread_behind() -> None:
    """A thread that is inside the store when the interpreter ends aborts the process."""

    class Slow:
        """A store in which a call takes its time."""

        def __init__(self) -> None:
            self.entered, self.left = threading.Event(), threading.Event()

        def set(self, key: str, value: str) -> None:
            self.entered.set()
            time.sleep(0.2)
            self.left.set()

        def check(self, keys: list[str]) -> bool:
            return False

    store = Slow()
    one = Watch(0, 2, 1.0, store)  # type: ignore[arg-type]
    one.start()
    assert store.entered.wait(60)
    one.stop()
    assert store.left.is_set()
    assert not any(thread.name == "watch" and thread.is_alive() for thread in threading.enumerate())
