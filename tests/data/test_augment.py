"""Augmentation is a pure function of (seed, epoch, utterance key), and does what it says."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.data.augment import (
    NoiseConfig,
    NoiseMixer,
    crop_positions,
    loaded_seconds,
    perturb_speed,
    speed_factors,
)
from asrkit.errors import AsrkitError
from asrkit.randomness import utterance_keys

RATE = 16000
KEYS = utterance_keys([f"utterance-{number}" for number in range(600)])


def tone(frequency: float, samples: int = RATE, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(samples) / rate)).astype(np.float32)


def power(wave: np.ndarray) -> float:
    return float(np.mean(np.square(wave, dtype=np.float64)))


@pytest.fixture
def noise_dir(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "long.wav", random.normal(size=3 * RATE) * 0.05, RATE)
    soundfile.write(tmp_path / "deep" / "short.flac", random.normal(size=(1000, 2)) * 0.05, 8000)
    (tmp_path / "notes.txt").write_text("no audio")
    return tmp_path


@settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 1000), st.permutations(range(20)))
def test_draws_do_not_depend_on_the_batch(seed, epoch, order):
    keys = KEYS[:20]
    factors = speed_factors(keys, [0.9, 1.0, 1.1], seed, epoch)
    positions = crop_positions(keys, seed, epoch)
    assert (speed_factors(keys[order], [0.9, 1.0, 1.1], seed, epoch) == factors[order]).all()
    assert (crop_positions(keys[order][:1], seed, epoch) == positions[order][:1]).all()
    assert ((positions > 0) & (positions < 1)).all()


def test_draws_vary_with_epoch_and_seed_and_are_spread_evenly():
    for draw in (crop_positions, lambda keys, seed, epoch: speed_factors(keys, [1.0, 1.1], seed, epoch)):
        assert (draw(KEYS, 1, 0) != draw(KEYS, 1, 1)).any()
        assert (draw(KEYS, 1, 0) != draw(KEYS, 2, 0)).any()
    values, counts = np.unique(speed_factors(KEYS, [0.9, 1.0, 1.1], 1, 0), return_counts=True)
    assert list(values) == [0.9, 1.0, 1.1]
    assert counts.min() > 150
    assert np.histogram(crop_positions(KEYS, 1, 0), bins=4, range=(0, 1))[0].min() > 110


def test_without_factors_speed_is_one():
    assert (speed_factors(KEYS, [], 1, 0) == 1).all()


def test_loaded_seconds_are_those_of_the_sped_up_crop():
    durations = np.array([1.0, 5.0, 10.0], dtype=np.float32)
    assert loaded_seconds(durations, np.array([2.0, 1.0, 0.5]), 6.0).tolist() == [0.5, 5.0, 6.0]
    assert loaded_seconds(durations, 1.0, 0.0).tolist() == [1.0, 5.0, 10.0]


@pytest.mark.parametrize("factor", [0.9, 1.1, 0.97])
def test_speed_moves_length_and_pitch_together(factor):
    fast = perturb_speed(tone(1000.0), factor, RATE)
    assert abs(len(fast) - RATE / factor) <= 1
    spectrum = np.abs(np.fft.rfft(fast * np.hanning(len(fast))))
    assert abs(spectrum.argmax() * RATE / len(fast) - 1000.0 * factor) < 2.0


def test_noise_comes_at_the_asked_ratio_and_is_repeatable(noise_dir):
    mixer = NoiseMixer(NoiseConfig(str(noise_dir), 1.0, 5.0, 15.0), RATE)
    assert [path.name for path in mixer.files] == ["short.flac", "long.wav"]
    clean, ratios = tone(300.0, 20000), []
    for key in KEYS[:40].tolist():
        noisy = mixer.mix(clean, key, seed=1, epoch=0)
        assert noisy.dtype == np.float32
        assert (noisy == mixer.mix(clean, key, seed=1, epoch=0)).all()
        ratios.append(10 * np.log10(power(clean) / power(noisy.astype(np.float64) - clean)))
    assert 4.99 < min(ratios) < 7 < 13 < max(ratios) < 15.01
    again = NoiseMixer(NoiseConfig(str(noise_dir), 1.0, 5.0, 15.0), RATE)
    key = int(KEYS[0])
    assert (again.mix(clean, key, 1, 0) == mixer.mix(clean, key, 1, 0)).all()
    assert (mixer.mix(clean, key, 1, 1) != mixer.mix(clean, key, 1, 0)).any()


def test_noise_hits_its_share_of_the_utterances(noise_dir):
    mixer = NoiseMixer(NoiseConfig(str(noise_dir), 0.25), RATE)
    clean = tone(300.0, 400)
    noisy = sum(mixer.mix(clean, key, 1, 0) is not clean for key in KEYS.tolist())
    assert 0.18 * len(KEYS) < noisy < 0.32 * len(KEYS)


def test_noise_leaves_silence_alone_and_stays_in_range(noise_dir):
    mixer = NoiseMixer(NoiseConfig(str(noise_dir), 1.0, -20.0, -20.0), RATE)
    silence = np.zeros(500, np.float32)
    assert (mixer.mix(silence, 1, 1, 0) == 0).all()
    assert np.abs(mixer.mix(3 * tone(300.0), 1, 1, 0)).max() <= 1.0


def test_bad_noise_is_a_one_line_error(tmp_path):
    with pytest.raises(AsrkitError, match="no noise recordings"):
        NoiseMixer(NoiseConfig(str(tmp_path), 1.0), RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    mixer = NoiseMixer(NoiseConfig(str(tmp_path), 1.0), RATE)
    with pytest.raises(AsrkitError, match=r"broken\.wav"):
        mixer.mix(tone(300.0), 1, 1, 0)


@pytest.mark.parametrize(
    "values",
    [{"probability": 1.5}, {"probability": -0.1}, {"min_snr": 30.0}, {"probability": 0.5}],
)
def test_impossible_noise_settings_are_refused(values):
    with pytest.raises(AsrkitError, match=r"noise\."):
        NoiseConfig(**values)


def test_draws_leave_torchs_generator_alone():
    before = torch.get_rng_state()
    crop_positions(KEYS, 1, 0)
    speed_factors(KEYS, [0.9, 1.1], 1, 0)
    assert torch.equal(before, torch.get_rng_state())
