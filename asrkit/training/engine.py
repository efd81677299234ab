"""Device, precision and reduction: what a Step is lent."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from asrkit.errors import AsrkitError, nearest
from asrkit.nn.linear import cpu_has_bf16
from asrkit.training.distributed import Ranks

PRECISIONS = ("auto", "bf16", "fp16", "fp32")


def choose_device(name: str, ranks: Ranks | None = None) -> torch.device:
    """Return the device for "auto", "cpu", "cuda" or "cuda:K"; several processes on a machine take a GPU each.

    A GPU becomes the process's current one, and attention leaves cuDNN alone (see `_make_current`).

    Raises:
        AsrkitError: if the device is not there.
    """
    ranks = ranks or Ranks()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise AsrkitError(f"unknown device '{name}'", mend="auto, cpu, cuda or cuda:K")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise AsrkitError(f"device is '{name}' but torch sees no GPU", mend="device=cpu, or see `asrkit doctor`")
    if device.index is not None and ranks.world_size > 1:
        raise AsrkitError(f"device is '{name}' for {ranks.world_size} processes", mend="device=cuda gives each its own")
    index = ranks.local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise AsrkitError(f"no GPU {index}: torch sees {torch.cuda.device_count()}", mend="one process per GPU")
    return _make_current(torch.device("cuda", index))


def _make_current(device: torch.device) -> torch.device:
    """Make a GPU the current one, which is whom torch asks about bfloat16 and where kernels are loaded.

    torch prefers cuDNN's attention on compute capability 9.0 and 10.0. It makes a plan for every new (N, T), about a second with
    its backward pass (github.com/modelscope/FunASR, 3704), where batches of speech are rarely of the same size twice, and has been
    wrong at lengths that are no multiple of 128 (github.com/pytorch/pytorch, 169849). Flash attention takes what has no mask, the
    memory-efficient kernel the rest.
    """
    torch.cuda.set_device(device)
    torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return "bf16", "fp16" or "fp32" for a configured precision; "auto" asks the hardware."""
    if name not in PRECISIONS:
        raise AsrkitError(f"unknown precision '{name}'", mend=nearest(name, PRECISIONS))
    if name == "fp16" and device.type == "cpu":
        raise AsrkitError("training.precision is fp16 on a CPU", mend="use bf16, fp32 or auto")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_has_bf16() else "fp32"


class TrainingEngine:
    """Precision and reduction for one run; implements `asrkit.core.step.Engine`."""

    def __init__(self, device: torch.device, precision: str, ranks: Ranks, min_loss_scale: float = 1.0) -> None:
        self.min_loss_scale = min_loss_scale
        self.device = device
        self.precision = choose_precision(precision, device)
        self.ranks = ranks
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        # The scaler makes its scale when it is first used, which on a rank without audio in its first update would be too late.
        self.scaler.scale(torch.zeros((), device=device))

    @property
    def world_size(self) -> int:
        """Number of processes that train together."""
        return self.ranks.world_size

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context for forward passes."""
        return autocast(self.device, self.precision)

    def scale(self, loss: Tensor) -> Tensor:
        """Multiply with fp16's loss scale; otherwise return the loss."""
        return self.scaler.scale(loss)

    def lower_or_raise_scale(self) -> None:
        """Adapt fp16's loss scale to whether the last gradient overflowed, but never below its floor."""
        self.scaler.update()
        if self.scaler.get_scale() < self.min_loss_scale:
            self.scaler.update(self.min_loss_scale)

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        """Add each tensor over all ranks, in place."""
        self.ranks.add(tensors)

    def gather(self, thing: Any) -> list[Any]:
        """Return every rank's ``thing``."""
        return self.ranks.gather(thing)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the autocast context of a precision ("fp32" gives none)."""
    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)
