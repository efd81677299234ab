"""The quantiser against the Gumbel-softmax as it is written down."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from asrkit.nn.quantiser import GumbelQuantiser, diversity, gumbel_noise, perplexity
from asrkit.randomness import utterance_keys

GROUPS, ENTRIES, DIM, FEATURES = 2, 5, 8, 6
KEYS = utterance_keys(["a", "b", "c"])


def make() -> tuple[GumbelQuantiser, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    quantiser = GumbelQuantiser(FEATURES, GROUPS, ENTRIES, DIM)
    features = torch.randn(3, 4, FEATURES, requires_grad=True)
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    return quantiser, features, valid, gumbel_noise(KEYS, 4, GROUPS, ENTRIES, seed=0, epoch=0)


def test_value_and_gradient_are_those_of_the_straight_through_estimator() -> None:
    quantiser, features, valid, noise = make()
    temperature = 0.7
    got = quantiser(features, valid, noise=noise, temperature=temperature).vectors
    logits = quantiser.project(features).view(3, 4, GROUPS, ENTRIES)
    soft = ((logits + noise) / temperature).softmax(-1)
    hard = torch.nn.functional.one_hot(soft.argmax(-1), ENTRIES) - soft.detach() + soft
    expected = torch.cat([hard[:, :, g] @ quantiser.codebook[g] for g in range(GROUPS)], dim=-1)
    torch.testing.assert_close(got, expected)
    into = torch.randn(3, 4, DIM)
    inputs = (features, *quantiser.parameters())
    pairs = zip(
        torch.autograd.grad((got * into).sum(), inputs),
        torch.autograd.grad((expected * into).sum(), inputs),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_vectors_are_exactly_codebook_entries() -> None:
    quantiser, features, valid, noise = make()
    result = quantiser(features, valid, noise=noise, temperature=0.5)
    for group, part in enumerate(result.vectors.chunk(GROUPS, -1)):
        assert torch.equal(part, quantiser.codebook[group][result.codes[..., group]])


def test_without_noise_the_best_entry_is_taken() -> None:
    quantiser, features, valid, _ = make()
    logits = quantiser.project(features).view(3, 4, GROUPS, ENTRIES)
    result = quantiser(features, valid)
    assert torch.equal(result.codes, logits.argmax(-1))
    assert not torch.equal(quantiser(features, valid, noise=make()[3]).codes, result.codes)


def test_usage_counts_valid_frames_without_noise() -> None:
    quantiser, features, valid, noise = make()
    result = quantiser(features, valid, noise=noise)
    logits = quantiser.project(features).view(3, 4, GROUPS, ENTRIES)[valid]
    torch.testing.assert_close(result.usage, logits.softmax(-1).sum(0))
    best = logits.argmax(-1)
    expected = torch.stack([torch.bincount(best[:, g], minlength=ENTRIES) for g in range(GROUPS)]).float()
    assert torch.equal(result.hard_usage, expected)
    assert result.count == valid.sum()


def test_perplexity_counts_the_entries_in_use() -> None:
    even = torch.full((2, 4), 3.0)
    assert perplexity(even, torch.tensor(12)).item() == pytest.approx(8.0, rel=1e-4)
    one = torch.tensor([[12.0, 0, 0, 0], [6.0, 0, 6.0, 0]])
    assert perplexity(one, torch.tensor(12)).item() == pytest.approx(1.0 + 2.0, rel=1e-4)


def test_diversity_falls_as_entries_are_used_alike_and_reaches_the_projection() -> None:
    quantiser, features, valid, noise = make()
    value = diversity(quantiser(features, valid, noise=noise))
    gradient = torch.autograd.grad(value, quantiser.project.weight)[0]
    assert 0 < value.item() < 1
    with torch.no_grad():
        quantiser.project.weight -= 0.1 * gradient
    assert diversity(quantiser(features, valid, noise=noise)) < value


def test_noise_is_gumbel_and_the_sample_follows_the_softmax() -> None:
    noise = gumbel_noise(KEYS, 20_000, 1, 4, seed=0, epoch=0)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    share = torch.bincount((logits + noise).argmax(-1).flatten(), minlength=4) / 60_000
    torch.testing.assert_close(share, logits.softmax(-1), atol=0.01, rtol=0)


def test_noise_depends_on_utterance_and_frame_only() -> None:
    every = gumbel_noise(KEYS, 9, GROUPS, ENTRIES, seed=1, epoch=2)
    alone = gumbel_noise(KEYS[1:2], 4, GROUPS, ENTRIES, seed=1, epoch=2)
    assert torch.equal(alone[0], every[1, :4])
    assert not torch.equal(every, gumbel_noise(KEYS, 9, GROUPS, ENTRIES, seed=1, epoch=3))


def test_everything_is_float32_under_autocast() -> None:
    quantiser, features, valid, noise = make()
    plain = quantiser(features, valid, noise=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = quantiser(features, valid, noise=noise)
    assert torch.equal(result.vectors, plain.vectors)
    assert torch.equal(result.usage, plain.usage)
