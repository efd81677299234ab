"""Convolutions with fewer products against torch's, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asrkit.nn import three_taps as module
from asrkit.nn.waveform import Convolution

FRAMES = [3, 4, 5, 6, 7, 8, 9, 17, 18, 19, 20, 21, 22, 64, 65]
"""With tiles of four frames out: of one frame, of one tile, one more, odd and even last ones."""


def torch_s(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv1d(x.t()[None], weight, bias, stride=2)[0].t()


def make(frames: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(frames)
    shapes = [(frames, 6), (5, 6, 3), (5,)]
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return x, weight, bias


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_tile", lambda: 4)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("frames", FRAMES)
def test_it_is_torch_s_convolution(frames: int, biased: bool) -> None:
    x, weight, bias = make(frames, torch.float64)
    exact = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    expected = torch_s(*exact, bias if biased else None)
    torch.testing.assert_close(module.convolve(x, weight, bias if biased else None), expected.detach())
    gradient = torch.randn(expected.shape, dtype=torch.float64)
    to_x = torch.full_like(x, torch.nan)
    to_weight = module.convolve_backward(gradient, x, weight, to_x, True)
    torch.testing.assert_close((to_x, to_weight), torch.autograd.grad(expected, exact, gradient))
    assert module.convolve_backward(gradient, x, weight, None, False) is None


@pytest.mark.parametrize("frames", [9, 22, 65])
def test_half_precision_is_rounded_once(frames: int) -> None:
    x, weight, bias = make(frames, torch.float32)
    x = x.bfloat16()
    exact = [x.double().requires_grad_(), weight.double().requires_grad_()]
    expected = torch_s(*exact, bias.double())
    found = module.convolve(x, weight, bias)
    gradient = torch.randn(expected.shape).bfloat16()
    to_x = torch.empty_like(x)
    to_weight = module.convolve_backward(gradient, x, weight, to_x, True)
    of_x, of_weight = torch.autograd.grad(expected, exact, gradient.double())
    assert found.dtype == to_x.dtype == torch.bfloat16
    for half, whole in ((found, expected.detach()), (to_x, of_x)):
        assert bool(((half - whole).abs() <= 2**-8 * whole.abs() + 1e-5).all())
    assert to_weight is not None
    torch.testing.assert_close(to_weight.double(), of_weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "kernel", "stride", "used"), [(128, 3, 2, 2), (120, 3, 2, 0), (128, 2, 2, 0)])
def test_the_frontend_uses_it_where_it_pays(
    channels: int, kernel: int, stride: int, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for name in ("convolve", "convolve_backward"):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, run=run: calls.append(0) or run(*args))
    layer = Convolution(channels, 128, kernel, stride, bias=True)
    x = torch.randn(21, channels, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, F.conv1d(x.t()[None], layer.weight, layer.bias, stride=stride)[0].t())
    y.sum().backward()
    assert len(calls) == used
