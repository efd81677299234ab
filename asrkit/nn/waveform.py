"""wav2vec 2.0's convolutional frontend: waves to a feature vector every 20 ms.

The rows of a batch are laid end to end, each padded to a multiple of the total stride, and the convolutions run over
that one sequence as matrix products on views of it, channels last: no transposes, no copies of overlapping windows, any
batch is one product per layer. An output frame that reaches into the next row lies behind its own row's end and is
dropped.

BASE's group normalisation (one group per channel, statistics over time) follows a linear map of ten samples, so its
mean and variance follow from the mean and covariance of those samples over the row's valid windows. They are computed
in float64 and folded into the first layer's weights, one set per row: the largest activation of the network is never
normalised as such.

Source: Baevski et al. 2020 (wav2vec 2.0), sections 2 and 4.2.
Shapes: N batch, S samples, T frames, C channels, K kernel, R rows of a flat sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from asrkit.errors import AsrkitError
from asrkit.nn import three_taps
from asrkit.nn.lengths import inside
from asrkit.nn.linear import in_float32, linear, products, products_backward
from asrkit.nn.normalisation import LayerNorm, row_normalise

_EPSILON = 1e-5


def _base_layers() -> list[list[int]]:
    return [[512, 10, 5]] + [[512, 3, 2] for _ in range(4)] + [[512, 2, 2] for _ in range(2)]


@dataclass
class WaveformConfig:
    """The convolutions of the waveform frontend; the defaults are wav2vec 2.0 BASE."""

    layers: list[list[int]] = field(default_factory=_base_layers)
    """Channels, kernel and stride of each convolution."""
    norm: str = "group"
    """group (BASE: over time, after the first convolution only) or layer (LARGE: over channels, after each)."""
    bias: bool = False
    """Biases in the convolutions (LARGE: true)."""
    normalise: bool = False
    """Give each wave zero mean and unit variance first (LARGE: true)."""
    normalise_epsilon: float = 1e-5
    """Added to the variance there (fairseq, fairseq2 and torchaudio: 1e-5; Hugging Face: 1e-7)."""

    def __post_init__(self) -> None:
        if self.norm not in ("group", "layer"):
            raise AsrkitError(f"encoder.waveform.norm is '{self.norm}'", mend="group or layer")
        if not self.layers:
            raise AsrkitError("encoder.waveform.layers is empty", mend="[channels, kernel, stride] of each convolution")
        if self.normalise_epsilon <= 0:
            raise AsrkitError(f"encoder.waveform.normalise_epsilon is {self.normalise_epsilon}", mend="more than 0")
        for layer in self.layers:
            if len(layer) != 3 or min(layer) < 1 or layer[1] < layer[2]:
                raise AsrkitError(
                    f"encoder.waveform.layers has {list(layer)}",
                    mend="[channels, kernel, stride] with kernel >= stride >= 1",
                )


class Convolution(nn.Module):
    """Weights of one strided convolution without padding, applied to a flat sequence."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel))
        nn.init.kaiming_normal_(self.weight)
        self.bias: nn.Parameter | None = None
        if bias:
            bound = 1.0 / math.sqrt(inputs * kernel)
            self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (R, C) into (R', C'), R' = (R - K) // stride + 1."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if in_float32(x):
            x = x.bfloat16()
        elif torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if not torch.is_grad_enabled():
            return _convolve(x, weight, bias, self.stride)
        y: Tensor = _Convolve.apply(x, weight, bias, self.stride)
        return y


def _operands(x: Tensor, kernel: int, stride: int) -> list[Tensor]:
    """Return views of x (R, C) whose r-th rows together are the r-th window.

    The first `stride` taps of all windows tile the sequence: (R', stride · C). Each later tap is a slice: (R', C).
    """
    rows, channels = (x.size(0) - kernel) // stride + 1, x.size(1)
    taps = [x[tap : tap + (rows - 1) * stride + 1 : stride] for tap in range(stride, kernel)]
    return [x[: rows * stride].view(rows, stride * channels), *taps]


def _matrices(weight: Tensor, stride: int) -> list[Tensor]:
    """Return what the operands are multiplied with, of weight (C', C, K): (C', stride · C), then (C', C) per tap."""
    head = weight[:, :, :stride].transpose(1, 2).flatten(1)
    return [head, *weight[:, :, stride:].permute(2, 0, 1).contiguous()]


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    if three_taps.worth_while(x, weight, stride):
        return three_taps.convolve(x, weight, bias)
    operands, matrices = _operands(x, weight.size(2), stride), _matrices(weight, stride)
    if x.dtype != weight.dtype:
        return products(operands, matrices, bias)
    y = F.linear(operands[0], matrices[0], bias)
    for operand, matrix in zip(operands[1:], matrices[1:], strict=True):
        y.addmm_(operand, matrix.t())
    return y


def _convolve_backward(
    gradient: Tensor, operands: Sequence[Tensor], matrices: Sequence[Tensor], to_operands: Sequence[Tensor]
) -> list[Tensor]:
    """Do as `products_backward`, in the tensors' own type."""
    for number, (to_operand, matrix) in enumerate(zip(to_operands, matrices, strict=False)):
        if number == 0:
            torch.mm(gradient, matrix, out=to_operand)
        else:
            to_operand.addmm_(gradient, matrix)
    return [gradient.t() @ operand for operand in operands]


class _Convolve(torch.autograd.Function):
    """`_convolve`, whose backward pass fills one gradient of the input; each slice's would begin with zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return _convolve(x, weight, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        (outputs, inputs, kernel), stride = weight.shape, ctx.stride
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        to_bias = gradient.sum(0, dtype=weight.dtype) if ctx.needs_input_grad[2] else None
        if three_taps.worth_while(x, weight, stride):
            to_weight = three_taps.convolve_backward(gradient, x, weight, to_x, ctx.needs_input_grad[1])
            return to_x, to_weight, to_bias, None
        to_weight = None
        operands = _operands(x, kernel, stride) if ctx.needs_input_grad[1] else []
        to_operands: list[Tensor] = []
        if to_x is not None:
            to_x[gradient.size(0) * stride :] = 0.0
            to_operands = _operands(to_x, kernel, stride)
        backward = products_backward if x.dtype != weight.dtype else _convolve_backward
        to_matrices = backward(gradient, operands, _matrices(weight, stride), to_operands)
        if to_matrices:
            head = to_matrices[0].view(outputs, stride, inputs).transpose(1, 2)
            to_weight = torch.cat([head, *(tap[:, :, None] for tap in to_matrices[1:])], dim=2)
        return to_x, to_weight, to_bias, None


class FoldedGroupNorm(nn.Module):
    """Group normalisation over time of a convolution of one input channel, folded into the convolution's weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, windows: Tensor, frames: Tensor, kept: int, weight: Tensor) -> Tensor:
        """Convolve and normalise.

        Args:
            windows: the samples under the kernel at each frame, (N, T, K).
            frames: the frames of each row whose statistics count, int64 (N,).
            kept: how many frames to return, at most T.
            weight: the convolution's weight (C, K).

        Returns:
            (N, kept, C).
        """
        exact = windows.double()
        valid = inside(frames, windows.size(1))[:, :, None]
        count = frames.clamp(min=1)[:, None, None]
        mean = (exact * valid).sum(1, keepdim=True) / count
        centred = (exact - mean) * valid
        covariance = centred.transpose(1, 2) @ centred / count
        # Windows are brought to unit scale so that quiet recordings survive half precision.
        scale = covariance.diagonal(dim1=1, dim2=2).mean(1).sqrt().clamp(min=1e-8)[:, None]
        taps = weight.double()
        variance = ((taps @ covariance) * taps).sum(-1)
        gain = scale * (variance + _EPSILON).rsqrt() * self.weight
        # The bias is one more tap, on a sample that is always one: a single product writes the result once.
        bias = self.bias.expand(gain.shape)[:, :, None]
        folded = torch.cat([(taps * gain[:, :, None]).to(weight.dtype), bias], dim=2)
        unit = ((exact[:, :kept] - mean) / scale[:, :, None]).to(windows.dtype)
        return torch.bmm(F.pad(unit, (0, 1), value=1.0), folded.transpose(1, 2))


class FirstLayer(nn.Module):
    """The first convolution, its normalisation, GELU: from rows of samples to a flat sequence of frames."""

    def __init__(self, spec: Sequence[int], norm: str, bias: bool, foreign_padding: bool) -> None:
        """Make the layer: ``spec`` is channels, kernel, stride; ``norm`` is "group" or "layer"."""
        super().__init__()
        dim, kernel, stride = spec
        # Group normalisation over time takes away whatever a bias adds.
        self.conv = Convolution(1, dim, kernel, stride, bias and norm != "group")
        self.norm: FoldedGroupNorm | LayerNorm = FoldedGroupNorm(dim) if norm == "group" else LayerNorm(dim)
        self.foreign_padding = foreign_padding

    def forward(self, waves: Tensor, wave_lengths: Tensor, kept: int) -> Tensor:
        """Map waves (N, S) to ``kept`` frames of each row, laid end to end, (N · kept, C)."""
        kernel, stride, samples = self.conv.kernel, self.conv.stride, waves.size(1)
        count = max(kept, (samples - kernel) // stride + 1)
        windows = F.pad(waves, (0, max(0, (count - 1) * stride + kernel - samples))).unfold(1, kernel, stride)
        weight = self.conv.weight.squeeze(1)
        if isinstance(self.norm, FoldedGroupNorm):
            counted = torch.full_like(wave_lengths, samples) if self.foreign_padding else wave_lengths
            frames = (torch.div(counted - kernel, stride, rounding_mode="floor") + 1).clamp(min=0)
            return F.gelu(self.norm(windows, frames, kept, weight)).flatten(0, 1)
        return F.gelu(self.norm(linear(windows[:, :kept].flatten(0, 1), weight, self.conv.bias)))


class LaterLayer(nn.Module):
    """A convolution of a flat sequence, under "layer" its normalisation, GELU."""

    def __init__(self, inputs: int, spec: Sequence[int], norm: str, bias: bool) -> None:
        """Make the layer: ``spec`` is channels, kernel, stride; ``norm`` is "group" (none here) or "layer"."""
        super().__init__()
        dim, kernel, stride = spec
        self.conv = Convolution(inputs, dim, kernel, stride, bias)
        self.norm = LayerNorm(dim) if norm == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        """Map a flat sequence (R, C) to (R', C')."""
        y = self.conv(x)
        return F.gelu(y if self.norm is None else self.norm(y))


class WaveformFrontend(nn.Module):
    """Raw waves to features."""

    def __init__(self, config: WaveformConfig, foreign_padding: bool = False) -> None:
        """Make the frontend; ``foreign_padding`` lets group normalisation's statistics run over padding too."""
        super().__init__()
        self.normalise, self.normalise_epsilon = config.normalise, config.normalise_epsilon
        channels = [spec[0] for spec in config.layers]
        later = zip(channels, config.layers[1:], strict=False)
        self.layers = nn.ModuleList(
            [
                FirstLayer(config.layers[0], config.norm, config.bias, foreign_padding),
                *(LaterLayer(inputs, spec, config.norm, config.bias) for inputs, spec in later),
            ]
        )
        self.feature_dim = channels[-1]
        self._sizes = [(spec[1], spec[2]) for spec in config.layers]

    def frames(self, samples: int) -> int:
        """Return the number of frames of a wave of so many samples."""
        for kernel, stride in self._sizes:
            samples = max((samples - kernel) // stride + 1, 0)
        return samples

    def forward(
        self, waves: Tensor, wave_lengths: Tensor, host_lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Extract features.

        Args:
            waves: (N, S), zero behind each row's end.
            wave_lengths: samples per row, int64 (N,).
            host_lengths: the same as Python integers.

        Returns:
            Features (N, T, F), with T at least 1 and no meaning behind a row's last frame; frames per row, int64 (N,);
            the same as Python integers.
        """
        host_frames = tuple(self.frames(samples) for samples in host_lengths)
        lengths = wave_lengths
        for kernel, stride in self._sizes:
            lengths = (torch.div(lengths - kernel, stride, rounding_mode="floor") + 1).clamp(min=0)
        if self.normalise:
            valid = inside(wave_lengths, waves.size(1))
            waves = row_normalise(waves, wave_lengths, valid, self.normalise_epsilon)
        frames = max(1, *host_frames)
        slots = self._slots(frames)
        first, *later = self.layers
        x = first(waves, wave_lengths, slots * math.prod(stride for _, stride in self._sizes[1:]))
        for layer in later:
            x = layer(x)
        x = F.pad(x, (0, 0, 0, len(host_frames) * slots - x.size(0)))
        return x.view(len(host_frames), slots, -1)[:, :frames], lengths, host_frames

    def _slots(self, frames: int) -> int:
        """Return how many output frames to lay a row out for, so that its last frame stays clear of the next row."""
        need, product, slots = frames, 1, frames
        for kernel, stride in reversed(self._sizes[1:]):
            need, product = (need - 1) * stride + kernel, product * stride
            slots = max(slots, -(-need // product))
        return slots
