"""Reading in blocks equals reading at once, and broken recordings are told in one line."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.data.audio import load_file, resample
from asrkit.data.blocks import BlockResampler, PipeFile, read_blocks
from asrkit.errors import AsrkitError


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000]),
    sizes=st.lists(st.integers(0, 3_000), min_size=1, max_size=8),
)
def test_resampling_in_blocks_equals_resampling_at_once(rate: int, sizes: list[int]) -> None:
    wave = noise(max(1, sum(sizes)))
    resampler = BlockResampler(rate, 16_000)
    pieces, at = [], 0
    for size in [*sizes[:-1], len(wave) - sum(sizes[:-1])]:
        pieces.append(resampler.push(wave[at : at + size]))
        at += size
    pieces.append(resampler.finish())
    together, whole = np.concatenate(pieces), resample(wave, rate, 16_000)
    assert together.shape == whole.shape
    np.testing.assert_allclose(together, whole, atol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (16_000, 2), (48_000, 2)])
def test_files_of_all_kinds(suffix: str, rate: int, channels: int, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(channels * rate).reshape(-1, channels), rate)
    blocks = list(read_blocks(path, 16_000, seconds=0.3))
    assert len(blocks) > 2
    np.testing.assert_allclose(np.concatenate(blocks), load_file(path, 16_000), atol=2e-6)


def flac_of_unknown_length(wave: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, 16_000, format="FLAC")
    content = bytearray(file.getvalue())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return bytes(content)


@pytest.mark.parametrize(
    "kind", ["wav", "flac", "aiff", "au", "flac of unknown length", "wav of unknown length", "raw"]
)
def test_pipes_are_read_as_they_fill(kind: str) -> None:
    wave = soundfile.read(io.BytesIO(flac_of_unknown_length(noise(80_000))), frames=79_000, dtype="float32")[0]
    file = io.BytesIO()
    if kind == "raw":
        file.write((wave * 32768).astype("<i2").tobytes())
    elif kind == "flac of unknown length":
        file.write(flac_of_unknown_length(wave))
    else:
        soundfile.write(file, wave, 16_000, format=kind[:4].strip(), subtype="PCM_16")
    content = bytearray(file.getvalue())
    if kind == "wav of unknown length":
        size = content.find(b"data") + 4
        content[size : size + 4] = b"\xff" * 4
    reader, writer = os.pipe()
    go_on = threading.Event()

    def fill() -> None:
        with open(writer, "wb", buffering=0) as pipe:
            pipe.write(content[: len(content) // 2])
            go_on.wait(10)
            pipe.write(content[len(content) // 2 :])

    thread = threading.Thread(target=fill)
    thread.start()
    with open(reader, "rb") as pipe:
        blocks = read_blocks(PipeFile(pipe), 16_000, 0.5, raw=kind == "raw")
        # The first block comes while the pipe is still open and only half filled.
        first = next(blocks)
        go_on.set()
        together = np.concatenate([first, *blocks])
    thread.join()
    np.testing.assert_allclose(together, wave, atol=1e-7)


def test_broken_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.flac"
    soundfile.write(whole, noise(160_000), 16_000)
    bad = {
        "text.wav": b"no audio here",
        "nothing.flac": b"",
        "half.flac": whole.read_bytes()[:100_000],
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), 16_000, subtype="FLOAT")
    for name in [*bad, "empty.wav", "nan.wav", "none.wav", "."]:
        with pytest.raises(AsrkitError, match=str(tmp_path)) as caught:
            list(read_blocks(tmp_path / name, 16_000, 1.0))
        assert "\n" not in str(caught.value)


def test_formats_that_pipes_cannot_carry() -> None:
    with pytest.raises(AsrkitError, match="standard input: not a format that can be read as it comes"):
        list(read_blocks(PipeFile(io.BytesIO(b"OggS" + bytes(99))), 16_000, name="standard input"))
