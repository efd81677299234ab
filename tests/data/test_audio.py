"""Audio files of any kind become mono samples at the wanted rate, or a one-line error."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lhotse import MonoCut, MultiCut, Recording
from lhotse.audio.backend import get_current_audio_backend

from asrkit.data.audio import load_file, read, resample
from asrkit.errors import AsrkitError

RATE = 16000


def speechlike(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.2 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.sin(2 * np.pi * 1000 * time)
    return np.stack([wave * (channel + 1) for channel in range(channels)], axis=1).astype(np.float32)


def cut_of(path, channel: int = 0, **settings) -> MonoCut:
    recording = Recording.from_file(path)
    values = {"start": 0.0, "duration": recording.duration, **settings}
    return MonoCut(id="cut", channel=channel, supervisions=[], recording=recording, **values)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats_give_the_same_audio(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    wave = speechlike(0.5)
    soundfile.write(path, wave, RATE)
    loaded = load_file(path, RATE)
    assert loaded.dtype == np.float32
    assert loaded.shape == (8000,)
    middle = slice(1000, 7000)
    assert np.corrcoef(loaded[middle], wave[middle, 0])[0, 1] > 0.99


def test_a_cut_reads_its_stretch_and_its_channel(tmp_path):
    path = tmp_path / "a.wav"
    wave = speechlike(1.0, channels=2)
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    stretch = read(cut_of(path, channel=1, start=0.25, duration=0.5), RATE)
    assert np.array_equal(stretch, wave[4000:12000, 1])
    assert np.allclose(load_file(path, RATE), wave.mean(axis=1))
    assert np.array_equal(load_file(path, RATE, start=100, frames=50), wave[100:150].mean(axis=1))


def test_a_cut_of_several_channels_is_their_mean(tmp_path):
    path = tmp_path / "a.flac"
    wave = speechlike(0.5, channels=3)
    soundfile.write(path, wave, RATE)
    recording = Recording.from_file(path)
    cut = MultiCut("cut", 0.1, 0.2, [0, 2], [], recording=recording)
    assert np.allclose(read(cut, RATE), wave[1600:4800, [0, 2]].mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_other_rates_are_resampled(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, speechlike(0.5, rate), rate, subtype="FLOAT")
    wanted = speechlike(0.5)[:, 0]
    for loaded in (load_file(path, RATE), read(cut_of(path), RATE)):
        assert abs(len(loaded) - 8000) <= 1
        assert np.abs(loaded[500:7500] - wanted[500:7500]).max() < 0.01


def test_the_same_rate_is_left_alone():
    wave = speechlike(0.1)[:, 0]
    assert resample(wave, RATE, RATE) is wave


def test_reading_keeps_the_users_choice_of_backend(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, speechlike(0.2), RATE)
    before = get_current_audio_backend()
    cut = cut_of(path)
    read(cut, RATE)
    path.unlink()
    with pytest.raises(AsrkitError):
        read(cut, RATE)
    assert get_current_audio_backend() is before


def test_what_cannot_be_read_is_a_one_line_error(tmp_path):
    good, empty, broken = tmp_path / "good.wav", tmp_path / "empty.wav", tmp_path / "broken.wav"
    soundfile.write(good, speechlike(0.5), RATE)
    soundfile.write(empty, np.zeros(0), RATE)
    soundfile.write(broken, np.array([0.1, np.nan, 0.1]), RATE, subtype="FLOAT")
    for path, reason in [(empty, "empty"), (broken, "not finite"), (tmp_path / "absent.wav", "cannot read")]:
        with pytest.raises(AsrkitError, match=reason) as caught:
            load_file(path, RATE)
        assert "\n" not in str(caught.value)
    cut = cut_of(good)
    data = good.read_bytes()
    for damage in (data[: len(data) // 2], b"", b"no audio at all"):
        good.write_bytes(damage)
        with pytest.raises(AsrkitError, match=r"^cut: ") as caught:
            read(cut, RATE)
        assert "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read_any_more_is_told_so(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, speechlike(0.5), RATE)
    cut = cut_of(path)
    # The superuser may read everything: what the system would say is said for it.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(AsrkitError, match="cut: cannot read audio: unreadable file: Permission denied"):
        read(cut, RATE)


def test_another_file_of_the_name_is_not_taken_for_the_one_that_was_prepared(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, speechlike(0.5), RATE)
    cut = cut_of(path)
    for wave, rate in ((speechlike(0.5, 48_000), 48_000), (speechlike(0.5, channels=2), RATE), (speechlike(0.8), RATE)):
        soundfile.write(path, wave, rate)
        with pytest.raises(AsrkitError, match=r"cut: cannot read audio: the file has .* when it was prepared"):
            read(cut, RATE)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([b"", b"RIFF\x24\x00\x00\x00WAVEfmt ", b"fLaC", b"OggS", b"ID3"]), st.binary(max_size=200))
def test_any_bytes_give_samples_or_an_error(tmp_path, magic, rest):
    path = tmp_path / "fuzz.wav"
    path.write_bytes(magic + rest)
    try:
        wave = load_file(path, RATE)
    except AsrkitError:
        return
    assert wave.dtype == np.float32
    assert np.isfinite(wave).all()
