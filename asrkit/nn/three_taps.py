"""Convolutions of three taps at stride 2, as wav2vec 2.0's frontend has them, with five products of matrices in place of six.

The taps on even frames e, weights A and C, are a filter of two taps at stride 1. Two of its outputs next to each other need
three products rather than four (Winograd 1980, "Arithmetic Complexity of Computations", F(2, 2)):

    y₀ = A e₀ + C e₁ = A (e₀ - e₁) + (A + C) e₁
    y₁ = A e₁ + C e₂ = C (e₂ - e₁) + (A + C) e₁

Sums and differences of two float32 numbers cost no accuracy worth the name. The middle tap B, on odd frames o, is as ever. The
gradients of both input and weight have the same shape. All of it goes by tiles, in memory that stays in the cache.

Shapes: R frames in, R' = (R - 3) // 2 + 1 frames out, C channels in, C' channels out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asrkit.nn.scratch import SCRATCH, calculates_here

_TILE = 1024
"""Frames out of a tile for each thread."""
_CHANNELS = 128


def worth_while(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether `convolve` is for x and weight (C', C, K), and the faster way: with few channels, sums cost what products save."""
    return (
        calculates_here(x)
        and weight.dtype in (torch.float32, torch.float64)
        and (weight.size(2), stride) == (3, 2)
        and min(weight.shape[:2]) >= _CHANNELS
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve x (R, C), of weight's type or bfloat16, with weight (C', C, 3) and a bias (C',): (R', C'), of x's type."""
    a, b, c = weight.permute(2, 1, 0).contiguous()
    both = a + c
    y = x.new_empty((x.size(0) - 3) // 2 + 1, weight.size(0))
    with torch.autocast("cpu", enabled=False):
        for start in range(0, y.size(0), tile := _tile()):
            out = y[start : start + tile]
            even, odd = _even_and_odd(x, start, out.size(0), weight.dtype)
            total = out if y.dtype == weight.dtype else SCRATCH.room(1, out.shape, weight.dtype)
            if bias is None:
                torch.mm(odd, b, out=total)
            else:
                torch.addmm(bias, odd, b, out=total)
            first, middle, last = _threes(even)
            pairs = total[: 2 * len(middle)].unflatten(0, (-1, 2))
            pairs[:, 0].addmm_(_difference(first, middle), a)
            pairs[:, 1].addmm_(_difference(last, middle), c)
            pairs += torch.mm(middle, both, out=SCRATCH.room(2, (len(middle), y.size(1)), weight.dtype))[:, None]
            if out.size(0) % 2:
                total[-1:].addmm_(even[-2:-1], a).addmm_(even[-1:], c)
            if out is not total:
                out.copy_(total)
    return y


def convolve_backward(gradient: Tensor, x: Tensor, weight: Tensor, to_x: Tensor | None, wanted: bool) -> Tensor | None:
    """Fill in the gradient of x, where there is one, and return that of weight, if it is wanted.

    Args:
        gradient: that of what `convolve` returned, (R', C').
        x: (R, C).
        weight: (C', C, 3).
        to_x: (R, C), or None.
        wanted: whether weight's gradient is.
    """
    with torch.autocast("cpu", enabled=False):
        if to_x is not None:
            _fill_in(to_x, gradient, weight)
        return _of_weight(gradient, x, weight) if wanted else None


def _fill_in(to_x: Tensor, gradient: Tensor, weight: Tensor) -> None:
    """Fill in the gradient of the input: even frames have C of the frame before and A of their own, odd ones B."""
    a, b, c = weight.permute(2, 0, 1).contiguous()
    both = a + c
    count = gradient.size(0)
    to_x[2 * count + 1 :] = 0.0
    for start in range(0, count, tile := _tile()):
        rows = min(tile, count - start)
        part = _with_the_frame_before(gradient, start, rows, weight.dtype)
        out = to_x[2 * start : 2 * (start + rows)]
        total = out if to_x.dtype == weight.dtype else SCRATCH.room(1, out.shape, weight.dtype)
        even, odd = total[0::2], total[1::2]
        torch.mm(part[1:], b, out=odd)
        first, middle, last = _threes(part)
        pairs = even[: 2 * len(middle)].unflatten(0, (-1, 2))
        shared = torch.mm(middle, both, out=SCRATCH.room(2, (len(middle), to_x.size(1)), weight.dtype))
        pairs[:, 0] = shared
        pairs[:, 0].addmm_(_difference(first, middle), c)
        pairs[:, 1] = shared
        pairs[:, 1].addmm_(_difference(last, middle), a)
        if rows % 2:
            torch.mm(part[-2:-1], c, out=even[-1:]).addmm_(part[-1:], a)
        if out is not total:
            out.copy_(total)
    to_x[2 * count] = (gradient[-1:].to(weight.dtype) @ c)[0]


def _of_weight(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the weight (C', C, 3)."""
    to_a, to_b, to_c, to_both = (weight.new_zeros(weight.shape[:2]) for _ in range(4))
    for start in range(0, gradient.size(0), tile := _tile()):
        part = gradient[start : start + tile]
        part = part if part.dtype == weight.dtype else SCRATCH.copy(1, part, weight.dtype)
        even, odd = _even_and_odd(x, start, part.size(0), weight.dtype)
        to_b.addmm_(part.t(), odd)
        first, middle, last = _threes(even)
        pairs = part[: 2 * len(middle)].unflatten(0, (-1, 2))
        to_a.addmm_(pairs[:, 0].t(), _difference(first, middle))
        to_c.addmm_(pairs[:, 1].t(), _difference(last, middle))
        total = torch.add(pairs[:, 0], pairs[:, 1], out=SCRATCH.room(2, (len(middle), part.size(1)), weight.dtype))
        to_both.addmm_(total.t(), middle)
        if part.size(0) % 2:
            to_a.addmm_(part[-1:].t(), even[-2:-1])
            to_c.addmm_(part[-1:].t(), even[-1:])
    return torch.stack([to_a + to_both, to_b, to_c + to_both], dim=2)


def _tile() -> int:
    return _TILE * torch.get_num_threads()


def _even_and_odd(x: Tensor, start: int, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the even frames under the windows of output frames, one more than these, and the odd ones."""
    frames = x[2 * start : 2 * (start + rows) + 1]
    frames = frames if x.dtype == dtype else SCRATCH.copy(0, frames, dtype)
    return frames[0::2], frames[1::2]


def _with_the_frame_before(gradient: Tensor, start: int, rows: int, dtype: torch.dtype) -> Tensor:
    """Return rows of a gradient and the one before, zeros before the first."""
    if start > 0 and gradient.dtype == dtype:
        return gradient[start - 1 : start + rows]
    room = SCRATCH.room(0, (rows + 1, gradient.size(1)), dtype)
    if start > 0:
        return room.copy_(gradient[start - 1 : start + rows])
    room[0] = 0.0
    room[1:] = gradient[:rows]
    return room


def _threes(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first, second and third of three frames, over pairs of outputs of a filter of two taps."""
    count = (frames.size(0) - 1) // 2
    return frames[0 : 2 * count : 2], frames[1 : 2 * count : 2], frames[2 : 2 * count + 1 : 2]


def _difference(x: Tensor, y: Tensor) -> Tensor:
    return torch.sub(x, y, out=SCRATCH.room(3, x.shape, x.dtype))
