"""Conformer blocks: padding, and masked batch norm against torch's on packed frames."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from asrkit.nn.config import EncoderConfig
from asrkit.nn.conformer import ConformerBlock, ConvolutionModule, MaskedBatchNorm
from asrkit.nn.positions import position_state

LENGTHS = (17, 9, 1, 13)


def block(positions: str, norm: str) -> ConformerBlock:
    torch.manual_seed(0)
    config = EncoderConfig(
        blocks="conformer", dim=16, ffn_dim=24, heads=2, positions=positions, conv_kernel=5, conv_norm=norm
    )
    made = ConformerBlock(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def frames() -> tuple[Tensor, Tensor]:
    x = torch.randn(len(LENGTHS), max(LENGTHS), 16, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def run(module: ConformerBlock, x: Tensor, mask: Tensor | None, positions: str) -> Tensor:
    y: Tensor = module(x, mask, position_state(positions, x.shape[1], 16, 2, x.device))
    return y


@pytest.mark.parametrize("positions", ["rotary", "relative", "none"])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_padding_changes_neither_output_nor_gradient(positions: str, norm: str) -> None:
    module = block(positions, norm).eval()
    x, mask = frames()
    together = run(module, x.masked_fill(~mask[..., None], 9.0), mask, positions)
    into = torch.randn_like(together)
    gradients = torch.autograd.grad((together * into)[mask].sum(), list(module.parameters()), allow_unused=True)
    total = [torch.zeros_like(p) for p in module.parameters()]
    for row, length in enumerate(LENGTHS):
        alone = run(module, x[row : row + 1, :length], None, positions)
        torch.testing.assert_close(alone[0], together[row, :length], atol=1e-5, rtol=1e-4)
        part = (alone[0] * into[row, :length]).sum()
        for sum_, gradient in zip(total, torch.autograd.grad(part, list(module.parameters())), strict=True):
            sum_ += gradient
    for sum_, gradient in zip(total, gradients, strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient, sum_, atol=1e-4, rtol=1e-3)


def test_the_block_knows_the_order_of_frames_through_its_convolution() -> None:
    module = block("none", "layer").eval()
    x, _ = frames()
    flipped = run(module, x.flip(1), None, "none").flip(1)
    assert not torch.allclose(flipped, run(module, x, None, "none"), atol=1e-3)


def test_convolution_module_reaches_half_a_kernel() -> None:
    module = ConvolutionModule(16, 5, "layer")
    x, _ = frames()
    x = x[:1].requires_grad_()
    gradient = torch.autograd.grad(module(x, None)[0, 8].sum(), x)[0][0].abs().sum(-1)
    assert gradient.nonzero()[:, 0].tolist() == [6, 7, 8, 9, 10]


def test_masked_batch_norm_equals_batch_norm_of_the_valid_frames() -> None:
    x, mask = frames()
    ours, theirs = MaskedBatchNorm(16), nn.BatchNorm1d(16)
    for _ in range(3):
        x = x * 1.5 + 0.3
        torch.testing.assert_close(ours(x, mask)[mask], theirs(x[mask]))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_variance, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x, mask)[mask], theirs.eval()(x[mask]))
    torch.testing.assert_close(ours.train()(x, None).flatten(0, 1), theirs.train()(x.flatten(0, 1)))


@pytest.mark.parametrize("bad", [math.inf, math.nan, 1e25])
def test_running_statistics_take_in_nothing_that_is_not_finite(bad: float) -> None:
    x, mask = frames()
    norm, plain = MaskedBatchNorm(16), MaskedBatchNorm(16)
    spoilt = x.clone()
    spoilt[0, 0, 3] = bad
    norm(spoilt, mask)
    norm(spoilt, torch.zeros_like(mask))
    plain(x, mask)
    others = torch.arange(16) != 3
    for ours, expected, start in zip(norm.buffers(), plain.buffers(), MaskedBatchNorm(16).buffers(), strict=True):
        assert torch.equal(ours[others], expected[others])
        assert torch.equal(ours[3], start[3])


def test_the_depthwise_convolution_is_torch_s() -> None:
    module = ConvolutionModule(16, 5, "layer").double()
    x = torch.randn(3, 11, 16, dtype=torch.float64, requires_grad=True)
    into = torch.randn_like(x)
    found = []
    for y in (module._convolve(x), module.depthwise(x.transpose(1, 2)).transpose(1, 2)):
        found.append([y, *torch.autograd.grad((y * into).sum(), [x, *module.depthwise.parameters()])])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)
