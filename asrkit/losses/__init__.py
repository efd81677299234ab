"""Losses as functions of tensors, for asrkit's heads and for anyone's own training."""

from asrkit.losses.ctc import ctc_loss, ctc_route, infeasible

__all__ = ["ctc_loss", "ctc_route", "infeasible"]
