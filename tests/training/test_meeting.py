"""Processes that start again agree on a name, whatever those before them have left in the store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from asrkit.errors import AsrkitError
from asrkit.training import distributed
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


def test_the_store_waits_as_long_as_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL waits for the others by the store, with the store's own patience."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(distributed, "agree_on_name", lambda *place: "start")
    joined: dict[str, Any] = {}
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: joined.update(options))
    distributed.join(distributed.Ranks(0, 2), torch.device("cpu"), timeout_minutes=7.0)
    distributed.leave()
    assert joined["store"].underlying_store.timeout == joined["timeout"] == timedelta(minutes=14)


def test_who_is_missing_is_named() -> None:
    with pytest.raises(AsrkitError, match="rank 0 does not find rank 1, 2"):
        agree_on_name(dist.HashStore(), 0, 3, 0.2)
    with pytest.raises(AsrkitError, match="rank 1 does not find the first rank"):
        agree_on_name(dist.HashStore(), 1, 2, 0.2)
