"""Connectionist temporal classification from logits.

Source: Graves et al., "Connectionist temporal classification", ICML 2006.

Shapes: N batch, T frames, V units (with blank), L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asrkit.errors import AsrkitError
from asrkit.nn.lengths import on_device

REDUCTIONS = ("none", "sum", "mean")
Lengths = Tensor | Sequence[int]


def ctc_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Lengths,
    target_lengths: Lengths,
    *,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = True,
) -> Tensor:
    """Return the negative log-likelihood of the targets over all alignments.

    Args:
        logits: not normalised, any floating type, a 3-D tensor of shape (N, T, V). The loss is computed in float32 (in
            float64 for float64 logits), autocast or not.
        targets: unit indices, int64 of shape (N, L); what lies behind a target's end is not read.
        logit_lengths: frames per utterance, 0 to T: Python integers, or a tensor of shape (N,). With integers nothing
            is copied from the device to the host.
        target_lengths: labels per utterance, 0 to L, in either form.
        blank: index of the blank unit.
        reduction: "none" gives (N,); "sum" the total; "mean" divides each loss by its target's length (at least 1),
            then averages, as torch does.
        zero_infinity: give an utterance without a possible alignment (see `infeasible`) zero loss and zero gradient
            instead of an infinite loss.

    Raises:
        AsrkitError: unknown reduction, or a blank outside the units.
    """
    if reduction not in REDUCTIONS:
        raise AsrkitError(f"unknown reduction '{reduction}'", where="ctc_loss", mend=", ".join(REDUCTIONS))
    if not 0 <= blank < logits.shape[-1]:
        raise AsrkitError(f"blank {blank} is not one of the {logits.shape[-1]} units", where="ctc_loss")
    precision = torch.float64 if logits.dtype == torch.float64 else torch.float32
    with torch.autocast(logits.device.type, enabled=False):
        log_probs = logits.to(precision).log_softmax(-1).transpose(0, 1)
        losses = _torch_ctc(log_probs, targets, logit_lengths, target_lengths, blank, zero_infinity)
        if reduction == "none":
            return losses
        if reduction == "sum":
            return losses.sum()
        return (losses / on_device(target_lengths, losses.device).clamp(min=1)).mean()


def infeasible(targets: Tensor, logit_lengths: Lengths, target_lengths: Lengths) -> Tensor:
    """Return which utterances have no alignment: fewer frames than labels plus one blank per repeated label, bool (N,).

    Args:
        targets: unit indices, int64 of shape (N, L).
        logit_lengths: frames per utterance, (N,).
        target_lengths: labels per utterance, (N,).
    """
    labels = on_device(target_lengths, targets.device)
    place = torch.arange(1, targets.shape[1], device=targets.device)
    repeats = (targets[:, 1:] == targets[:, :-1]) & (place < labels[:, None])
    return on_device(logit_lengths, targets.device) < labels + repeats.sum(1)


def _torch_ctc(
    log_probs: Tensor, targets: Tensor, logit_lengths: Lengths, target_lengths: Lengths, blank: int, zero_infinity: bool
) -> Tensor:
    """Return torch's CTC of log-probabilities (T, N, V), one loss per utterance, (N,)."""
    if isinstance(logit_lengths, Tensor) or isinstance(target_lengths, Tensor):
        device = log_probs.device
        lengths = on_device(logit_lengths, device), on_device(target_lengths, device)
        return torch.ctc_loss(log_probs, targets, *lengths, blank, 0, zero_infinity)
    return torch.ctc_loss(
        log_probs, targets, tuple(logit_lengths), tuple(target_lengths), blank, 0, zero_infinity=zero_infinity
    )
