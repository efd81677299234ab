"""Audio files that are damaged, foreign or absent: before `asrkit prepare` sees them, and after it has seen them whole."""

from __future__ import annotations

import functools
import io
import logging
import os
import socket
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from faults import Case, Lines, Random, cut_off, flip, one_line

from asrkit.data.audio import read
from asrkit.data.config import DataConfig, StreamConfig
from asrkit.data.index import SetIndex
from asrkit.data.prepare import PrepareConfig, prepare_table
from asrkit.data.stream import Stream

RATE = 16_000
GOOD = 3
CHECKSUMMED = ("flac", "ogg", "opus")
"""Formats in which the container itself tells damage to the samples."""


@functools.cache
def sound(kind: str, number: int = 0) -> bytes:
    """Return a good file of half a second or more."""
    samples = 8000 + 400 * number
    time = np.arange(samples) / RATE
    wave = 0.3 * np.sin(2 * np.pi * (300 + 100 * number) * time)
    wave += 0.02 * np.random.default_rng(number).standard_normal(samples)
    form, subtype = {
        "wav": ("WAV", "PCM_16"),
        "wav24": ("WAV", "PCM_24"),
        "float": ("WAV", "FLOAT"),
        "flac": ("FLAC", "PCM_16"),
        "ogg": ("OGG", "VORBIS"),
        "opus": ("OGG", "OPUS"),
        "mp3": ("MP3", "MPEG_LAYER_III"),
        "aiff": ("AIFF", "PCM_16"),
    }[kind]
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format=form, subtype=subtype)
    return buffer.getvalue()


KINDS = ("wav", "wav24", "float", "flac", "ogg", "opus", "mp3", "aiff")


def wav(**changes: int) -> bytes:
    """Return a WAV file whose header says other things than it should."""
    data = bytearray(sound("wav"))
    places = {"channels": (22, "<H"), "rate": (24, "<I"), "align": (32, "<H"), "bits": (34, "<H"), "data": (40, "<I")}
    for name, value in changes.items():
        place, form = places[name]
        struct.pack_into(form, data, place, value)
    return bytes(data)


def samples(wave: np.ndarray, subtype: str = "FLOAT", rate: int = RATE) -> bytes:
    """Return a WAV file of given samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def endless_flac() -> bytes:
    """Return a FLAC file that claims to be as long as a FLAC file can be."""
    data = bytearray(sound("flac"))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    return bytes(data)


def zipped() -> bytes:
    """Return an archive with a good file inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.wav", sound("wav"))
    return buffer.getvalue()


def spoilt(value: float) -> bytes:
    """Return a file of floats one of which is not finite."""
    wave = np.frombuffer(sound("wav")[44:], "<i2").astype(np.float32) / 32768
    wave[4321] = value
    return samples(wave)


HOPELESS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "junk": lambda: b"\x00\x01junk" * 500,
    "web-page": lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
    "archive": zipped,
    "header-alone": lambda: sound("wav")[:44],
    "flac-header-alone": lambda: sound("flac")[:42],
    "not-a-number": lambda: spoilt(np.nan),
    "infinite": lambda: spoilt(np.inf),
    "no-channels": lambda: wav(channels=0, align=0),
    "no-rate": lambda: wav(rate=0),
    "one-hertz": lambda: wav(rate=1),
    "low-rate": lambda: wav(rate=7999),
    "huge-claim": lambda: wav(data=0x7FFE0000),
    "endless-flac": endless_flac,
    "silence": lambda: samples(np.zeros(8000), "PCM_16"),
    "one-sample": lambda: samples(np.ones(1) * 0.5, "PCM_16"),
    "too-short": lambda: samples(np.ones(1599) * 0.5, "PCM_16"),
    "too-long": lambda: samples(np.random.default_rng(0).uniform(-0.5, 0.5, 36 * 8000), "PCM_16", 8000),
}
"""Files that nothing may be learnt from."""


def _socket(path: Path) -> None:
    # A socket's address may have some hundred characters only.
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "absent": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path.name),
    "dangling-link": lambda path: path.symlink_to("nowhere.wav"),
    "link-to-folder": lambda path: path.symlink_to("."),
    "pipe": lambda path: os.mkfifo(path),
    "socket": _socket,
    "endless-device": lambda path: path.symlink_to("/dev/zero"),
    "null-device": lambda path: path.symlink_to("/dev/null"),
}
"""What is no plain file; some of it would be waited for for ever."""


@dataclass(frozen=True)
class Damage:
    """What becomes of a file of a corpus."""

    name: str
    place: Callable[[Path], None]
    hopeless: bool
    """Whether nothing may be learnt from it."""


def damages(random: Random) -> Iterator[Damage]:
    """Yield damages for ever: each hopeless one in turn, then some of random place and kind."""
    while True:
        for name, place in NO_FILES.items():
            yield Damage(name, place, True)
        for name, content in HOPELESS.items():
            yield Damage(name, lambda path, content=content: _write(path, content()), True)
        for number in range(45):
            kind = KINDS[number % len(KINDS)]
            data = sound(kind)
            how = ("cut", "header", "flip", "hole", "doubled")[int(random.integers(5))]
            if how == "cut":
                data = cut_off(data, random)
            elif how == "header":
                data = flip(data[:64], random, int(random.integers(1, 9))) + data[64:]
            elif how == "flip":
                data = flip(data, random, int(random.integers(1, 30)))
            elif how == "hole":
                start = int(random.integers(len(data)))
                data = data[:start] + bytes(min(512, len(data) - start)) + data[start + 512 :]
            else:
                start = int(random.integers(len(data)))
                data = data[:start] + data[start // 2 :]
            yield Damage(f"{how}-{kind}", lambda path, data=data: _write(path, data), False)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def cases(count: int, random: Random) -> Iterator[Case]:
    """Yield files that are bad from the start, and files that become bad when training has begun."""
    for number, damage in zip(range(count), damages(random), strict=False):
        late = number % 3 == 2
        kind = damage.name.rpartition("-")[2] if not damage.hopeless else KINDS[number % len(KINDS)]
        yield Case(
            f"{damage.name}{'-later' if late else ''}",
            (lambda home, d=damage, k=kind: _after(home, d, k)) if late else (lambda home, d=damage: _before(home, d)),
        )


def _table(home: Path) -> Path:
    lines = ["id\taudio\ttext", "bad\tbad.wav\tABBA"]
    for number in range(GOOD):
        (home / f"{number}.flac").write_bytes(sound("flac", number + 1))
        lines.append(f"good-{number}\t{number}.flac\tABC")
    (home / "train.tsv").write_text("\n".join(lines) + "\n")
    return home / "train.tsv"


def _before(home: Path, damage: Damage) -> None:
    table = _table(home)
    damage.place(home / "bad.wav")
    summary = prepare_table([table], home / "data", PrepareConfig(workers=1))
    index = SetIndex.open(home / "data/train")
    found = {str(record["id"]): row for row, record in enumerate(index.records())}
    assert {f"good-{number}" for number in range(GOOD)} <= set(found), "a good utterance is lost"
    assert summary.sets[0].rejected + len(found) == GOOD + 1, "an utterance is neither used nor listed"
    if "bad" in found:
        assert not damage.hopeless, "accepted"
        wave = read(index.read_cut(found["bad"]), RATE)
        assert np.isfinite(wave).all()
        assert abs(len(wave) / RATE - index.durations[found["bad"]]) < 0.01, "another length than the manifest says"
        assert np.abs(wave).max() <= 100, "samples that no recording has"


def _after(home: Path, damage: Damage, kind: str) -> None:
    table = _table(home)
    (home / "bad.wav").write_bytes(sound(kind))
    prepare_table([table], home / "data", PrepareConfig(workers=1))
    index = SetIndex.open(home / "data/train")
    whole = read(index.read_cut(0), RATE)
    (home / "bad.wav").unlink()
    damage.place(home / "bad.wav")
    config = StreamConfig(sets=["train"], seconds_per_update=1.0)
    stream = Stream(config, DataConfig(dir=str(home / "data"), batch_seconds=1.0, workers=0), None, seed=1)
    with Lines(logging.getLogger("asrkit.data")) as lines:
        batches = [batch for _ in range(stream.updates_per_epoch) for batch in next(stream)]
    waves = {
        name: batch.waves[row, : batch.host_lengths[row]].numpy()
        for batch in batches
        for row, name in enumerate(batch.ids)
    }
    assert {f"good-{number}" for number in range(GOOD)} <= set(waves), "a good utterance is lost"
    if "bad" not in waves:
        assert stream.skipped == 1, "an utterance is neither used nor counted"
        told = [line for line in lines.found if "bad: " in line]
        assert len(told) == 1, f"told {len(told)} times"
        one_line(told[0])
        return
    # Without a checksum in the file, nobody can tell samples from others.
    if kind in CHECKSUMMED or damage.hopeless:
        assert np.array_equal(waves["bad"], whole), "other samples than those that were checked"
    assert len(waves["bad"]) == len(whole)
    assert np.isfinite(waves["bad"]).all()
