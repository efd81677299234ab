"""The CUDA kernels of CTC, run on the host: against the sum over all paths, torch in float64, and other orders of their threads."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctc_host
import pytest
import torch
from ctc_host import guarded, host_ctc
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ctc_loss import by_all_paths, problems
from torch import Tensor

from asrkit.losses import ctc_kernel, ctc_ops
from asrkit.losses.ctc_kernel import Build
from asrkit.losses.nvrtc import CudaUnavailableError, compile_source, nvrtc

pytestmark = pytest.mark.skipif(ctc_host.COMPILER is None, reason="no g++ to build the kernels for the host with")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
MORE_UNITS = ((2056, BFLOAT), (2049, FLOAT), (4096, HALF))


def make(
    batch: int,
    frames: int,
    units: int,
    labels: int,
    *,
    seed: int = 0,
    scale: float = 1.0,
    whole: bool = False,
    blank: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, frames, units, generator=generator) * scale
    targets = torch.randint(0, units - 1, (batch, labels), generator=generator)
    targets += (targets >= blank).long()
    frame_counts = torch.randint(frames // 2, frames + 1, (batch,), generator=generator)
    label_counts = torch.randint(0, labels + 1, (batch,), generator=generator)
    frame_counts[0], label_counts[0] = frames, labels
    if whole:
        return logits, targets, torch.full_like(frame_counts, frames), torch.full_like(label_counts, labels)
    return logits, targets, frame_counts, label_counts


def exact(
    logits: Tensor, targets: Tensor, frames: Tensor, labels: Tensor, slopes: Tensor, blank: int = 0
) -> tuple[Tensor, Tensor]:
    """Losses and the gradient by torch's recursion in float64."""
    logits = logits.detach().double().requires_grad_()
    losses = torch.ctc_loss(logits.log_softmax(-1).transpose(0, 1), targets, frames, labels, blank, 0, True)
    return losses.detach(), torch.autograd.grad((losses * slopes).sum(), logits)[0]


def distance(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


def compare(
    logits: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    blank: int = 0,
    order: int = 0,
    within: float = 2e-6,
) -> Tensor:
    """Hold the kernels' losses and gradient to float64; return the gradient."""
    slopes = torch.linspace(0.5, 1.5, len(logits))
    logits = logits.detach().requires_grad_()
    losses = host_ctc(logits, targets, frames, labels, blank, order=order)
    gradient = torch.autograd.grad((losses * slopes).sum(), logits)[0]
    wanted_losses, wanted = exact(logits, targets, frames, labels, slopes, blank)
    torch.testing.assert_close(losses.double(), wanted_losses, rtol=1e-6, atol=1e-5)
    assert distance(gradient, wanted) < within
    return gradient


@settings(max_examples=40)
@given(problems())
def test_loss_and_gradient_equal_the_sum_over_all_paths(
    problem: tuple[int, int, list[int], list[list[int]], int],
) -> None:
    units, blank, frames, targets, seed = problem
    logits = torch.randn(len(frames), max(frames) + 1, units, generator=torch.Generator().manual_seed(seed))
    logits.requires_grad_()
    padded = torch.full((len(frames), 5), -100)
    for row, target in enumerate(targets):
        padded[row, : len(target)] = torch.tensor(target, dtype=torch.int64)
    losses = host_ctc(logits, padded, frames, [len(t) for t in targets], blank)
    double = logits.detach().double().requires_grad_()
    expected = torch.stack([by_all_paths(double[n, :t], tuple(targets[n]), blank) for n, t in enumerate(frames)])
    possible = expected.isfinite()
    torch.testing.assert_close(losses.double(), torch.where(possible, expected, 0.0), rtol=1e-6, atol=1e-6)
    got = torch.autograd.grad(losses.sum(), logits)[0]
    wanted = torch.zeros_like(double)
    if possible.any():
        wanted = torch.autograd.grad(expected[possible].sum(), double)[0]
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)
    assert not got[~possible].any()


@settings(max_examples=25)
@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(2, 12),
    st.integers(0, 45),
    st.integers(0, 11),
    st.integers(0, 999),
)
def test_any_shape_equals_float64_in_any_order_of_threads(
    batch: int, frames: int, units: int, labels: int, blank: int, seed: int
) -> None:
    problem = make(batch, frames, units, labels, seed=seed, blank=blank % units)
    with guarded():
        first = (
            compare(*problem, blank=blank % units)
            if bool(exact(*problem, torch.ones(batch), blank % units)[1].any())
            else None
        )
        orders = [run(*problem, blank=blank % units, order=order) for order in (0, 1, seed + 2)]
    assert all(torch.equal(one, orders[0]) for one in orders)
    assert first is None or not first[0, int(problem[2][0]) :].any()


def run(logits: Tensor, targets: Tensor, frames: Tensor, labels: Tensor, blank: int = 0, order: int = 0) -> Tensor:
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(host_ctc(logits, targets, frames, labels, blank, order=order).sum(), logits)[0]


@pytest.mark.parametrize("pairs", [1, 2, 16, *(pytest.param(pairs, marks=pytest.mark.slow) for pairs in (4, 8, 32))])
def test_any_number_of_pairs_to_a_thread(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctc_kernel, "BLOCKS", ((10**6, pairs, 1024),))
    problem = make(2, 240, 6, 100, whole=True)
    assert torch.equal(compare(*problem), compare(*problem, order=3))


def test_pairs_grow_without_end() -> None:
    logits = torch.zeros(1, 1, 32)
    for labels in (0, 31, 255, 256, 1023, 1024, 4000, 16383, 16384, 100_000, 10**6):
        build = ctc_kernel.build_for(logits, labels)
        walkers = ctc_kernel._walkers(build, labels)
        assert walkers <= build.threads
        assert walkers * build.pairs >= labels + 1
        assert build.pairs & (build.pairs - 1) == 0


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
def test_half_precision_logits(dtype: torch.dtype) -> None:
    logits, *rest = make(2, 30, 8, 9)
    # The gradient is rounded once.
    compare(logits.to(dtype), *rest, within=2e-3 if dtype == BFLOAT else 3e-4)


@pytest.mark.parametrize(
    ("units", "dtype"),
    [(3000, FLOAT), (256, BFLOAT), *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE_UNITS)],
)
def test_many_units(units: int, dtype: torch.dtype) -> None:
    logits, *rest = make(2, 12, units, 4)
    assert ctc_kernel.build_for(logits.to(dtype), 4).vector == (1 if units % 4 else 16 // dtype.itemsize)
    compare(logits.to(dtype), *rest, within=3e-3 if dtype == BFLOAT else 2e-6)


def test_logits_of_any_strides() -> None:
    logits, *rest = make(2, 30, 8, 9)
    frames_first = logits.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(run(frames_first, *rest), run(logits, *rest))
    cut = torch.cat((logits, logits), 2)[:, :, 3:11]
    torch.testing.assert_close(run(cut, *rest), run(cut.contiguous(), *rest), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [20.0, 200.0, 2000.0])
def test_probabilities_of_any_size(scale: float) -> None:
    # In linear float32 and float64 all would vanish: a frame's worst label has exp(-10000).
    compare(*make(2, 120, 10, 40, scale=scale, whole=True), within=1e-3 if scale > 500 else 2e-5)


def test_offsets_do_not_matter() -> None:
    logits, *rest = make(2, 50, 8, 9)
    offsets = torch.randint(-2000, 2000, (2, 50, 1)) * 4.0
    rounded = ((logits + offsets) - offsets).contiguous()
    torch.testing.assert_close(run(rounded + offsets, *rest), run(rounded, *rest), rtol=1e-4, atol=1e-5)


def test_one_label_over_and_over() -> None:
    logits, targets, frames, labels = make(2, 100, 4, 40, whole=True)
    compare(logits, torch.full_like(targets, 2), frames, labels)


def test_no_gradient_is_wanted() -> None:
    logits, targets, frames, labels = make(3, 20, 6, 5)
    losses, *_, lattice = ctc_kernel.forward(ctc_host.launcher(1), logits, targets, frames, labels, 0, True, False)
    assert not lattice.numel()
    assert torch.equal(losses, host_ctc(logits, targets, frames, labels))


def test_backward_twice() -> None:
    logits, *rest = make(2, 40, 6, 12)
    logits.requires_grad_()
    losses = host_ctc(logits, *rest)
    first, second, third = (torch.autograd.grad(losses.sum(), logits, retain_graph=True)[0] for _ in range(3))
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_empty() -> None:
    for batch, frames, labels in ((0, 5, 3), (2, 0, 3), (2, 5, 0), (2, 0, 0)):
        logits = torch.randn(batch, frames, 4, requires_grad=True)
        counts = torch.full((batch,), frames), torch.full((batch,), labels)
        losses = host_ctc(logits, torch.ones(batch, labels, dtype=torch.int64), *counts)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        expected = -logits.log_softmax(-1)[:, :, 0].sum(1) if labels == 0 else torch.zeros(batch)
        torch.testing.assert_close(losses, expected)
        assert bool(gradient.any()) == (frames > 0 and batch > 0)


def test_infeasible() -> None:
    logits, targets = torch.randn(2, 3, 4, requires_grad=True), torch.tensor([[1, 1, 1], [1, 2, 3]])
    losses = host_ctc(logits, targets, [3, 3], [3, 3])
    gradient = torch.autograd.grad(losses.sum(), logits)[0]
    assert losses[0] == 0
    assert losses[1] > 0
    assert not gradient[0].any()
    losses = host_ctc(logits, targets, [2, 3], [3, 3], zero_infinity=False)
    gradient = torch.autograd.grad(losses.sum(), logits)[0]
    assert losses[0] == math.inf
    # As torch's: NaN where there were frames, nothing behind them.
    assert gradient[0, :2].isnan().all()
    assert not gradient[0, 2].any()
    assert gradient[1].isfinite().all()


def test_impossible_labels_and_units() -> None:
    """What cannot be checked without waiting for a GPU is harmless: a label that is no unit, lengths beyond the tensor."""
    logits, targets, frames, labels = make(3, 20, 6, 5)
    targets[0, 2], targets[1, 0] = 6, -1
    labels[:] = 5
    with guarded():
        losses = host_ctc(logits.requires_grad_(), targets, frames, labels)
        gradient = torch.autograd.grad(losses.sum(), logits)[0]
    assert not losses[:2].any()
    assert not gradient[:2].any()
    assert losses[2] > 0
    rest = targets[2:], torch.tensor([20]), torch.tensor([5])
    assert torch.equal(host_ctc(logits[2:], rest[0], [99], [77]), host_ctc(logits[2:], *rest))
    assert torch.equal(host_ctc(logits[2:], rest[0], [-1], [-3]), torch.zeros(1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_not_hidden(bad: float) -> None:
    logits, targets, frames, labels = make(2, 20, 6, 5, whole=True)
    logits[0, 7, 3] = bad
    losses = host_ctc(logits.requires_grad_(), targets, frames, labels)
    gradient = torch.autograd.grad(losses.sum(), logits)[0]
    assert losses.isnan().tolist() == [True, False]
    assert gradient[0].isnan().all()
    assert gradient[1].isfinite().all()


def test_forbidden_units() -> None:
    logits, targets, frames, labels = make(2, 30, 8, 6, whole=True)
    logits[:, ::3, 5:] = -math.inf
    targets[:] = torch.tensor([1, 5, 5, 2, 7, 3])
    logits.requires_grad_()
    gradient = torch.autograd.grad(host_ctc(logits, targets, frames, labels).sum(), logits)[0]
    _, wanted = exact(logits.detach().clamp(min=-1e4), targets, frames, labels, torch.ones(2))
    assert distance(gradient, wanted) < 2e-6
    logits = logits.detach().clone()
    logits[0, :, 5] = -math.inf
    losses = host_ctc(logits, targets, frames, labels, zero_infinity=False)
    assert losses.isinf().tolist() == [True, False]


def test_precision_of_a_long_utterance() -> None:
    compare(*make(1, 1500, 8, 60, whole=True), within=1e-5)


@pytest.mark.slow
def test_precision_of_a_very_long_utterance() -> None:
    compare(*make(1, 20_000, 5, 62, whole=True), within=2e-5)


def test_half_precision_of_the_host_is_torchs() -> None:
    values = torch.cat(
        (torch.randn(4000) * 10.0 ** torch.linspace(-9, 5, 4000), torch.tensor([0.0, -0.0, 65519.0, 65520.0]))
    )
    halves, back = torch.empty(len(values), dtype=HALF), torch.empty(len(values))
    build = Build(1, 1, 256, 32, 1)
    ctc_host.library(replace(build, threads=1024)).host_halves(
        *(ctc_host.ctypes.c_void_p(x.data_ptr()) for x in (values, halves, back)), len(values)
    )
    assert torch.equal(halves.view(torch.int16), values.half().view(torch.int16))
    assert torch.equal(back, halves.float())


@pytest.fixture(scope="module")
def operators_on_the_host() -> None:
    """The GPU's operators, for tensors of the host as well."""

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return ctc_kernel.forward(ctc_host.launcher(0), *arguments)

    def backward(slopes: Tensor, *arguments: Any) -> Tensor:
        return ctc_kernel.backward(ctc_host.launcher(0), slopes.contiguous(), *arguments)

    ctc_ops.on_cuda.register_kernel("cpu")(forward)
    ctc_ops.on_cuda_backward.register_kernel("cpu")(backward)


@pytest.mark.usefixtures("operators_on_the_host")
def test_operators() -> None:
    logits, *rest = make(2, 20, 6, 5)

    def losses(logits: Tensor) -> Tensor:
        return ctc_ops.on_cuda(logits, *rest, 0, True, True)[0]

    expected = run(logits, *rest)
    compiled = torch.compile(losses, backend="aot_eager", fullgraph=True)
    for way in (losses, compiled):
        own = logits.clone().requires_grad_()
        values = way(own)
        first, second = (torch.autograd.grad(values.sum(), own, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(first, expected)
        assert torch.equal(second, expected)
    twice = torch.autograd.grad(losses(own).sum(), own, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="ctc_cuda_backward"):
        twice.sum().backward()
    for differentiate in (True, False):
        arguments = (logits.requires_grad_(differentiate), *rest, 0, True, differentiate)
        names = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(ctc_ops.on_cuda, arguments, test_utils=names)


KERNELS = """
#include "host_cuda.h"
static float out[64];
static void divergent() { if (threadIdx.x < 40) __syncthreads(); }
static void apart() { if (threadIdx.x % 2) __syncthreads(); else __syncthreads(); }
static void broken_warp() { if (threadIdx.x < 16) __syncwarp(); else __syncthreads(); }
static void race() { __shared__ float x; x = threadIdx.x; __syncthreads(); out[threadIdx.x] = x; }
static void fine() {
    __shared__ float x[64];
    x[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = x[63 - threadIdx.x];
}
static void (*const all[])() = {divergent, apart, broken_warp, race, fine};
extern "C" int go(int which, unsigned seed, float* into) {
    int line = run(all[which], 1, 64, seed);
    memcpy(into, out, sizeof out);
    return line;
}
"""


def test_the_host_notices_what_a_gpu_would_not_forgive(tmp_path: Path) -> None:
    source = tmp_path / "kernels.cpp"
    source.write_text(KERNELS.replace("else __sync", "else\n__sync"), encoding="utf-8")
    go = ctc_host.compiled(source, [], "kernels.so").go
    out = (ctc_host.ctypes.c_float * 64)()
    for kernel in range(3):
        assert go(kernel, 0, out) != 0, "a barrier that not all threads reach"
    results = set()
    for seed in range(5):
        assert go(3, seed, out) == 0
        results.add(tuple(out))
    assert len(results) > 1, "a race"
    for seed in range(5):
        assert go(4, seed, out) == 0
        assert list(out) == [float(63 - i) for i in range(64)]


BUILDS = [Build(2, 1, 256, 32, 1), Build(0, 8, 512, 256, 4), Build(1, 16, 1024, 256, 8)]


@pytest.mark.parametrize("build", BUILDS[:1])
@pytest.mark.parametrize("capability", [(9, 0), (9, 7)], ids=["9.0", "newer than NVRTC"])
def test_nvrtc_compiles_the_source(build: Build, capability: tuple[int, int]) -> None:
    try:
        nvrtc()
    except CudaUnavailableError as reason:
        pytest.skip(str(reason))
    source = ctc_kernel.SOURCE.read_text(encoding="utf-8")
    assert compile_source(source, "ctc.cu", build.options, capability).startswith(b"\x7fELF")
    with pytest.raises(CudaUnavailableError, match=r"ctc\.cu does not compile"):
        compile_source(source + "garbage", "ctc.cu", build.options, capability)


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_nvrtc_compiles_for_every_gpu(build: Build, capability: tuple[int, int]) -> None:
    test_nvrtc_compiles_the_source(build, capability)
