"""A row's result does not depend on what it is padded with or batched with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asrkit.nn.config import EncoderConfig
from asrkit.nn.encoder import Encoded, Encoder
from asrkit.nn.logmel import LogMelConfig
from asrkit.nn.masking import MaskConfig, SpanMask, draw_mask
from asrkit.nn.waveform import WaveformConfig
from asrkit.randomness import utterance_keys

CONVOLUTIONS = [[16, 10, 5]] + [[16, 3, 2]] * 4 + [[16, 2, 2]] * 2
BASE = EncoderConfig(
    waveform=WaveformConfig(CONVOLUTIONS),
    layers=2,
    dim=32,
    ffn_dim=48,
    heads=4,
    conv_position_kernel=16,
    conv_position_groups=4,
    conv_kernel=7,
    dropout=0.0,
    attention_dropout=0.0,
    input_dropout=0.0,
)
VARIANTS = {
    "base": BASE,
    "large": replace(BASE, pre_norm=True, waveform=WaveformConfig(CONVOLUTIONS, "layer", bias=True, normalise=True)),
    "odd strides": replace(BASE, waveform=WaveformConfig([[16, 7, 3], [16, 5, 2], [16, 9, 4]])),
    "odd kernel": replace(BASE, conv_position_kernel=15),
    "transformer, rotary": replace(BASE, positions="rotary", pre_norm=True),
    "transformer, relative": replace(BASE, positions="relative"),
    "conformer, rotary": replace(BASE, blocks="conformer", positions="rotary"),
    "conformer, relative": replace(BASE, blocks="conformer", positions="relative", conv_norm="batch"),
    "conformer, blocks": replace(BASE, blocks="conformer", positions="shaw", attention_block=5),
    "conformer, relative in blocks": replace(BASE, blocks="conformer", positions="relative", attention_block=4),
    "transformer, blocks": replace(BASE, attention_block=6),
    "logmel conformer": replace(BASE, frontend="logmel", logmel=LogMelConfig(), blocks="conformer", positions="none"),
}


def make_encoder(name: str) -> Encoder:
    torch.manual_seed(1)
    encoder = Encoder(VARIANTS[name]).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder


def make_waves(lengths: Sequence[int], size: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    waves = torch.zeros(len(lengths), size or max(lengths))
    for row, samples in enumerate(lengths):
        waves[row, :samples] = torch.randn(samples, generator=generator) * 0.1 * (row + 1) + 0.05
    return waves


def run(encoder: Encoder, waves: Tensor, lengths: Sequence[int], mask: SpanMask | None = None) -> Encoded:
    return encoder(waves, torch.tensor(lengths), tuple(lengths), mask=mask)


def draw(encoder: Encoder, lengths: Sequence[int], rows: Sequence[int]) -> SpanMask:
    keys = utterance_keys([f"utterance-{row}" for row in rows])
    config = MaskConfig(time_probability=0.5, time_length=3, channel_probability=0.3, channel_length=4)
    return draw_mask(config, keys, [encoder.frames(samples) for samples in lengths], encoder.dim, seed=1, epoch=0)


def assert_row(batch: Encoded, row: int, alone: Encoded) -> None:
    frames = alone.host_lengths[0]
    assert batch.host_lengths[row] == frames
    for name in ("extracted", "features", "states"):
        together, single = getattr(batch, name)[row, :frames], getattr(alone, name)[0, :frames]
        torch.testing.assert_close(together, single, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_batch_of_one_is_batch_of_many(name: str) -> None:
    encoder, lengths = make_encoder(name), [7000, 4001, 5600, 1500]
    waves = make_waves(lengths)
    batch = run(encoder, waves, lengths, draw(encoder, lengths, range(4)))
    for row, samples in enumerate(lengths):
        alone = run(encoder, waves[row : row + 1, :samples], [samples], draw(encoder, [samples], [row]))
        assert_row(batch, row, alone)


@pytest.mark.parametrize("name", ["base", "large", "odd strides"])
@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(450, 6000), min_size=1, max_size=4), extra=st.integers(0, 700))
@torch.no_grad()
def test_any_lengths_and_any_padding(name: str, lengths: list[int], extra: int) -> None:
    encoder = make_encoder(name)
    waves = make_waves(lengths, max(lengths) + extra)
    batch = run(encoder, waves, lengths)
    assert batch.lengths.tolist() == list(batch.host_lengths) == [encoder.frames(samples) for samples in lengths]
    for row, samples in enumerate(lengths):
        assert_row(batch, row, run(encoder, waves[row : row + 1, :samples], [samples]))


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_do_not_see_padding(name: str) -> None:
    encoder, lengths = make_encoder(name), [4000, 2500]
    waves = make_waves(lengths)

    def gradients(groups: Sequence[Sequence[int]]) -> list[Tensor | None]:
        encoder.zero_grad()
        for rows in groups:
            some = [lengths[row] for row in rows]
            encoded = run(encoder, waves[list(rows), : max(some)], some)
            weight = torch.linspace(-1.0, 1.0, encoder.dim)
            valid = encoded.frame_mask[:, :, None]
            (encoded.states * weight * valid).square().sum().backward()
        return [None if p.grad is None else p.grad.clone() for p in encoder.parameters()]

    for together, apart in zip(gradients([[0, 1]]), gradients([[0], [1]]), strict=True):
        assert (together is None) == (apart is None)
        if together is not None and apart is not None:
            scale = apart.abs().max().clamp(min=1e-3)
            torch.testing.assert_close(together / scale, apart / scale, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_too_short_for_a_frame_are_harmless(name: str) -> None:
    encoder, lengths = make_encoder(name), [4000, 3, 0]
    waves = make_waves(lengths)
    batch = run(encoder, waves, lengths)
    assert batch.host_lengths[1:] == (0, 0)
    assert torch.isfinite(batch.states).all()
    assert not batch.states[1:].any()
    batch.states.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)
    assert_row(batch, 0, run(encoder, waves[:1], [4000]))
    nothing = run(encoder, waves[1:2, :3], [3])
    assert nothing.host_lengths == (0,)
    assert torch.isfinite(nothing.states).all()


@torch.no_grad()
def test_loudness_and_offset_are_taken_out_by_group_normalisation() -> None:
    encoder = make_encoder("base")
    wave = make_waves([5000])
    plain, moved = run(encoder, wave, [5000]), run(encoder, 8.0 * wave + 1.0, [5000])
    # Not exact: the variance has a small constant added to it.
    torch.testing.assert_close(plain.states, moved.states, atol=2e-2, rtol=2e-2)
