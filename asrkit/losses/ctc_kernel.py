"""What drives the kernels of ctc.cu: their arguments, how they are built for a problem, and in which order they run.

It knows no device: kernels are run by a `Launch` that whoever calls `forward` and `backward` brings along.

Shapes: N batch, T frames, V units (with blank), L labels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("ctc.cu")
KERNELS = ("ctc_normalise", "ctc_halves", "ctc_meet", "ctc_cross", "ctc_gradient")
LOGIT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
WARP, ROW_BLOCK, WIDEST_LOAD = 32, 256, 16
# The most label and blank pairs that a block deals with, by pairs to a thread and threads to a block. Beyond the last, threads take
# twice as many pairs again and again.
BLOCKS = ((256, 1, 256), (1024, 2, 512), (2048, 4, 512), (4096, 8, 512), (16384, 16, 1024))


@dataclass(frozen=True)
class Build:
    """What the source is compiled for."""

    logit_type: int
    """Index in `LOGIT_TYPES`."""
    pairs: int
    """Pairs of a blank and a label to a thread."""
    threads: int
    """The most threads in a block that walks over frames."""
    row_threads: int
    """Threads to a frame's logits where frames are independent: 32 or 256."""
    vector: int
    """Logits to a load there."""

    @property
    def options(self) -> list[str]:
        """The compiler's definitions."""
        names = ("LOGIT_TYPE", "PAIRS", "THREADS", "ROW_THREADS", "VECTOR")
        values = (self.logit_type, self.pairs, self.threads, self.row_threads, self.vector)
        return [f"-D{name}={value}" for name, value in zip(names, values, strict=True)]


class Problem(ctypes.Structure):
    """The kernels' only argument, as ctc.cu declares it."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                "logits",
                "targets",
                "frames",
                "labels",
                "slopes",
                "losses",
                "normalisers",
                "states",
                "totals",
                "spent",
                "lattice",
                "sorted",
                "gradients",
            )
        ),
        *((name, ctypes.c_longlong) for name in ("logit_stride_n", "logit_stride_t", "target_stride_n", "half")),
        *((name, ctypes.c_int) for name in ("N", "T", "V", "L", "blank", "zero_infinity", "store", "again")),
    )


Launch = Callable[[Build, str, int, int, Problem], None]
"""Runs a kernel: the build, the kernel's name, blocks, threads to a block, the argument."""


def build_for(logits: Tensor, labels: int) -> Build:
    """Return what to compile for logits (N, T, V) and targets of up to L = ``labels``."""
    units = logits.shape[-1]
    pairs, threads = next(
        ((pairs, threads) for most, pairs, threads in BLOCKS if labels + 1 <= most),
        (1 << (labels // BLOCKS[-1][2]).bit_length(), BLOCKS[-1][2]),
    )
    row_threads = WARP if units <= 2048 else ROW_BLOCK
    vector = WIDEST_LOAD // logits.element_size()
    aligned = logits.data_ptr() % WIDEST_LOAD == 0 and not any(n % vector for n in (units, *logits.stride()[:2]))
    if not aligned or units < WARP * vector:
        vector = 1
    return Build(LOGIT_TYPES.index(logits.dtype), pairs, threads, row_threads, vector)


def lattice_half(frames: int, labels: int) -> int:
    """Return how many entries one walk stores for T = ``frames`` and L = ``labels``: a triangle, then a rectangle."""
    half = (frames + 1) // 2
    return half * (half + 1) // 2 if half < labels else labels * (labels + 1) // 2 + (half - labels) * labels


def saved_sizes(batch: int, frames: int, labels: int, keep: bool) -> tuple[int, int, int]:
    """Return the sizes of what `forward` gives beside the losses, in numbers of eight bytes."""
    return batch * frames, batch * (4 * (labels + 1) + 2), 2 * batch * lattice_half(frames, labels) if keep else 0


def forward(
    launch: Launch,
    logits: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    blank: int,
    zero_infinity: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the losses, float32 (N,), and what `backward` needs: the frames' normalisers, where walks stopped, the lattice.

    Args:
        launch: runs a kernel.
        logits: of one of `LOGIT_TYPES`, (N, T, V), units adjacent.
        targets: unit indices, int64 (N, L), labels adjacent. An index that is no unit has no probability.
        frames: int64 (N,), contiguous; taken as T where larger.
        labels: int64 (N,), contiguous; taken as L where larger.
        blank: index of the blank.
        zero_infinity: whether what has no alignment loses nothing.
        keep: whether there will be a backward pass.
    """
    batch, most, _ = logits.shape
    sizes = saved_sizes(batch, most, targets.shape[1], keep)
    normalisers, states, lattice = (logits.new_empty(size, dtype=torch.int64) for size in sizes)
    losses = logits.new_empty(batch, dtype=torch.float32)
    problem = _problem(logits, targets, frames, labels, normalisers, states, lattice, blank, zero_infinity)
    problem.losses = losses.data_ptr()
    problem.store = keep
    build = build_for(logits, targets.shape[1])
    if batch:
        if most:
            launch(build, "ctc_normalise", _row_blocks(build, batch * most), ROW_BLOCK, problem)
        launch(build, "ctc_halves", 2 * batch, _walkers(build, targets.shape[1]), problem)
        launch(build, "ctc_meet", batch, ROW_BLOCK, problem)
    return losses, normalisers, states, lattice


def backward(
    launch: Launch,
    slopes: Tensor,
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
    """Return the gradient with respect to the logits, (N, T, V) of their type.

    The lattice is turned into posteriors in place, which a further call for the same tensors notices on the device: it
    fills the lattice anew. So equal calls give equal results.

    Args:
        launch: runs a kernel.
        slopes: gradients of the losses, float32 (N,), contiguous.
        logits: as for `forward`, as all else.
        targets: (N, L).
        frames: (N,).
        labels: (N,).
        normalisers: of `forward`.
        states: of `forward`.
        lattice: of `forward` with ``keep``.
        blank: index of the blank.
        zero_infinity: whether what has no alignment has no gradient; otherwise it is NaN, as torch's.
    """
    batch, most, _ = logits.shape
    length = targets.shape[1]
    gradients = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if not gradients.numel():
        return gradients
    problem = _problem(logits, targets, frames, labels, normalisers, states, lattice, blank, zero_infinity)
    order = logits.new_empty(batch * length, dtype=torch.int64)
    problem.sorted = order.data_ptr()
    problem.slopes = slopes.data_ptr()
    problem.gradients = gradients.data_ptr()
    problem.store = problem.again = 1
    build = build_for(logits, length)
    walkers = _walkers(build, length)
    launch(build, "ctc_halves", 2 * batch, walkers, problem)
    launch(build, "ctc_cross", 2 * batch + batch * -(-length // walkers), walkers, problem)
    launch(build, "ctc_gradient", _row_blocks(build, batch * most), ROW_BLOCK, problem)
    return gradients


def _problem(
    logits: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    normalisers: Tensor,
    states: Tensor,
    lattice: Tensor,
    blank: int,
    zero_infinity: bool,
) -> Problem:
    batch, most, units = logits.shape
    problem = Problem()
    problem.logits, problem.targets = logits.data_ptr(), targets.data_ptr()
    problem.frames, problem.labels = frames.data_ptr(), labels.data_ptr()
    problem.normalisers, problem.lattice = normalisers.data_ptr(), lattice.data_ptr()
    start = states.data_ptr()
    problem.spent, problem.totals, problem.states = start, start + 8 * batch, start + 16 * batch
    problem.logit_stride_n, problem.logit_stride_t = logits.stride(0), logits.stride(1)
    problem.target_stride_n = targets.stride(0)
    problem.half = lattice_half(most, targets.shape[1])
    problem.N, problem.T, problem.V, problem.L = batch, most, units, targets.shape[1]
    problem.blank, problem.zero_infinity = blank, zero_infinity
    return problem


def _row_blocks(build: Build, rows: int) -> int:
    return -(-rows * build.row_threads // ROW_BLOCK)


def _walkers(build: Build, labels: int) -> int:
    """Threads to a block that walks: whole warps."""
    return -(-(labels + 1) // (build.pairs * WARP)) * WARP
