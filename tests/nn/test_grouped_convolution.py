"""Grouped convolutions of frames against torch's, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asrkit.nn import grouped_convolution as module
from asrkit.nn.grouped_convolution import convolve

CASES = [(2, 12, 6, 5, 2), (3, 30, 8, 16, 4), (1, 1, 4, 8, 1), (2, 5, 6, 19, 3), (4, 9, 4, 1, 2), (5, 7, 12, 128, 12)]
"""N, T, C, K and groups: kernels of an even and an odd number of taps, of one, and of more than there are frames."""


def torch_s(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    kernel = weight.size(2)
    return F.conv1d(x.transpose(1, 2), weight, bias, padding=kernel // 2, groups=groups)[..., : x.size(1)].transpose(
        1, 2
    )


def make(case: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    rows, frames, channels, kernel, groups = case
    generator = torch.Generator().manual_seed(sum(case))
    shapes = [(rows, frames, channels), (channels, channels // groups, kernel), (channels,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("rows", [1, 20, 1000])
@pytest.mark.parametrize("case", CASES)
def test_it_is_torch_s_convolution(case: tuple[int, ...], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", rows)
    inputs = make(case, torch.float64)
    found, expected = convolve(*inputs, case[-1]), torch_s(*inputs, case[-1])
    torch.testing.assert_close(found, expected)
    gradient = torch.randn(found.shape, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(expected, inputs, gradient)
    )


@pytest.mark.parametrize("case", CASES)
def test_without_amx_half_precision_is_rounded_once(case: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asrkit.nn.linear.cpu_has_bf16", lambda: False)
    x, weight, bias = make(case, torch.float32)
    half = x.detach().bfloat16().requires_grad_()
    exact = [y.detach().double().requires_grad_() for y in (half, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        found = convolve(half, weight, bias, case[-1])
    expected = torch_s(*exact, case[-1])
    gradient = torch.randn(found.shape).bfloat16()
    to_x, *others = torch.autograd.grad(found, [half, weight, bias], gradient)
    of_x, *rest = torch.autograd.grad(expected, exact, gradient.double())
    assert found.dtype == to_x.dtype == torch.bfloat16
    for mine, whole in ((found.detach(), expected.detach()), (to_x, of_x)):
        assert bool(((mine - whole).abs() <= 2**-8 * whole.abs() + 1e-4).all())
    for mine, whole in zip(others, rest, strict=True):
        torch.testing.assert_close(mine.double(), whole, rtol=1e-4, atol=1e-4)


def test_what_needs_no_gradient_gets_none() -> None:
    x, weight, bias = make(CASES[0], torch.float32)
    convolve(x.detach(), weight, bias, 2).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    weight.grad = None
    convolve(x, weight.detach(), None, 2).sum().backward()
    assert x.grad is not None
    assert weight.grad is None
