"""CTC as operators of torch: opaque to torch.compile, which learns from each what it gives, and differentiable once.

Shapes: N batch, T frames, V units (with blank), L labels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asrkit.losses import ctc_cpu, ctc_cuda, ctc_kernel


@torch.library.custom_op("asrkit::ctc_cpu", mutates_args=(), device_types="cpu")
def on_cpu(
    logits: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    blank: int,
    zero_infinity: bool,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    """Return losses (N,) and their derivatives; see `ctc_cpu.forward`."""
    return ctc_cpu.forward(logits, targets, frames, labels, blank, zero_infinity, differentiate)


@on_cpu.register_fake
def _(
    logits: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    blank: int,
    zero_infinity: bool,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    precision = torch.float64 if logits.dtype == torch.float64 else torch.float32
    slopes = logits.new_empty(logits.shape if differentiate else (0,), dtype=precision)
    return logits.new_empty(logits.shape[0], dtype=precision), slopes


@torch.library.custom_op("asrkit::ctc_cpu_backward", mutates_args=(), device_types="cpu")
def on_cpu_backward(grad: Tensor, slopes: Tensor, half: Tensor) -> Tensor:
    """Return the gradient of the logits, of the type of ``half``; an operator only so that nobody differentiates it."""
    return (slopes * grad[:, None, None]).to(half.dtype)


@on_cpu_backward.register_fake
def _(grad: Tensor, slopes: Tensor, half: Tensor) -> Tensor:
    return slopes.new_empty(slopes.shape, dtype=half.dtype)


def _cpu_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], inputs[0].new_empty(0))


def _cpu_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return on_cpu_backward(grad, *ctx.saved_tensors), *[None] * 6


on_cpu.register_autograd(_cpu_backward, setup_context=_cpu_setup)


@torch.library.custom_op("asrkit::ctc_cuda", mutates_args=(), device_types="cuda")
def on_cuda(
    logits: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    blank: int,
    zero_infinity: bool,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return losses (N,) and what the gradient needs; see `ctc_kernel.forward`."""
    launch = ctc_cuda.launcher(logits)
    return ctc_kernel.forward(launch, logits, targets, frames, labels, blank, zero_infinity, differentiate)


@on_cuda.register_fake
def _(
    logits: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    blank: int,
    zero_infinity: bool,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, most, _ = logits.shape
    sizes = ctc_kernel.saved_sizes(batch, most, targets.shape[1], differentiate)
    losses = logits.new_empty(batch, dtype=torch.float32)
    normalisers, states, lattice = (logits.new_empty(size, dtype=torch.int64) for size in sizes)
    return losses, normalisers, states, lattice


@torch.library.custom_op("asrkit::ctc_cuda_backward", mutates_args=(), device_types="cuda")
def on_cuda_backward(
    grad: Tensor,
    logits: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    normalisers: Tensor,
    states: Tensor,
    lattice: Tensor,
    blank: int,
    zero_infinity: bool,
) -> Tensor:
    """Return the gradient of the logits; see `ctc_kernel.backward`."""
    launch = ctc_cuda.launcher(logits)
    slopes = grad.contiguous()  # of a sum all are one number in memory
    return ctc_kernel.backward(
        launch, slopes, logits, targets, frames, labels, normalisers, states, lattice, blank, zero_infinity
    )


@on_cuda_backward.register_fake
def _(
    grad: Tensor,
    logits: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    normalisers: Tensor,
    states: Tensor,
    lattice: Tensor,
    blank: int,
    zero_infinity: bool,
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _cuda_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, frames, labels, ctx.blank, ctx.zero_infinity, _ = inputs
    ctx.save_for_backward(logits, targets, frames, labels, *output[1:])
    ctx.set_materialize_grads(False)


def _cuda_backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient = None if grad is None else on_cuda_backward(grad, *ctx.saved_tensors, ctx.blank, ctx.zero_infinity)
    return gradient, *[None] * 6


on_cuda.register_autograd(_cuda_backward, setup_context=_cuda_setup)
