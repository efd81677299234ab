"""Conformer blocks.

Source: Gulati et al., "Conformer", Interspeech 2020.
The convolution module's norm is a layer norm unless asked otherwise.

Shapes: N batch, T frames, C channels, J inner channels of the feed-forward modules, K kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from asrkit.nn.attention import attention_of
from asrkit.nn.config import EncoderConfig
from asrkit.nn.dropout import dropout
from asrkit.nn.linear import Linear
from asrkit.nn.normalisation import LayerNorm
from asrkit.nn.positions import PositionState


class ConformerBlock(nn.Module):
    """Half a feed-forward step, attention, convolution, the other half step, a norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.before = FeedForwardModule(config.dim, config.ffn_dim, config.activation_dropout)
        self.attention_norm = LayerNorm(config.dim)
        self.attention = attention_of(config)
        self.convolution = ConvolutionModule(config.dim, config.conv_kernel, config.conv_norm, config.conv_bias)
        # Other toolkits let the convolution see whatever stands in padded frames.
        self.masked = config.padding != "foreign"
        self.after = FeedForwardModule(config.dim, config.ffn_dim, config.activation_dropout)
        self.norm = LayerNorm(config.dim)

    def forward(self, x: Tensor, frame_mask: Tensor | None, positions: PositionState | None) -> Tensor:
        """Map frames to frames.

        Args:
            x: of shape (N, T, C).
            frame_mask: bool (N, T), True where a frame is valid, with at least one per row; None if all are.
            positions: what the attention layers of this pass share, or None.

        Returns:
            (N, T, C); padded frames have no meaning.
        """
        x = x + 0.5 * self._drop(self.before(x))
        x = x + self._drop(self.attention(self.attention_norm(x), frame_mask, positions))
        x = x + self._drop(self.convolution(x, frame_mask if self.masked else None))
        x = x + 0.5 * self._drop(self.after(x))
        y: Tensor = self.norm(x)
        return y

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class FeedForwardModule(nn.Module):
    """A norm and two linear maps with SiLU between them."""

    def __init__(self, dim: int, inner: int, activation_dropout: float) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.input = Linear(dim, inner)
        self.output = Linear(inner, dim)
        self.activation_dropout = activation_dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, C) to the same shape."""
        inner = dropout(functional.silu(self.input(self.norm(x))), self.activation_dropout, self.training)
        y: Tensor = self.output(inner)
        return y


class ConvolutionModule(nn.Module):
    """A norm, a gated linear unit, a depthwise convolution over time, its norm, SiLU, a linear map."""

    def __init__(self, dim: int, kernel: int, norm: str, bias: bool = True) -> None:
        """Make the module; ``norm`` is "layer" or "batch"."""
        super().__init__()
        self.norm = LayerNorm(dim)
        self.gate = Linear(dim, 2 * dim, bias=bias)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias)
        self.depthwise_norm = LayerNorm(dim) if norm == "layer" else MaskedBatchNorm(dim)
        self.output = Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Map (N, T, C) to the same shape; frame_mask (N, T) is True where a frame is valid, None if all are."""
        x = functional.glu(self.gate(self.norm(x)), dim=-1)
        if frame_mask is not None:
            # What the kernel finds behind an utterance's end is what it finds before its start: zeros.
            x = x.masked_fill(~frame_mask[..., None], 0.0)
        x = self._convolve(x)
        if isinstance(self.depthwise_norm, MaskedBatchNorm):
            x = self.depthwise_norm(x, frame_mask)
        else:
            x = self.depthwise_norm(x)
        y: Tensor = self.output(functional.silu(x))
        return y

    def _convolve(self, x: Tensor) -> Tensor:
        """Convolve (N, T, C) over time, each channel for itself."""
        layer = self.depthwise
        # A picture of one column whose channels lie last in memory: what frames (N, T, C) are already, so that nothing is copied,
        # and what the libraries have their fast kernels for (on a CPU 2 to 5 times as fast as the convolution of (N, C, T)).
        image, weight = x.transpose(1, 2)[..., None], layer.weight[..., None]
        y = functional.conv2d(image, weight, layer.bias, padding=(layer.kernel_size[0] // 2, 0), groups=layer.groups)
        return y.squeeze(-1).transpose(1, 2)


class MaskedBatchNorm(nn.Module):
    """Batch normalisation whose statistics are those of the valid frames, in float32.

    Each rank and micro-batch has its own statistics in training; running ones are used in evaluation. What is not finite never
    reaches the running ones, which an update that is skipped for it would spoil for good.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, dim: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_variance", torch.ones(dim))

    def forward(self, x: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Normalise (N, T, C) per channel; frame_mask (N, T) is True where a frame is valid, None if all are."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            if self.training:
                mean, variance = self._statistics(wide, frame_mask)
            else:
                mean, variance = self.running_mean, self.running_variance
            return ((wide - mean) * (torch.rsqrt(variance + self.epsilon) * self.weight) + self.bias).to(x.dtype)

    def _statistics(self, x: Tensor, frame_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and variance (C,) over valid frames, and move the running ones towards them."""
        weight = torch.ones_like(x[..., :1]) if frame_mask is None else frame_mask[..., None].to(x.dtype)
        frames = weight.sum()
        count = frames.clamp(min=1)
        mean = (x * weight).sum((0, 1)) / count
        variance = ((x - mean).square() * weight).sum((0, 1)) / count
        with torch.no_grad():
            sound = (mean + variance).isfinite() & (frames > 0)
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(torch.where(sound, mean, self.running_mean), self.momentum)
            self.running_variance.lerp_(torch.where(sound, unbiased, self.running_variance), self.momentum)
        return mean, variance
