"""The wav2vec 2.0 head: its terms by their definition, and what a batch may not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from asrkit.core.clock import Clock
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.heads.wav2vec2 import Wav2Vec2Draws, Wav2Vec2Head, Wav2Vec2HeadConfig
from asrkit.nn.encoder import Encoded
from asrkit.nn.masking import MaskConfig
from asrkit.randomness import utterance_keys

FRAMES = (40, 25, 33, 3)
DIM, FEATURES = 12, 10
IDS = ("a", "b", "c", "d")


def clock(update: int = 0) -> Clock:
    return Clock(seed=3, update=update, phase="all", phase_update=update, phase_updates=1000)


def head(**settings: object) -> Wav2Vec2Head:
    torch.manual_seed(0)
    defaults: dict[str, object] = {"final_dim": 8, "entries": 6, "negatives": 10, "features_dropout": 0.0}
    return Wav2Vec2Head(Wav2Vec2HeadConfig(**(defaults | settings)), DIM, FEATURES)  # type: ignore[arg-type]


def batch(rows: slice = slice(None)) -> Batch:
    samples = tuple(320 * count for count in FRAMES[rows])
    waves = torch.zeros(len(samples), max(samples))
    return Batch(waves, torch.tensor(samples), samples, utterance_keys(IDS[rows]), IDS[rows], 5)


def encoded(rows: slice = slice(None)) -> Encoded:
    generator = torch.Generator().manual_seed(0)
    lengths = FRAMES[rows]
    longest = max(lengths)
    features, extracted = torch.randn(2, 4, max(FRAMES), FEATURES, generator=generator)[:, rows, :longest]
    states = torch.randn(4, max(FRAMES), DIM, generator=generator)[rows, :longest]
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return Encoded(features, extracted, states, torch.tensor(lengths), lengths, mask)


def draw(module: Wav2Vec2Head, rows: slice = slice(None)) -> Wav2Vec2Draws:
    return module.draw(batch(rows), FRAMES[rows], clock())


def term_sums(module: Wav2Vec2Head, rows: slice = slice(None)) -> dict[str, Tensor]:
    losses = module.loss(encoded(rows), batch(rows), draw(module, rows), clock())
    return {name: term.sum for name, term in losses.terms.items()}


def utterance_by_utterance(module: Wav2Vec2Head) -> dict[str, Tensor]:
    """The terms by their definition, on the masked frames picked out by index."""
    draws, enc = draw(module), encoded()
    assert draws.mask.time is not None
    assert module.quantiser is not None
    contrastive = torch.zeros(())
    penalty = torch.zeros(())
    probabilities = []
    for row, mask in enumerate(draws.mask.time):
        count = int(mask.sum())
        penalty = penalty + enc.extracted[row, : FRAMES[row]].square().mean() * count
        features = enc.features[row][mask]
        logits = module.quantiser.project(features).view(count, 2, 6)
        probabilities.append(logits.softmax(-1))
        noise = draws.noise[row, :count] if draws.noise is not None else 0.0
        codes = (logits + noise).argmax(-1)
        vectors = torch.cat([module.quantiser.codebook[g][codes[:, g]] for g in range(2)], -1)
        targets, predictions = module.project_targets(vectors), module.project_states(enc.states[row][mask])
        for m in range(count):
            places = [m] + [p for p in draws.negatives[row, m].tolist() if not torch.equal(codes[p], codes[m])]
            similarity = functional.cosine_similarity(predictions[m : m + 1], targets[places]) / 0.1
            contrastive = contrastive - similarity.log_softmax(0)[0]
    mean = torch.cat(probabilities).mean(0)
    used = torch.exp(-(mean * (mean + 1e-7).log()).sum(-1)).sum()
    masked = draws.masked.sum()
    return {"contrastive": contrastive, "diversity": (12 - used) / 12 * masked, "feature_penalty": penalty}


@pytest.mark.parametrize("training", [True, False])
def test_terms_equal_their_definition(training: bool) -> None:
    module = head().train(training)
    got, expected = term_sums(module), utterance_by_utterance(module)
    assert list(got) == list(module.terms)
    for name in module.terms:
        torch.testing.assert_close(got[name], expected[name], atol=1e-4, rtol=1e-4)


def test_all_but_diversity_add_up_over_batches_of_one() -> None:
    module = head()
    whole, parts = term_sums(module), [term_sums(module, slice(n, n + 1)) for n in range(4)]
    for name in ("contrastive", "feature_penalty"):
        torch.testing.assert_close(sum(part[name] for part in parts), whole[name], atol=1e-4, rtol=1e-4)
    counts = module.counts(batch(), draw(module))
    alone = [module.counts(batch(slice(n, n + 1)), draw(module, slice(n, n + 1))) for n in range(4)]
    for name in module.terms:
        assert counts[name] == sum(count[name] for count in alone) == draw(module).masked.sum()


def test_weights_and_temperature_are_the_released_recipes() -> None:
    module = head()
    losses = module.loss(encoded(), batch(), draw(module), clock())
    assert {name: term.weight for name, term in losses.terms.items()} == {
        "contrastive": 1.0,
        "diversity": 0.1,
        "feature_penalty": 10.0,
    }
    assert module.gumbel_temperature(clock(0)) == 2.0
    assert module.gumbel_temperature(clock(100_000)) == pytest.approx(2.0 * 0.999995**100_000)
    assert module.gumbel_temperature(clock(400_000)) == 0.5


def test_metrics() -> None:
    module = head()
    draws = draw(module)
    metrics = module.loss(encoded(), batch(), draws, clock()).metrics
    values = {name: float(ratio.numerator) / float(ratio.denominator) for name, ratio in metrics.items()}
    assert values["mask_share"] == pytest.approx(int(draws.masked.sum()) / sum(FRAMES))
    assert 2 <= values["code_perplexity"] <= 12
    assert 2 <= values["prob_perplexity"] <= 12
    assert 0 <= values["accuracy"] <= 1
    assert values["gumbel_temperature"] == 2.0
    assert not any(isinstance(r.numerator, Tensor) and r.numerator.requires_grad for r in metrics.values())


def test_a_collapsed_codebook_shows_in_perplexity_and_accuracy() -> None:
    module = head().eval()
    assert module.quantiser is not None
    with torch.no_grad():
        module.quantiser.project.weight.zero_()
        module.quantiser.project.bias.copy_(torch.tensor([20.0, 0, 0, 0, 0, 0] * 2))
    losses = module.loss(encoded(), batch(), draw(module), clock())
    total = losses.metrics["code_perplexity"].denominator
    assert losses.metrics["code_perplexity"].numerator / total == pytest.approx(2.0, rel=1e-3)
    assert losses.metrics["accuracy"].numerator == 0
    assert losses.terms["contrastive"].sum == 0


def test_an_utterance_without_masked_frames_gives_no_loss_and_finite_gradients() -> None:
    module = head()
    short = slice(3, 4)
    sums = term_sums(module, short)
    total = sum(sums.values())
    assert isinstance(total, Tensor)
    total.backward()
    assert all(value == 0 for value in sums.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_continuous_targets_have_no_diversity_term() -> None:
    module = head(quantise_targets=False)
    assert module.terms == ("contrastive", "feature_penalty")
    assert draw(module).noise is None
    sums = term_sums(module)
    assert set(sums) == set(module.terms)
    assert sums["contrastive"].isfinite()


def test_gradients_reach_states_features_and_frontend() -> None:
    module, enc = head(), encoded()
    for tensor in (enc.states, enc.features, enc.extracted):
        tensor.requires_grad_()
    terms = module.loss(enc, batch(), draw(module), clock()).terms
    torch.stack([term.sum for term in terms.values()]).sum().backward()
    mask = draw(module).mask.time
    assert mask is not None
    assert enc.states.grad is not None
    assert enc.features.grad is not None
    assert enc.extracted.grad is not None
    assert torch.equal(enc.states.grad.abs().sum(-1) > 0, mask)
    assert torch.equal(enc.features.grad.abs().sum(-1) > 0, mask)
    has_masks = draw(module).masked[:, None] > 0
    assert torch.equal(enc.extracted.grad.abs().sum(-1) > 0, enc.frame_mask & has_masks)


def test_learning_tells_frames_apart() -> None:
    module, enc = head(quantise_targets=False, mask=MaskConfig(time_length=3)), encoded()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)

    def accuracy() -> float:
        losses = module.loss(enc, batch(), draw(module), clock())
        optimiser.zero_grad()
        losses.terms["contrastive"].sum.backward()
        optimiser.step()
        ratio = losses.metrics["accuracy"]
        return float(ratio.numerator) / float(ratio.denominator)

    first = accuracy()
    last = [accuracy() for _ in range(100)][-1]
    assert first < 0.4 < 0.6 < last


@pytest.mark.parametrize(
    "wrong",
    [
        {"groups": 3},
        {"entries": 0},
        {"temperature": 0.0},
        {"gumbel_decay": 1.5},
        {"diversity_weight": -1.0},
        {"features_dropout": 1.0},
        {"mask": MaskConfig(time_probability=0.0)},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(AsrkitError, match=f"wav2vec2.{next(iter(wrong))}"):
        head(**wrong)
