"""The contrastive loss against its definition, frame by frame."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from asrkit.losses.contrastive import contrastive_loss, draw_negatives, negative_weights
from asrkit.randomness import utterance_keys

COUNTS = (7, 4, 1, 0, 2)
MOST = 8
KEYS = utterance_keys(["a", "b", "c", "d", "e"])


def frame_by_frame(
    predictions: Tensor, targets: Tensor, negatives: Tensor, counts: tuple[int, ...], codes: Tensor | None
) -> Tensor:
    """The losses as cross entropies over the similarities to the own target and to each drawn negative."""
    losses = predictions.new_zeros(predictions.shape[:2])
    for n, count in enumerate(counts):
        for m in range(count):
            logits = [functional.cosine_similarity(predictions[n, m], targets[n, m], dim=0) / 0.1]
            for other in negatives[n, m].tolist() if count > 1 else []:
                if codes is None or codes[n, other] != codes[n, m]:
                    logits.append(functional.cosine_similarity(predictions[n, m], targets[n, other], dim=0) / 0.1)
            losses[n, m] = functional.cross_entropy(torch.stack(logits)[None], torch.zeros(1, dtype=torch.int64))
    return losses


def example(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.randn(5, MOST, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    codes = torch.randint(0, 4, (5, MOST), generator=generator)
    targets = torch.randn(4, 6, generator=generator, dtype=torch.float64)[codes].requires_grad_()
    counts = torch.tensor(COUNTS)
    negatives = draw_negatives(KEYS, counts, MOST, 20, seed=seed, epoch=0)
    return predictions, targets, codes, counts, negatives, torch.arange(MOST) < counts[:, None]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_loss_and_gradient_equal_the_definition(seed: int, with_codes: bool) -> None:
    predictions, targets, codes, counts, negatives, valid = example(seed)
    known = codes if with_codes else None
    weights = negative_weights(negatives, counts, known)
    got = contrastive_loss(predictions, targets, weights.double(), valid).loss
    expected = frame_by_frame(predictions, targets, negatives, COUNTS, known)
    torch.testing.assert_close(got, expected)
    inputs = (predictions, targets)
    for a, b in zip(torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_correct_is_a_strict_win_over_at_least_one_negative() -> None:
    eye = torch.eye(3)[None]
    counts = torch.tensor([3])
    negatives = draw_negatives(KEYS[:1], counts, 3, 50, seed=0, epoch=0)
    valid = torch.ones(1, 3, dtype=torch.bool)
    apart = negative_weights(negatives, counts, torch.tensor([[0, 1, 2]]))
    assert contrastive_loss(eye, eye, apart, valid).correct.all()
    assert not contrastive_loss(eye.roll(1, 1), eye, apart, valid).correct.any()
    assert not contrastive_loss(eye, torch.ones_like(eye), apart, valid).correct.any()
    collapsed = negative_weights(negatives, counts, torch.zeros(1, 3, dtype=torch.int64))
    result = contrastive_loss(eye, eye, collapsed, valid)
    assert not result.correct.any()
    assert not result.loss.any()


def test_negatives_are_others_of_the_utterance_and_all_of_them_alike() -> None:
    counts = torch.tensor([6])
    negatives = draw_negatives(KEYS[:1], counts, 6, 60_000, seed=0, epoch=0)[0]
    for own in range(6):
        share = torch.bincount(negatives[own], minlength=6) / 60_000
        assert share[own] == 0
        others = torch.cat([share[:own], share[own + 1 :]])
        torch.testing.assert_close(others, torch.full((5,), 0.2), atol=0.01, rtol=0)


def test_negatives_depend_on_utterance_seed_and_epoch_only() -> None:
    counts = torch.tensor(COUNTS)
    every = draw_negatives(KEYS, counts, MOST, 10, seed=1, epoch=2)
    for row, count in enumerate(COUNTS):
        alone = draw_negatives(KEYS[row : row + 1], counts[row : row + 1], MOST - 1, 10, seed=1, epoch=2)
        assert torch.equal(alone[0, :count], every[row, :count])
    assert not torch.equal(every[0], draw_negatives(KEYS, counts, MOST, 10, seed=2, epoch=2)[0])
    assert not torch.equal(every[0], draw_negatives(KEYS, counts, MOST, 10, seed=1, epoch=3)[0])


def test_weights_count_draws_and_nothing_else() -> None:
    _, _, _, counts, negatives, valid = example(3)
    weights = negative_weights(negatives, counts)
    assert not weights.diagonal(dim1=1, dim2=2).any()
    assert not weights.masked_select(~valid[:, None, :]).any()
    assert torch.equal(weights[0, :7].sum(-1), torch.full((7,), 20.0))
    assert torch.equal(weights[4, :2, :2], torch.tensor([[0.0, 20.0], [20.0, 0.0]]))


def test_the_loss_is_float32_under_autocast() -> None:
    predictions, targets, _, counts, negatives, valid = example(0)
    weights = negative_weights(negatives, counts)
    narrow = predictions.bfloat16(), targets.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = contrastive_loss(*narrow, weights, valid).loss
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, contrastive_loss(*(x.float() for x in narrow), weights, valid).loss)
