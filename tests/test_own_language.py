"""examples/own_language: who is cut off for dev and test, what the script refuses, and the whole way on Greek speech."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given
from hypothesis import strategies as st

from asrkit import load
from asrkit.data.corpus import Utterance
from asrkit.errors import AsrkitError

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "own_language"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("own_language_split", EXAMPLE / "split.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


split = _load()


def utterances(seconds: Sequence[Sequence[float]]) -> list[Utterance]:
    """Return a list of utterances of these lengths, a speaker per row."""
    return [
        Utterance(f"{speaker}-{number}", "a.wav", duration=length, text="α", speaker=f"speaker{speaker}")
        for speaker, lengths in enumerate(seconds)
        for number, length in enumerate(lengths)
    ]


@given(st.lists(st.lists(st.floats(0.5, 30.0), min_size=1, max_size=5), min_size=3, max_size=12), st.integers(1, 5))
def test_no_speaker_is_in_two_sets_and_no_set_is_empty(seconds: list[list[float]], seed: int) -> None:
    given_ones = utterances(seconds)
    sets = split.split(given_ones, ["dev", "test"], 0.1, seed)
    assert sorted(sets) == ["dev", "test", "train"]
    speakers = {name: {one.speaker for one in part} for name, part in sets.items()}
    assert sum(map(len, speakers.values())) == len(seconds)
    assert sorted(one.id for part in sets.values() for one in part) == sorted(one.id for one in given_ones)
    assert sets == split.split(given_ones, ["dev", "test"], 0.1, seed)


def test_who_speaks_most_is_trained_on() -> None:
    seconds = [[30.0] * 10] + [[5.0] * 4 for _ in range(10)]
    for seed in range(1, 6):
        sets = split.split(utterances(seconds), ["dev", "test"], 0.1, seed)
        assert "speaker0" in {one.speaker for one in sets["train"]}
        spoken = {name: sum(one.duration for one in part) for name, part in sets.items()}
        assert spoken["dev"] == spoken["test"] == 60.0  # a tenth of 500 s, rounded up to speakers


def test_too_few_speakers() -> None:
    with pytest.raises(AsrkitError, match="2 speakers cannot be shared out among 3 sets"):
        split.split(utterances([[1.0], [1.0]]), ["dev", "test"], 0.1, 1)


def test_what_is_passed_over_is_told_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for speaker in ("a", "b", "c"):
        write_wave(tmp_path / "in" / speaker / "1.wav")
        (tmp_path / "in" / speaker / "1.txt").write_text("x")
    (tmp_path / "in" / "b" / "1.txt").write_text("x", encoding="utf-16")
    (tmp_path / "in" / "c" / "2.m4a").write_bytes(b"x")
    assert split.main([str(tmp_path / "in"), "--output", str(tmp_path / "out.jsonl")]) == 2
    said = capsys.readouterr()
    assert "passed over: b-1: " in said.out
    assert "not UTF-8" in said.out
    assert "passed over: c-2: .m4a is not read: convert it to wav or flac" in said.out
    assert "2 speakers cannot be shared out among 3 sets" in said.err


def write_wave(path: Path, seconds: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(len(str(path))).standard_normal(int(16_000 * seconds)), 16_000)


def table(folder: Path) -> list[dict[str, str]]:
    assert split.main([str(folder), "--output", str(folder.parent / "out.jsonl")]) == 0
    return [json.loads(line) for line in (folder.parent / "out.jsonl").read_text(encoding="utf-8").splitlines()]


def test_recordings_with_texts_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "labelled"
    for speaker in "abcd":
        write_wave(folder / speaker / "one.wav")
        (folder / speaker / "one.txt").write_text("καλη μερα\n", encoding="utf-8")
    write_wave(folder / "a" / "two.wav")
    rows = table(folder)
    assert sorted(row["speaker"] for row in rows) == list("abcd")
    assert {row["set"] for row in rows} == {"train", "dev", "test"}
    assert {row["text"] for row in rows} == {"καλη μερα"}
    assert "passed over: a-two: no text in two.txt" in capsys.readouterr().out


def test_tables_and_sets_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "labelled"
    for number in range(6):
        write_wave(folder / f"{number}.wav")
    for name, numbers in (("corpus", range(4)), ("test_phone", (4, 5))):
        lines = ["audio\ttext\tspeaker", *(f"{number}.wav\tα\ts{number}" for number in numbers)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sets = {row["audio"].rpartition("/")[2]: row["set"] for row in table(folder)}
    assert {sets["4.wav"], sets["5.wav"]} == {"test_phone"}
    assert sorted(sets[f"{number}.wav"] for number in range(4)) == ["dev", "train", "train", "train"]


def test_kaldi_folders(tmp_path: Path) -> None:
    folder = tmp_path / "labelled"
    for name, speakers in (("train", "ab"), ("dev", "c"), ("test", "d")):
        (folder / name).mkdir(parents=True)
        files = {"wav.scp": "", "text": "", "utt2spk": ""}
        for speaker in speakers:
            write_wave(folder / f"{speaker}.wav")
            files["wav.scp"] += f"{speaker}1 {folder / speaker}.wav\n"
            files["text"] += f"{speaker}1 α\n"
            files["utt2spk"] += f"{speaker}1 {speaker}\n"
        for file, content in files.items():
            (folder / name / file).write_text(content, encoding="utf-8")
    assert {row["speaker"]: row["set"] for row in table(folder)} == {
        "a": "train",
        "b": "train",
        "c": "dev",
        "d": "test",
    }


def test_a_folder_without_transcripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wave(tmp_path / "labelled" / "one.wav")
    assert split.main([str(tmp_path / "labelled"), "--output", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert "no transcribed speech in here; the first of 1 entries passed over: no text in one.txt" in line
    assert split.main([str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert "no such folder" in capsys.readouterr().err


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(EXAMPLE / "run.sh"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--labelled DIR is missing"),
        (["--labelled", "."], "--init is missing"),
        (["--labelled", "nowhere", "--init", "x"], "nowhere: no such folder"),
        (["--labelled", ".", "--init", "x", "--method", "bl_just"], "--method bl_just needs --unlabelled DIR"),
        (["--labelled", ".", "--init", "x", "--method", "magic"], "not one of wav2vec_s bl_just finetune"),
        (["--labelled", ".", "--init", "none"], "--init none needs --unlabelled DIR"),
        (["--labelled", ".", "--init", "x", "--nproc", "many"], "--nproc many: not a whole number"),
        (["--labelled", ".", "--init", "x", "--wrong"], "unknown argument '--wrong'"),
        (["--labelled", ".", "--init", "x", "--stage", "9"], "--stage 9: not one of 0 1 2 3 4 5 6"),
        (["--labelled", ".", "--init", "x", "--stage", "4", "--stop-stage", "2"], "comes after --stop-stage 2"),
        (["--labelled", ".", "--init", "x", "--", "finetune.updatess=1"], "did you mean 'finetune.updates'?"),
        (["--labelled", ".", "--init", "x", "--", "data.dir=y"], "the script sets it"),
        (["--labelled", ".", "--init", "x", "--", "bl_just.outer_epochs=1"], "no stage of the method bl_just"),
    ],
)
def test_refusals(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_other_arguments_are_not_mixed(tmp_path: Path) -> None:
    write_wave(tmp_path / "labelled" / "one.wav")
    common = ["--labelled", "labelled", "--exp-dir", "exp"]
    first = run(*common, "--init", "x", cwd=tmp_path)
    assert (first.returncode, "no transcribed speech in here" in first.stderr) == (2, True)
    other = run(*common, "--init", "y", cwd=tmp_path)
    assert "no transcribed speech in here" in other.stderr, "what made nothing binds nobody"
    (tmp_path / "exp" / "data" / "train").mkdir(parents=True)
    (tmp_path / "exp" / "data" / "train" / "set.json").write_text("{}")
    other = run(*common, "--init", "z", cwd=tmp_path)
    assert other.returncode == 2
    assert "was made with other arguments" in other.stderr


WORDS = ["καλη", "μερα", "σας", "ευχαριστω", "πολυ", "το", "σπιτι", "ειναι", "εδω", "δρομος", "παει", "θαλασσα"]


def speak_greek(folder: Path, speakers: Sequence[str], sentences: int, transcribed: bool) -> None:
    """Write Greek sentences by espeak-ng, a folder per speaker."""
    from asrkit.data.espeak import Synthesiser

    for number, variant in enumerate(speakers):
        random = np.random.default_rng(number + 100 * transcribed)
        with Synthesiser("el", variant, seed=1) as voice:
            for index in range(sentences):
                text = " ".join(random.choice(WORDS, 3))
                path = folder / variant / f"{index}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, voice.speak(text, rate=220), voice.sample_rate)
                if transcribed:
                    path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


FEW = {
    "wav2vec_s": ["wav2vec_s.updates=6", "wav2vec_s.warmup_updates=4", "wav2vec_s.freeze_updates=1", "finetune.updates=4",
                  "finetune.freeze_updates=1"],
    "bl_just": ["bl_just.outer_epochs=2", "bl_just.exploration.updates=1", "bl_just.joint.updates=1",
                "bl_just.finetune.updates=2"],
}  # fmt: skip
COMMON = [
    "device=cpu",
    "training.precision=fp32",
    "data.workers=0",
    "data.batch_seconds=35",
    "data.unlabelled.min_seconds=0.5",
]
COMMON += [f"data.{stream}.seconds_per_update=20" for stream in ("labelled", "unlabelled")]


def write_checkpoint(folder: Path, **shape: Any) -> None:
    """Write a small model of random weights as transformers does."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=[16] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, codevector_dim=16, proj_codevector_dim=16, **shape,
    )  # fmt: skip
    transformers.Wav2Vec2ForPreTraining(config).save_pretrained(folder)
    normalise = config.feat_extract_norm == "layer"
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise, return_attention_mask=normalise)
    extractor.save_pretrained(folder)


def write_speech(labelled: Path, unlabelled: Path) -> None:
    pytest.importorskip("espeakng_loader")
    from asrkit.data.espeak import variants

    names = sorted(variants())[:6]
    speak_greek(labelled, names[:4], 3, transcribed=True)
    speak_greek(unlabelled, names[4:], 3, transcribed=False)


def assert_is_a_recogniser(exp: Path, tuned: Path, recipe: str) -> None:
    units = json.loads((exp / "data/units/units.json").read_text(encoding="utf-8"))["symbols"]
    assert {"Α", "Θ", "Σ"} <= set(units)
    for name in ("dev", "test"):
        result = json.loads((tuned / f"decode/{name}/greedy/results.json").read_text())
        assert (result["utterances"], result["recipe"]) == (3, recipe)
    assert (exp / "report.html").is_file()


@pytest.mark.slow
def test_the_whole_way_on_greek_from_a_random_checkpoint(tmp_path: Path) -> None:
    write_speech(tmp_path / "labelled", tmp_path / "unlabelled")
    write_checkpoint(tmp_path / "checkpoint")
    arguments = ["--labelled", "labelled", "--unlabelled", "unlabelled", "--init", "checkpoint", "--exp-dir", "exp"]
    arguments += ["--method", "bl_just", "--", *FEW["bl_just"], *COMMON]
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_is_a_recogniser(tmp_path / "exp", tmp_path / "exp/bl_just", "checkpoint+bl_just")
    again = run(*arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing to do" in again.stdout


SECTION = "## I have a Hugging Face wav2vec 2.0 checkpoint and one hour of transcripts\n"


@pytest.mark.slow
def test_the_readme_works_as_written(tmp_path: Path) -> None:
    """Its commands, word for word, but for the length of the training, on its folders; the hub's model lies in one of its name."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(SECTION)[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    script = "".join(blocks).replace(". scripts/env.sh\n", "")
    call = next(line for line in script.splitlines() if line.startswith("examples/own_language/run.sh"))
    assert script.count(call) == 1
    script = script.replace(call, f"{call} -- {' '.join([*FEW['wav2vec_s'], *COMMON])}")
    write_speech(tmp_path / "my_speech", tmp_path / "my_recordings")
    large = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
    write_checkpoint(tmp_path / "facebook" / "wav2vec2-xls-r-300m", **large)
    for name in ("examples", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    exp = tmp_path / "exp/own_language"
    assert_is_a_recogniser(exp, exp / "finetune", "wav2vec2-xls-r-300m+wav2vec_s+finetune")
    assert sum(line.startswith("my_recordings/") for line in done.stdout.splitlines()) == 6
    transformers = pytest.importorskip("transformers")
    model = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "my_model").eval()
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "my_model")
    recording = next((tmp_path / "my_recordings").rglob("*.wav"))
    recogniser = load(exp / "finetune", device="cpu", precision="fp32")
    wave = torch.from_numpy(soundfile.read(recording, dtype="float32")[0])
    wave = torchaudio.functional.resample(wave, soundfile.info(recording).samplerate, 16_000).numpy()
    with torch.inference_mode():
        best = model(processor(wave, sampling_rate=16_000, return_tensors="pt").input_values).logits.argmax(-1)
    assert " ".join(processor.batch_decode(best)[0].split()) == recogniser.transcribe(wave, 16_000)
