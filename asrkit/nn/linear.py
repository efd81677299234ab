"""Linear maps that a CPU without fast units for bfloat16 calculates in float32.

Under autocast, torch hands bfloat16 matrices to the processor's own instructions for them. Of x86's, only those of AMX are faster
than float32's: AVX512-BF16 reaches 0.6 of float32's speed, and older processors emulate. There, products of this module keep what
is worth having of bfloat16, activations of half the size, and do the arithmetic in float32, with weights as they are, on a tile of
rows at a time, in memory that stays in the cache: no float32 copy of an activation outlives its tile.

Shapes: R rows, C channels in, C' channels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from asrkit.nn.scratch import SCRATCH, calculates_here

_TILE = 1024


@cache
def cpu_has_bf16() -> bool:
    """Whether bfloat16 is the faster precision on this CPU: where it has AMX.

    With AVX512-BF16 alone, bfloat16 is the slower one: its products of matrices reach 0.6 of float32's speed (torch 2.9, Xeon of
    the Sapphire Rapids family with AMX switched off).
    """
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags


def in_float32(x: Tensor) -> bool:
    """Whether products of ``x`` that autocast wants in bfloat16 are faster in float32; compiled code makes its own."""
    return (
        calculates_here(x)
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and not cpu_has_bf16()
    )


def products(operands: Sequence[Tensor], matrices: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """Return the sum of operands (R, C) times matrices (C', C), transposed, and a bias (C',): (R, C'), of the operands' type."""
    with torch.autocast("cpu", enabled=False):
        wide = [matrix.float() for matrix in matrices]
        bias = None if bias is None else bias.float()
        y = operands[0].new_empty(operands[0].size(0), wide[0].size(0))
        for start in range(0, y.size(0), _TILE):
            tile = slice(start, start + _TILE)
            part = SCRATCH.copy(0, operands[0][tile])
            total = SCRATCH.room(1, (part.size(0), y.size(1)))
            if bias is None:
                torch.mm(part, wide[0].t(), out=total)
            else:
                torch.addmm(bias, part, wide[0].t(), out=total)
            for operand, matrix in zip(operands[1:], wide[1:], strict=True):
                total.addmm_(SCRATCH.copy(0, operand[tile]), matrix.t())
            y[tile] = total
    return y


def products_backward(
    gradient: Tensor, operands: Sequence[Tensor], matrices: Sequence[Tensor], to_operands: Sequence[Tensor]
) -> list[Tensor]:
    """Fill in the operands' gradients and return the matrices', float32 (C', C).

    Args:
        gradient: that of what `products` returned, (R, C').
        operands: (R, C) each; none if no gradient of the matrices is wanted.
        matrices: (C', C) each.
        to_operands: where the operands' gradients go, (R, C) each; none if they are not wanted. The first is overwritten, the
            others are added: a row of theirs may be a later row of the first.
    """
    with torch.autocast("cpu", enabled=False):
        wide = [matrix.float() for matrix in matrices]
        to_matrices = [torch.empty_like(matrix) for matrix, _ in zip(wide, operands, strict=False)]
        # From the last tile to the first: what is added to a later row finds it written.
        starts = range(0, max(gradient.size(0), 1), _TILE)  # no row at all: a product of none is zero
        for start in reversed(starts):
            tile = slice(start, start + _TILE)
            part = SCRATCH.copy(0, gradient[tile])
            for number, (to_operand, matrix) in enumerate(zip(to_operands, wide, strict=False)):
                if number == 0:
                    total = torch.mm(part, matrix, out=SCRATCH.room(1, (part.size(0), matrix.size(1))))
                else:
                    total = SCRATCH.copy(1, to_operand[tile]).addmm_(part, matrix)
                to_operand[tile] = total
            for to_matrix, operand in zip(to_matrices, operands, strict=True):
                rest = float(start != starts[-1])
                torch.addmm(to_matrix, part.t(), SCRATCH.copy(1, operand[tile]), beta=rest, out=to_matrix)
    return to_matrices


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Map x (…, C) to (…, C'), as torch.nn.functional.linear does."""
    if not in_float32(x):
        return F.linear(x, weight, bias)
    y: Tensor = _Linear.apply(x.bfloat16(), weight, bias)
    return y


class Linear(nn.Linear):
    """`linear` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (…, C) to (…, C')."""
        return linear(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    """A linear map of bfloat16 in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return products([x.reshape(-1, x.size(-1))], [weight], bias).view(*x.shape[:-1], weight.size(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient, rows = gradient.reshape(-1, gradient.size(-1)), x.reshape(-1, x.size(-1))
        to_x = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        weights = products_backward(
            gradient, [rows] if ctx.needs_input_grad[1] else [], [weight], [] if to_x is None else [to_x]
        )
        to_bias = gradient.sum(0, dtype=weight.dtype) if ctx.needs_input_grad[2] else None
        return None if to_x is None else to_x.view_as(x), weights[0].to(weight.dtype) if weights else None, to_bias
