from __future__ import annotations

import base64
import io

import matplotlib.image
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.analysis.media import SAMPLE_RATE, _png, audio_uri, posterior_runs, spectrogram_uri


def body(uri: str) -> io.BytesIO:
    return io.BytesIO(base64.b64decode(uri.partition(",")[2]))


@pytest.mark.parametrize("seconds", [0.01, 0.5, 3.3])
def test_audio_survives_in_place(seconds: float) -> None:
    time = np.arange(round(SAMPLE_RATE * seconds)) / SAMPLE_RATE
    wave = (0.5 * np.sin(2 * np.pi * (300 + 200 * time) * time)).astype(np.float32)
    heard, rate = soundfile.read(body(audio_uri(wave)), dtype="float32")
    assert rate == SAMPLE_RATE
    assert abs(len(heard) - len(wave)) < 0.1 * SAMPLE_RATE
    if seconds > 0.1:
        assert np.corrcoef(wave, heard[: len(wave)])[0, 1] > 0.95


def test_loud_audio_is_not_clipped() -> None:
    wave = np.sign(np.sin(2 * np.pi * 200 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32) * 3
    heard, _ = soundfile.read(body(audio_uri(wave)), dtype="float32")
    assert np.abs(heard).max() < 1.6


@settings(deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99))
def test_png_has_the_colours_it_was_given(rows: int, columns: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    palette = generator.integers(0, 256, (16, 3)).astype(np.uint8)
    indices = generator.integers(0, 16, (rows, columns)).astype(np.uint8)
    seen = matplotlib.image.imread(io.BytesIO(_png(indices, palette)), format="png")
    assert np.array_equal(np.round(seen[..., :3] * 255).astype(np.uint8), palette[indices])


def test_spectrogram_shows_a_tone_where_it_is() -> None:
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    picture = matplotlib.image.imread(body(spectrogram_uri(np.sin(2 * np.pi * 6000 * time).astype(np.float32))), "png")
    assert picture.shape[:2] == (128, 101)
    brightest = picture[..., :3].sum(-1)[:, 20:80].mean(1).argmax()
    assert abs((127.5 - brightest) / 128 * 8000 - 6000) < 100
    assert matplotlib.image.imread(body(spectrogram_uri(np.zeros(10, np.float32))), "png").shape[0] == 128


@settings(deadline=None)
@given(frames=st.integers(1, 30), units=st.integers(1, 6), seed=st.integers(0, 99))
def test_runs_are_the_posteriors(frames: int, units: int, seed: int) -> None:
    logits = 4 * np.random.default_rng(seed).standard_normal((frames, units))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    symbols = [f"u{n}" for n in range(units)]
    found = posterior_runs(probabilities, symbols, blank=0)
    dense = np.zeros((frames, units))
    for place, start, percents in found["runs"]:
        column = dense[start : start + len(percents), symbols.index(found["symbols"][place])]
        assert not column.any()
        column[:] = np.array(percents) / 100
    assert found["frames"] == frames
    assert np.abs(np.where(probabilities >= 0.04, probabilities, 0) - dense).max() <= 0.0051
    assert found["blank"] == (found["symbols"].index("u0") if "u0" in found["symbols"] else -1)
