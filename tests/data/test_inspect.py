from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.data import checking
from asrkit.data.checking import Inspector
from asrkit.data.inspect import FileReport, Job, Limits, Span, content_digest, inspect_file
from asrkit.data.pauses import cut_at_pauses

LIMITS = Limits(min_seconds=0.1, max_seconds=5.0, min_sample_rate=8000, decode=True)
WHOLE = Span(0.0, None, None, cut=False)


def noise(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * rate)).clip(-0.9, 0.9)


def check(path: Path, *spans: Span, limits: Limits = LIMITS) -> FileReport:
    return inspect_file(Job(str(path), spans or (WHOLE,)), limits)


def reason(path: Path, *spans: Span, limits: Limits = LIMITS) -> str:
    report = check(path, *spans, limits=limits)
    return report.reason or next((p.reason for pieces in report.pieces for p in pieces if p.reason), "")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64"])
def test_sound_files_pass(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", noise(1.0), 16000)
    report = check(tmp_path / f"a.{suffix}")
    assert report.reason is None
    assert (report.sample_rate, report.samples, report.channels) == (16000, 16000, 1)
    assert [(p.start, p.samples, p.reason) for p in report.pieces[0]] == [(0, 16000, None)]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("suffix", ["flac", "wav"])
def test_a_file_cut_short_is_caught(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(2.0), 16000)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert reason(path).startswith(("cut short", "unreadable audio"))


def test_an_mp3_cut_short_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, noise(3.0), 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason(path).startswith(("cut short", "unreadable audio"))


def test_damage_in_the_middle_is_caught_only_by_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(2.0), 16000)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(range(200)) * 2
    path.write_bytes(data)
    assert reason(path).startswith("unreadable audio")
    assert reason(path, limits=Limits(0.1, 5.0, 8000, decode=False)) == ""


def test_a_placeholder_size_is_not_a_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "pipe.wav"
    soundfile.write(path, noise(1.0), 16000)
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert reason(path) == ""
    assert check(path).samples == 16000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float, subtype: str) -> None:
    wave = noise(1.0)
    wave[12345] = value
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype=subtype)
    assert "not-a-numbers" in reason(tmp_path / "a.wav")


def test_silence_is_refused_per_stretch_and_channel(tmp_path: Path) -> None:
    wave = np.stack([noise(3.0), np.zeros(48000)], axis=1)
    wave[16000:32000] = 0
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    spans = [Span(start, 1.0, channel, cut=False) for channel in (0, 1, None) for start in (0.0, 1.0, 2.0)]
    report = check(tmp_path / "a.wav", *spans)
    silent = [pieces[0].reason is not None and "silence" in pieces[0].reason for pieces in report.pieces]
    assert silent == [False, True, False, True, True, True, False, True, False]


def test_the_faintest_sound_is_not_silence(tmp_path: Path) -> None:
    wave = np.zeros(16000, dtype=np.int16)
    wave[8000] = 1
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    assert reason(tmp_path / "a.wav") == ""


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (Span(0.0, 0.05, 0, False), "too short"),
        (Span(0.0, 6.0, 0, False), "too long"),
        (Span(0.0, None, 0, False), "too long"),
        (Span(9.5, 1.0, 0, False), "outside the recording"),
        (Span(20.0, None, 0, False), "outside the recording"),
        (Span(1e300, 1.0, 0, False), "outside the recording"),
        (Span(-1.0, 1.0, 0, False), "bad start"),
        (Span(float("nan"), 1.0, 0, False), "bad start"),
        (Span(0.0, -1.0, 0, False), "bad duration"),
        (Span(0.0, float("inf"), 0, False), "bad duration"),
        (Span(0.0, 1.0, 1, False), "no such channel"),
        (Span(0.0, 1.0, -1, False), "no such channel"),
    ],
)
def test_stretches_that_cannot_be(tmp_path: Path, span: Span, expected: str) -> None:
    soundfile.write(tmp_path / "a.wav", noise(10.0), 16000)
    report = check(tmp_path / "a.wav", span, Span(0.0, 1.0, 0, False))
    assert report.pieces[0][0].reason is not None
    assert report.pieces[0][0].reason.startswith(expected)
    assert report.pieces[1][0].reason is None


def test_an_end_rounded_up_is_clipped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(2.0)[:31999], 16000)
    (piece,) = check(tmp_path / "a.wav", Span(1.0, 1.005, 0, False)).pieces[0]
    assert (piece.reason, piece.start, piece.samples) == (None, 16000, 15999)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "an empty file"), (b"hello", "unreadable audio"), (b"RIFF\x00\x00\x00\x00WAVE", "unreadable audio")],
)
def test_what_is_no_audio(tmp_path: Path, content: bytes, expected: str) -> None:
    for name in ("a.wav", "a.raw", "a.flac"):
        (tmp_path / name).write_bytes(content)
        assert reason(tmp_path / name).startswith(expected)


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    (tmp_path / "dir.wav").mkdir()
    (tmp_path / "link.wav").symlink_to(tmp_path / "gone.wav")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    assert reason(tmp_path / "dir.wav") == "not a plain file"
    assert reason(tmp_path / "link.wav") == "no such file"
    assert reason(tmp_path / "loop.wav").startswith("unreadable file")
    assert reason(Path("/dev/null")) == "not a plain file"
    assert reason(tmp_path / ("x" * 5000)).startswith("unreadable file")
    assert inspect_file(Job("a\0b", (WHOLE,)), LIMITS).reason is not None


def test_no_samples_and_a_low_rate(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "low.wav", noise(1.0, 4000), 4000)
    assert reason(tmp_path / "none.wav") == "no audio in the file"
    assert reason(tmp_path / "low.wav").startswith("low sample rate")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), suffix=st.sampled_from(["wav", "flac", "ogg", "aiff"]))
def test_corrupted_files_never_raise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("corrupt") / f"a.{suffix}"
    soundfile.write(path, noise(0.5), 16000)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        # The header decides most; the rest is tried as well.
        end = data.draw(st.sampled_from([64, len(content)]))
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    report = check(path)
    if report.reason is None and report.pieces[0][0].reason is None:
        # What is accepted can be read in full.
        wave, rate = soundfile.read(path)
        assert rate == report.sample_rate
        assert len(wave) >= report.pieces[0][0].samples
        assert np.isfinite(wave).all()


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for size in (10, 300_000, 2_000_000):
        data = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        (tmp_path / "a").write_bytes(data)
        (tmp_path / "b").write_bytes(data)
        (tmp_path / "c").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        (tmp_path / "d").write_bytes(data + b"\0")
        digests = [content_digest(str(tmp_path / name)) for name in "abcd"]
        assert digests[0] == digests[1]
        assert len(set(digests)) == 3


@settings(max_examples=100, deadline=None)
@given(
    frames=st.integers(1, 3000),
    hop=st.sampled_from([80, 160, 441]),
    longest=st.integers(500, 60_000),
    seed=st.integers(0, 1000),
    span=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_pieces_tile_the_stretch(frames: int, hop: int, longest: int, seed: int, span: tuple[float, float]) -> None:
    energy = np.random.default_rng(seed).exponential(size=frames).astype(np.float32)
    low, high = sorted(int(part * frames * hop) for part in span)
    ends = cut_at_pauses(energy, hop, low, high, longest)
    sizes = np.diff([low, *ends])
    assert ends[-1] == high
    assert (sizes <= longest).all()
    if len(ends) > 1:
        assert (sizes >= longest // 2).all()


def test_cuts_are_made_in_the_pauses(tmp_path: Path) -> None:
    rate, pauses = 16000, (3.1, 6.9, 10.4, 14.0)
    wave = noise(17.0)
    for pause in pauses:
        wave[int(pause * rate) : int((pause + 0.3) * rate)] *= 0.001
    soundfile.write(tmp_path / "a.flac", wave, rate)
    pieces = check(tmp_path / "a.flac", Span(0.0, None, None, cut=True)).pieces[0]
    ends = [(piece.start + piece.samples) / rate for piece in pieces]
    assert len(ends) == len(pauses) + 1
    assert all(pause <= end <= pause + 0.3 for pause, end in zip(pauses, ends[:-1], strict=True))
    assert sum(piece.samples for piece in pieces) == len(wave)


def test_a_long_silence_becomes_silent_pieces_only(tmp_path: Path) -> None:
    wave = noise(30.0)
    wave[: 12 * 16000] = 0
    soundfile.write(tmp_path / "a.flac", wave, 16000)
    pieces = check(tmp_path / "a.flac", Span(0.0, None, None, cut=True)).pieces[0]
    assert any(piece.reason for piece in pieces)
    heard = np.zeros(len(wave), dtype=bool)
    for piece in pieces:
        heard[piece.start : piece.start + piece.samples] = piece.reason is None
    assert heard[12 * 16000 :].all()


def test_processes_change_nothing(tmp_path: Path) -> None:
    jobs = []
    for number in range(50):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, noise(0.05 + 0.01 * number, seed=number), 16000)
        jobs.append(Job(str(path), (WHOLE,)))
    with Inspector(LIMITS, 1) as alone, Inspector(LIMITS, 2) as several:
        assert list(several.reports(jobs)) == list(alone.reports(jobs))


def test_a_crash_of_the_decoder_is_a_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(job: Job, limits: Limits) -> FileReport:
        if Path(job.path).stem == "17":
            os._exit(1)
        return inspect_file(job, limits)

    # Forked workers inherit the replacement.
    monkeypatch.setattr(checking, "inspect_file", crash)
    jobs = []
    for number in range(40):
        soundfile.write(tmp_path / f"{number}.wav", noise(0.5), 16000)
        jobs.append(Job(str(tmp_path / f"{number}.wav"), (WHOLE,)))
    with Inspector(LIMITS, 2) as inspector:
        reports = list(inspector.reports(jobs))
    assert [number for number, report in enumerate(reports) if report.reason] == [17]
    assert "crashes the decoder" in (reports[17].reason or "")
