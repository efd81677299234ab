"""A batch of one equals a batch of many: losses and gradients through encoder and head, masks on, dropout off."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from asrkit.core.clock import Clock
from asrkit.core.term import Losses
from asrkit.data.batch import Batch
from asrkit.heads.best_rq import BestRQHead, BestRQHeadConfig
from asrkit.heads.ctc import CTCHead, CTCHeadConfig
from asrkit.heads.wav2vec2 import Wav2Vec2Head, Wav2Vec2HeadConfig
from asrkit.nn.config import EncoderConfig
from asrkit.nn.encoder import Encoder
from asrkit.nn.logmel import LogMelConfig
from asrkit.nn.masking import MaskConfig, draw_mask
from asrkit.nn.waveform import WaveformConfig
from asrkit.randomness import utterance_keys
from asrkit.text.units import Units

SAMPLES = (16_000, 9_000, 12_345)
UNITS = Units(("<blank>", "a", "b", "|"))
CLOCK = Clock(seed=1, update=7, phase="all", phase_update=7, phase_updates=9)
MASK = MaskConfig(time_length=3, channel_probability=0.5, channel_length=4)
ENCODER = EncoderConfig(
    waveform=WaveformConfig(layers=[[16, 10, 5], [16, 4, 4], [16, 5, 4], [16, 4, 4]]),
    logmel=LogMelConfig(bins=20, channels=4),
    layers=2,
    dim=16,
    ffn_dim=24,
    heads=2,
    conv_position_kernel=8,
    conv_position_groups=4,
    conv_kernel=5,
    dropout=0.0,
    attention_dropout=0.0,
    input_dropout=0.0,
)
KINDS = {
    "base": ENCODER,
    "large": replace(ENCODER, waveform=replace(ENCODER.waveform, norm="layer"), pre_norm=True),
    "conformer": replace(ENCODER, frontend="logmel", blocks="conformer", positions="relative"),
    "blocks": replace(ENCODER, frontend="logmel", blocks="conformer", positions="shaw", attention_block=7),
}


def batch(rows: slice = slice(None)) -> Batch:
    samples = SAMPLES[rows]
    waves = torch.zeros(len(samples), max(samples))
    for row, length in enumerate(samples):
        waves[row, :length] = 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(length))
    ids = tuple(f"utterance-{length}" for length in samples)
    targets = torch.tensor([[1, 1, 2], [2, 3, 0], [1, 3, 2]])[rows]
    lengths = (3, 2, 3)[rows]
    return Batch(
        waves, torch.tensor(samples), samples, utterance_keys(ids), ids, 2, targets, torch.tensor(lengths), lengths
    )


def wav2vec2_sum(encoder: Encoder, head: nn.Module, rows: slice) -> Tensor:
    assert isinstance(head, Wav2Vec2Head)
    part = batch(rows)
    draws = head.draw(part, [encoder.frames(count) for count in part.host_lengths], CLOCK)
    encoded = encoder(part.waves, part.wave_lengths, part.host_lengths, mask=draws.mask)
    terms = head.loss(encoded, part, draws, CLOCK).terms
    assert draws.masked.min() > 3
    return terms["contrastive"].sum + terms["feature_penalty"].sum


def best_rq_sum(encoder: Encoder, head: nn.Module, rows: slice) -> Tensor:
    assert isinstance(head, BestRQHead)
    part = batch(rows)
    draws = head.draw(part, [encoder.frames(count) for count in part.host_lengths], CLOCK)
    encoded = encoder(part.waves, part.wave_lengths, part.host_lengths, mask=draws.mask)
    return head.loss(encoded, part, draws, CLOCK).terms["cross_entropy"].sum


def ctc_sum(encoder: Encoder, head: nn.Module, rows: slice) -> Tensor:
    assert isinstance(head, CTCHead)
    part = batch(rows)
    frames = [encoder.frames(count) for count in part.host_lengths]
    mask = draw_mask(MASK, part.keys, frames, encoder.dim, seed=CLOCK.seed, epoch=part.epoch)
    run = partial(encoder, part.waves, part.wave_lengths, part.host_lengths, mask=mask)
    losses: Losses = head.loss(head.condition(encoder, run), part, head.draw(part, frames, CLOCK), CLOCK)
    return sum((term.weight * term.sum for term in losses.terms.values()), torch.zeros(()))


def conditioned_ctc_sum(encoder: Encoder, head: nn.Module, rows: slice) -> Tensor:
    return ctc_sum(encoder, head, rows)


def make_head(objective: object, encoder: Encoder) -> nn.Module:
    if objective is wav2vec2_sum:
        settings = Wav2Vec2HeadConfig(mask=MASK, final_dim=8, entries=6, negatives=10, features_dropout=0.0)
        return Wav2Vec2Head(settings, encoder.dim, encoder.feature_dim)
    if objective is best_rq_sum:
        return BestRQHead(BestRQHeadConfig(mask=MASK, codebooks=2, entries=30, code_dim=6, bins=20), encoder)
    head = CTCHead(CTCHeadConfig(intermediate=[1] if objective is conditioned_ctc_sum else []), encoder.dim, UNITS)
    if head.feed_back is not None:
        nn.init.normal_(head.feed_back.weight)
    return head


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("objective", [wav2vec2_sum, best_rq_sum, ctc_sum, conditioned_ctc_sum])
def test_losses_and_gradients_add_up_over_batches_of_one(kind: str, objective: object) -> None:
    assert callable(objective)
    torch.manual_seed(0)
    encoder = Encoder(KINDS[kind])
    head = make_head(objective, encoder)
    parameters = [*encoder.parameters(), *head.parameters()]
    whole = objective(encoder, head, slice(None))
    parts = sum(objective(encoder, head, slice(n, n + 1)) for n in range(len(SAMPLES)))
    torch.testing.assert_close(parts, whole, atol=1e-3, rtol=1e-5)
    pairs = zip(
        torch.autograd.grad(whole, parameters, allow_unused=True),
        torch.autograd.grad(parts, parameters, allow_unused=True),
        strict=True,
    )
    for together, apart in pairs:
        if together is None or apart is None:
            assert together is apart
            continue
        torch.testing.assert_close(apart, together, atol=2e-3 * float(together.abs().max()) + 1e-5, rtol=0)


@pytest.mark.parametrize("kind", list(KINDS))
def test_hypotheses_do_not_depend_on_the_batch(kind: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(KINDS[kind]).eval()
    head = CTCHead(CTCHeadConfig(), encoder.dim, UNITS).eval()

    def hypotheses(rows: slice) -> list[list[int]]:
        part = batch(rows)
        return head.hypotheses(encoder(part.waves, part.wave_lengths, part.host_lengths))

    assert hypotheses(slice(None)) == [hypotheses(slice(n, n + 1))[0] for n in range(len(SAMPLES))]
