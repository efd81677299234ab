"""An identity that scales the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Return ``x``, any shape; what flows back through it is multiplied by ``scale``.

    With scale 0 nothing flows back at all: what lies behind keeps a gradient of None, and its backward pass is not run.
    """
    if scale == 1.0:
        return x
    if scale == 0.0:
        return x.detach()
    scaled: Tensor = _ScaleGradient.apply(x, scale)
    return scaled
