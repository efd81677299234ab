"""Greedy CTC decoding: the best unit of each frame, repeats merged, blanks dropped.

Shapes: N batch, T frames, V units (with blank).
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from asrkit.decoding.hypothesis import Decoder, Hypothesis, word_spans
from asrkit.nn.lengths import inside


def greedy(logits: Tensor, lengths: Tensor, blank: int = 0) -> tuple[Tensor, Tensor]:
    """Decode on the device, without a copy to the host.

    Args:
        logits: scores of the units, normalised or not, a 3-D tensor of shape (N, T, V).
        lengths: frames per utterance, int64 of shape (N,).
        blank: index of the blank unit.

    Returns:
        Unit indices of each utterance moved to the front, int64 (N, T), 0 behind its end; and how many there are, (N,).
    """
    best = logits.argmax(-1)
    new = torch.ones_like(best, dtype=torch.bool)
    new[:, 1:] = best[:, 1:] != best[:, :-1]
    keep = inside(lengths, best.shape[1]) & new & (best != blank)
    order = keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return (best * keep).gather(1, order), keep.sum(1)


def to_lists(units: Tensor, counts: Tensor) -> list[list[int]]:
    """Return the result of `greedy` as lists, with a single copy to the host."""
    rows = torch.cat([counts[:, None], units], dim=1).tolist()
    return [row[1 : 1 + row[0]] for row in rows]


class GreedyDecoder(Decoder):
    """Reads off the best path; its probability stands for the text's."""

    name = "greedy"

    def search(self, log_probs: np.ndarray) -> list[Hypothesis]:
        """See `Decoder.search`."""
        best = log_probs.argmax(-1) if len(log_probs) else np.zeros(0, dtype=np.int64)
        score = float(log_probs.max(-1).sum(dtype=np.float64)) if len(log_probs) else 0.0
        units = tuple(unit for unit, _ in itertools.groupby(best.tolist()) if unit not in self.units.silent)
        return [Hypothesis(self.units.decode(units), units, word_spans(self.units, units), score, score)]
