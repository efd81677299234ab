"""A batch of one is a batch of many, method by method: losses with masks on, gradients, figures and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import CLOCK, STILL, VARIANTS, WAVEFORM, make_batch, make_method, merged

from asrkit.core.method import Method
from asrkit.core.step import Accumulate, Totals
from asrkit.data.batch import Batch
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine

STREAM = {
    "pretrain": "unlabelled",
    "finetune": "labelled",
    "pretrain, best_rq": "unlabelled",
    "finetune, conditioned": "labelled",
}
ENCODERS: dict[str, dict[str, Any]] = {
    "conformer": {"encoder": STILL},
    "wav2vec2": {"encoder": merged(WAVEFORM, STILL)},
    "large": {"encoder": merged(merged(WAVEFORM, STILL), {"pre_norm": True, "waveform": {"norm": "layer"}})},
}
# Of four lengths; the last is the shortest.
SEEDS = (3, 5, 1, 7)
METHODS: dict[str, dict[str, Any]] = {
    "finetune": {"spec_augment": {"bands": 2, "band_width": 4, "stretches": 2, "stretch_share": 0.2}},
    # The diversity term judges a whole batch by definition.
    "pretrain": {"wav2vec2": {"diversity_weight": 0.0, "features_dropout": 0.0}},
    "pretrain, best_rq": {},
    "finetune, conditioned": {},
}


def make(name: str, kind: str) -> Method:
    if name in VARIANTS:
        method, section = VARIANTS[name]
        made = make_method(method, **merged(ENCODERS[kind], {"encoder": {"attention_block": 6}}), **{method: section})
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return made
    # SpecAugment needs the Conformer's spectrogram.
    changes = METHODS[name] if name == "pretrain" or kind == "conformer" else {}
    return make_method(name, **ENCODERS[kind], **{name: changes})


def learn(method: Method, stream: str, batches: Sequence[Batch]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Return figures and gradients of one update."""
    totals = Totals({})
    method.train()
    method.zero_grad(set_to_none=True)
    Accumulate().run(method, {stream: batches}, CLOCK, TrainingEngine(torch.device("cpu"), "fp32", Ranks()), totals)
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return {name: float(above) / float(below) for name, (above, below) in totals.values.items()}, gradients


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients(name: str, kind: str) -> None:
    method = make(name, kind)
    figures, gradients = learn(method, STREAM[name], [make_batch(SEEDS)])
    apart, others = learn(method, STREAM[name], [make_batch([seed]) for seed in SEEDS])
    pairs, again = learn(method, STREAM[name], [make_batch(SEEDS[:1]), make_batch(SEEDS[1:])])
    told = {"loss", "ctc", "contrastive", "feature_penalty", "accuracy", "mask_share", "infeasible"}
    for key in (told | {"cross_entropy", "intermediate_ctc"}) & set(figures):
        assert apart[key] == pytest.approx(figures[key], rel=2e-5), key
        assert pairs[key] == pytest.approx(figures[key], rel=2e-5), key
    assert sorted(gradients) == sorted(others) == sorted(again)
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-3, atol=2e-5 * scale)
        torch.testing.assert_close(again[key], gradient, rtol=1e-3, atol=2e-5 * scale)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("name", METHODS)
def test_validation(name: str, kind: str) -> None:
    method = make(name, kind).eval()

    def figures(batches: Sequence[Batch]) -> dict[str, float]:
        totals = Totals({})
        with torch.inference_mode():
            for batch in batches:
                totals.add(method.validate(batch, CLOCK))
        return {key: float(above) / float(below) for key, (above, below) in totals.values.items()}

    together, apart = figures([make_batch(SEEDS)]), figures([make_batch([seed]) for seed in SEEDS])
    assert method.selection[0] in together
    told = {"loss", "ctc", "wer", "cer", "contrastive", "accuracy", "cross_entropy", "intermediate_ctc"}
    for key in told & set(together):
        assert apart[key] == pytest.approx(together[key], rel=2e-5), key


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("name", ["finetune", "finetune, conditioned"])
def test_text(name: str, kind: str) -> None:
    method = make(name, kind).eval()
    with torch.inference_mode():
        together = method.hypotheses(make_batch(SEEDS))
        apart = [method.hypotheses(make_batch([seed]))[0] for seed in SEEDS]
        backwards = method.hypotheses(make_batch(SEEDS[::-1]))[::-1]
    assert together == apart == backwards
    assert any(together)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_random_depends_on_seed_epoch_and_utterance(name: str) -> None:
    method = make(name, "conformer")

    @torch.no_grad()
    def loss(seed: int, epoch: int) -> float:
        clock = type(CLOCK)(seed, CLOCK.update, CLOCK.phase, CLOCK.phase_update, CLOCK.phase_updates)
        batch, stream = make_batch(SEEDS, epoch), STREAM[name]
        method.train()
        terms = method.losses(stream, batch, method.prepare(stream, batch, clock).draws, clock).terms
        return sum(float(term.sum) for term in terms.values())

    assert loss(1, 0) == loss(1, 0)
    assert len({loss(1, 0), loss(1, 1), loss(2, 0)}) == 3
