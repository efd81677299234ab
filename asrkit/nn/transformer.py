"""Transformer blocks as in wav2vec 2.0.

Sources: Vaswani et al. 2017; Baevski et al. 2020, section 4.2 (post-norm in BASE, pre-norm in LARGE).
Shapes: N batch, T frames, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from asrkit.nn.attention import attention_of
from asrkit.nn.config import EncoderConfig
from asrkit.nn.dropout import dropout
from asrkit.nn.linear import Linear
from asrkit.nn.normalisation import LayerNorm
from asrkit.nn.positions import PositionState


class FeedForward(nn.Module):
    """Two linear maps with GELU between them."""

    def __init__(self, dim: int, inner: int, activation_dropout: float) -> None:
        super().__init__()
        self.input = Linear(dim, inner)
        self.output = Linear(inner, dim)
        self.activation_dropout = activation_dropout
        for linear in (self.input, self.output):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C)."""
        return self.output(dropout(F.gelu(self.input(x)), self.activation_dropout, self.training))


class TransformerBlock(nn.Module):
    """Self-attention and feed-forward, each with a residual connection, normalised before or after."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.pre_norm, self.dropout = config.pre_norm, config.dropout
        self.attention = attention_of(config)
        self.attention_norm = LayerNorm(config.dim)
        self.feed_forward = FeedForward(config.dim, config.ffn_dim, config.activation_dropout)
        self.feed_forward_norm = LayerNorm(config.dim)

    def forward(self, x: Tensor, frame_mask: Tensor | None, positions: PositionState | None) -> Tensor:
        """Map frames (N, T, C) to (N, T, C).

        Args:
            x: the frames.
            frame_mask: bool (N, T), True where valid, with at least one per row; None if all are.
            positions: what the attention layers of this pass share, or None.
        """
        if self.pre_norm:
            x = x + self._drop(self.attention(self.attention_norm(x), frame_mask, positions))
            return x + self._drop(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self._drop(self.attention(x, frame_mask, positions)))
        return self.feed_forward_norm(x + self._drop(self.feed_forward(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)
