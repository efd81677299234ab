"""Greedy decoding against its definition."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.decoding.greedy import greedy, to_lists


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_merges_repeats_and_drops_blanks(paths: list[list[int]], blank: int, rest: int) -> None:
    frames = max(1, *(len(path) for path in paths))
    best = torch.tensor([path + [rest] * (frames - len(path)) for path in paths])
    logits = torch.nn.functional.one_hot(best, 4).float()
    lengths = torch.tensor([len(path) for path in paths])
    units, counts = greedy(logits, lengths, blank)
    expected = [[unit for unit, _ in itertools.groupby(path) if unit != blank] for path in paths]
    assert to_lists(units, counts) == expected
    assert counts.tolist() == [len(row) for row in expected]
    assert not units[torch.arange(frames) >= counts[:, None]].any()
