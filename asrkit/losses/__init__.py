"""Losses as functions of tensors, for asrkit's heads and for anyone's own training."""

from asrkit.losses.ctc import ctc_loss, infeasible

__all__ = ["ctc_loss", "infeasible"]
