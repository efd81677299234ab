"""Sources that are not there, packages that are missing, and imported experiments put to use."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import foreign
import helpers
import pytest
import torch
import yaml
from helpers import UNITS
from test_export import write

from asrkit import load
from asrkit.interop import hub as hub_module
from asrkit.training.experiment import open_experiment


@pytest.mark.parametrize(
    ("source", "package", "extra"),
    [
        ("fairseq2:wav2vec2_base", "fairseq2", "fairseq2"),
        ("somebody/model", "huggingface_hub", "huggingface"),
        ("FOLDER", "safetensors", "huggingface"),
    ],
)
def test_missing_packages_are_named_with_their_extra(
    source: str,
    package: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("safetensors")
    if source == "FOLDER":
        folder = write("base", tmp_path / "experiment")
        source = str(foreign.run_export(folder, "huggingface", tmp_path / "theirs"))
    capsys.readouterr()
    hide(monkeypatch, package)
    assert foreign.cli.main(["import", source, "--output", str(tmp_path / "ours")]) == 2
    assert f'(pip install "asrkit[{extra}]")' in foreign.told(capsys)


@pytest.mark.parametrize(
    ("form", "package", "extra"),
    [("onnx", "onnx", "onnx"), ("onnx", "onnxruntime", "onnx"), ("huggingface", "safetensors", "huggingface")],
)
def test_missing_packages_of_formats_are_named_with_their_extra(
    form: str,
    package: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write("base", tmp_path / "ours")
    hide(monkeypatch, package)
    assert foreign.cli.main(["export", str(folder), "--format", form, "--output", str(tmp_path / "out")]) == 2
    assert f'(pip install "asrkit[{extra}]")' in foreign.told(capsys)


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package impossible to import."""
    import sys

    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    found = builtins.__import__

    def find(name: str, *arguments: Any, **options: Any) -> Any:
        if name == package or name.startswith(f"{package}."):
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return found(name, *arguments, **options)

    class Finder:
        def find_spec(self, name: str, *arguments: Any) -> None:
            if name == package or name.startswith(f"{package}."):
                raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    monkeypatch.setattr(builtins, "__import__", find)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])


def test_the_hub_is_asked_and_may_be_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = write("base", tmp_path / "experiment")
    exported = foreign.run_export(folder, "huggingface", tmp_path / "theirs")
    asked = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append(name)
        return str(exported)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    for number, source in enumerate(("somebody/model", "huggingface:somebody/model")):
        ours = foreign.run_import(source, tmp_path / f"ours{number}")
        foreign.assert_same_model(folder, ours)
        assert open_experiment(ours).recipe == "model"
    assert asked == ["somebody/model"] * 2

    def silent(name: str, **options: Any) -> str:
        raise hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(hub, "snapshot_download", silent)
    capsys.readouterr()
    assert foreign.cli.main(["import", "somebody/model", "--output", str(tmp_path / "more")]) == 2
    line = foreign.told(capsys)
    assert "no connection, and it is not in the cache" in line
    assert "(with a network: hf download somebody/model --local-dir DIR" in line
    assert hub_module.PATIENCE <= 60


def test_sources_that_are_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq" / "model.pt").write_bytes(b"")
    experiment = write("base", tmp_path / "experiment")
    for source, expected in (
        ("none", "no such file or folder"),
        ("some/where/else", "no such file or folder"),
        ("models/wav2vec_small.pt", "no such file or folder"),
        (str(tmp_path / "empty"), "found none of them"),
        (str(tmp_path / "fairseq"), f"for fairseq name the file: {tmp_path / 'fairseq' / 'model.pt'}"),
        (str(experiment), "is an experiment of asrkit already"),
    ):
        assert foreign.cli.main(["import", source, "--output", str(tmp_path / "ours")]) == 2
        assert expected in foreign.told(capsys)


def test_dictionaries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported = foreign.run_export(write("base", tmp_path / "experiment"), "huggingface", tmp_path / "theirs")
    (exported / "vocab.json").unlink()
    UNITS.save(tmp_path / "units")
    (tmp_path / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(UNITS.symbols)}))
    (tmp_path / "wrong.txt").write_text("A\n")
    (tmp_path / "short.txt").write_text("A 1\n")
    by_folder = foreign.run_import(exported, tmp_path / "one", "--dictionary", str(tmp_path / "units"))
    assert open_experiment(by_folder).units == UNITS
    for name, expected in (
        ("wrong.txt", "expected a symbol and its count, found 'A'"),
        ("short.txt", "expected was (5, 16)"),
        ("vocab.json", "expected the blank '<pad>' among the symbols, found none"),
        ("none.txt", "cannot be read"),
    ):
        capsys.readouterr()
        options = ["--output", str(tmp_path / "ours"), "--dictionary", str(tmp_path / name)]
        assert foreign.cli.main(["import", str(exported), *options]) == 2
        assert expected in foreign.told(capsys)


def test_imported_experiments_are_decoded_and_started_from(speech: Path, tmp_path: Path) -> None:
    """The whole way of a user: import a recogniser, decode with it, fine-tune from it, with its head and without."""
    torch.manual_seed(1)
    exported = foreign.run_export(write("base", tmp_path / "experiment"), "huggingface", tmp_path / "theirs")
    start = foreign.run_import(exported, tmp_path / "start")
    command = ["decode", "--model", str(start), "--data", str(speech), "--sets", "dev", "--device", "cpu"]
    assert foreign.cli.main(command) == 0
    result = json.loads((start / "decode/dev/greedy/results.json").read_text())
    assert (result["recipe"], result["updates"]) == ("theirs", 0)
    assert isinstance(load(start, device="cpu").transcribe(helpers.speak("AB"), 16_000), str)
    tuned = {}
    for keep in (False, True):
        whole = helpers.settings("finetune", speech, init=str(start), encoder={}, finetune={"keep_head": keep})
        whole["encoder"] = {}
        tuned[keep] = tmp_path / f"tuned-{keep}"
        assert helpers.train(tuned[keep], whole) == 0
        assert open_experiment(tuned[keep]).recipe == "theirs+finetune"
        again = foreign.run_export(tuned[keep], "huggingface", tmp_path / f"again-{keep}")
        assert yaml.safe_load((again / "config.json").read_text())["architectures"] == ["Wav2Vec2ForCTC"]
    assert open_experiment(tuned[True]).units == UNITS
