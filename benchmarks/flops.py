"""How many operations the matrix products of an update take, and how many per second a machine does at best.

Their ratio over an update's time is the model's FLOP utilisation (MFU). It counts what the audio asks for and not what an
implementation spends on it: padding, recomputation and everything that is no matrix product do not count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from asrkit.nn.config import EncoderConfig

FORMULA = (
    "Operations are twice the multiplications in the encoder's matrix products. Frontend: for each convolution, output frames x "
    "output channels x input channels x kernel. Per frame of the last one: projection, features x dim; convolutional positions, "
    "dim x dim / groups x kernel; per block, 4 x dim x dim for attention's projections, 2 x frames of the utterance x dim for its "
    "scores and sums, 2 x dim x inner channels for the feed-forward layer. The whole three times, once for the forward and twice "
    "for the backward pass; a frozen frontend once; blocks in proportion to the share that LayerDrop keeps. Heads, losses, norms "
    "and padding do not count, and a shorter way to a product counts as the plain one. The peak is the best of this machine's own "
    "square matrix products at the same precision, in the same run."
)
SIDES = {"cuda": 8192, "cpu": 2048}
"""Rows and columns of the matrices whose product is the peak."""


@dataclass(frozen=True)
class Work:
    """What a call asks for, and what the machine could do."""

    operations: float
    """Of one call."""
    peak: float
    """Operations per second of a large matrix product."""

    def __str__(self) -> str:
        return f"A call asks for {self.operations / 1e9:.4g} G operations, the peak is {self.peak / 1e12:.3g} T/s."

    def utilisation(self, seconds: float) -> float:
        """Return the share of the peak that a call of so many seconds reaches."""
        return self.operations / seconds / self.peak


def update_operations(config: EncoderConfig, samples: Sequence[int], *, frozen_frontend: bool = False) -> float:
    """Return the operations of a forward and a backward pass of a Transformer encoder with a waveform frontend.

    Args:
        config: the encoder.
        samples: of each utterance.
        frozen_frontend: whether the frontend gets no gradient.
    """
    assert (config.frontend, config.blocks, config.attention_block) == ("waveform", "transformer", 0)
    dim, blocks = config.dim, config.layers * (1 - config.layer_drop)
    frontend = rest = 0.0
    for frames in samples:
        inputs = 1
        for channels, kernel, stride in config.waveform.layers:
            frames = max((frames - kernel) // stride + 1, 0)
            frontend += 2.0 * frames * channels * inputs * kernel
            inputs = channels
        rest += 2.0 * frames * inputs * dim
        if config.positions == "conv":
            layers = config.conv_position_layers
            rest += 2.0 * frames * dim * (dim // config.conv_position_groups) * config.conv_position_kernel * layers
        rest += 2.0 * frames * blocks * (4 * dim * dim + 2 * frames * dim + 2 * dim * config.ffn_dim)
    return frontend * (1 if frozen_frontend else 3) + 3 * rest


def peak(device: torch.device, precision: str, side: int = 0, rounds: int = 10) -> float:
    """Return the most operations per second among several products of square matrices.

    Args:
        device: where.
        precision: "bf16", "fp16" or "fp32".
        side: rows and columns; 0 takes `SIDES`.
        rounds: products that are timed.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    side = side or SIDES[device.type]
    left, right, product = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    best = float("inf")
    # The first ones choose kernels and raise clocks.
    for number in range(rounds + 3):
        _drain(device)
        began = time.perf_counter()
        torch.mm(left, right, out=product)
        _drain(device)
        if number >= 3:
            best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / best


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
