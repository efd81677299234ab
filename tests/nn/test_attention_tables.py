"""Attention in tables against the formula, gradients and dropout included, however the work is divided."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from asrkit.nn import attention_tables as module
from asrkit.nn.attention import SelfAttention
from asrkit.nn.attention_tables import attend_in_tables

SHAPES = [(1, 1, 1, 1, 2), (3, 2, 5, 5, 4), (2, 3, 7, 9, 4), (5, 4, 6, 3, 8)]
"""N, H, Q, T, D."""
DIVISIONS = [(1 << 18, 1 << 18), (20, 20), (20, 100), (1, 1), (1 << 18, 130)]
"""Elements of a head's tile, and of a tile."""


def divide(division: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUERIES", division[0])
    monkeypatch.setattr(module, "_tile", lambda: division[1])


def make(shape: tuple[int, ...], bias: str = "none") -> tuple[list[Tensor], Tensor | None]:
    """Queries, keys and values as views of a layer's projection, float64, and a bias."""
    rows, heads, queries, keys, size = shape
    make = torch.Generator().manual_seed(sum(shape))
    frames = (queries, keys, keys)
    parts = [torch.randn(rows, count, heads, size, generator=make, dtype=torch.float64) for count in frames]
    parts = [part.requires_grad_().transpose(1, 2) for part in parts]
    if bias == "none":
        return parts, None
    if bias == "mask":
        hidden = torch.arange(keys) >= torch.arange(rows)[:, None] % keys + 1
        return parts, torch.zeros(rows, 1, 1, keys, dtype=torch.float64).masked_fill(hidden[:, None, None], -math.inf)
    return parts, torch.randn(rows, heads, queries, keys, generator=make, dtype=torch.float64).requires_grad_()


def formula(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, kept: Tensor | float = 1.0) -> Tensor:
    scores = query @ key.transpose(2, 3) / math.sqrt(query.size(3))
    return ((scores if bias is None else scores + bias).softmax(-1) * kept) @ value


def gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return list(torch.autograd.grad(y, inputs, seed))


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("bias", ["none", "mask", "learned"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_formula(
    shape: tuple[int, ...], bias: str, division: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    divide(division, monkeypatch)
    parts, added = make(shape, bias)
    inputs = [*parts, added] if bias == "learned" and added is not None else parts
    found, expected = (attend(*parts, added, *rest) for attend, rest in ((attend_in_tables, [0.0]), (formula, [])))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_dropout_hides_weights_and_their_gradients(
    shape: tuple[int, ...], division: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask shows where values are unit vectors; it is the same however the work is divided."""
    probability = 0.25
    (query, key, value), bias = make((*shape[:4], shape[3]), "mask")
    unit = torch.eye(shape[3], dtype=torch.float64).expand(*shape[:2], -1, -1)

    torch.manual_seed(4)
    whole = attend_in_tables(query, key, unit, bias, probability)
    kept = (whole.detach() > 0).double() / (1.0 - probability)
    divide(division, monkeypatch)
    torch.manual_seed(4)
    found = attend_in_tables(query, key, value, bias, probability)

    expected = formula(query, key, value, bias, kept)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, [query, key, value]), gradients(expected, [query, key, value]))


def test_as_many_weights_are_dropped_as_asked() -> None:
    query, unit = torch.zeros(4, 4, 150, 150), torch.eye(150).expand(4, 4, -1, -1)
    dropped = (attend_in_tables(query, query, unit, None, 0.1) == 0).float()
    spread = math.sqrt(0.1 * 0.9 / dropped.numel())
    assert abs(float(dropped.mean()) - 0.1) < 5 * spread
    neighbours = (dropped[..., 1:] * dropped[..., :-1]).mean()
    assert abs(float(neighbours) - 0.01) < 5 * math.sqrt(0.01 / dropped.numel())


def test_half_precision_is_rounded_where_it_is_stored() -> None:
    """The output once; a gradient after the weights and itself."""
    parts, bias = make((2, 3, 40, 40, 16), "mask")
    halves = [part.detach().bfloat16().requires_grad_() for part in parts]
    exact = [half.detach().double().requires_grad_() for half in halves]
    found, expected = attend_in_tables(*halves, bias, 0.0), formula(*exact, bias)
    assert found.dtype == torch.bfloat16
    assert float((found - expected).detach().norm() / expected.detach().norm()) < 2**-9
    seed = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    for half, whole in zip(
        torch.autograd.grad(found, halves, seed), torch.autograd.grad(expected, exact, seed.double()), strict=True
    ):
        assert half.dtype == torch.bfloat16
        assert float((half - whole).norm() / whole.norm()) < 2**-8


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_layers_use_it_where_it_is_faster(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision always, in float32 for large tables; never outside training."""
    monkeypatch.setattr("asrkit.nn.attention.cpu_has_bf16", lambda: False)
    monkeypatch.setattr(module, "_LARGE", 20 * 20)
    calls = []
    monkeypatch.setattr(module, "attend_in_tables", lambda query, *rest: calls.append(query.size(2)) or query)
    layer = SelfAttention(16, 2, 0.1)
    for train in (True, False):
        layer.train(train)
        for frames in (19, 20):
            with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
                layer(torch.randn(2, frames, 16), None, None)
    assert calls == ([20] if precision == torch.float32 else [19, 20])
