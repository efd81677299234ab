"""`asrkit transcribe` and `asrkit align` as they are called."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from helpers import STILL, sentence, settings, speak, train

from asrkit.cli import main
from asrkit.data.audio import resample

RATE = 16_000


@pytest.fixture(scope="module")
def exp_dir(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transcribe") / "exp"
    calm = {"updates": 40, "freeze_updates": 0, "mask": {"time_probability": 0.0, "channel_probability": 0.0}}
    whole = settings("finetune", speech, encoder=STILL, finetune=calm, optimiser={"clip_norm": 5.0})
    assert train(folder, whole, "training.validate_every=100") == 0
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with recordings of all kinds below it."""
    top = tmp_path / "in"
    (top / "deep" / "er").mkdir(parents=True)
    samples = wave()
    soundfile.write(top / "plain.wav", samples, RATE)
    soundfile.write(top / "plain.flac", samples, RATE)
    soundfile.write(top / "deep" / "stereo.wav", np.stack([samples, samples], 1), RATE)
    soundfile.write(top / "deep" / "er" / "telephone.wav", resample(samples, RATE, 8_000), 8_000)
    soundfile.write(top / "music.ogg", resample(samples, RATE, 48_000), 48_000)
    soundfile.write(top / "silent.wav", 0 * samples, RATE)
    (top / "broken.flac").write_bytes(b"fLaC and nothing more")
    (top / "film.mp4").write_bytes(b"0")
    (top / "notes.txt").write_text("no recording")
    return top


def wave() -> np.ndarray:
    return np.concatenate([speak(sentence(seed), seed) for seed in (1, 2)])


def call(exp_dir: Path, *arguments: object) -> int:
    return main(["transcribe", "--model", str(exp_dir), "--precision", "fp32", *map(str, arguments)])


def test_folders_and_what_is_wrong_in_them(exp_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(exp_dir, folder, "--batch-seconds", 1.0) == 2
    said = capsys.readouterr()
    told = dict(line.split("\t") for line in said.out.splitlines())
    good = ["deep/er/telephone.wav", "deep/stereo.wav", "music.ogg", "plain.flac", "plain.wav"]
    assert sorted(told) == sorted(str(folder / name) for name in good)
    assert told[str(folder / "plain.wav")] == told[str(folder / "deep/stereo.wav")] != ""
    errors = said.err.splitlines()
    assert len(errors) == 3
    for name in ("broken.flac", "film.mp4", "silent.wav"):
        assert sum(str(folder / name) in error for error in errors) == 1


@pytest.mark.parametrize("form", ["text", "json", "srt", "vtt", "textgrid"])
def test_files_for_every_recording(form: str, exp_dir: Path, folder: Path, tmp_path: Path) -> None:
    assert call(exp_dir, folder, "--format", form, "--output", tmp_path / "out") == 2
    suffix = {"text": "txt", "textgrid": "TextGrid"}.get(form, form)
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    # Of two recordings of one name the second keeps its suffix.
    assert names == {f"{name}.{suffix}" for name in ("plain", "plain.wav", "music", "deep/stereo", "deep/er/telephone")}


def test_one_recording_in_a_format(exp_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(exp_dir, folder / "plain.wav", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == " ".join(word["text"] for word in found["words"])
    assert found["duration"] == pytest.approx(len(wave()) / RATE, abs=1e-3)
    assert call(exp_dir, folder / "plain.wav", "--format", "vtt") == 0
    assert capsys.readouterr().out.startswith("WEBVTT\n\n00:00:")
    assert call(exp_dir, folder / "plain.wav", folder / "plain.flac", "--format", "srt") == 2
    assert "2 recordings as srt (say where with --output DIR)" in capsys.readouterr().err


def encoded(kind: str) -> bytes:
    if kind == "raw":
        return (wave() * 32768).astype("<i2").tobytes()
    file = io.BytesIO()
    soundfile.write(file, wave(), RATE, format=kind.upper())
    return file.getvalue()


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "raw"])
def test_standard_input(
    kind: str, exp_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "ogg":
        (folder / "plain.wav").write_bytes(encoded("ogg"))
    call(exp_dir, folder / "plain.wav")
    expected = capsys.readouterr().out.split("\t")[1]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(encoded(kind))))
    assert call(exp_dir, "-", *(["--raw"] if kind == "raw" else [])) == 0
    assert capsys.readouterr().out == f"standard input\t{expected}"


@pytest.mark.parametrize("kind", ["wav", "flac", "raw"])
def test_streams(kind: str, exp_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--stream", "--interval", "0.3", *(["--raw"] if kind == "raw" else [])]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(encoded(kind))))
    assert call(exp_dir, "-", *options) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {line[0] for line in lines} == {"partial", "final"}
    assert lines[-1][0] == "final"
    assert all(float(start) <= float(end) <= len(wave()) / RATE + 0.1 for _, start, end, _ in lines)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(encoded(kind))))
    assert call(exp_dir, "-", *options, "--format", "json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [update["text"] for update in found] == [line[3] for line in lines]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{in}", "--stream"], "--stream takes one recording"),
        (["-", "--stream", "--format", "srt"], "--stream prints text or JSON lines"),
        (["{in}/plain.wav", "--stream", "--interval", "0"], "an interval of 0 s"),
        (["{in}/none.wav"], "none.wav: no such file"),
        (["{in}/broken.flac", "--stream"], "broken.flac: cannot read audio"),
        (["{in}/plain.wav", "--chunk-seconds", "0.1"], "chunks of 0.1 s"),
        (["{in}/plain.wav", "--batch-seconds", "-1"], "batches of -1 s"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], says: str, exp_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(exp_dir, *(argument.replace("{in}", str(folder)) for argument in arguments)) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1


def align(exp_dir: Path, *arguments: object) -> int:
    return main(["align", "--model", str(exp_dir), "--precision", "fp32", *map(str, arguments)])


def test_align_a_set(exp_dir: Path, speech: Path, tmp_path: Path) -> None:
    formats = ["--format", "json", "ctm", "textgrid", "--output", tmp_path / "out", "--plot", 1]
    assert align(exp_dir, "--data", speech, "--sets", "dev", *formats) == 0
    out = tmp_path / "out" / "dev"
    found = [json.loads(line) for line in (out / "dev.jsonl").read_text().splitlines()]
    assert [one["id"] for one in found] == [f"dev-{seed}" for seed in range(100, 104)]
    for one, seed in zip(found, range(100, 104), strict=True):
        assert one["text"] == sentence(seed) == " ".join(word["text"] for word in one["words"])
    lines = [line.split() for line in (out / "dev.ctm").read_text().splitlines()]
    assert [line[4] for line in lines] == " ".join(one["text"] for one in found).split()
    assert len(list(out.glob("*.TextGrid"))) == 4
    assert len(list((out / "plots").glob("*.png"))) == 1


def test_align_a_recording(exp_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "said.txt"
    text.write_text(f"{sentence(1).lower()},\n{sentence(2)}.\n")
    assert align(exp_dir, "--audio", folder / "plain.wav", "--text", text) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == f"{sentence(1)} {sentence(2)}"
    assert found["words"][-1]["end"] <= found["duration"]
    assert align(exp_dir, "--audio", folder / "plain.wav", "--text", text, "--plot", 1, "--output", tmp_path / "o") == 0
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"plain.json", "plain.png"}
    capsys.readouterr()
    assert align(exp_dir, "--audio", folder / "plain.wav", "--text", text, "--format", "textgrid", "ctm") == 0
    assert 'name = "characters"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "what is to be aligned?"),
        (["--audio", "{in}/plain.wav"], "what is to be aligned?"),
        (["--audio", "{in}/plain.wav", "--text", "{in}/none.txt"], "none.txt: cannot be read"),
        (["--audio", "{in}/plain.wav", "--text", "{in}/notes.txt"], "plain: characters not among the units"),
        (["--audio", "{in}/broken.flac", "--text", "{in}/notes.txt"], "broken.flac: cannot read audio"),
        (["--audio", "{in}/plain.wav", "--text", "{in}/notes.txt", "--plot", "1"], "--plot has no place"),
        (["--data", "{in}", "--sets", "dev"], "not a prepared set"),
    ],
)
def test_align_mistakes(
    arguments: list[str], says: str, exp_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align(exp_dir, *(argument.replace("{in}", str(folder)) for argument in arguments)) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
