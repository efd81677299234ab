"""Attention for training on a CPU, whose tables of queries by keys never leave the processor's cache.

A table is made for some heads and some queries at a time. From the scores to the sum of values, and in the backward pass from the
gradient of the weights to that of the scores, all of it happens in float32 (float64 if the input is), in memory that is used over
and over. One table stays for the backward pass, of the input's type: the weights, with a minus sign where dropout dropped one.

Sources: Vaswani et al. 2017, section 3.2.1. Working in tiles is Dao et al. 2022's (FlashAttention), whose backward pass makes the
weights again; here that would cost more than to keep them.
Shapes: N batch, H heads, Q queries, T keys, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkit.nn.dropout import STEPS, steps_dropped
from asrkit.nn.scratch import SCRATCH

_QUERIES = 1 << 18
"""Elements of a head's table in a tile."""
_TILE = 1 << 18
"""Elements of a tile for each thread: a mebibyte of float32, and two to three tiles are at work at a time."""
_LARGE = 1 << 17
"""Elements of a float32 head's table from which on it pays: whole tables of fewer are as fast, or faster."""


def worth_while(query: Tensor, key: Tensor) -> bool:
    """Whether `attend_in_tables` is faster than tables of all heads at once, for query (N, H, Q, D) and key (N, H, T, D)."""
    return query.dtype.itemsize == 2 or query.size(2) * key.size(2) >= _LARGE


def attend_in_tables(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, probability: float) -> Tensor:
    """Attend from queries to keys, scaled by 1 / sqrt(D).

    The weights that dropout drops depend on torch's generator alone, not on the number of threads.

    Args:
        query: (N, H, Q, D), on the CPU.
        key: (N, H, T, D).
        value: (N, H, T, D).
        bias: what is added to the scores, broadcast to (N, H, Q, T); each query needs a key where it is not -inf.
        probability: of dropping a weight, below 1.

    Returns:
        (N, H, Q, D).
    """
    if bias is not None:
        bias = bias.expand(*query.shape[:3], key.size(2))
    y: Tensor = _Attend.apply(query, key, value, bias, probability)
    return y


def _chunks(rows: int, heads: int, elements: int) -> list[tuple[slice, list[slice]]]:
    """Return rows that are calculated one after the other, and which of their heads, of as many elements each, together."""
    count = max(_tile() // elements, 1)
    step = min(max(count // heads, 1), rows)
    parts = -(-heads // count)
    size = step * -(-heads // parts)
    starts = range(0, rows, step)
    return [(slice(row, min(row + step, rows)), _slices((min(row + step, rows) - row) * heads, size)) for row in starts]


def _tile() -> int:
    return _TILE * torch.get_num_threads()


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _parts(queries: int, keys: int) -> list[slice]:
    """Return queries that are calculated together, parts of about the same size."""
    count = -(-queries * keys // _QUERIES)
    return _slices(queries, -(-queries // count))


class _Attend(torch.autograd.Function):
    """`attend_in_tables`, of a bias of the scores' shape."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, probability: float) -> Tensor:
        ctx.dropped = dropped = steps_dropped(probability)
        ctx.scale = query.size(-1) ** -0.5
        generator = np.random.SFC64(int(torch.randint(1 << 62, ()))) if dropped else None
        table = query.new_empty(*query.shape[:3], key.size(2))
        # Heads side by side: the layer's output wants them so.
        y = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
        work = torch.promote_types(query.dtype, torch.float32)
        parts = _parts(query.size(2), key.size(2))
        with torch.autocast("cpu", enabled=False):
            for rows, groups in _chunks(query.size(0), query.size(1), parts[0].stop * key.size(2)):
                queries = SCRATCH.copy(0, query[rows], work).mul_(ctx.scale).flatten(0, 1)
                keys = SCRATCH.copy(1, key[rows], work).flatten(0, 1).transpose(1, 2)
                values = SCRATCH.copy(2, value[rows], work).mul_(STEPS / (STEPS - dropped)).flatten(0, 1)
                sums = SCRATCH.room(3, y[rows].shape, work).flatten(0, 1)
                tables = table[rows].flatten(0, 1)
                for heads in groups:
                    numbers = _numbers(generator, heads.stop - heads.start, table.shape[2:])
                    for part in parts:
                        shape = (heads.stop - heads.start, part.stop - part.start, key.size(2))
                        scores = torch.bmm(queries[heads, part], keys[heads], out=SCRATCH.room(4, shape, work))
                        if bias is not None:
                            _add(scores, bias[rows], heads, part)
                        kept = weights = torch.softmax(scores, -1, out=SCRATCH.room(5, shape, work))
                        if numbers is not None:
                            kept = SCRATCH.copy(4, numbers[:, part], work)
                            # Where a number is above the threshold, this hands on what it takes for a gradient: the fastest
                            # of torch's ways to choose.
                            least = dropped - STEPS // 2 - 0.5
                            torch.ops.aten.threshold_backward.grad_input(weights, kept, least, grad_input=kept)
                            # Twice the kept ones less all: all, with a minus sign where one is dropped.
                            weights = torch.lerp(weights, kept, 2.0, out=weights)
                        tables[heads, part] = weights
                        torch.bmm(kept, values[heads], out=sums[heads, part])
                y[rows] = sums.view(y[rows].shape)
        ctx.save_for_backward(query, key, value, table)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, table = ctx.saved_tensors
        to_query, to_key, to_value = (torch.empty_like(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value))
        to_bias = torch.empty_like(table) if ctx.needs_input_grad[3] else None
        work = torch.promote_types(query.dtype, torch.float32)
        parts = _parts(query.size(2), key.size(2))
        with torch.autocast("cpu", enabled=False):
            for rows, groups in _chunks(query.size(0), query.size(1), parts[0].stop * key.size(2)):
                queries = SCRATCH.copy(0, query[rows], work).mul_(ctx.scale).flatten(0, 1)
                keys = SCRATCH.copy(1, key[rows], work).flatten(0, 1)
                values = SCRATCH.copy(2, value[rows], work).flatten(0, 1).transpose(1, 2)
                to_sums = SCRATCH.copy(3, gradient[rows], work).mul_(STEPS / (STEPS - ctx.dropped)).flatten(0, 1)
                to_queries, to_keys, to_values = (
                    SCRATCH.room(n, x.shape, work) for n, x in ((6, queries), (7, keys), (8, keys))
                )
                tables = table[rows].flatten(0, 1)
                for heads in groups:
                    for part in parts:
                        weights = SCRATCH.copy(4, tables[heads, part], work)
                        wanted = to_sums[heads, part]
                        to_scores = torch.bmm(wanted, values[heads], out=SCRATCH.room(5, weights.shape, work))
                        kept = weights
                        if ctx.dropped:
                            torch.ops.aten.threshold_backward.grad_input(to_scores, weights, 0, grad_input=to_scores)
                            kept = torch.clamp_min(weights, 0.0, out=SCRATCH.room(9, weights.shape, work))
                            weights.abs_()
                        rest = float(part.start > 0)
                        torch.baddbmm(to_values[heads], kept.transpose(1, 2), wanted, beta=rest, out=to_values[heads])
                        torch._softmax_backward_data(to_scores, weights, -1, work, grad_input=to_scores)
                        if to_bias is not None:
                            to_bias[rows].flatten(0, 1)[heads, part] = to_scores
                        seen = queries[heads, part]
                        torch.baddbmm(to_keys[heads], to_scores.transpose(1, 2), seen, beta=rest, out=to_keys[heads])
                        torch.bmm(to_scores, keys[heads], out=to_queries[heads, part])
                to_query[rows] = to_queries.mul_(ctx.scale).view(to_query[rows].shape)
                to_key[rows], to_value[rows] = to_keys.view(to_key[rows].shape), to_values.view(to_value[rows].shape)
        return to_query, to_key, to_value, to_bias, None


def _add(scores: Tensor, bias: Tensor, heads: slice, part: slice) -> None:
    """Add a bias (N, H, Q, T) to the scores of some of its heads, numbered over all rows."""
    row, rows = heads.start // bias.size(1), -(-(heads.stop - heads.start) // bias.size(1))
    if rows > 1 or heads.stop - heads.start == bias.size(1):
        bias = bias[row : row + rows, :, part]
    else:
        bias = bias[row, heads.start % bias.size(1) :][: heads.stop - heads.start, part][None]
    scores.view(bias.shape).add_(bias)


def _numbers(generator: np.random.SFC64 | None, heads: int, shape: torch.Size) -> Tensor | None:
    """Return the next random numbers, int16 (heads, Q, T), for heads of all rows, the same however many are drawn at a time."""
    if generator is None:
        return None
    words = generator.random_raw(heads * -(-shape.numel() // 4)).view(np.int16)
    return torch.from_numpy(words).view(heads, -1)[:, : shape.numel()].unflatten(1, shape)
