"""MP3s are as long as their frames say, whatever their heads say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrkit.data.blocks import read_blocks
from asrkit.data.inspect import Job, Limits, Span, inspect_file
from asrkit.data.mpeg import measure
from asrkit.errors import AsrkitError

if "MP3" not in soundfile.available_formats():
    pytest.skip("libsndfile has no MP3", allow_module_level=True)

LIMITS = Limits(0.1, 100.0, 8000, True)


def write(path: Path, seconds: float, rate: int = 16_000, mode: str = "VARIABLE") -> Path:
    wave = 0.3 * np.random.default_rng(0).standard_normal(round(seconds * rate))
    # The first second is silent: an estimate by the first frame is far off.
    wave[:rate] = 0
    soundfile.write(path, wave, rate, format="MP3", bitrate_mode=mode)
    return path


def joined(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts))
    return path


def untagged(path: Path) -> bytes:
    """Return an MP3 without the frame that tells how many there are."""
    data = path.read_bytes()
    place = max(data.find(b"Xing"), data.find(b"Info"))
    assert 0 < place < 100
    return data[data.find(data[:2], place) :]


def inspect(path: Path) -> str | None:
    report = inspect_file(Job(str(path), (Span(0.0, None, None, False),)), LIMITS)
    return report.reason or report.pieces[0][0].reason


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT", "AVERAGE"])
@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
def test_sound_files_are_as_long_as_their_frames(tmp_path: Path, rate: int, mode: str) -> None:
    path = write(tmp_path / "a.mp3", 3.0, rate, mode)
    samples, tagged = measure(path)
    assert tagged
    assert 0 <= samples - 3 * rate <= 5 * 1152
    assert inspect(path) is None
    assert sum(map(len, read_blocks(path, 16_000))) == pytest.approx(48_000, abs=2)
    # What stands before and behind the audio: tags of programs that show them.
    tag = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)
    assert measure(joined(tmp_path / "b.mp3", tag, path.read_bytes(), b"TAG" + bytes(125))) == (samples, True)


def test_what_is_no_audio_does_not_count(tmp_path: Path) -> None:
    one = write(tmp_path / "a.mp3", 3.0).read_bytes()
    noise = np.random.default_rng(1).integers(0, 256, 1_000_000, dtype=np.uint8).tobytes()
    samples, _ = measure(tmp_path / "a.mp3")
    assert measure(joined(tmp_path / "b.mp3", one, b"APETAGEX", noise))[0] < samples + 5 * 1152
    assert measure(joined(tmp_path / "c.mp3", one, b"ID3\x04"))[0] == samples
    assert measure(joined(tmp_path / "d.mp3", noise))[0] < 10 * 1152
    assert measure(joined(tmp_path / "e.mp3", one, one)) == (2 * samples, True)


def test_what_is_behind_a_first_part_is_missed(tmp_path: Path) -> None:
    one = write(tmp_path / "a.mp3", 3.0).read_bytes()
    path = joined(tmp_path / "b.mp3", one, one, one)
    assert "an MP3 of 9" in str(inspect(path))
    with pytest.raises(AsrkitError, match=r"whose head tells of 3\.0 s: convert it"):
        list(read_blocks(path, 16_000))


def test_a_torn_file_is_cut_short(tmp_path: Path) -> None:
    one = write(tmp_path / "a.mp3", 3.0).read_bytes()
    path = joined(tmp_path / "b.mp3", one[: len(one) // 2])
    assert "cut short" in str(inspect(path))
    with pytest.raises(AsrkitError, match="cut short"):
        list(read_blocks(path, 16_000))


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_estimated_length_is_no_damage(tmp_path: Path, mode: str) -> None:
    path = joined(tmp_path / "b.mp3", untagged(write(tmp_path / "a.mp3", 3.0, mode=mode)))
    with soundfile.SoundFile(path) as file:
        decoded = sum(iter(lambda: len(file.read(16_000)), 0))
    whole, tagged = measure(path)
    assert not tagged
    problem = inspect(path)
    if decoded < whole - 5 * 1152:
        assert "whose head tells" in str(problem)
    else:
        assert problem is None
