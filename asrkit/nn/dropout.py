"""Dropout that does not cost more than the layers around it, on a CPU too.

torch draws one number at a time for each element there: 12 to 15 ns, which made dropout of 0.1 two thirds of a Transformer's time.
Here a generator that gives 64 bits in a nanosecond or two fills a mask of 16 bits per element, and torch's own generator gives its
seed, so that everything that holds of torch's dropout (resuming, recomputing under activation checkpointing) holds of this one.

Source: Srivastava et al., "Dropout", JMLR 2014; the generator is SFC64 (Doty-Humphrey, PractRand) as NumPy has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 1 << 16
"""Of so many equally likely numbers, dropout drops the lowest ones."""


class Dropout(nn.Dropout):
    """`dropout` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x of any shape to the same shape."""
        return dropout(x, self.p, self.training)


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Set each element to zero with a probability (below 1) and scale the others up, so that the expectation stays.

    On a CPU the probability is rounded to a multiple of 2**-16, and the scale is that of the rounded one.
    """
    if not training or probability == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # compiled code draws its numbers within its own loops
        return F.dropout(x, probability, True)
    mask: Tensor = keep_mask(x.shape, probability, x.dtype)
    return x * mask


def steps_dropped(probability: float) -> int:
    """Return how many of the numbers are dropped, on the CPU."""
    return min(round(probability * STEPS), STEPS - 1)


@torch.library.custom_op("asrkit::keep_mask", mutates_args=())
def keep_mask(shape: Sequence[int], probability: float, dtype: torch.dtype) -> Tensor:
    """Return what dropout multiplies with, on the CPU: zeros, and else the inverse of the share that is kept."""
    dropped = steps_dropped(probability)
    count = math.prod(shape)
    seed = int(torch.randint(1 << 62, ()))
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    numbers = torch.from_numpy(words.view(np.int16))[:count].view(shape)
    kept = numbers.ge_(dropped - STEPS // 2)
    return kept.to(dtype).mul_(STEPS / (STEPS - dropped))


@keep_mask.register_fake
def _(shape: Sequence[int], probability: float, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)
