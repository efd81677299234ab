"""Attention and positions against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asrkit.nn import attention as module
from asrkit.nn.attention import SelfAttention
from asrkit.nn.normalisation import LayerNorm
from asrkit.nn.positions import ConvPositions, position_state, rotate

DIM, HEADS = 24, 3


def make(kind: str) -> SelfAttention:
    torch.manual_seed(1)
    layer = SelfAttention(DIM, HEADS, 0.0, kind)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return layer.eval()


def parts(layer: SelfAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (N, H, T, D)."""
    return tuple(y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in layer.qkv(x).chunk(3, dim=-1))


def finish(layer: SelfAttention, scores: Tensor, value: Tensor, frame_mask: Tensor) -> Tensor:
    scores = scores.masked_fill(~frame_mask[:, None, None, :], -math.inf)
    return layer.output((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def make_input(frames: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, frames, DIM, generator=torch.Generator().manual_seed(frames))
    frame_mask = torch.arange(frames) < torch.tensor([[frames], [max(1, frames - 4)]])
    return x, frame_mask


@torch.no_grad()
def test_plain_attention() -> None:
    layer, (x, frame_mask) = make("none"), make_input(9)
    query, key, value = parts(layer, x)
    expected = finish(layer, query @ key.transpose(2, 3) / math.sqrt(DIM / HEADS), value, frame_mask)
    torch.testing.assert_close(layer(x, frame_mask, None), expected, atol=1e-5, rtol=1e-5)
    everywhere = torch.ones_like(frame_mask)
    torch.testing.assert_close(layer(x, None, None), layer(x, everywhere, None), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tile", [4, 100])
@pytest.mark.parametrize("kind", ["none", "relative"])
def test_training_in_tables_is_the_fused_kernel(kind: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, with dropout that rounds to none."""
    monkeypatch.setattr(module, "_TILE", tile)
    layer, (x, frame_mask) = make(kind).double(), make_input(9)
    x = x.double().requires_grad_()
    shared = position_state(kind, 9, DIM, HEADS, x.device)
    found = []
    for probability in (0.0, 1e-9):
        layer.train().dropout = probability
        assert layer._in_tables(x.new_empty(1, 1, 9, 8)) == (probability > 0)
        y = layer(x, frame_mask, shared)
        found.append([y, *torch.autograd.grad(y[frame_mask].square().sum(), [x, *layer.parameters()])])
    for fused, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, fused)


def test_dropout_is_on_the_weights_of_attention() -> None:
    """Over many draws the output is that without dropout; a single draw is not, and weights of zero reach no value."""
    layer, (x, frame_mask) = make("none"), make_input(9)
    plain = layer(x, frame_mask, None).detach()
    layer.train().dropout = 0.3
    torch.manual_seed(0)
    draws = torch.stack([layer(x, frame_mask, None) for _ in range(3000)])
    assert draws.requires_grad
    spread = draws.detach().std(0)
    assert float(spread[frame_mask].min()) > 0
    assert float(((draws.detach().mean(0) - plain).abs() / spread)[frame_mask].max()) < 5 / math.sqrt(3000)


def relative_formula(layer: SelfAttention, x: Tensor, frame_mask: Tensor) -> Tensor:
    """Transformer-XL's four terms, with a loop over pairs of frames for the distances."""
    frames, size = x.size(1), DIM // HEADS
    query, key, value = parts(layer, x)
    rates = 10_000.0 ** (-torch.arange(0, DIM, 2) / DIM)
    scores = torch.empty(2, HEADS, frames, frames)
    for i in range(frames):
        for j in range(frames):
            sinusoid = torch.cat([torch.sin((i - j) * rates), torch.cos((i - j) * rates)])
            place = layer.position(sinusoid).view(HEADS, size)
            content = ((query[:, :, i] + layer.content_bias) * key[:, :, j]).sum(-1)
            scores[:, :, i, j] = content + ((query[:, :, i] + layer.position_bias) * place).sum(-1)
    return finish(layer, scores / math.sqrt(size), value, frame_mask)


@pytest.mark.parametrize("tile", [1, 2, 4, 5, 100])
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_relative_attention(frames: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TILE", tile)
    layer, (x, frame_mask) = make("relative"), make_input(frames)
    shared = position_state("relative", frames, DIM, HEADS, x.device)
    ours = layer(x, frame_mask, shared)
    expected = relative_formula(layer, x, frame_mask)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    for parameter in (layer.position.weight, layer.content_bias, layer.position_bias, layer.qkv.weight):
        mine, other = (torch.autograd.grad(y.square().sum(), parameter, retain_graph=True)[0] for y in (ours, expected))
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_rotary_scores_depend_on_distance_only() -> None:
    frames, size = 12, DIM // HEADS
    cosines, sines = position_state("rotary", frames, DIM, HEADS, torch.device("cpu")).rotary
    assert cosines.shape == (frames, size // 2)
    query, key = torch.randn(size), torch.randn(size)
    turned_query = rotate(query.expand(1, frames, 1, size), (cosines, sines))[0, :, 0]
    turned_key = rotate(key.expand(1, frames, 1, size), (cosines, sines))[0, :, 0]
    scores = turned_query @ turned_key.t()
    for distance in range(-frames + 1, frames):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores[0, 0], scores[0, 1])
    torch.testing.assert_close(turned_query.norm(dim=-1), query.norm().expand(frames))


@torch.no_grad()
def test_rotary_attention() -> None:
    layer, (x, frame_mask) = make("rotary"), make_input(9)
    shared = position_state("rotary", 9, DIM, HEADS, x.device)
    query, key, value = parts(layer, x)
    query, key = (rotate(y.transpose(1, 2), shared.rotary).transpose(1, 2) for y in (query, key))
    expected = finish(layer, query @ key.transpose(2, 3) / math.sqrt(DIM / HEADS), value, frame_mask)
    torch.testing.assert_close(layer(x, frame_mask, shared), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [4, 5])
@torch.no_grad()
def test_convolutional_positions(kernel: int) -> None:
    torch.manual_seed(1)
    positions = ConvPositions(DIM, kernel, groups=3)
    positions.magnitude.mul_(torch.rand(kernel) + 0.5)
    conv = torch.nn.Conv1d(DIM, DIM, kernel, padding=kernel // 2, groups=3)
    conv = torch.nn.utils.parametrizations.weight_norm(conv, dim=2)
    conv.parametrizations.weight.original0.copy_(positions.magnitude.view(1, 1, -1))
    conv.parametrizations.weight.original1.copy_(positions.direction)
    conv.bias.copy_(positions.bias)
    x = torch.randn(2, 10, DIM)
    expected = F.gelu(conv(x.transpose(1, 2))[:, :, :10]).transpose(1, 2)
    torch.testing.assert_close(positions(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [15, 16])
@torch.no_grad()
def test_convolutional_positions_in_half_precision(kernel: int) -> None:
    positions = ConvPositions(32, kernel, groups=4)
    x = torch.randn(2, 40, 32)
    exact = positions(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = positions(x).float()
    assert (half - exact).norm() < 0.02 * exact.norm()


def test_layer_norm_keeps_the_dtype_and_has_exact_statistics() -> None:
    norm = LayerNorm(512)
    x = (torch.randn(4, 512) + 30.0).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    exact = F.layer_norm(x.double(), (512,))
    assert (y.double() - exact).abs().max() < 0.02
