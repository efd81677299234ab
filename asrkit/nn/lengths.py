"""Lengths of padded rows.

Shapes: N batch, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def on_device(lengths: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """Return lengths as int64 (N,) on ``device``; Python integers go there without the device being waited for."""
    if isinstance(lengths, Tensor):
        return lengths.to(device, torch.int64)
    host = torch.tensor(list(lengths), dtype=torch.int64)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def inside(lengths: Tensor, frames: int) -> Tensor:
    """Return which frames lie before each row's end, bool (N, T), for lengths (N,) and T = ``frames``."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]
