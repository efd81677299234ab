"""Updates while audio comes in: what is stable stays, what is final is complete, and nothing depends on the pieces."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from bounded import RATE, bounded_recogniser, with_pauses
from hypothesis import given
from hypothesis import strategies as st

from asrkit.decoding.timestamps import Word
from asrkit.errors import AsrkitError
from asrkit.inference import streaming
from asrkit.inference.streaming import Streamer, Update
from asrkit.inference.transcribe import Source, transcribe
from asrkit.inference.transcript import Transcript

TICK = 160
"""Samples in 10 ms; a word is a stretch of one positive number, which is its name, and silence is 0."""


def spell(words: list[tuple[int, int]]) -> np.ndarray:
    """Return audio of (length of a word, silence behind it) in ticks."""
    parts = [np.concatenate([np.full(n * TICK, k + 1), np.zeros(gap * TICK)]) for k, (n, gap) in enumerate(words)]
    return np.concatenate(parts).astype(np.float32)


def read(wave: np.ndarray) -> tuple[Word, ...]:
    """Hear every stretch as a word; one that is not over yet is heard wrong."""
    edges = [0, *(np.flatnonzero(np.diff(wave)) + 1).tolist(), len(wave)]
    found = []
    for begin, end in pairwise(edges):
        if wave[begin] > 0:
            name = f"w{int(wave[begin])}" if end < len(wave) else "unfinished"
            found.append(Word(name, begin / RATE, end / RATE, 1.0))
    return tuple(found)


def updates(wave: np.ndarray, sizes: list[int], **settings: float) -> list[Update]:
    streamer = Streamer(read, RATE, **settings)
    pieces = np.split(wave, np.cumsum(sizes, dtype=int).clip(max=len(wave)))
    return [update for piece in pieces for update in streamer.push(piece)] + list(streamer.finish())


WORDS = st.lists(st.tuples(st.integers(5, 60), st.sampled_from([1, 5, 30, 80, 400])), min_size=1, max_size=25)


@given(words=WORDS, sizes=st.lists(st.integers(1, 50_000), max_size=8))
def test_laws_of_streaming(words: list[tuple[int, int]], sizes: list[int]) -> None:
    wave = spell([*words, (30, 2)])
    found = updates(wave, sizes)
    assert updates(wave, []) == found, "the pieces do not matter"
    heard = [word for update in found if update.final for word in update.words]
    assert [word.text for word in heard] == [word.text for word in read(wave)], "every word once"
    edges = [edge for word in heard for edge in (word.start, word.end)]
    assert edges == sorted(edges)
    assert edges[-1] <= len(wave) / RATE
    done: list[str] = []
    stable: list[str] = []
    for update in found:
        text = done + update.text.split()
        assert text[: len(stable)] == stable[: len(text)], "what was stable has stayed"
        assert update.text.startswith(update.stable)
        stable = max(stable, done + update.stable.split(), key=len)
        if update.final:
            assert update.stable == update.text
            done = text


def test_partial_results_come_before_the_pause_and_the_final_one_soon_after() -> None:
    wave = spell([(40, 5), (40, 5), (40, 5), (40, 300), (40, 200)])
    streamer = Streamer(read, RATE, interval=0.25)
    heard_at: dict[str, float] = {}
    for tick in range(0, len(wave), TICK):
        for update in streamer.push(wave[tick : tick + TICK]):
            heard_at.setdefault(("final " if update.final else "partial ") + update.text, (tick + TICK) / RATE)
            if update.stable and not update.final:
                heard_at.setdefault("stable " + update.stable, (tick + TICK) / RATE)
    assert heard_at["partial w1 unfinished"] <= 0.45 + 0.4
    assert heard_at["stable w1"] < 1.75
    assert 1.75 + streaming.PAUSE <= heard_at["final w1 w2 w3 w4"] <= 1.75 + streaming.PAUSE + 0.25


def test_unbroken_speech_is_divided_in_its_widest_gap() -> None:
    wave = spell([(50, 3)] * 12 + [(50, 20)] + [(50, 3)] * 30)
    finals = [u for u in updates(wave, [], longest=10.0) if u.final]
    assert len(finals) > 2
    assert finals[0].words[-1].text == "w13"
    assert max(u.end - u.start for u in finals) <= 10.5


def test_silence_says_nothing() -> None:
    assert updates(np.zeros(50 * RATE, np.float32), [7] * 3) == []
    assert updates(np.zeros(0, np.float32), []) == []


def test_with_a_recogniser(monkeypatch: pytest.MonkeyPatch) -> None:
    recogniser = bounded_recogniser("logmel")
    heard: list[int] = []

    def transcript(wave: np.ndarray, rate: int) -> Transcript:
        heard.append(len(wave))
        ((_, found),) = transcribe(recogniser, [Source("x", lambda: iter([wave]))], chunk_seconds=30.0)
        assert isinstance(found, Transcript)
        return found

    recogniser.transcript = transcript
    monkeypatch.setattr(streaming, "longest_heard", lambda _: 6.0)
    streamer = Streamer.of(recogniser, interval=0.5)
    wave = with_pauses([1.5, 2.0, 1.0], 3.0)
    found = [*streamer.push(wave), *streamer.finish()]
    assert sum(update.final for update in found) == 3
    assert max(heard) <= 6.5 * RATE
    assert all(0 <= u.start <= u.end <= len(wave) / RATE + 0.05 for u in found)


def test_intervals_that_make_no_sense() -> None:
    for interval in (0.0, -1.0, 99.0):
        with pytest.raises(AsrkitError, match="an interval of"):
            Streamer(read, RATE, interval=interval)
