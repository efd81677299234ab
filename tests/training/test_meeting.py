"""Processes that start again agree on a name, whatever those before them have left in the store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from asrkit.errors import AsrkitError
from asrkit.training.meeting import agree_on_name


def start(store: dist.Store, order: list[int], timeout: float = 60.0) -> set[str]:
    """Start ranks in some order; return the names that they agreed on."""
    with ThreadPoolExecutor(len(order)) as pool:
        running = [pool.submit(agree_on_name, store, rank, len(order), timeout) for rank in order]
        return {each.result() for each in running}


@hypothesis_settings(max_examples=10)
@given(orders=st.lists(st.integers(2, 4).flatmap(lambda size: st.permutations(range(size))), min_size=1, max_size=3))
def test_every_start_has_a_name_of_its_own(orders: list[list[int]]) -> None:
    """Also in another size than before."""
    store, names = dist.HashStore(), []
    for order in orders:
        (name,) = start(store, order)
        names.append(name)
    assert len(set(names)) == len(orders)


def test_those_that_died_while_they_met_are_not_waited_for() -> None:
    store = dist.HashStore()
    for rank in range(3):  # each came alone, and was ended before the others came
        with pytest.raises(AsrkitError, match=f"rank {rank} does not find"):
            agree_on_name(store, rank, 3, 0.2)
    (name,) = start(store, [2, 1, 0])
    assert name


def test_who_is_missing_is_named() -> None:
    with pytest.raises(AsrkitError, match="rank 0 does not find rank 1, 2"):
        agree_on_name(dist.HashStore(), 0, 3, 0.2)
    with pytest.raises(AsrkitError, match="rank 1 does not find the first rank"):
        agree_on_name(dist.HashStore(), 1, 2, 0.2)
