"""Connectionist temporal classification from logits.

Source: Graves et al., "Connectionist temporal classification", ICML 2006.

Shapes: N batch, T frames, V units (with blank), L labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asrkit.errors import AsrkitError
from asrkit.losses import ctc_cuda, ctc_ops
from asrkit.losses.ctc_kernel import LOGIT_TYPES
from asrkit.losses.feasible import Lengths, infeasible
from asrkit.nn.lengths import on_device

__all__ = ["ctc_loss", "ctc_route", "infeasible"]

REDUCTIONS = ("none", "sum", "mean")


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
        AsrkitError: unknown reduction, a blank outside the units, lengths beyond the tensors (not if they are on a GPU, where they
            are cut), or on a CPU a label that is no unit (on a GPU it has no alignment).
    """
    if reduction not in REDUCTIONS:
        raise AsrkitError(f"unknown reduction '{reduction}'", where="ctc_loss", mend=", ".join(REDUCTIONS))
    if not 0 <= blank < logits.shape[-1]:
        raise AsrkitError(f"blank {blank} is not one of the {logits.shape[-1]} units", where="ctc_loss")
    frames = _lengths("logit_lengths", logit_lengths, logits.shape[1], logits.device)
    labels = _lengths("target_lengths", target_lengths, targets.shape[1], logits.device)
    targets = targets.to(logits.device, torch.int64)
    differentiate = torch.is_grad_enabled() and logits.requires_grad
    if logits.device.type == "cpu":
        losses, _ = ctc_ops.on_cpu(logits, targets, frames, labels, blank, zero_infinity, differentiate)
    elif logits.is_cuda and logits.dtype in LOGIT_TYPES and ctc_cuda.usable():
        if logits.stride(-1) != 1:
            logits = logits.contiguous()
        if targets.stride(-1) != 1:
            targets = targets.contiguous()
        arguments = logits, targets, frames.contiguous(), labels.contiguous(), blank, zero_infinity, differentiate
        losses = ctc_ops.on_cuda(*arguments)[0]
    else:
        losses = _by_torch(logits, targets, logit_lengths, target_lengths, blank, zero_infinity)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return (losses / labels.clamp(min=1)).mean()


def ctc_route(device: torch.device) -> str:
    """Return in words what computes `ctc_loss` on a device."""
    if device.type == "cpu":
        return "asrkit's recursion for CPUs, in float64; torch's own in float64 where batches are small"
    reason = ctc_cuda.obstacle() if device.type == "cuda" else f"no kernels for {device.type}"
    if reason is None:
        return "asrkit's CUDA kernels, from logits"
    return f"torch's own, in float32 ({reason})"


def _lengths(name: str, lengths: Lengths, most: int, device: torch.device) -> Tensor:
    if not isinstance(lengths, Tensor) and any(not 0 <= length <= most for length in lengths):
        raise AsrkitError(f"{name} are {list(lengths)}", where="ctc_loss", mend=f"0 to {most}")
    return on_device(lengths, device)


def _by_torch(
    logits: Tensor, targets: Tensor, logit_lengths: Lengths, target_lengths: Lengths, blank: int, zero_infinity: bool
) -> Tensor:
    """Return torch's CTC, one loss per utterance, (N,). It asks the device for lengths that are tensors."""
    with torch.autocast(logits.device.type, enabled=False):
        precision = torch.float64 if logits.dtype == torch.float64 else torch.float32
        log_probs = logits.to(precision).log_softmax(-1).transpose(0, 1)
        if isinstance(logit_lengths, Tensor) or isinstance(target_lengths, Tensor):
            lengths = on_device(logit_lengths, logits.device), on_device(target_lengths, logits.device)
            return torch.ctc_loss(log_probs, targets, *lengths, blank, 0, zero_infinity)
        return torch.ctc_loss(
            log_probs, targets, tuple(logit_lengths), tuple(target_lengths), blank, 0, zero_infinity=zero_infinity
        )
