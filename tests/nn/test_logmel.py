"""The log-mel frontend: definition, lengths, padding; and SpecAugment's laws."""

from __future__ import annotations

import math

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asrkit.errors import AsrkitError
from asrkit.nn.logmel import LogMelConfig, LogMelFrontend
from asrkit.nn.spec_augment import SpecAugmentConfig, draw_spec_mask
from asrkit.randomness import utterance_keys

VARIANTS = [
    LogMelConfig(bins=20, channels=4),
    LogMelConfig(bins=21, channels=8, convolution="1d", subsampling=8, normalisation="global"),
    LogMelConfig(bins=20, subsampling=1, normalisation="none"),
]


def noise(samples: int) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


def run(frontend: LogMelFrontend, waves: list[Tensor]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    lengths = tuple(len(wave) for wave in waves)
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    features: tuple[Tensor, Tensor, tuple[int, ...]] = frontend(padded, torch.tensor(lengths), lengths)
    return features


def test_energies_equal_torchaudios() -> None:
    """A window of 512 samples, so that the two toolkits' placing of a shorter one in its transform does not differ."""
    config = LogMelConfig(bins=40, window_ms=32, low_hz=0, subsampling=1, normalisation="none")
    wave = noise(8000)
    expected = torchaudio.transforms.MelSpectrogram(16_000, n_fft=512, hop_length=160, n_mels=40, center=False)(wave)
    features, _, _ = run(LogMelFrontend(config), [wave])
    torch.testing.assert_close(features[0].T, (expected + 1e-6).log(), atol=1e-4, rtol=1e-4)


def test_a_pure_tone_lies_in_its_bin() -> None:
    frontend = LogMelFrontend(LogMelConfig(bins=40, subsampling=1, normalisation="none"))
    seconds = torch.arange(8000) / 16_000
    heights = []
    for hertz in (200.0, 1000.0, 4000.0):
        features, _, _ = run(frontend, [torch.sin(2 * math.pi * hertz * seconds)])
        best = set(features[0].argmax(-1).tolist())
        mel = 2595 * math.log10(1 + hertz / 700)
        low, high = (2595 * math.log10(1 + edge / 700) for edge in (20.0, 8000.0))
        expected = (mel - low) / (high - low) * 41 - 1
        assert all(abs(place - expected) <= 1 for place in best)
        heights.append(min(best))
    assert heights == sorted(heights)


@pytest.mark.parametrize("config", VARIANTS)
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 6000), min_size=1, max_size=4))
def test_padding_changes_nothing(config: LogMelConfig, lengths: list[int]) -> None:
    torch.manual_seed(0)
    frontend = LogMelFrontend(config)
    waves = [noise(length) for length in lengths]
    features, frames, host_frames = run(frontend, waves)
    assert features.shape == (len(lengths), max(1, *host_frames), frontend.feature_dim)
    assert tuple(frames.tolist()) == host_frames == tuple(frontend.frames(length) for length in lengths)
    for row, wave in enumerate(waves):
        alone, _, _ = run(frontend, [wave])
        count = host_frames[row]
        torch.testing.assert_close(features[row, :count], alone[0, :count], atol=2e-5, rtol=1e-4)
        assert not features[row, count:].any()


def test_frame_counts() -> None:
    frontend = LogMelFrontend(LogMelConfig())
    assert [frontend.frames(samples) for samples in (0, 399, 400, 559, 560, 16_000)] == [0, 0, 1, 1, 1, 25]


def test_utterance_normalisation_takes_away_gain_and_gives_unit_variance() -> None:
    frontend = LogMelFrontend(LogMelConfig(bins=20, subsampling=1))
    wave = noise(16_000)
    features, _, _ = run(frontend, [wave, noise(20_000)])
    torch.testing.assert_close(features[1].mean(0), torch.zeros(20), atol=1e-4, rtol=0)
    torch.testing.assert_close(features[1].var(0, correction=0), torch.ones(20), atol=1e-3, rtol=0)
    louder, _, _ = run(frontend, [4 * wave])
    torch.testing.assert_close(louder[0], features[0, : louder.shape[1]], atol=0.02, rtol=0)


def test_digital_silence_is_finite_with_finite_gradients() -> None:
    frontend = LogMelFrontend(LogMelConfig(bins=20, channels=4))
    features, _, _ = run(frontend, [torch.zeros(4000), noise(5000)])
    features.square().sum().backward()
    assert features.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in frontend.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        {"bins": 0},
        {"subsampling": 3},
        {"subsampling": 0},
        {"convolution": "3d"},
        {"normalisation": "speaker"},
        {"high_hz": 9000.0},
        {"low_hz": 8000.0},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(AsrkitError, match=f"logmel.*{next(iter(wrong))}"):
        LogMelConfig(**wrong)  # type: ignore[arg-type]


def keys(count: int) -> Tensor:
    return utterance_keys([f"utterance-{number}" for number in range(count)])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), st.integers(0, 2**40))
def test_spec_masks_keep_their_limits_and_depend_on_the_utterance_only(frames: list[int], seed: int) -> None:
    config = SpecAugmentConfig(bands=2, band_width=5, stretches=3, stretch_frames=12, stretch_share=0.2)
    every = keys(len(frames))
    mask = draw_spec_mask(config, every, torch.tensor(frames), max(frames), 30, seed=seed, epoch=0)
    for row, count in enumerate(frames):
        assert mask.bins[row].sum() <= 2 * 5
        assert mask.frames[row].sum() <= 3 * min(12, int(count * 0.2 + 1e-4))
        assert not mask.frames[row, count:].any()
        alone = draw_spec_mask(config, every[row : row + 1], torch.tensor([count]), count, 30, seed=seed, epoch=0)
        assert torch.equal(alone.frames[0], mask.frames[row, :count])
        assert torch.equal(alone.bins[0], mask.bins[row])


def test_spec_mask_blanks_what_it_says_before_the_convolutions() -> None:
    frontend = LogMelFrontend(LogMelConfig(bins=20, subsampling=1))
    wave = noise(16_000)
    config = SpecAugmentConfig(bands=2, band_width=8, stretches=2, stretch_share=0.3)
    count = frontend.mel.frames(16_000)
    mask = draw_spec_mask(config, keys(1), torch.tensor([count]), count, 20, seed=0, epoch=0)
    clean, _, _ = run(frontend, [wave])
    blanked, _, _ = frontend(wave[None], torch.tensor([16_000]), (16_000,), mask)
    hidden = mask.frames[0][:, None] | mask.bins[0]
    assert 0 < hidden.sum() < hidden.numel()
    assert torch.equal(blanked[0], clean[0].masked_fill(hidden, 0.0))


def test_spec_augment_is_off_by_default() -> None:
    mask = draw_spec_mask(SpecAugmentConfig(), keys(2), torch.tensor([9, 9]), 9, 20, seed=0, epoch=0)
    assert not SpecAugmentConfig().active
    assert not mask.frames.any()
    assert not mask.bins.any()
