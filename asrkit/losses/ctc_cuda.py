"""The kernels of ctc.cu on NVIDIA GPUs."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from asrkit.losses.ctc_kernel import KERNELS, SOURCE, Build, Launch, Problem
from asrkit.losses.nvrtc import CudaUnavailableError, Module, compile_source

log = logging.getLogger(__name__)

TRIAL = Build(logit_type=2, pairs=1, threads=256, row_threads=32, vector=1)
"""What most recognisers of characters in bfloat16 need."""


@cache
def module(build: Build, device: int) -> Module:
    """Return the kernels compiled for a problem and loaded on a device; a few seconds the first time.

    Raises:
        CudaUnavailableError: NVRTC or the driver is missing, or refuses.
    """
    capability = torch.cuda.get_device_capability(device)
    code = compile_source(SOURCE.read_text(encoding="utf-8"), SOURCE.name, build.options, capability)
    return Module(code, KERNELS, device)


def launcher(logits: Tensor) -> Launch:
    """Return what runs kernels on the device of ``logits``, on its current stream."""
    device = logits.device.index

    def launch(build: Build, name: str, blocks: int, threads: int, problem: Problem) -> None:
        module(build, device).launch(name, blocks, threads, problem)

    return launch


@cache
def obstacle() -> str | None:
    """Return why the kernels cannot run on the current GPU, None where they can; found out once, by compiling them."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    try:
        module(TRIAL, torch.cuda.current_device())
    except (CudaUnavailableError, OSError, AttributeError) as error:
        return str(error).splitlines()[0]
    return None


@torch.compiler.assume_constant_result
def usable() -> bool:
    """Return whether the kernels run; the first time they do not, a line in the log says why."""
    return _usable()


@cache
def _usable() -> bool:
    reason = obstacle()
    if reason is not None:
        log.warning("CTC: torch's own loss takes the place of asrkit's CUDA kernels: %s", reason)
    return reason is None
