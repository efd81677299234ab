"""CTC against the sum over all paths, and what it owes to odd input."""

from __future__ import annotations

import itertools
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asrkit.errors import AsrkitError
from asrkit.losses import ctc_cpu, ctc_cuda, ctc_loss, ctc_ops, ctc_route, infeasible
from asrkit.losses.ctc import _by_torch


def collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(unit for unit, _ in itertools.groupby(path) if unit != blank)


def by_all_paths(logits: Tensor, target: tuple[int, ...], blank: int) -> Tensor:
    """The loss of one utterance, (T, V) float64, as minus the log of the summed probability of every path."""
    log_probs = logits.log_softmax(-1)
    paths = [
        sum((log_probs[t, unit] for t, unit in enumerate(path)), log_probs.new_zeros(()))
        for path in itertools.product(range(logits.shape[1]), repeat=logits.shape[0])
        if collapse(path, blank) == target
    ]
    return -torch.stack(paths).logsumexp(0) if paths else logits.new_tensor(float("inf"))


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, int, list[int], list[list[int]], int]:
    units = draw(st.integers(2, 4))
    blank = draw(st.integers(0, units - 1))
    labels = st.sampled_from([unit for unit in range(units) if unit != blank])
    frames = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    targets = [draw(st.lists(labels, max_size=4)) for _ in frames]
    return units, blank, frames, targets, draw(st.integers(0, 2**16))


@contextmanager
def route(whole_batches: bool) -> Iterator[None]:
    """One of the two ways of a CPU, whatever the batch's size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctc_cpu, "pays_off", lambda *_: whole_batches)
        yield


@settings(max_examples=60, deadline=None)
@given(problems(), st.booleans())
def test_loss_and_gradient_equal_the_sum_over_all_paths(
    problem: tuple[int, int, list[int], list[list[int]], int], whole_batches: bool
) -> None:
    with route(whole_batches):
        _equal_the_sum_over_all_paths(problem)


def _equal_the_sum_over_all_paths(problem: tuple[int, int, list[int], list[list[int]], int]) -> None:
    units, blank, frames, targets, seed = problem
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(frames), max(frames) + 1, units, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    padded = torch.full((len(frames), 5), blank)
    for row, target in enumerate(targets):
        padded[row, : len(target)] = torch.tensor(target, dtype=torch.int64)
    losses = ctc_loss(logits, padded, frames, [len(t) for t in targets], blank=blank, reduction="none")
    expected = torch.stack([by_all_paths(logits[n, :t], tuple(targets[n]), blank) for n, t in enumerate(frames)])
    possible = expected.isfinite()
    lengths = torch.tensor([len(target) for target in targets])
    assert infeasible(padded, torch.tensor(frames), lengths).tolist() == (~possible).tolist()
    torch.testing.assert_close(losses, torch.where(possible, expected, 0.0))
    got = torch.autograd.grad(losses.sum(), logits)[0]
    wanted = torch.zeros_like(got)
    if possible.any():
        wanted = torch.autograd.grad(expected[possible].sum(), logits)[0]
    torch.testing.assert_close(got, wanted)
    assert not got[~possible].any()


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, 6, generator=generator)
    targets = torch.randint(1, 6, (4, 4), generator=generator)
    return logits, targets, torch.tensor([9, 8, 7, 9]), torch.tensor([4, 2, 3, 0])


def test_reductions() -> None:
    logits, targets, frames, labels = example()
    losses = ctc_loss(logits, targets, frames, labels, reduction="none")
    torch.testing.assert_close(ctc_loss(logits, targets, frames, labels, reduction="sum"), losses.sum())
    mean = (losses / torch.tensor([4.0, 2.0, 3.0, 1.0])).mean()
    torch.testing.assert_close(ctc_loss(logits, targets, frames, labels), mean)
    torch.testing.assert_close(ctc_loss(logits, targets, frames.tolist(), labels.tolist()), mean)
    torch.testing.assert_close(ctc_loss(logits, targets, frames.tolist(), labels), mean)


def test_empty_target_is_all_blanks() -> None:
    logits, targets, frames, labels = example()
    expected = -logits[3].log_softmax(-1)[:, 0].sum()
    torch.testing.assert_close(ctc_loss(logits, targets, frames, labels, reduction="none")[3], expected)


def test_no_frames_and_no_labels_cost_nothing() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    losses = ctc_loss(logits, torch.ones(2, 2, dtype=torch.int64), [0, 3], [0, 1], reduction="none")
    losses.sum().backward()
    assert losses[0] == 0
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert logits.grad.isfinite().all()


def test_infeasible_is_infinite_where_asked_for() -> None:
    logits, targets = torch.randn(1, 2, 4), torch.tensor([[1, 1]])
    assert ctc_loss(logits, targets, [2], [2], reduction="none", zero_infinity=False).isinf().all()
    assert ctc_loss(logits, targets, [2], [2], reduction="none").tolist() == [0.0]


def test_padding_and_logit_offsets_do_not_matter() -> None:
    logits, targets, frames, labels = example()
    losses = ctc_loss(logits, targets, frames, labels, reduction="none")
    shifted = logits + torch.randn(4, 9, 1)
    for row, (count, length) in enumerate(zip(frames.tolist(), labels.tolist(), strict=True)):
        alone = ctc_loss(shifted[row : row + 1, :count], targets[row : row + 1, :length], [count], [length])
        torch.testing.assert_close(alone * max(length, 1), losses[row])


def test_half_precision_logits_give_a_float32_loss() -> None:
    logits, targets, frames, labels = example()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ctc_loss(logits.bfloat16(), targets, frames, labels, reduction="none")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ctc_loss(logits.bfloat16().float(), targets, frames, labels, reduction="none"))


@pytest.mark.parametrize("wrong", [{"reduction": "average"}, {"blank": 6}, {"blank": -1}])
def test_wrong_arguments_are_refused(wrong: dict[str, object]) -> None:
    logits, targets, frames, labels = example()
    with pytest.raises(AsrkitError, match="ctc_loss"):
        ctc_loss(logits, targets, frames, labels, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "lengths",
    [{"logit_lengths": [9, 8, 7, 10]}, {"target_lengths": [5, 0, 0, 0]}, {"logit_lengths": [-1, 8, 7, 9]}],
)
@pytest.mark.parametrize("tensors", [True, False])
def test_lengths_beyond_the_tensor_are_refused(lengths: dict[str, list[int]], tensors: bool) -> None:
    logits, targets, frames, labels = example()
    chosen = {"logit_lengths": frames, "target_lengths": labels}
    chosen.update({name: torch.tensor(value) if tensors else value for name, value in lengths.items()})  # type: ignore[misc]
    with pytest.raises(AsrkitError, match=next(iter(lengths))):
        ctc_loss(logits, targets, **chosen)  # type: ignore[arg-type]


def test_labels_that_are_no_units_are_refused_where_they_are_read() -> None:
    logits, targets, frames, labels = example()
    targets[3, 2] = -100
    ctc_loss(logits, targets, frames, labels)
    targets[0, 2] = 6
    with pytest.raises(AsrkitError, match="label 6"):
        ctc_loss(logits, targets, frames, labels)


@settings(max_examples=40)
@given(
    st.integers(1, 5),
    st.integers(1, 60),
    st.integers(2, 12),
    st.integers(0, 40),
    st.integers(0, 11),
    st.integers(0, 999),
)
def test_both_ways_of_a_cpu_agree_with_torch(
    batch: int, frames: int, units: int, labels: int, blank: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, frames, units, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(0, units, (batch, labels), generator=generator)
    blank %= units
    targets[targets == blank] = (blank + 1) % units
    lengths = (
        torch.randint(0, frames + 1, (batch,), generator=generator),
        torch.randint(0, labels + 1, (batch,), generator=generator),
    )
    logits.requires_grad_()
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    expected = torch.ctc_loss(log_probs, targets, *lengths, blank, 0, True)
    wanted = torch.autograd.grad(expected.sum(), logits)[0]
    for whole_batches in (True, False):
        with route(whole_batches):
            losses = ctc_loss(logits, targets, *lengths, blank=blank, reduction="none")
            torch.testing.assert_close(losses, expected)
            torch.testing.assert_close(torch.autograd.grad(losses.sum(), logits)[0], wanted)


def test_reductions_and_zero_infinity_are_torchs() -> None:
    logits, targets, frames, labels = example()
    targets[0] = 3
    frames[0] = 6
    logits.requires_grad_()
    for whole_batches, zero_infinity, reduction in itertools.product(
        (True, False), (True, False), ("none", "sum", "mean")
    ):
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        expected = torch.nn.functional.ctc_loss(log_probs, targets, frames, labels, 0, reduction, zero_infinity)
        with route(whole_batches):
            losses = ctc_loss(logits, targets, frames, labels, reduction=reduction, zero_infinity=zero_infinity)
        torch.testing.assert_close(losses, expected)
        gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (losses, expected)]
        if reduction == "mean" and not zero_infinity:
            assert all(gradient[0, :6].isnan().all() for gradient in gradients)
        else:
            torch.testing.assert_close(*gradients, equal_nan=True)


@pytest.mark.parametrize("scale", [1.0, 6.0, 60.0])
@pytest.mark.parametrize("whole_batches", [True, False])
def test_float32_logits_lose_nothing(scale: float, whole_batches: bool) -> None:
    """At the largest scale probabilities leave float32: torch's recursion takes over."""
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(3, 500, 12, generator=generator) * scale).requires_grad_()
    targets = torch.randint(1, 12, (3, 150), generator=generator)
    with route(whole_batches):
        losses = ctc_loss(logits, targets, [500, 480, 500], [150, 140, 20], reduction="none")
    double = logits.detach().double().requires_grad_()
    log_probs = double.log_softmax(-1).transpose(0, 1)
    expected = torch.ctc_loss(log_probs, targets, (500, 480, 500), (150, 140, 20), 0, 0, False)
    got, wanted = (torch.autograd.grad(loss.sum(), own)[0] for loss, own in ((losses, logits), (expected, double)))
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-5)
    assert (got - wanted).norm() / wanted.norm() < 2e-6


@pytest.mark.parametrize("whole_batches", [True, False])
def test_gradcheck(whole_batches: bool) -> None:
    logits, targets, frames, labels = example()
    logits = logits.double().requires_grad_()
    with route(whole_batches):
        assert torch.autograd.gradcheck(lambda x: ctc_loss(x, targets, frames, labels, reduction="none"), logits)
        first = torch.autograd.grad(ctc_loss(logits, targets, frames, labels), logits, create_graph=True)[0]
        with pytest.raises(RuntimeError, match="ctc_cpu_backward"):
            first.sum().backward()


@pytest.mark.parametrize("whole_batches", [True, False])
def test_what_is_no_number_is_not_hidden(whole_batches: bool) -> None:
    logits, targets, frames, labels = example()
    logits[0, 2, 3] = float("nan")
    with route(whole_batches):
        assert ctc_loss(logits, targets, frames, labels, reduction="none").isnan().tolist() == [
            True,
            False,
            False,
            False,
        ]


@pytest.mark.slow
def test_operators_say_what_they_give() -> None:
    logits, *rest = example()
    for precision, differentiate in ((torch.float32, True), (torch.bfloat16, True), (torch.float64, False)):
        own = logits.detach().to(precision).requires_grad_(differentiate)
        torch.library.opcheck(ctc_ops.on_cpu, (own, *rest, 0, True, differentiate))


def test_compiles_in_one_graph() -> None:
    logits, *rest = example()
    compiled = torch.compile(ctc_loss, backend="aot_eager", fullgraph=True)
    gradients = []
    for loss in (compiled, ctc_loss):
        own = logits.clone().requires_grad_()
        loss(own, *rest).backward()
        gradients.append(own.grad)
    assert torch.equal(*gradients)


def test_whether_there_are_kernels_is_a_constant_of_a_compiled_graph() -> None:
    compiled = torch.compile(lambda x: x + 1 if ctc_cuda.usable() else x - 1, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(2))[0] == (1 if ctc_cuda.usable() else -1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("zero_infinity", [True, False])
@pytest.mark.parametrize("on_host", [True, False])
def test_torchs_own_loss_takes_stray_labels_and_lengths_for_what_they_are(zero_infinity: bool, on_host: bool) -> None:
    torch.manual_seed(3)
    logits = torch.randn(4, 9, 5, requires_grad=True)
    targets = torch.tensor([[1, 2, 3], [1, 99, 3], [4, -7, 1000], [-1, 2, 2]])
    labels = torch.tensor([3, 3, 1, 3])
    frames = torch.tensor([9, 9, 9, 9])
    host = (tuple(frames.tolist()), tuple(labels.tolist())) if on_host else None
    losses = _by_torch(logits, targets, frames, labels, 0, zero_infinity, host)
    wanted = ctc_loss(logits[[0, 2]], targets[[0, 2]].clamp(0, 4), [9, 9], [3, 1], reduction="none")
    torch.testing.assert_close(losses[[0, 2]], wanted)
    assert losses[[1, 3]].tolist() == ([0.0, 0.0] if zero_infinity else [torch.inf, torch.inf])
    losses[[0, 2]].sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    if not on_host:
        cut = _by_torch(logits, targets, torch.tensor([50, 9, 9, 9]), torch.tensor([7, 3, 1, 3]), 0, zero_infinity)
        torch.testing.assert_close(cut, losses)


def test_without_kernels_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    ctc_cuda._usable.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert not ctc_cuda.usable()
        assert not ctc_cuda.usable()
    assert [record.getMessage() for record in caplog.records] == [
        "CTC: torch's own loss takes the place of asrkit's CUDA kernels: torch sees no GPU"
    ]
    assert "torch's own" in ctc_route(torch.device("cuda"))
    assert "CPU" in ctc_route(torch.device("cpu"))


@pytest.mark.slow
def test_the_benchmark_measures(tmp_path: Path) -> None:
    command = [
        str(Path(__file__).parents[2] / "benchmarks/ctc.py"),
        "--shape",
        "2,20,6,4",
        "--rounds",
        "2",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [sys.executable, *command, "--output", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "ctc-cpu-2x20x6x4.json").read_text(encoding="utf-8"))
    assert set(found["contenders"]) == {"asrkit", "torch"}
    assert "time of asrkit / torch" in done.stdout
