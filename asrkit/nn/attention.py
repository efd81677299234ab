"""Multi-head self-attention, without positions or with rotary or relative ones, over all frames or within blocks.

Everything goes through scaled_dot_product_attention, but for training on a CPU with dropout on the attention's weights or in
half precision, where plain products are faster. These, and relative positions, need a table of queries by keys; it is made for
a tile of queries at a time and, where there are several, made again in the backward pass, so that memory grows with T · tile.

Block attention cuts the frames into blocks that do not overlap, from the first frame on, and makes rows of a batch of them:
time and memory grow with T · W. It is exactly attention over all frames under a mask that hides other blocks.

Sources: Vaswani et al. 2017, section 3.2; Dai et al. 2019 (Transformer-XL), section 3.3; Shaw et al. 2018, section 3.2, for
the keys alone; blocks: Saon et al. 2025 (Granite-speech, arXiv 2505.08699).
Shapes: N batch, T frames, C channels, H heads, D = C / H, Q queries of a tile, W frames of a block, B blocks of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asrkit.nn import attention_tables
from asrkit.nn.config import EncoderConfig
from asrkit.nn.dropout import dropout
from asrkit.nn.linear import Linear, cpu_has_bf16, linear
from asrkit.nn.positions import PositionState, rotate
from asrkit.nn.scratch import calculates_here

_TILE = 512


class SelfAttention(nn.Module):
    """Self-attention over the valid frames of each row."""

    def __init__(
        self, dim: int, heads: int, dropout: float, positions: str = "none", *, block: int = 0, reach: int = 0
    ) -> None:
        """Make the layer.

        Args:
            dim: C.
            heads: H, which divides C.
            dropout: on attention weights.
            positions: "relative" and "shaw" add the parameters of relative positions, "rotary-input" turns the input
                of the query and key projections by its place (as Hugging Face's Conformer does) rather than their
                output; any other kind acts through the `PositionState` alone.
            block: W; 0 attends to all frames.
            reach: "shaw": the longest distance with a vector of its own.
        """
        super().__init__()
        self.heads, self.dropout, self.turns_input = heads, dropout, positions == "rotary-input"
        self.block = block
        self.qkv = Linear(dim, 3 * dim)
        self.output = Linear(dim, dim)
        for layer in (self.qkv, self.output):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if positions == "relative":
            self.position = Linear(dim, dim, bias=False)
            nn.init.normal_(self.position.weight, std=0.02)
            self.content_bias = nn.Parameter(torch.zeros(heads, dim // heads))
            self.position_bias = nn.Parameter(torch.zeros(heads, dim // heads))
        if positions == "shaw":
            # One for each distance from -reach to reach, the same for all heads.
            self.distances = nn.Parameter(torch.empty(2 * reach + 1, dim // heads))
            nn.init.normal_(self.distances, std=0.02)

    def forward(self, x: Tensor, frame_mask: Tensor | None, positions: PositionState | None) -> Tensor:
        """Attend.

        Args:
            x: frames (N, T, C).
            frame_mask: bool (N, T), True where a frame is valid, with at least one per row; None if all are.
            positions: rotary or relative positions of this pass, or None.

        Returns:
            (N, T, C). Padded frames are never attended to; what stands at their own places has no meaning.
        """
        rows, frames = x.shape[:2]
        parts = self.project(x, None if positions is None else positions.rotary)
        cut = 0 < self.block < frames
        if cut:
            frame_mask = self._cut_mask(frame_mask, rows, frames, x.device)
            parts = tuple(self._cut(part) for part in parts)
        query, key, value = parts
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        mask = None if frame_mask is None else frame_mask[:, None, None, :]
        if positions is not None and (positions.relative is not None or positions.clipped is not None):
            y = self._relative(query, key, value, mask, positions)
        else:
            y = self._plain(query.transpose(1, 2), key, value, mask)
        y = y.transpose(1, 2).flatten(2)
        return self.output(y.reshape(rows, -1, y.size(2))[:, :frames] if cut else y)

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
        return tuple(linear(y, weight, bias).view(x.size(0), x.size(1), self.heads, -1) for y, weight, bias in maps)

    def _cut(self, x: Tensor) -> Tensor:
        """Return (N, T, H, D) as blocks (N · B, W, H, D), the last one of a row filled up with zeros."""
        return F.pad(x, (0, 0, 0, 0, 0, -x.size(1) % self.block)).reshape(-1, self.block, *x.shape[2:])

    def _cut_mask(self, frame_mask: Tensor | None, rows: int, frames: int, device: torch.device) -> Tensor | None:
        """Return which frames of the blocks may be attended to, bool (N · B, W); None if all may."""
        if frame_mask is None:
            if frames % self.block == 0:
                return None
            frame_mask = torch.ones(rows, frames, dtype=torch.bool, device=device)
        blocks = F.pad(frame_mask, (0, -frames % self.block)).reshape(-1, self.block)
        # A block that is padding as a whole needs a frame to attend to all the same; any other's first one is valid.
        return torch.cat([torch.ones_like(blocks[:, :1]), blocks[:, 1:]], dim=1)

    def relative_positions(
        self, positions: PositionState, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Return a vector for each distance, (H, 2T, D), and what is added to queries against keys and against distances."""
        if positions.clipped is not None:
            return self.distances.to(dtype)[positions.clipped].expand(self.heads, -1, -1), 0.0, 0.0
        assert positions.relative is not None
        distances = self.position(positions.relative.to(dtype)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        return distances, self.content_bias.to(dtype), self.position_bias.to(dtype)

    def _plain(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from queries to keys, (N, H, T, D), where the mask is not False."""
        if not self._in_tables(query):
            return self._attend(query, key, value, mask)
        if mask is not None:  # added, not filled in: a fifth of the time
            mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
        tiles = [(part, key, value, mask) for part in query.split(_TILE, dim=2)]
        return _each(self._attend, tiles)

    def _in_tables(self, query: Tensor) -> bool:
        """Whether tables of queries by keys are faster than the fused kernel.

        On a CPU the fused kernel has no dropout of its own (torch then makes tables by slower means), and its backward pass takes
        longer in half precision than tables that are kept, as they are while one tile holds the frames.
        """
        if not (calculates_here(query) and self.training and torch.is_grad_enabled()):
            return False
        return self.dropout > 0 or (query.dtype.itemsize == 2 and query.size(2) <= _TILE)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Attend from Q queries (N, H, Q, D) to all keys; the bias is added to their scores, or a bool mask."""
        probability = self.dropout if self.training else 0.0
        if not self._in_tables(query):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=probability)
        if not (query.dtype == torch.bfloat16 and cpu_has_bf16()) and attention_tables.worth_while(query, key):
            return attention_tables.attend_in_tables(query, key, value, bias, probability)
        with torch.autocast("cpu", enabled=False):
            scores = (query * query.size(-1) ** -0.5) @ key.transpose(2, 3)
            weights = (scores if bias is None else scores + bias).softmax(-1)
            return dropout(weights, probability, self.training) @ value

    def _relative(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, positions: PositionState
    ) -> Tensor:
        """Attend with relative positions: query (N, T, H, D), key and value (N, H, T, D)."""
        distances, content_bias, position_bias = self.relative_positions(positions, query.dtype)
        content = (query + content_bias).transpose(1, 2)
        place = (query + position_bias).transpose(1, 2)
        frames = key.size(2)
        tiles = []
        for start in range(0, frames, _TILE):
            end = min(start + _TILE, frames)
            window = distances[:, frames - end : 2 * frames - start]
            tiles.append((content[:, :, start:end], place[:, :, start:end], key, value, mask, window))
        return _each(self._tile, tiles)

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


def _each(attend: Callable[..., Tensor], tiles: Sequence[tuple[Tensor | None, ...]]) -> Tensor:
    """Return what tiles of queries attend to, one after the other, (N, H, T, D); in training, several keep no table."""
    if len(tiles) == 1:
        return attend(*tiles[0])
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(attend, *tile, use_reentrant=False) for tile in tiles], dim=2)
    return torch.cat([attend(*tile) for tile in tiles], dim=2)


def attention_of(config: EncoderConfig) -> SelfAttention:
    """Return the attention layer of an encoder's block."""
    return SelfAttention(
        config.dim,
        config.heads,
        config.attention_dropout,
        config.positions,
        block=config.attention_block,
        reach=config.reach,
    )
