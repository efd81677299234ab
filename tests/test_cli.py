"""The command line: whatever is wrong is one line that names it, and exit status 2."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml
from helpers import merged, settings, train, write_config

from asrkit import cli
from asrkit.config import describe
from asrkit.training.config import schema


def assert_one_line(said: str, *parts: str) -> None:
    assert said.startswith("asrkit: error: "), said
    assert said.count("\n") == 1, said
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("finetune.updates=ten", ["finetune.updates", "an integer"]),
        ("finetune.updates=-3", ["finetune.updates is -3"]),
        ("finetune.update=3", ["finetune.update", "did you mean 'finetune.updates'"]),
        ("updates=3", ["unknown key 'updates'", "finetune.updates"]),
        ("finetune.freeze_updates=99", ["finetune.freeze_updates", "finetune.updates"]),
        ("finetune.schedule.name=tristage", ["tristage", "tri_stage"]),
        ("finetune.schedule.warmup=0.9", ["finetune.schedule.warmup"]),
        ("finetune.mask.time_probability=2", ["finetune.mask.time_probability"]),
        ("finetune.ctc.normalise=frame", ["finetune.ctc.normalise", "frames"]),
        ("pretrain.updates=3", ["unknown key 'pretrain"]),
        ("method=finetun", ["finetun", "did you mean 'finetune'"]),
        ("method=", ["method"]),
        ("exp_dir=", ["exp_dir"]),
        ("encoder.dim=15", ["encoder.heads", "encoder.dim"]),
        ("encoder.heads=3", ["encoder.heads"]),
        ("encoder.conv_kernel=4", ["encoder.conv_kernel"]),
        ("encoder.frontend=mel", ["encoder.frontend", "logmel"]),
        ("encoder.dropout=1.5", ["encoder.dropout"]),
        ("encoder.waveform.layers=3", ["encoder.waveform.layers"]),
        ("encoder.logmel.high_hz=9000", ["logmel.high_hz"]),
        ("optimiser.betas=[0.9]", ["optimiser.betas"]),
        ("optimiser.group_rate_scale={ssl: 2}", ["'ssl'"]),
        ("training.precision=fp61", ["training.precision", "fp16"]),
        ("training.precision=fp16", ["training.precision", "CPU"]),
        ("training.log_every=0", ["training.log_every"]),
        ("device=gpu", ["gpu", "cuda"]),
        ("device=mps", ["mps"]),
        ("data.dir=/nowhere", ["/nowhere"]),
        ("data.labelled.sets=[]", ["data.labelled.sets"]),
        ("data.labelled.sets=[tarin]", ["tarin"]),
        ("data.dev=[nowhere]", ["nowhere"]),
        ("data.labelled.crop_seconds=2", ["data.labelled.crop_seconds"]),
        ("data.labelled.speed_factors=[9]", ["speed_factors"]),
        ("data.labelled.noise.probability=0.5", ["noise"]),
        ("data.labelled.min_seconds=100", ["no usable utterance"]),
        ("init=/nowhere", ["/nowhere", "not an experiment"]),
        ("finetune.keep_head=true", ["finetune.keep_head", "init"]),
        ("finetune.freeze_frontend=true", ["finetune.freeze_frontend", "init"]),
        ("units.dir=/nowhere", ["/nowhere"]),
        ("units.kind=phone", ["units.lexicon"]),
        ("units.kind=bpe", ["units.size"]),
        ("seed=-1", ["seed is -1"]),
        ("seed", ["seed"]),
        ("data.labelled={sets: [train", ["data.labelled"]),
    ],
)
def test_a_wrong_setting_is_named(
    override: str, says: Sequence[str], speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "exp", settings("finetune", speech), override) == 2
    assert_one_line(capsys.readouterr().err, *says)
    assert not (tmp_path / "exp" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method: finetune\n  seed: 1\n", "config.yaml:2"),
        ("method: finetune\nseed: 1\nseed: 2\n", "seed"),
        ("- method\n", "config"),
        ("", "no `method`"),
        ("method: [finetune]\n", "method"),
        ("method: finetune\nbase: nowhere.yaml\n", "nowhere.yaml"),
        ("method: finetune\nseed: ${nothing}\n", "nothing"),
        ("\x00", "config.yaml"),
    ],
)
def test_a_broken_file_is_named(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert cli.main(["train", str(path), f"exp_dir={tmp_path / 'exp'}"]) == 2
    assert_one_line(capsys.readouterr().err, says)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["train", "/nowhere.yaml"],
        ["train", "seed=1"],
        ["train", "--help-config", "pretrian"],
        ["decode", "--model", "/nowhere", "--data", "/nowhere", "--sets", "x"],
        ["transcribe", "--model", "/nowhere", "x.wav"],
        ["score", "/nowhere", "/nowhere"],
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert_one_line(capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [[], ["tarin"], ["train", "--nproc", "2"], ["decode"], ["prepare", "timit"]])
def test_a_wrong_flag_shows_where_help_is(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert_one_line(capsys.readouterr().err, "--help")


@pytest.mark.parametrize("method", ["pretrain", "finetune"])
def test_help_config_prints_every_setting_with_its_meaning(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help-config", method]) == 0
    lines = capsys.readouterr().out.splitlines()
    fields = describe(schema(method))
    assert len(lines) == 2 * len(fields)
    for field, first, second in zip(fields, lines[::2], lines[1::2], strict=True):
        assert first.startswith(f"{field.key} ({field.type}) = ")
        assert second.strip() == field.doc
        assert len(field.doc) > 5
    assert f"{method}.updates" in {field.key for field in fields}


def test_help_config_into_a_pipe_that_closes() -> None:
    command = f"{sys.executable} -m asrkit train --help-config finetune | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout == "method (str) = \n"
    assert done.stderr == ""


def test_a_folder_that_cannot_be_written_is_one_line(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    whole = settings("pretrain", speech)
    assert cli.main(["train", str(write_config(tmp_path / "exp", whole)), f"exp_dir={tmp_path / 'file' / 'exp'}"]) == 2
    assert_one_line(capsys.readouterr().err, f"{tmp_path / 'file'}: is a file, not a folder")


def test_augmentation_in_a_run(speech: Path, tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.mkdir()
    soundfile.write(noise / "hum.wav", [0.1, -0.1] * 8000, 16_000)
    louder = {"noise": {"dir": str(noise), "probability": 1.0}, "speed_factors": []}
    faster = {"speed_factors": [1.2]}
    losses = []
    for name, labelled in (("plain", {"speed_factors": []}), ("noisy", louder), ("fast", faster)):
        whole = settings("finetune", speech, data={"labelled": labelled})
        assert train(tmp_path / name, merged(whole, {"finetune": {"updates": 4}})) == 0
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append(yaml.safe_load(rows[0])["loss"])
    assert len(set(losses)) == 3


VALUES = {
    "int": ("-1", "0", "x"),
    "float": ("-1", "0", "nan", "1e30"),
    "str": ("", "x"),
    "bool": ("true", "x"),
    "list": ("[]", "[-1]", "[x]"),
    "dict": ("{}", "{x: -1}"),
}


def odd_settings() -> list[tuple[str, str]]:
    """Every setting with values that are odd for its type: (method, KEY=VALUE)."""
    left_alone = ("method", "exp_dir", "device", "data.workers")
    seen: dict[str, str] = {}
    for method in ("finetune", "pretrain"):
        for field in describe(schema(method)):
            if field.key not in left_alone:
                for value in VALUES[field.type.partition("[")[0]]:
                    seen.setdefault(f"{field.key}={value}", method)
    return [(method, override) for override, method in seen.items()]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_any_value_of_any_setting_is_obeyed_or_refused(
    part: int, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one: dict[str, Any] = {"data": {"dev": []}}
    whole = {
        "pretrain": settings("pretrain", speech, pretrain={"updates": 1}, **one),
        "finetune": settings("finetune", speech, finetune={"updates": 1, "freeze_updates": 0}, **one),
    }
    for number, (method, override) in enumerate(odd_settings()[part::10]):
        status = train(tmp_path / str(number), whole[method], override)
        said = capsys.readouterr().err
        assert status in (0, 2), override
        if status == 2:
            assert_one_line(said)


def test_files_and_settings_may_stand_behind_flags(speech: Path, tmp_path: Path) -> None:
    config = str(write_config(tmp_path / "exp", settings("finetune", speech)))
    assert cli.main(["train", config, "seed=2", "--dry-run", f"exp_dir={tmp_path / 'exp'}"]) == 0
    (tmp_path / "ref").write_text("a x y\n")
    assert cli.main(["score", str(tmp_path / "ref"), "--worst", "0", str(tmp_path / "ref")]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["transcribe", "a.wav", "--model", "x", "--batch-seconds", "nan"],
            "--batch-seconds: nan is not a finite number",
        ),
        (["decode", "--model", "x", "--data", "d", "--sets", "s", "--lm-weight", "inf"], "--lm-weight: inf is not"),
        (["report", "x", "--megabytes", "many"], "--megabytes: invalid"),
        (["score", "a", "b", "--worst", "-1"], "--worst: -1 is not a whole number from 0"),
        (["decode", "--model", "x", "--data", "d", "--sets", "s", "--tune-seed", "-1"], "--tune-seed: -1 is not"),
        (["score", "a", "b", "--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_impossible_numbers_are_refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert_one_line(capsys.readouterr().err, says)


def test_a_line_number_is_no_emoji(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"a-{number} x\n" for number in range(1, 100)]
    (tmp_path / "l.txt").write_text("".join([*lines, "a-5 x\n"]))
    assert cli.main(["score", str(tmp_path / "l.txt"), str(tmp_path / "l.txt")]) == 2
    assert "l.txt:100: " in capsys.readouterr().err


def test_training_on_what_chooses_the_best_is_told(
    speech: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = settings("finetune", speech)
    assert train(tmp_path / "exp", whole, "data.labelled.sets=[train,dev]") == 0
    assert "dev: in data.dev and trained on" in (tmp_path / "exp" / "train.log").read_text()
