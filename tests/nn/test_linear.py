"""bfloat16 on CPUs without fast units for it: the same results as exact arithmetic rounded once, in the memory of bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from asrkit.nn.config import EncoderConfig
from asrkit.nn.encoder import Encoder
from asrkit.nn.linear import Linear, linear
from asrkit.nn.positions import ConvPositions
from asrkit.nn.waveform import Convolution

TILE = 16
ROUNDING = 2.0**-8
"""Half the distance between bfloat16 numbers, relative to them."""


@pytest.fixture(autouse=True)
def _slow_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asrkit.nn.linear.cpu_has_bf16", lambda: False)
    monkeypatch.setattr("asrkit.nn.linear._TILE", TILE)
    torch.manual_seed(0)


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def grad(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


def close(found: Tensor, exact: Tensor, relative: float) -> None:
    """Assert that numbers are off by a share of their own size, or of a hundredth of the largest where they nearly cancel."""
    limit = relative * (exact.abs() + 0.01 * exact.abs().max())
    assert bool(((found.double() - exact).abs() <= limit).all()), float(((found.double() - exact).abs() / limit).max())


@pytest.mark.parametrize("rows", [1, TILE - 1, TILE, TILE + 1, 3 * TILE + 2])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_exact_up_to_one_rounding(rows: int, bias: bool) -> None:
    layer = Linear(24, 10, bias=bias)
    x = torch.randn(rows, 24, requires_grad=True)
    gradient = torch.randn(rows, 10).bfloat16()
    with bf16():
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.backward(gradient)

    rounded = x.detach().bfloat16().double().requires_grad_()
    parameters = [parameter.detach().double().requires_grad_() for parameter in layer.parameters()]
    exact = F.linear(rounded, *parameters)
    exact.backward(gradient.double())
    close(y, exact, 1.01 * ROUNDING)
    close(grad(x), grad(rounded), 1.01 * ROUNDING)
    for parameter, wanted in zip(layer.parameters(), parameters, strict=True):
        close(grad(parameter), grad(wanted), 1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (10, 5), (5, 1), (7, 2)])
@pytest.mark.parametrize("frames", [1, TILE, TILE + 1, 3 * TILE + 2])
def test_convolution_is_exact_up_to_roundings(kernel: int, stride: int, frames: int) -> None:
    """Taps beyond the stride are added to gradients that are there: one rounding more for each."""
    layer = Convolution(6, 8, kernel, stride, bias=True)
    x = torch.randn((frames - 1) * stride + kernel + stride - 1, 6, requires_grad=True)
    gradient = torch.randn(frames, 8).bfloat16()
    with bf16():
        y = layer(x)
    y.backward(gradient)

    rounded = x.detach().bfloat16().double().requires_grad_()
    assert layer.bias is not None
    weight, bias = layer.weight.detach().double().requires_grad_(), layer.bias.detach().double().requires_grad_()
    exact = F.conv1d(rounded.t()[None], weight, bias, stride=stride)[0].t()
    exact.backward(gradient.double())
    close(y, exact, 1.01 * ROUNDING)
    close(grad(layer.weight), grad(weight), 1e-5)
    close(grad(layer.bias), grad(bias), 1e-5)
    assert float((grad(x) - grad(rounded)).abs().max() / grad(rounded).abs().max()) < 1.01 * ROUNDING * (
        kernel - stride + 1
    )


@pytest.mark.parametrize("train", [True, False])
def test_an_encoder_agrees_with_the_processor_s_own_units(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways are as far from float32 as each other, gradients included."""
    config = EncoderConfig(dim=32, ffn_dim=64, heads=2, layers=2, dropout=0.0, attention_dropout=0.0, layer_drop=0.0)
    config.waveform.layers = [[16, 10, 5], [16, 3, 2], [16, 2, 2]]
    encoder = Encoder(config).train(train)
    waves, direction = torch.randn(2, 4000), torch.randn(2, 400, 32)

    def run(precise: bool) -> list[Tensor]:
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise), torch.set_grad_enabled(train):
            states = encoder(waves, torch.tensor([4000, 3000]), (4000, 3000)).states
        if train:
            (states * direction[:, : states.size(1)]).sum().backward()
        return [states.detach(), *(parameter.grad for parameter in encoder.parameters() if parameter.grad is not None)]

    exact, wide = run(True), run(False)
    monkeypatch.setattr("asrkit.nn.linear.cpu_has_bf16", lambda: True)
    native = run(False)
    assert len(exact) == len(wide) == len(native) > (1 if train else 0)

    def distance(found: list[Tensor]) -> float:
        return math.sqrt(sum(float((a.double() - b).square().sum()) for a, b in zip(found, exact, strict=True)))

    assert 0 < distance(wide) < 1.5 * distance(native)


def test_nothing_is_kept_in_float32_but_weights() -> None:
    """What the backward pass is kept waiting for is what makes bfloat16 small."""
    for layer in (Linear(24, 10), Convolution(24, 10, 3, 2, bias=True)):
        kept: list[Tensor] = []

        def keep(x: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(x)
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), bf16():
            layer(torch.randn(50, 24, requires_grad=True))
        own = {parameter.data_ptr() for parameter in layer.parameters()}
        assert {x.dtype for x in kept if x.data_ptr() not in own} == {torch.bfloat16}


def test_recomputing_gives_the_same_gradients() -> None:
    layer, x = Linear(24, 10), torch.randn(3, 20, 24, requires_grad=True)

    def gradients(run: Callable[..., Tensor]) -> list[Tensor]:
        layer.zero_grad()
        x.grad = None
        with bf16():
            run(x).square().sum().backward()
        return [value.grad.clone() for value in (x, *layer.parameters()) if value.grad is not None]

    plain, again = gradients(layer), gradients(lambda y: checkpoint(layer, y, use_reentrant=False))
    assert len(plain) == 3
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_what_needs_no_gradient_gets_none() -> None:
    layer, convolution = Linear(24, 10).requires_grad_(False), Convolution(24, 10, 3, 2, bias=True)
    x = torch.randn(9, 24, requires_grad=True)
    with bf16():
        (layer(x).sum() + convolution(x.detach()).sum()).backward()
        with torch.inference_mode():
            assert torch.equal(layer(x), linear(x, layer.weight, layer.bias))
    assert x.grad is not None
    assert layer.weight.grad is None
    assert convolution.weight.grad is not None


def test_positions_in_float32_are_rounded_once() -> None:
    module, x = ConvPositions(32, 8, 4), torch.randn(2, 30, 32)
    with bf16():
        found = module(x.bfloat16())
    assert found.dtype == torch.bfloat16
    exact = module(x.bfloat16().float())
    # One rounding before GELU and one behind it.
    assert float((found - exact).detach().abs().max() / exact.detach().abs().max()) < 2.5 * ROUNDING


@pytest.mark.parametrize(("fast", "autocast"), [(True, True), (False, False)])
def test_elsewhere_torch_s_own_runs(fast: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asrkit.nn.linear.cpu_has_bf16", lambda: fast)
    layer, x = Linear(24, 10), torch.randn(5, 24)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
