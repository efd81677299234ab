"""Each stream may read a prepared folder of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml
from helpers import assert_same, checkpoint, rows, settings, train

from asrkit.text.units import Units


def apart(speech: Path, folder: Path) -> tuple[Path, Path, Path]:
    """Return folders of which the first has only the dev set, the second labelled speech and its alphabet, the third speech."""
    folders = folder / "dev", folder / "read", folder / "heard"
    for place, sets in zip(folders, (("dev",), ("train", "units"), ("train",)), strict=True):
        for name in sets:
            shutil.copytree(speech / name, place / name)
    return folders


def test_streams_of_three_folders(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the run that one folder with all of it gives; paths may be relative, and are stored as absolute ones."""
    dev, read, heard = apart(speech, tmp_path)
    assert train(tmp_path / "whole", settings("bl_just", speech)) == 0
    data = {"dir": dev.name, "labelled": {"dir": read.name}, "unlabelled": {"dir": heard.name}}
    split = settings("bl_just", speech, data=data)
    monkeypatch.chdir(tmp_path)
    assert train(tmp_path / "exp", split, "bl_just.finetune.updates=2") == 0
    assert rows(tmp_path / "exp") == rows(tmp_path / "whole")
    assert_same(checkpoint(tmp_path / "exp"), checkpoint(tmp_path / "whole"))
    assert Units.load(tmp_path / "exp" / "units") == Units.load(read / "units")
    stored = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())["data"]
    assert [stored["dir"], stored["labelled"]["dir"], stored["unlabelled"]["dir"]] == [str(dev), str(read), str(heard)]
    monkeypatch.chdir("/")
    assert (
        train(
            tmp_path / "exp",
            settings("bl_just", speech, data={"dir": str(dev)}),
            *(f"data.{name}.dir={place}" for name, place in (("labelled", read), ("unlabelled", heard))),
        )
        == 0
    )


def test_bpe_is_learnt_from_the_labelled_folder(speech: Path, tmp_path: Path) -> None:
    dev, read, _ = apart(speech, tmp_path)
    data = {"dir": str(dev), "labelled": {"dir": str(read)}}
    whole = settings("finetune", speech, data=data, units={"kind": "bpe", "size": 12}, finetune={"updates": 4})
    assert train(tmp_path / "exp", whole) == 0
    assert Units.load(tmp_path / "exp" / "units").kind == "bpe"


def test_a_missing_set_is_named_with_its_folder(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkdir(tmp_path / "empty")
    whole = settings("finetune", speech, data={"labelled": {"dir": str(tmp_path / "empty")}})
    assert train(tmp_path / "exp", whole) == 2
    assert str(tmp_path / "empty") in capsys.readouterr().err
