"""Multi-head self-attention, without positions or with rotary or relative ones.

Everything goes through scaled_dot_product_attention. Only relative positions need a bias of queries by keys; it is
made for a tile of queries at a time and, in training, made again in the backward pass, so that memory grows with T ·
tile.

Sources: Vaswani et al. 2017, section 3.2; Dai et al. 2019 (Transformer-XL), section 3.3.
Shapes: N batch, T frames, C channels, H heads, D = C / H, Q queries of a tile.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asrkit.nn.positions import PositionState, rotate

_TILE = 512


class SelfAttention(nn.Module):
    """Self-attention over the valid frames of each row."""

    def __init__(self, dim: int, heads: int, dropout: float, positions: str = "none") -> None:
        """Make the layer.

        Args:
            dim: C.
            heads: H, which divides C.
            dropout: on attention weights.
            positions: "relative" adds the parameters of relative positions, "rotary-input" turns the input of the
                query and key projections by its place (as Hugging Face's Conformer does) rather than their output; any
                other kind acts through the `PositionState` alone.
        """
        super().__init__()
        self.heads, self.dropout, self.turns_input = heads, dropout, positions == "rotary-input"
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        for linear in (self.qkv, self.output):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if positions == "relative":
            self.position = nn.Linear(dim, dim, bias=False)
            nn.init.normal_(self.position.weight, std=0.02)
            self.content_bias = nn.Parameter(torch.zeros(heads, dim // heads))
            self.position_bias = nn.Parameter(torch.zeros(heads, dim // heads))

    def forward(self, x: Tensor, frame_mask: Tensor | None, positions: PositionState | None) -> Tensor:
        """Attend.

        Args:
            x: frames (N, T, C).
            frame_mask: bool (N, T), True where a frame is valid, with at least one per row; None if all are.
            positions: rotary or relative positions of this pass, or None.

        Returns:
            (N, T, C). Padded frames are never attended to; what stands at their own places has no meaning.
        """
        query, key, value = self.project(x, None if positions is None else positions.rotary)
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        mask = None if frame_mask is None else frame_mask[:, None, None, :]
        if positions is not None and positions.relative is not None:
            y = self._relative(query, key, value, mask, positions.relative)
        else:
            y = self._attend(query.transpose(1, 2), key, value, mask)
        return self.output(y.transpose(1, 2).flatten(2))

    def project(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
        """Return queries, keys and values (N, T, H, D) of frames (N, T, C)."""
        if rotary is None or not self.turns_input:
            qkv = self.qkv(x).view(x.size(0), x.size(1), 3, self.heads, -1)
            if rotary is None:
                return qkv.unbind(2)
            return (*rotate(qkv[:, :, :2], rotary).unbind(2), qkv[:, :, 2])
        turned = rotate(x.view(x.size(0), x.size(1), self.heads, -1), rotary).flatten(2)
        inputs = (turned, turned, x)
        maps = zip(inputs, self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        return tuple(F.linear(y, weight, bias).view(x.size(0), x.size(1), self.heads, -1) for y, weight, bias in maps)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)

    def _relative(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sinusoids: Tensor) -> Tensor:
        """Attend with relative positions: query (N, T, H, D), key and value (N, H, T, D), sinusoids (2T, C)."""
        distances = self.position(sinusoids.to(query.dtype)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        content = (query + self.content_bias.to(query.dtype)).transpose(1, 2)
        place = (query + self.position_bias.to(query.dtype)).transpose(1, 2)
        frames = key.size(2)
        if frames <= _TILE:
            return self._tile(content, place, key, value, mask, distances)
        tiles = []
        for start in range(0, frames, _TILE):
            end = min(start + _TILE, frames)
            window = distances[:, frames - end : 2 * frames - start]
            tile = (content[:, :, start:end], place[:, :, start:end], key, value, mask, window)
            if torch.is_grad_enabled():
                tiles.append(checkpoint(self._tile, *tile, use_reentrant=False))
            else:
                tiles.append(self._tile(*tile))
        return torch.cat(tiles, dim=2)

    def _tile(
        self, content: Tensor, place: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, distances: Tensor
    ) -> Tensor:
        """Attend from Q queries (N, H, Q, D) to all keys; distances (H, T + Q, D) begin at last query - key 0."""
        queries, frames = content.size(2), key.size(2)
        scores = place @ distances.transpose(1, 2) * content.size(-1) ** -0.5
        # Row r wants the columns Q - 1 - r, …: seen as one long line, each row begins one column earlier than the last.
        line = scores.flatten(2)[:, :, queries - 1 :][:, :, : queries * (queries + frames - 1)]
        bias = line.unflatten(2, (queries, queries + frames - 1))[..., :frames]
        if mask is not None:
            bias = bias.masked_fill(~mask, float("-inf"))
        return self._attend(content, key, value, bias.to(content.dtype))
