"""Many recordings at once: the same texts at any batch size, in order, one error each, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from bounded import RATE, bounded_recogniser, noise, with_pauses
from helpers import STILL, settings, train
from hypothesis import given
from hypothesis import strategies as st

from asrkit.data.collate import Example, collate
from asrkit.errors import AsrkitError
from asrkit.inference.transcribe import Source, pack, transcribe
from asrkit.inference.transcript import BestPath, Transcript, read_transcript
from asrkit.text.units import Units


def sources(waves: list[np.ndarray]) -> list[Source]:
    return [Source(str(n), lambda wave=wave: iter(np.array_split(wave, 3))) for n, wave in enumerate(waves)]


def whole(recogniser: Any, wave: np.ndarray) -> Transcript:
    log_probs = recogniser.log_probs(collate([Example("x", wave)], epoch=0))[0]
    seconds = recogniser.frame_samples / RATE
    return read_transcript([(0, BestPath.of(log_probs))], recogniser.units, seconds, len(wave) / RATE)


@pytest.mark.parametrize("kind", ["logmel", "waveform"])
def test_texts_do_not_depend_on_batches_or_chunks(kind: str) -> None:
    recogniser = bounded_recogniser(kind)
    waves = [noise(seconds, n) for n, seconds in enumerate([0.3, 7.1, 2.0, 0.02, 4.4, 1.1])]
    expected = [whole(recogniser, wave) for wave in waves]
    assert sum(len(found.words) for found in expected) > 10
    for batch_seconds, chunk in ((0.1, 2.0), (3.0, 2.0), (1000.0, 3.0), (8.0, 30.0)):
        found = list(transcribe(recogniser, sources(waves), batch_seconds=batch_seconds, chunk_seconds=chunk))
        assert [name for name, _ in found] == [str(n) for n in range(len(waves))]
        for (_, got), wanted in zip(found, expected, strict=True):
            assert isinstance(got, Transcript)
            assert got.text == wanted.text
            assert [(w.start, w.end) for w in got.words] == [(w.start, w.end) for w in wanted.words]
            assert got.duration == wanted.duration


def test_words_are_in_order_and_inside_the_recording() -> None:
    recogniser = bounded_recogniser("logmel")
    wave = with_pauses([1.4, 2.6, 0.9, 1.7], 0.6)
    ((_, found),) = transcribe(recogniser, sources([wave]), chunk_seconds=2.0)
    assert isinstance(found, Transcript)
    assert found.text == " ".join(word.text for word in found.words)
    edges = [edge for word in found.words for edge in (word.start, word.end)]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= len(wave) / RATE
    assert all(0 < word.confidence <= 1 for word in found.words)


def test_a_pause_ends_a_word() -> None:
    units = Units(("<blank>", "|", "A", "B"))
    path = BestPath(np.array([2, 2, 0, 3]), np.zeros(4, np.float32))
    together = read_transcript([(0, BestPath.join([path, path]))], units, 0.1, 9.0)
    apart = read_transcript([(0, path), (10, path)], units, 0.1, 1.35)
    assert together.text == "ABAB"
    assert [(w.text, w.start, w.end) for w in apart.words] == [("AB", 0.0, 0.4), ("AB", 1.0, 1.35)]


def test_a_bad_recording_stops_no_other_even_in_its_middle() -> None:
    recogniser = bounded_recogniser("logmel")

    def torn() -> Iterator[np.ndarray]:
        yield noise(9.0)
        raise AsrkitError("torn")

    good = sources([noise(1.0), noise(2.0)])
    given_sources = [good[0], Source("bad", torn), good[1], Source("none", lambda: iter([]))]
    found = dict(transcribe(recogniser, given_sources, batch_seconds=1.0, chunk_seconds=2.0))
    assert list(found) == ["0", "bad", "1", "none"]
    assert str(found["bad"]) == "torn"
    assert isinstance(found["1"], Transcript)
    assert found["none"] == Transcript("", (), 0.0)


def test_recordings_are_opened_when_there_is_room() -> None:
    recogniser = bounded_recogniser("logmel")
    opened: list[int] = []

    def source(n: int) -> Source:
        def blocks() -> Iterator[np.ndarray]:
            opened.append(n)
            yield noise(2.0, n)

        return Source(str(n), blocks)

    results = transcribe(recogniser, map(source, range(100)), batch_seconds=2.0, chunk_seconds=5.0)
    next(results)
    assert len(opened) < 10


@given(lengths=st.lists(st.integers(0, 50), max_size=30), most=st.floats(0.5, 200))
def test_batches_hold_everything_once_and_stay_small(lengths: list[int], most: float) -> None:
    batches = pack(lengths, most)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[n] for n in batch) <= most
    flat = [lengths[n] for batch in batches for n in batch]
    assert flat == sorted(flat, reverse=True)


def test_batches_of_nothing_are_refused() -> None:
    with pytest.raises(AsrkitError, match="batches of 0 s"):
        list(transcribe(bounded_recogniser("logmel"), [], batch_seconds=0, chunk_seconds=5.0))


@pytest.mark.slow
def test_two_hours_fit_into_two_gibibytes(speech: Path, tmp_path: Path) -> None:
    small = settings("finetune", speech, encoder=STILL, finetune={"updates": 1, "freeze_updates": 0})
    assert train(tmp_path / "exp", small) == 0
    sound = np.concatenate([noise(20.0), np.zeros(RATE, np.float32)])
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for _ in range(7200 // 21 + 1):
            file.write(sound)
    command = [
        sys.executable,
        "-m",
        "asrkit",
        "transcribe",
        "--model",
        str(tmp_path / "exp"),
        "--format",
        "json",
        str(path),
    ]
    measured = (
        "import json, resource, subprocess, sys\n"
        "out = subprocess.run(sys.argv[1:], check=True, capture_output=True, text=True).stdout\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(json.dumps([peak, json.loads(out)['duration']]))\n"
    )
    done = subprocess.run([sys.executable, "-c", measured, *command], check=True, capture_output=True, text=True)
    peak, duration = json.loads(done.stdout)
    assert duration > 7200
    assert peak < 2 * 1024 * 1024, f"{peak / 1024:.0f} MiB"
