"""Which targets fit into their frames.

Shapes: N batch, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asrkit.nn.lengths import on_device

Lengths = Tensor | Sequence[int]


def infeasible(targets: Tensor, logit_lengths: Lengths, target_lengths: Lengths) -> Tensor:
    """Return which utterances have no alignment: fewer frames than labels plus one blank per repeated label, bool (N,).

    Args:
        targets: unit indices, int64 of shape (N, L).
        logit_lengths: frames per utterance, (N,).
        target_lengths: labels per utterance, (N,).
    """
    labels = on_device(target_lengths, targets.device)
    place = torch.arange(targets.shape[1], device=targets.device)[1:]
    repeats = (targets[:, 1:] == targets[:, :-1]) & (place < labels[:, None])
    return on_device(logit_lengths, targets.device) < labels + repeats.sum(1)
