"""The CUDA kernels of CTC built for the host, where a C++ compiler is found, and a loss made of them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asrkit.losses import ctc_kernel
from asrkit.losses.ctc_kernel import Build, Launch, Problem

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
FOLDER = tempfile.TemporaryDirectory(prefix="asrkit-ctc-")


def compiled(source: Path, options: list[str], name: str) -> ctypes.CDLL:
    assert COMPILER is not None
    library = Path(FOLDER.name, name)
    includes = [f"-I{HERE}", f"-I{ctc_kernel.SOURCE.parent}"]
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
    done = subprocess.run(
        [COMPILER, *flags, *includes, *options, "-o", str(library), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


@cache
def library(build: Build) -> ctypes.CDLL:
    return compiled(HERE / "host_ctc.cpp", build.options, f"{'-'.join(build.options)}.so")


def launcher(order: int) -> Launch:
    """Run kernels with threads in an order drawn from a seed, or one after the other for 0."""

    def launch(build: Build, name: str, blocks: int, threads: int, problem: Problem) -> None:
        assert threads <= (build.threads if name in ("ctc_halves", "ctc_cross") else ctc_kernel.ROW_BLOCK)
        line = getattr(library(replace(build, threads=1024)), f"run_{name}")(
            ctypes.byref(problem), blocks, threads, order
        )
        assert line == 0, f"{name}: threads wait for others at line {line}"

    return launch


class HostCTC(torch.autograd.Function):
    """CTC by the kernels, one loss per utterance."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, order: int, *arguments: Any) -> Tensor:  # type: ignore[override]
        losses, *saved = ctc_kernel.forward(launcher(order), logits, *arguments, True)
        ctx.save_for_backward(logits, *arguments[:3], *saved)
        ctx.rest = arguments[3:]
        ctx.order = order
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradient = ctc_kernel.backward(launcher(ctx.order), grad.contiguous(), *ctx.saved_tensors, *ctx.rest)
        return gradient, *[None] * 6


def host_ctc(
    logits: Tensor,
    targets: Tensor,
    frames: Any,
    labels: Any,
    blank: int = 0,
    zero_infinity: bool = True,
    order: int = 0,
) -> Tensor:
    lengths = torch.as_tensor(frames, dtype=torch.int64), torch.as_tensor(labels, dtype=torch.int64)
    return HostCTC.apply(logits, order, targets, *lengths, blank, zero_infinity)  # type: ignore[no-any-return,no-untyped-call]


@contextmanager
def guarded() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Tensors that kernels fill get guards around them; whoever writes beside them is found out."""
    made: list[tuple[Tensor, Tensor]] = []

    def new_empty(self: Tensor, size: Any, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        shape = (size,) if isinstance(size, int) else tuple(size)
        count = torch.Size(shape).numel()
        whole = torch.full((count + 2 * GUARD,), GUARD_VALUE, dtype=dtype)
        made.append((whole, whole.clone()))
        return whole[GUARD : GUARD + count].view(shape)

    plain = Tensor.new_empty
    Tensor.new_empty = new_empty  # type: ignore[method-assign,assignment]
    try:
        yield made
    finally:
        Tensor.new_empty = plain  # type: ignore[method-assign]
    for whole, before in made:
        assert torch.equal(whole[:GUARD], before[:GUARD])
        assert torch.equal(whole[-GUARD:], before[-GUARD:])


GUARD, GUARD_VALUE = 64, 77
