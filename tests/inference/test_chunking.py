"""Windows stitched together are the whole, however a recording comes and wherever it is divided."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from bounded import RATE, bounded_recogniser, noise, with_pauses
from hypothesis import given
from hypothesis import strategies as st

from asrkit.data.collate import Example, collate
from asrkit.errors import AsrkitError
from asrkit.inference.chunking import Chunking, Window, frame_energy, trim_silence

STEP = 640


def scores(recogniser: Any, wave: np.ndarray) -> np.ndarray:
    return recogniser.log_probs(collate([Example("x", wave)], epoch=0))[0]


def cut(wave: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(wave, np.cumsum(sizes, dtype=int).clip(max=len(wave)))


@pytest.mark.parametrize("kind", ["logmel", "waveform"])
@pytest.mark.parametrize(("chunk", "context"), [(2.0, 0.5), (3.0, None), (1.3, 0.3)])
def test_stitched_frames_equal_the_whole(kind: str, chunk: float, context: float | None) -> None:
    recogniser = bounded_recogniser(kind)
    wave = noise(11.37)
    windows = list(Chunking.of(recogniser.frame_samples, RATE, chunk, context).windows([wave]))
    assert len(windows) > 3
    assert not any(window.pause for window in windows)
    whole = scores(recogniser, wave)
    stitched = [window.keep(scores(recogniser, window.wave)) for window in windows]
    assert [window.place for window in windows] == np.cumsum([0, *map(len, stitched)])[:-1].tolist()
    np.testing.assert_allclose(np.concatenate(stitched), whole, atol=1e-4)


@pytest.mark.parametrize("kind", ["logmel", "waveform"])
@pytest.mark.parametrize("pause", [0.12, 0.2, 0.4, 7.0])
def test_with_pauses_what_sounds_equals_the_whole_and_only_silence_is_left_out(kind: str, pause: float) -> None:
    recogniser = bounded_recogniser(kind)
    wave = with_pauses([1.4, 2.6, 0.9, 1.7, 2.8, 0.3, 1.9], pause)
    step = recogniser.frame_samples
    windows = list(Chunking.of(step, RATE, 2.5, 0.4).windows(cut(wave, [5000] * 40)))
    whole = scores(recogniser, wave)
    kept = np.zeros(len(whole), dtype=int)
    for window in windows:
        found = window.keep(scores(recogniser, window.wave))
        place = slice(window.place, window.place + len(found))
        kept[place] += 1
        # Frames in silence lack what is left out beside them.
        covered = wave[place.start * step : place.stop * step]
        sounding = frame_energy(covered[: len(covered) // step * step], step) > 0
        np.testing.assert_allclose(found[: len(sounding)][sounding], whole[place][: len(sounding)][sounding], atol=1e-4)
    assert kept.max() == 1
    left_out = np.flatnonzero(kept == 0)
    for frame in left_out:
        assert np.abs(wave[frame * step : (frame + 1) * step]).max(initial=0) == 0
    if pause == 7.0:
        assert len(left_out) * step / RATE > 6 * (pause - 1)
        assert sum(len(window.wave) for window in windows) < 0.5 * len(wave)


@given(
    seconds=st.lists(st.floats(0.05, 3.0), min_size=1, max_size=5),
    pause=st.sampled_from([0.0, 0.1, 0.5, 3.0]),
    sizes=st.lists(st.integers(1, 60_000), max_size=6),
    chunk=st.sampled_from([0.7, 1.0, 2.2]),
)
def test_laws_of_windows(seconds: list[float], pause: float, sizes: list[int], chunk: float) -> None:
    wave = with_pauses(seconds, pause)
    chunking = Chunking.of(STEP, RATE, chunk, None)
    windows = list(chunking.windows([wave]))
    assert summary(chunking.windows(cut(wave, sizes))) == summary(windows), "the blocks do not matter"
    for window in windows:
        assert 0 < len(window.wave) <= chunking.chunk * STEP
        begin = (window.place - window.first) * STEP
        assert np.array_equal(window.wave, wave[begin : begin + len(window.wave)])
    places = [window.place for window in windows]
    assert places == sorted(places)
    if len(wave) <= chunking.chunk * STEP:
        assert len(windows) == 1
        assert np.array_equal(windows[0].keep(np.arange(99)), np.arange(99))


def summary(windows: Iterable[Window]) -> list[tuple[Any, ...]]:
    return [(len(w.wave), w.first, w.end, w.place, w.pause) for w in windows]


def test_nothing_comes_of_nothing() -> None:
    assert list(Chunking.of(STEP, RATE, 5, 1).windows([])) == []
    assert list(Chunking.of(STEP, RATE, 5, 1).windows([np.zeros(0, np.float32)])) == []


def test_a_quiet_voice_is_no_silence() -> None:
    wave = noise(9.0)
    wave[3 * RATE : 6 * RATE] *= 10 ** (-25 / 20)
    windows = list(Chunking.of(STEP, RATE, 4.0, 0.5).windows([wave]))
    ends = [w.place - w.first + len(w.wave) // STEP for w in windows]
    begins = [w.place - w.first for w in windows]
    assert all(begin <= end for end, begin in zip(ends, begins[1:], strict=False))


def test_chunks_that_are_too_short() -> None:
    with pytest.raises(AsrkitError, match=r"chunks of 1 s with 0.5 s of context .* \(chunks of 1.92 s or more"):
        Chunking.of(STEP, RATE, 1.0, 0.5)


def test_silence_at_the_ends_is_trimmed() -> None:
    sound = noise(1.0)
    wave = np.concatenate([np.zeros(5 * STEP, np.float32), sound, np.zeros(9 * STEP, np.float32)])
    speech, before = trim_silence(wave, STEP, keep=2)
    assert before == 3 * STEP
    assert np.array_equal(speech, wave[3 * STEP : 7 * STEP + len(sound)])
    assert len(trim_silence(0 * wave, STEP, keep=2)[0]) == 0
    assert np.array_equal(trim_silence(sound, STEP, keep=2)[0], sound)
    assert frame_energy(np.ones(2 * STEP, np.float32), STEP).tolist() == [1.0, 1.0]


def test_a_window_keeps_its_middle() -> None:
    assert Window(np.zeros(9), 2, 5, 0).keep(np.arange(8)).tolist() == [2, 3, 4]
