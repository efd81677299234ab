"""Layer normalisation whose statistics are float32 at any precision.

Shapes: C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the last dimension; the output has the input's dtype.

    torch's autocast would turn the input, and with it the whole residual stream, into float32 tensors. The kernels
    compute statistics of half-precision input in float32 anyway, so only the affine part is rounded here.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x of shape (…, C)."""
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def row_normalise(waves: Tensor, lengths: Tensor, valid: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Give each wave zero mean and unit variance over its own samples.

    Args:
        waves: (N, S), zero behind each row's end.
        lengths: samples per row, int64 (N,).
        valid: bool (N, S), True within a row's length.
        epsilon: added to the variance.

    Returns:
        float32 (N, S), zero behind each row's end.
    """
    count = lengths.clamp(min=1)[:, None]
    centred = (waves - waves.sum(1, keepdim=True) / count) * valid
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * (variance + epsilon).rsqrt()
