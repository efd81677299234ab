"""Dropout on the CPU: how often, by how much, and that its numbers are torch's generator's to repeat."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from asrkit.nn.dropout import Dropout, dropout

COUNT = 200_003
"""Not a multiple of the numbers that a word holds."""


@pytest.mark.parametrize("probability", [2.0**-16, 0.1, 0.5, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_as_many_are_dropped_as_asked_and_the_rest_keeps_the_expectation(
    probability: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    y = dropout(torch.ones(COUNT, dtype=dtype), probability, True)
    rounded = min(round(probability * 2**16), 2**16 - 1) / 2**16
    deviation = math.sqrt(rounded * (1 - rounded) / COUNT)
    assert abs(float((y == 0).double().mean()) - rounded) < 5 * deviation
    kept = y[y != 0].unique()
    assert len(kept) <= 1
    assert kept.tolist() == pytest.approx(
        [1 / (1 - rounded)] * len(kept), rel=1e-2 if dtype == torch.bfloat16 else 2e-4
    )


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(COUNT), 0.3, True) == 0).double()
    for distance in (1, 2, 3, 4, 8):
        both = float((dropped[distance:] * dropped[:-distance]).mean())
        assert abs(both - 0.09) < 5 * math.sqrt(0.09 * 0.91 / COUNT)


def test_nothing_happens_in_evaluation_or_at_zero() -> None:
    x = torch.randn(3, 4)
    state = torch.get_rng_state()
    assert dropout(x, 0.5, False) is x
    assert dropout(x, 0.0, True) is x
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_the_generator_s_state_decides() -> None:
    x = torch.randn(5, 7, 3)
    state = torch.get_rng_state()
    first, second = dropout(x, 0.5, True), dropout(x, 0.5, True)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.5, True), first)
    assert torch.equal(dropout(x, 0.5, True), second)


def test_the_gradient_is_the_mask_and_the_same_when_computed_again() -> None:
    x = torch.randn(40, 50, requires_grad=True)
    layer = nn.Sequential(Dropout(0.3), nn.Linear(50, 50))
    torch.manual_seed(3)
    mask = dropout(torch.ones_like(x), 0.3, True)
    gradients = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(3)
        run(x).sum().backward()
        gradients.append(x.grad)
        x.grad = None
    assert torch.equal(gradients[0], gradients[1])
    weight = layer[1].weight
    torch.testing.assert_close(gradients[0], mask * weight.sum(0))
