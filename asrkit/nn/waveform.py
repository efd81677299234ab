"""wav2vec 2.0's convolutional frontend: waves to a feature vector every 20 ms.

The rows of a batch are laid end to end, each padded to a multiple of the total stride, and the convolutions run over
that one sequence as matrix products on overlapping windows, channels last: no transposes, no unfolding, any batch is
one product per layer. An output frame that reaches into the next row lies behind its own row's end and is dropped.

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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkit.errors import AsrkitError
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

    def __post_init__(self) -> None:
        if self.norm not in ("group", "layer"):
            raise AsrkitError(f"encoder.waveform.norm is '{self.norm}'", mend="group or layer")
        if not self.layers:
            raise AsrkitError("encoder.waveform.layers is empty", mend="[channels, kernel, stride] of each convolution")
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
        rows, inputs, stride = (x.size(0) - self.kernel) // self.stride + 1, x.size(1), self.stride
        # The first `stride` taps of all windows tile the sequence: a view of it. Each later tap is a strided slice.
        head = self.weight[:, :, :stride].transpose(1, 2).flatten(1)
        y = F.linear(x[: rows * stride].view(rows, stride * inputs), head, self.bias)
        for tap in range(stride, self.kernel):
            y = torch.addmm(y, x[tap : tap + (rows - 1) * stride + 1 : stride], self.weight[:, :, tap].t())
        return y


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
        valid = torch.arange(windows.size(1), device=windows.device) < frames[:, None]
        count = frames.clamp(min=1).double()[:, None, None]
        mean = (exact * valid[:, :, None]).sum(1, keepdim=True) / count
        centred = (exact - mean) * valid[:, :, None]
        covariance = centred.transpose(1, 2) @ centred / count
        # Windows are brought to unit scale so that quiet recordings survive half precision.
        scale = covariance.diagonal(dim1=1, dim2=2).mean(1).sqrt().clamp(min=1e-8)[:, None]
        taps = weight.double()
        variance = ((taps @ covariance) * taps).sum(-1)
        gain = scale * (variance + _EPSILON).rsqrt() * self.weight
        folded = (taps * gain[:, :, None]).to(weight.dtype)
        normal = ((exact[:, :kept] - mean) / scale[:, :, None]).to(windows.dtype)
        return torch.baddbmm(self.bias, normal, folded.transpose(1, 2))


class ConvolutionLayer(nn.Module):
    """A convolution, its normalisation, GELU."""

    def __init__(self, inputs: int, spec: Sequence[int], norm: str, bias: bool) -> None:
        """Make the layer: ``spec`` is channels, kernel, stride; ``norm`` is "group", "layer" or "none"."""
        super().__init__()
        outputs, kernel, stride = spec
        # Group normalisation over time takes away whatever a bias adds.
        self.conv = Convolution(inputs, outputs, kernel, stride, bias and norm != "group")
        if norm != "none":
            self.norm = FoldedGroupNorm(outputs) if norm == "group" else LayerNorm(outputs)
        self.layer_normed = norm == "layer"

    def forward(self, x: Tensor) -> Tensor:
        """Map a flat sequence (R, C) to (R', C')."""
        y = self.conv(x)
        return F.gelu(self.norm(y) if self.layer_normed else y)


class WaveformFrontend(nn.Module):
    """Raw waves to features."""

    def __init__(self, config: WaveformConfig, foreign_padding: bool = False) -> None:
        """Make the frontend; ``foreign_padding`` lets group normalisation's statistics run over padding too."""
        super().__init__()
        self.normalise, self.foreign_padding = config.normalise, foreign_padding
        channels = [1, *(spec[0] for spec in config.layers)]
        norms = ["layer" if config.norm == "layer" else "none" for _ in config.layers]
        norms[0] = config.norm
        self.layers = nn.ModuleList(
            ConvolutionLayer(inputs, spec, norm, config.bias)
            for inputs, spec, norm in zip(channels, config.layers, norms, strict=False)
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
            valid = torch.arange(waves.size(1), device=waves.device) < wave_lengths[:, None]
            waves = row_normalise(waves, wave_lengths, valid)
        frames = max(1, *host_frames)
        slots = self._slots(frames)
        x = self._first_layer(waves, wave_lengths, slots * math.prod(stride for _, stride in self._sizes[1:]))
        for layer in self.layers[1:]:
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

    def _first_layer(self, waves: Tensor, wave_lengths: Tensor, kept: int) -> Tensor:
        """Return the first layer's output as a flat sequence: ``kept`` frames of each row, (N · kept, C)."""
        first = self.layers[0]
        kernel, stride = self._sizes[0]
        count = max(kept, (waves.size(1) - kernel) // stride + 1)
        padded = F.pad(waves, (0, max(0, (count - 1) * stride + kernel - waves.size(1))))
        windows = padded.unfold(1, kernel, stride)
        if not isinstance(first.norm, FoldedGroupNorm):
            flat = windows[:, :kept].reshape(-1, kernel)
            return F.gelu(first.norm(F.linear(flat, first.conv.weight.squeeze(1), first.conv.bias)))
        samples = torch.full_like(wave_lengths, waves.size(1)) if self.foreign_padding else wave_lengths
        frames = (torch.div(samples - kernel, stride, rounding_mode="floor") + 1).clamp(min=0)
        normed = first.norm(windows, frames, kept, first.conv.weight.squeeze(1))
        return F.gelu(normed).flatten(0, 1)
