"""An experiment's folder: what goes on in it, what is refused, what it takes over from another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import ENCODER, STILL, WAVEFORM, checkpoint, merged, rows, settings, train, write_corpus

from asrkit.errors import AsrkitError
from asrkit.files import held_alone
from asrkit.text.units import Units
from asrkit.training.config import MAY_CHANGE
from asrkit.training.experiment import open_experiment


def brief(method: str, speech: Path, **changes: Any) -> dict[str, Any]:
    whole = settings(method, speech, **{method: {"updates": 2}})
    if method == "finetune":
        whole["finetune"]["freeze_updates"] = 0
    return merged(whole, changes)


@pytest.fixture(scope="module")
def pretrained(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "exp"
    assert train(folder, brief("pretrain", speech)) == 0
    return folder


@pytest.fixture(scope="module")
def tuned(speech: Path, pretrained: Path) -> Path:
    folder = pretrained.with_name("tuned")
    assert train(folder, brief("finetune", speech, init=str(pretrained))) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_the_folder_holds_what_is_promised(tuned: Path) -> None:
    assert {path.name for path in tuned.iterdir()} - {".lock"} == {
        "config.yaml", "environment.json", "recipe", "units", "checkpoints", "metrics.jsonl", "tensorboard", "train.log"
    }  # fmt: skip
    experiment = open_experiment(tuned)
    assert experiment.recipe == "pretrain+finetune"
    assert experiment.units is not None
    assert experiment.weights("best")[1] == experiment.weights("last")[1] == 2
    row = rows(tuned)[0] | json.loads((tuned / "metrics.jsonl").read_text().splitlines()[0])
    assert {
        "step", "epoch", "phase", "seconds", "loss", "ctc", "learning_rate", "grad_norm", "audio_seconds_per_second",
        "data_wait_share",
    } <= set(row)  # fmt: skip
    assert 0 <= row["data_wait_share"] <= 1
    assert "step 2, dev: loss" in (tuned / "train.log").read_text()


def test_pre_training_logs_codes_and_masks(pretrained: Path) -> None:
    assert {"contrastive", "diversity", "code_perplexity", "mask_share", "accuracy"} <= set(rows(pretrained)[0])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("seed=2", "seed is 1 there and 2 here"),
        ("finetune.schedule.learning_rate=0.5", "finetune.schedule.learning_rate"),
        ("data.labelled.seconds_per_update=5", "data.labelled.seconds_per_update"),
        ("data.dev=[]", "data.dev"),
        ("encoder.dropout=0.4", "encoder.dropout"),
        ("init=", "init is"),
        ("training.precision=bf16", "training.precision"),
    ],
)
def test_other_settings_are_refused_by_name(
    override: str, named: str, tuned: Path, speech: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tuned / "config.yaml").read_text()
    assert train(tuned, brief("finetune", speech, init=str(pretrained)), override) == 2
    said = refused(capsys)
    assert "holds a run with other settings" in said
    assert named in said
    assert (tuned / "config.yaml").read_text() == before


def test_another_method_is_refused(tuned: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tuned, brief("pretrain", speech)) == 2
    assert "holds a run of the method 'finetune'" in refused(capsys)


def test_what_does_not_define_the_run_may_change(tuned: Path, speech: Path, pretrained: Path) -> None:
    values = {"data.prefetch": "7", "training.keep_checkpoints": "5", "training.log_every": "9", "data.workers": "0"}
    assert set(values) < set(MAY_CHANGE)
    overrides = [f"{key}={value}" for key, value in values.items()]
    assert train(tuned, brief("finetune", speech, init=str(pretrained)), *overrides) == 0
    assert open_experiment(tuned).config.data.prefetch == 7


def test_a_start_that_failed_can_be_corrected(speech: Path, tmp_path: Path) -> None:
    whole = brief("finetune", speech)
    assert train(tmp_path / "exp", whole, "data.dir=/nowhere") == 2
    assert train(tmp_path / "exp", whole, "data.dev=[nowhere]") == 2
    assert train(tmp_path / "exp", whole, "units.kind=bpe", "units.size=20", "data.labelled.min_seconds=99") == 2
    assert train(tmp_path / "exp", whole) == 0
    experiment = open_experiment(tmp_path / "exp")
    assert experiment.units is not None
    assert experiment.units.kind == "char"


def test_relative_paths_mean_the_same_from_everywhere(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(speech, tmp_path / "here" / "data")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert train(tmp_path / "exp", brief("finetune", Path("data"))) == 0
    assert train(tmp_path / "exp", brief("finetune", tmp_path / "here" / "data")) == 0
    monkeypatch.chdir(tmp_path / "there")
    assert train(tmp_path / "exp", brief("finetune", Path("data"))) == 2, "another folder of that name"
    assert train(tmp_path / "exp", brief("finetune", Path("../here/data"))) == 0


@pytest.mark.parametrize("init", ["gone", "elsewhere"])
def test_data_and_init_that_moved_away_do_not_stop_a_run(
    speech: Path, pretrained: Path, tmp_path: Path, init: str
) -> None:
    shutil.copytree(speech, tmp_path / "data")
    shutil.copytree(pretrained, tmp_path / "first")
    whole = brief("finetune", tmp_path / "data", init=str(tmp_path / "first"), training={"checkpoint_every": 1})
    assert train(tmp_path / "exp", whole) == 0
    (tmp_path / "exp" / "checkpoints" / "last").write_text("step_1.pt\n")
    (tmp_path / "data").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "first")
    moved = [f"data.dir={tmp_path / 'moved'}"]
    if init == "elsewhere":
        shutil.copytree(pretrained, tmp_path / "elsewhere")
        moved.append(f"init={tmp_path / 'elsewhere'}")
    assert train(tmp_path / "exp", whole, *moved) == 0
    assert checkpoint(tmp_path / "exp")["finished"]


def test_two_processes_in_one_folder(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held_alone(tmp_path / "exp"):
        assert train(tmp_path / "exp", brief("pretrain", speech)) == 2
    assert "another process is at work in this folder" in refused(capsys)


# init


def test_the_encoder_comes_with_init_and_the_rest_is_new(
    tuned: Path, pretrained: Path, speech: Path, tmp_path: Path
) -> None:
    still = brief("finetune", speech, init=str(pretrained), finetune={"schedule": {"learning_rate": 0.0}})
    assert train(tmp_path / "exp", still) == 0
    given, own = checkpoint(pretrained, "best")["model"], checkpoint(tmp_path / "exp")["model"]
    assert all(torch.equal(value, given[name]) for name, value in own.items() if name.startswith("encoder."))
    kept = brief("finetune", speech, init=str(tuned), finetune={"keep_head": True, "schedule": {"learning_rate": 0.0}})
    assert train(tmp_path / "kept", kept) == 0
    given, own = checkpoint(tuned, "best")["model"], checkpoint(tmp_path / "kept")["model"]
    assert all(torch.equal(value, given[name]) for name, value in own.items())
    fresh = merged(kept, {"finetune": {"keep_head": False}})
    assert train(tmp_path / "fresh", fresh) == 0
    assert not torch.equal(checkpoint(tmp_path / "fresh")["model"]["ctc.project.weight"], given["ctc.project.weight"])
    assert open_experiment(tmp_path / "kept").recipe == "pretrain+finetune+finetune"


def test_the_shape_comes_with_init_too(pretrained: Path, speech: Path, tmp_path: Path) -> None:
    whole = brief("finetune", speech, init=str(pretrained))
    whole["encoder"] = {"dropout": 0.3}
    assert train(tmp_path / "exp", whole) == 0
    encoder = open_experiment(tmp_path / "exp").config.encoder
    assert (encoder.dim, encoder.dropout) == (ENCODER["dim"], 0.3)
    # And going on does not need the shape in the config either.
    assert train(tmp_path / "exp", whole) == 0


@pytest.mark.parametrize(
    ("encoder", "named"),
    [
        ({"dim": 24}, "encoder.dim is 24 here, but `init` has 16"),
        ({"logmel": {"bins": 20}}, "encoder.logmel.bins is 20 here, but `init` has 16"),
        ({"waveform": {"norm": "layer"}}, "encoder.waveform.norm is 'layer' here, but `init` has 'group'"),
        ({"blocks": "conformer", "layers": 3}, "encoder.layers is 3"),
    ],
)
def test_another_shape_than_inits_is_refused(
    encoder: dict[str, Any], named: str, pretrained: Path, speech: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert train(tmp_path / "exp", brief("finetune", speech, init=str(pretrained), encoder=encoder)) == 2
    assert named in refused(capsys)


def test_a_folder_that_is_no_experiment(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for make in (lambda path: None, lambda path: path.mkdir(), lambda path: (path / "config.yaml").write_text("x: 1")):
        make(tmp_path / "init")
        assert train(tmp_path / "exp", brief("finetune", speech, init=str(tmp_path / "init"))) == 2
        assert str(tmp_path / "init") in refused(capsys)


def test_an_experiment_without_weights(
    pretrained: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pretrained, tmp_path / "init")
    shutil.rmtree(tmp_path / "init" / "checkpoints")
    assert train(tmp_path / "exp", brief("finetune", speech, init=str(tmp_path / "init"))) == 2
    assert "no checkpoint yet" in refused(capsys)


@pytest.mark.parametrize("other", ["dir", "kind"])
def test_a_head_cannot_be_kept_with_other_units(
    other: str, tuned: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = open_experiment(tuned).units
    assert units is not None
    Units(units.symbols[:2] + units.symbols[:1:-1], boundary=units.boundary).save(tmp_path / "units")
    override = {"dir": f"units.dir={tmp_path / 'units'}", "kind": "units.kind=bpe"}[other]
    whole = brief("finetune", speech, init=str(tuned), finetune={"keep_head": True})
    assert train(tmp_path / "exp", whole, override) == 2
    assert "keep_head is on, but `init` has other units" in refused(capsys)
    same = f"units.dir={tuned / 'units'}"
    assert train(tmp_path / "exp", whole, same) == 0


def test_a_head_that_init_has_not(
    pretrained: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = brief("finetune", speech, init=str(pretrained), finetune={"keep_head": True})
    assert train(tmp_path / "exp", whole) == 2
    assert "finetune.keep_head" in refused(capsys)


def test_units_of_pieces(tuned: Path, speech: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "exp", brief("finetune", speech, units={"kind": "bpe", "size": 20})) == 0
    units = open_experiment(tmp_path / "exp").units
    assert units is not None
    assert units.kind == "bpe"
    assert checkpoint(tmp_path / "exp")["model"]["ctc.project.weight"].shape[0] == len(units)


# what was edited by hand


def test_weights_of_another_model(
    tuned: Path, speech: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tuned, tmp_path / "exp")
    path = tmp_path / "exp" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["encoder"]["ffn_dim"] = 20
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(AsrkitError, match=r"describe different models.*size mismatch for encoder"):
        open_experiment(tmp_path / "exp").method()


def test_a_missing_recipe_is_one_line(tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned, tmp_path / "exp")
    (tmp_path / "exp" / "recipe").unlink()
    with pytest.raises(AsrkitError, match="recipe: cannot be read"):
        _ = open_experiment(tmp_path / "exp").recipe


def test_bf16_on_the_cpu(speech: Path, tmp_path: Path) -> None:
    for name, encoder in (("conformer", STILL), ("wav2vec2", WAVEFORM)):
        whole = brief("finetune", speech, encoder=encoder, training={"precision": "bf16"})
        assert train(tmp_path / name, whole) == 0
        assert rows(tmp_path / name)[0]["loss"] > 0


def test_a_run_that_only_diverges_is_stopped(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = settings("finetune", speech, finetune={"schedule": {"learning_rate": 1e30}, "freeze_updates": 0})
    assert train(tmp_path / "exp", whole, "training.max_skipped_updates=3") == 2
    said = capsys.readouterr()
    assert "3 updates in a row had a loss or gradient that is not finite" in said.err
    assert said.err.count("\n") == 1
    assert said.out.count("is not finite; skipped") == 3


def test_audio_that_vanishes_in_mid_run(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_corpus(tmp_path / "corpus")
    gone = sorted((tmp_path / "corpus" / "audio").glob("train*.wav"))
    for path in gone[::2]:
        path.unlink()
    whole = settings("finetune", data, data={"max_unreadable": 0.6})
    assert train(tmp_path / "exp", whole) == 0
    assert capsys.readouterr().out.count("utterance skipped") == len(gone[::2])
    assert sum(row.get("skipped_utterances", 0) for row in rows(tmp_path / "exp")) >= len(gone[::2])
    for path in gone[1::2]:
        path.unlink()
    assert train(tmp_path / "other", whole, "finetune.updates=400") == 2
    said = capsys.readouterr().err
    assert "could not be read" in said
    assert said.count("\n") == 1
