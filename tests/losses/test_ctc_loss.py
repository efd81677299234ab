"""CTC against the sum over all paths, and what it owes to odd input."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asrkit.errors import AsrkitError
from asrkit.losses import ctc_loss, infeasible


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


@settings(max_examples=60, deadline=None)
@given(problems())
def test_loss_and_gradient_equal_the_sum_over_all_paths(
    problem: tuple[int, int, list[int], list[list[int]], int],
) -> None:
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
