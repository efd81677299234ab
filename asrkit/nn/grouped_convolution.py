"""Wide grouped convolutions, those of convolutional positions.

On a CPU they run as pictures of one row whose channels lie last in memory, twice as fast as otherwise, and the gradient of the
weight is a product of matrices for each group: three times as fast as torch's. The K taps are the sums u + v of a multiple u of P
and a v below P; then the sum over frames t

    dW[u + v] = Σ gradient[t] x[t + u + v] = Σ gradient[t - v] x[t + u]

is one product of P shifted copies of the gradient and K / P of the input, rather than K small ones.

Shapes: N batch, T frames, C channels in and out, c = C / groups, K taps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkit.nn.linear import in_float32
from asrkit.nn.scratch import SCRATCH, calculates_here

_SHIFTS = 8
_ROWS = 1024
"""Frames that are multiplied together."""


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Convolve x (N, T, C) with weight (C, c, K) into as many frames; an even K reaches back by K / 2 frames."""
    if calculates_here(x):
        if in_float32(x):
            y: Tensor = _Convolve.apply(x.bfloat16(), weight, bias, groups)
            return y
        if x.dtype == weight.dtype and not torch.is_autocast_enabled("cpu"):
            return _Convolve.apply(x, weight, bias, groups)
    # A zero tap makes an even kernel odd: as many frames come out as go in, without one to be cut. Besides, given
    # even kernels and fewer than 16 channels per group, oneDNN's bfloat16 convolution returns wrong numbers on
    # CPUs with AMX (seen in torch 2.9; the same family of faults as pytorch issue 163347).
    kernel = weight.size(2)
    weight = F.pad(weight, (0, 1 - kernel % 2))
    if x.device.type != "cpu":
        return F.conv1d(x.transpose(1, 2), weight, bias, padding=kernel // 2, groups=groups).transpose(1, 2)
    weight = weight[:, :, None].contiguous(memory_format=torch.channels_last)
    y = F.conv2d(_image(x), weight, bias, padding=(0, kernel // 2), groups=groups)
    return y.squeeze(2).transpose(1, 2)


def _image(x: Tensor) -> Tensor:
    """Return frames (N, T, C) as pictures (N, C, 1, T) whose channels lie last in memory."""
    return x.transpose(1, 2)[:, :, None].contiguous(memory_format=torch.channels_last)


class _Convolve(torch.autograd.Function):
    """A convolution in weight's type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        outputs, inputs, kernel = weight.shape
        last = weight.new_zeros(outputs, kernel + 1 - kernel % 2, inputs)
        last[:, :kernel] = weight.transpose(1, 2)
        ctx.groups, ctx.kernel = groups, kernel
        ctx.save_for_backward(x, last)
        with torch.autocast("cpu", enabled=False):
            y = F.conv2d(_image(x.to(weight.dtype)), _picture(last), bias, padding=(0, kernel // 2), groups=groups)
            return y.squeeze(2).transpose(1, 2).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, last = ctx.saved_tensors
        to_x = to_weight = None
        with torch.autocast("cpu", enabled=False):
            if ctx.needs_input_grad[0]:
                to_x, _, _ = torch.ops.aten.convolution_backward(
                    _image(gradient.to(last.dtype)), _image(x.to(last.dtype)), _picture(last), None, (1, 1),
                    (0, ctx.kernel // 2), (1, 1), False, (0, 0), ctx.groups, (True, False, False),
                )  # fmt: skip
                to_x = to_x.squeeze(2).transpose(1, 2).to(x.dtype)
            if ctx.needs_input_grad[1]:
                to_weight = _to_weight(gradient, x, ctx.kernel, ctx.groups, last.dtype)
        to_bias = gradient.sum((0, 1), dtype=last.dtype) if ctx.needs_input_grad[2] else None
        return to_x, to_weight, to_bias, None


def _picture(last: Tensor) -> Tensor:
    """Return taps (C, K, c) as a kernel of pictures (C, c, 1, K)."""
    return last.transpose(1, 2)[:, :, None]


def _to_weight(gradient: Tensor, x: Tensor, kernel: int, groups: int, dtype: torch.dtype) -> Tensor:
    """Return the gradient of the weight, (C, c, K)."""
    (rows, frames, channels), size = x.shape, x.size(2) // groups
    blocks, length = -(-kernel // _SHIFTS), frames + _SHIFTS - 1
    step = max(_ROWS // length, 1)
    to_weight = x.new_empty(channels, size, kernel, dtype=dtype)
    product = SCRATCH.room(4, (_SHIFTS * size, blocks * size), dtype)
    for group in to_weight.split(size):
        first = group.storage_offset() // group.stride(0)
        place = slice(first, first + size)
        for row in range(0, rows, step):
            # Frames t - v of the gradient, those of v = P - 1 first, and t + u of the input, for t up to the last of any v.
            there = gradient[row : row + step, :, place]
            here = x[row : row + step, :, place]
            before = _padded(0, there, _SHIFTS - 1, length + _SHIFTS - 1, dtype).unfold(1, length, 1)
            after = _padded(1, here, kernel // 2, length + (blocks - 1) * _SHIFTS, dtype).unfold(1, length, _SHIFTS)
            shifted = SCRATCH.copy(2, before.permute(0, 3, 1, 2), dtype).flatten(2).flatten(0, 1)
            blocked = SCRATCH.copy(3, after.permute(0, 3, 1, 2), dtype).flatten(2).flatten(0, 1)
            torch.addmm(product, shifted.t(), blocked, beta=float(row > 0), out=product)
        taps = product.view(_SHIFTS, size, blocks, size).flip(0).permute(1, 3, 2, 0)
        group.copy_(taps.reshape(size, size, -1)[:, :, :kernel])
    return to_weight


def _padded(room: int, x: Tensor, before: int, length: int, dtype: torch.dtype) -> Tensor:
    """Return frames (N, T, c) behind some zeros and before others, (N, length, c)."""
    y = SCRATCH.room(room, (x.size(0), length, x.size(2)), dtype).zero_()
    kept = min(x.size(1), length - before)
    y[:, before : before + kept] = x[:, :kept]
    return y
