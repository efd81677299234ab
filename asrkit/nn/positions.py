"""Where a frame stands: convolutional, rotary and relative positions.

Convolutional positions (wav2vec 2.0, section 2) are added once, before the blocks. Rotary (Su et al. 2021) and
relative positions, by sinusoids (Dai et al. 2019, Transformer-XL, section 3.3) or by a learned vector for each distance up
to a longest one (Shaw et al. 2018, section 3.2), act within every attention layer; what all layers share is computed once
per forward pass and handed down as a `PositionState`.

Shapes: N batch, T frames, C channels, D channels per head, K kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkit.nn.config import EncoderConfig
from asrkit.nn.grouped_convolution import convolve


@dataclass(frozen=True)
class PositionState:
    """What the attention layers of one forward pass share."""

    rotary: tuple[Tensor, Tensor] | None = None
    """Cosines and sines of the rotation angles, float32, each of shape (T, D / 2)."""
    relative: Tensor | None = None
    """Sinusoids of the distances query - key = T - 1, …, -T, float32 of shape (2T, C)."""
    clipped: Tensor | None = None
    """Which learned vector belongs to the distance query - key = T - 1, …, -T, int64 of shape (2T,)."""


def position_state(
    kind: str, frames: int, dim: int, heads: int, device: torch.device, block: int = 0, reach: int = 0
) -> PositionState | None:
    """Return what attention needs for positions of a kind; None for those that need nothing ("conv", "none").

    Args:
        kind: a value of `EncoderConfig.positions`.
        frames: T.
        dim: C.
        heads: attention heads; D = C / heads.
        device: where the tensors are wanted.
        block: frames of a block of attention, beyond which no distances are asked for; 0: all are.
        reach: "shaw": the longest distance that is told from longer ones.
    """
    if kind in ("rotary", "rotary-input"):
        places = torch.arange(frames, device=device, dtype=torch.float32)
        angles = places[:, None] * _rates(dim // heads, device)
        return PositionState(rotary=(angles.cos(), angles.sin()))
    if kind not in ("relative", "shaw"):
        return None
    # Not by min(): an exporter would hold to what it returns for its example.
    span = block if block and frames > block else frames
    distances = torch.arange(span - 1, -span - 1, -1, device=device)
    if kind == "shaw":
        return PositionState(clipped=distances.clamp(-reach, reach) + reach)
    angles = distances.float()[:, None] * _rates(dim, device)
    return PositionState(relative=torch.cat([angles.sin(), angles.cos()], dim=-1))


def _rates(dim: int, device: torch.device) -> Tensor:
    """Return dim / 2 angular rates, from 1 down to about 1 / 10000 radian per frame."""
    steps = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
    return torch.exp(steps * (-math.log(10_000.0) / dim))


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs of channels by an angle that grows with the frame's place.

    Channel i is paired with channel i + D / 2.

    Args:
        x: queries or keys, of shape (N, T, …, D).
        rotary: cosines and sines, (T, D / 2).

    Returns:
        The same shape and dtype; the rotation itself is done in float32.
    """
    middle = (1,) * (x.dim() - 3)
    cosines, sines = (table.view(table.size(0), *middle, table.size(1)) for table in rotary)
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
    return turned.to(x.dtype)


class ConvPositions(nn.Module):
    """Convolutional positions: a wide grouped convolution with weight normalisation, then GELU.

    The weight is direction · magnitude / ‖direction‖, the norm taken for each of the K taps, as in wav2vec 2.0.
    """

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        direction = torch.empty(dim, dim // groups, kernel)
        nn.init.normal_(direction, std=math.sqrt(4.0 / (kernel * dim)))
        self.direction = nn.Parameter(direction)
        self.magnitude = nn.Parameter(torch.linalg.vector_norm(direction, dim=(0, 1)))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return what is to be added to the frames (N, T, C), which are zero where padded (``hidden``); the same shape."""
        return F.gelu(convolve(x, self.weight(), self.bias, self.groups))

    def weight(self) -> Tensor:
        """Return the convolution's weight (C, C / groups, K)."""
        # The norm is that of float32 weights even where the convolution runs in half precision.
        norm = torch.linalg.vector_norm(self.direction, dim=(0, 1))
        weight: Tensor = self.direction * (self.magnitude / norm)
        return weight


class StackedConvPositions(nn.Module):
    """Convolutional positions of data2vec (Baevski et al. 2022, section 4.2): several convolutions, one upon another.

    Each is followed by a layer norm without weights and GELU.
    """

    def __init__(self, dim: int, kernel: int, groups: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(dim, dim, kernel, groups=groups) for _ in range(layers))

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return what is to be added to the frames (N, T, C), which are zero where padded; the same shape.

        Args:
            x: the frames.
            hidden: bool (N, T, 1), True where a frame is padding that no convolution may see; None if there is none.
        """
        for number, layer in enumerate(self.layers):
            if hidden is not None and number > 0:
                x = x.masked_fill(hidden, 0.0)
            assert isinstance(layer, nn.Conv1d)
            y = convolve(x, layer.weight, layer.bias, layer.groups)
            x = F.gelu(F.layer_norm(y, y.shape[-1:]).to(y.dtype))
        return x


def make_positions(config: EncoderConfig) -> ConvPositions | StackedConvPositions | None:
    """Return the module for positions that are added before the blocks; None for kinds that act within them."""
    if config.positions != "conv":
        return None
    shape = (config.dim, config.conv_position_kernel, config.conv_position_groups)
    if config.conv_position_layers == 1:
        return ConvPositions(*shape)
    return StackedConvPositions(*shape, config.conv_position_layers)
