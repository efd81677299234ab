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
from asrkit.nn.lengths import inside, on_device

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
            is copied from the device to the host; the capture of a CUDA graph takes tensors on the GPU.
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
        host = None
        if not isinstance(logit_lengths, Tensor) and not isinstance(target_lengths, Tensor):
            host = tuple(logit_lengths), tuple(target_lengths)
        losses = _by_torch(logits, targets, frames, labels, blank, zero_infinity, host)
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
    logits: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    blank: int,
    zero_infinity: bool,
    host: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
) -> Tensor:
    """Return torch's CTC, one loss per utterance, (N,). It asks the device for the lengths unless ``host`` has them.

    torch's kernels read and write wherever a label or a length that is none leads them; here it leads nowhere.
    """
    units = logits.shape[-1]
    frames, labels = frames.clamp(0, logits.shape[1]), labels.clamp(0, targets.shape[1])
    read = inside(labels, targets.shape[1])
    stray = read & ((targets < 0) | (targets >= units))
    targets = targets.masked_fill(stray | ~read, blank)
    with torch.autocast(logits.device.type, enabled=False):
        precision = torch.float64 if logits.dtype == torch.float64 else torch.float32
        log_probs = logits.to(precision).log_softmax(-1).transpose(0, 1)
        if host is None:
            losses = torch.ctc_loss(log_probs, targets, frames, labels, blank, 0, zero_infinity)
        else:
            losses = torch.ctc_loss(log_probs, targets, *host, blank, 0, zero_infinity=zero_infinity)
    # A stray label has no alignment.
    return torch.where(stray.any(1), 0.0 if zero_infinity else torch.inf, losses)
