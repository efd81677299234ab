"""`asrkit.load(EXP).transcribe` and `asrkit transcribe`: any file, any wave, one line for what cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from helpers import STILL, WAVEFORM, merged, sentence, settings, speak, train, write_corpus

import asrkit
from asrkit import cli
from asrkit.data.audio import resample
from asrkit.data.collate import Example, collate
from asrkit.data.index import SetIndex
from asrkit.errors import AsrkitError
from asrkit.inference.recogniser import Recogniser
from asrkit.inference.transcribe import longest_heard

RATE = 16_000


@pytest.fixture(scope="module")
def exp_dir(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recogniser that has learnt just enough to write different letters."""
    folder = tmp_path_factory.mktemp("recogniser") / "exp"
    calm = {"updates": 40, "freeze_updates": 0, "mask": {"time_probability": 0.0, "channel_probability": 0.0}}
    whole = settings("finetune", speech, encoder=STILL, finetune=calm, optimiser={"clip_norm": 5.0})
    assert train(folder, whole, "training.validate_every=100") == 0
    return folder


@pytest.fixture(scope="module")
def recogniser(exp_dir: Path) -> Recogniser:
    return asrkit.load(exp_dir, precision="fp32")


def wave(seeds: tuple[int, ...] = (1, 2)) -> np.ndarray:
    return np.concatenate([speak(sentence(seed), seed) for seed in seeds])


def test_all_shapes_and_types_of_one_wave(recogniser: Recogniser) -> None:
    samples = wave()
    text = recogniser.transcribe(samples, RATE)
    assert len(set(text)) > 1
    same: list[Any] = [
        torch.from_numpy(samples),
        torch.from_numpy(samples).requires_grad_(),
        samples.astype(np.float64),
        samples[None],
        np.stack([samples, samples]),
        (samples * 32768).round().astype(np.int16),
        (samples * 2.0**31).astype(np.int32),
        list(samples.astype(float)),
    ]
    assert [recogniser.transcribe(one, RATE) for one in same] == [text] * len(same)
    assert recogniser.transcribe(np.stack([samples, -samples]), RATE) == recogniser.transcribe(0 * samples, RATE)


def test_other_rates(recogniser: Recogniser) -> None:
    samples = wave()
    for rate in (8_000, 44_100, 48_000):
        heard = recogniser.transcribe(resample(samples, RATE, rate), rate)
        again = recogniser.transcribe(resample(resample(samples, RATE, rate), rate, RATE), RATE)
        assert heard == again


@pytest.mark.parametrize("seconds", [1 / RATE, 0.001, 0.01, 0.024, 0.03, 0.1])
@pytest.mark.parametrize("kind", [{}, WAVEFORM])
def test_short_and_silent_waves(
    seconds: float, kind: dict[str, Any], recogniser: Recogniser, speech: Path, tmp_path: Path
) -> None:
    if kind:
        whole = settings("finetune", speech, encoder=kind, finetune={"updates": 1, "freeze_updates": 0})
        assert train(tmp_path / "exp", merged(whole, {"data": {"dev": []}})) == 0
        recogniser = asrkit.load(tmp_path / "exp")
    for samples in (np.zeros(round(RATE * seconds), np.float32), wave()[: round(RATE * seconds)]):
        assert isinstance(recogniser.transcribe(samples, RATE), str)


def test_long_waves_are_cut_at_pauses(recogniser: Recogniser) -> None:
    parts = [speak(sentence(seed), seed) for seed in range(40)]
    assert max(map(len, parts)) < longest_heard(recogniser) * RATE
    pause = np.zeros(RATE, np.float32)
    long = np.concatenate([samples for part in parts for samples in (part, pause)])
    heard = recogniser.transcript(long, RATE)
    assert len(heard.text) > 5 * len(recogniser.transcribe(parts[0], RATE))
    ends = np.cumsum([len(part) + len(pause) for part in parts]) / RATE
    for word in heard.words:
        across = (word.start < ends - len(pause) / RATE) & (word.end > ends)
        assert not across.any(), f"{word} goes on behind a pause"


def test_how_long_a_model_has_heard(recogniser: Recogniser, exp_dir: Path, speech: Path, tmp_path: Path) -> None:
    longest = max(len(speak(sentence(seed), seed)) for seed in range(14)) / RATE
    assert longest_heard(recogniser) == pytest.approx(max(2.0, 1.25 * longest), abs=1e-3)
    moved = asrkit.load(shutil.copytree(exp_dir, tmp_path / "exp"))
    moved.experiment.config.data.dir = str(tmp_path / "gone")
    assert longest_heard(moved) == 30.0


@pytest.mark.parametrize(
    ("samples", "rate", "says"),
    [
        (np.zeros(0, np.float32), RATE, "shape"),
        (np.zeros((2, 0), np.float32), RATE, "shape"),
        (np.float32(1.0), RATE, "shape"),
        (np.zeros((1, 1, 100), np.float32), RATE, "shape"),
        (np.zeros((16_000, 2), np.float32), RATE, "transpose"),
        (np.array([0.0, np.nan], np.float32), RATE, "not finite"),
        (np.array([0.0, np.inf], np.float32), RATE, "not finite"),
        (np.zeros(100, np.uint8), RATE, "uint8"),
        (np.zeros(100, np.complex64), RATE, "complex64"),
        (np.zeros(100, np.float32), 0, "sample rate of 0"),
        (np.zeros(100, np.float32), -8000, "sample rate of -8000"),
    ],
)
def test_what_is_no_wave_is_refused(recogniser: Recogniser, samples: Any, rate: int, says: str) -> None:
    with pytest.raises(AsrkitError, match=says):
        recogniser.transcribe(samples, rate)


def test_files(exp_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = wave()
    soundfile.write(tmp_path / "plain.wav", samples, RATE)
    soundfile.write(tmp_path / "float.wav", samples, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "plain.flac", samples, RATE)
    soundfile.write(tmp_path / "stereo.wav", np.stack([samples, samples], 1), RATE)
    soundfile.write(tmp_path / "telephone.wav", resample(samples, RATE, 8000), 8000)
    soundfile.write(tmp_path / "music.ogg", resample(samples, RATE, 48_000), 48_000)
    soundfile.write(tmp_path / "[odd] name.wav", samples, RATE)
    soundfile.write(tmp_path / "long.flac", np.tile(samples, 12), RATE)
    names = sorted(path.name for path in tmp_path.iterdir())
    paths = [str(tmp_path / name) for name in names]
    assert cli.main(["transcribe", "--model", str(exp_dir), "--precision", "fp32", *paths]) == 0
    told = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert list(told) == paths
    text = told[str(tmp_path / "plain.wav")]
    assert len(set(text)) > 1
    for name in ("float.wav", "plain.flac", "stereo.wav"):
        assert told[str(tmp_path / name)] == text
    assert len(told[str(tmp_path / "long.flac")]) > 5 * len(text)


def test_broken_files_do_not_stop_the_others(exp_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "good.wav", wave(), RATE)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE, np.float32), RATE)
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "nothing.flac").write_bytes(b"")
    soundfile.write(tmp_path / "cut.flac", wave(), RATE)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:60])
    (tmp_path / "folder.wav").mkdir()
    names = ["empty.wav", "silent.wav", "text.wav", "nothing.flac", "cut.flac", "folder.wav", "missing.wav", "good.wav"]
    paths = [str(tmp_path / name) for name in names]
    assert cli.main(["transcribe", "--model", str(exp_dir), *paths]) == 2
    said = capsys.readouterr()
    errors = said.err.splitlines()
    assert len(errors) == 7
    for path, error in zip(paths, errors, strict=False):
        assert error.startswith("asrkit: error: ")
        assert path in error
    assert said.out.startswith(f"{tmp_path / 'good.wav'}\t")
    assert said.out.count("\n") == 1


def test_a_name_may_be_as_long_as_names_can_be(
    exp_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, longer = "\u6771" * 83 + "a.wav", "\u6771" * 82 + ".wav"  # 254 and 250 bytes; .json is a byte longer
    for name in (long, longer, "z.wav"):
        soundfile.write(tmp_path / name, wave(), RATE)
    output = tmp_path / "out"
    shown = ["--format", "json", "--output", str(output)]
    assert cli.main(["transcribe", "--model", str(exp_dir), *shown, *map(str, sorted(tmp_path.glob("*.wav")))]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["z.json", longer[:-4] + ".json", long[:-4] + ".json"]
    soundfile.write(tmp_path / (long[:-5] + "ab.wav"), wave(), RATE)
    assert cli.main(["transcribe", "--model", str(exp_dir), *shown, *map(str, sorted(tmp_path.glob("*.wav")))]) == 2
    assert capsys.readouterr().err.count("cannot be written: File name too long") == 1


def test_batches_without_memory_are_taken_in_halves(recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate([Example(str(seed), speak(sentence(seed), seed)) for seed in range(5)], epoch=0)
    texts, scores = recogniser.texts(batch), recogniser.log_probs(batch)
    most = 2
    for name in ("hypotheses", "log_probs"):
        whole = getattr(recogniser.method, name)

        def limited(batch: Any, whole: Any = whole) -> Any:
            if len(batch.ids) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return whole(batch)

        monkeypatch.setattr(recogniser.method, name, limited)
    assert recogniser.texts(batch) == texts
    for found, expected in zip(recogniser.log_probs(batch), scores, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    most = 0
    with pytest.raises(AsrkitError, match=r"out of memory, .* s of audio: CUDA out of memory"):
        recogniser.texts(batch)


def test_an_utterance_that_is_gone_stops_no_other_alignment(
    exp_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_corpus(tmp_path / "corpus", train=2, dev=4)
    given = ["align", "--model", str(exp_dir), "--data", str(data), "--sets", "dev", "--format", "json", "ctm"]
    assert cli.main([*given, "--output", str(tmp_path / "all")]) == 0
    index = SetIndex.open(data / "dev")
    records = list(index.records())
    Path(records[1]["recording"]["sources"][0]["source"]).unlink()
    capsys.readouterr()
    assert cli.main([*given, "--output", str(tmp_path / "some")]) == 2
    assert capsys.readouterr().err.count("asrkit: error:") == 1
    for form in ("jsonl", "ctm"):
        every, some = ((tmp_path / name / "dev" / f"dev.{form}").read_text() for name in ("all", "some"))
        kept = [line for line in every.splitlines() if records[1]["id"] not in line]
        assert some.splitlines() == kept


def test_what_has_no_recogniser_is_refused(speech: Path, tmp_path: Path) -> None:
    with pytest.raises(AsrkitError, match="not an experiment"):
        asrkit.load(tmp_path / "nowhere")
    whole = settings("pretrain", speech, pretrain={"updates": 1})
    assert train(tmp_path / "exp", whole) == 0
    with pytest.raises(AsrkitError, match="no recogniser"):
        asrkit.load(tmp_path / "exp")


def test_a_torn_checkpoint_is_one_line(exp_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(exp_dir, tmp_path / "exp")
    for path in (tmp_path / "exp" / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(AsrkitError, match="not a readable checkpoint"):
        asrkit.load(tmp_path / "exp")


def test_units_that_went_missing_are_named(exp_dir: Path, tmp_path: Path) -> None:
    """Fine-tuning it again, the advice for a model that never learnt to write, would be the wrong one."""
    copy = Path(shutil.copytree(exp_dir, tmp_path / "copy"))
    shutil.rmtree(copy / "units")
    with pytest.raises(AsrkitError, match="has no units, though it has learnt to write"):
        asrkit.load(copy)
