"""`asrkit train --dry-run` and `--profile`: what a run will take and where it goes, without beginning it."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same, checkpoint, make_method, rows, settings, train, write_corpus

from asrkit.training import profiling, trial
from asrkit.training.profiling import PARTS, Stopwatch


@pytest.mark.parametrize("method", ["finetune", "wav2vec_s"])
def test_a_dry_run_tells_time_memory_and_room_and_leaves_nothing(
    method: str, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = settings(method, speech)
    assert train(tmp_path / "exp", whole, "--dry-run") == 0
    said = capsys.readouterr()
    assert said.err == ""
    phases = {"finetune": {"head": 4, "finetune": 6}, "wav2vec_s": {"head": 1, "warmup": 2, "semi": 7}}[method]
    shown = said.out.replace("│", " ")
    for name, updates in phases.items():
        assert any(line.split()[:2] == [name, str(updates)] for line in shown.splitlines()), name
    for words in ("labelled", "costliest batch", "validation", "the run", "GiB are free", "disk: checkpoints of"):
        assert words in shown
    assert "NOT ENOUGH" not in shown
    assert not (tmp_path / "exp").exists()


def test_a_dry_run_tries_phases_that_come_again_once(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, tried = trial._measure, []

    def measured(trainer: Any, phase: Any) -> Any:
        tried.append(phase.name)
        return measure(trainer, phase)

    monkeypatch.setattr(trial, "_measure", measured)
    assert train(tmp_path / "exp", settings("bl_just", speech), "bl_just.outer_epochs=3", "--dry-run") == 0
    assert tried == ["exploration", "joint", "finetune"]
    shown = capsys.readouterr().out.replace("│", " ")
    for row in (["exploration", "3"], ["joint", "9"], ["finetune", "2"]):
        assert row in [line.split()[:2] for line in shown.splitlines()]


@pytest.mark.parametrize("method", ["bl_just", "wav2vec_s"])
@pytest.mark.parametrize("every", [1, 4, 5, 1000])
def test_a_dry_run_counts_the_looks_at_the_dev_sets(method: str, every: int, speech: Path, tmp_path: Path) -> None:
    whole = settings(method, speech, training={"validate_every": every})
    assert train(tmp_path / "exp", whole) == 0
    looks = sum("dev/loss" in row or "dev/ctc" in row for row in rows(tmp_path / "exp"))
    phases = [phase for phase in make_method(method).phases() if phase.length]
    assert trial._validations(phases, every) == looks > 0


def test_a_dry_run_finds_what_the_run_would_trip_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_corpus(tmp_path / "corpus", train=4, dev=1)
    whole = settings("finetune", data)
    shutil.rmtree(data / "units")
    assert train(tmp_path / "exp", whole, "--dry-run") == 2
    assert "no alphabet" in capsys.readouterr().err


def test_a_profile_says_where_a_step_goes_and_touches_no_run(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "_TRACED", 1)
    whole = settings("finetune", speech)
    assert train(tmp_path / "whole", whole) == 0
    assert train(tmp_path / "exp", whole, "--profile") == 0
    said = capsys.readouterr().out
    table = (tmp_path / "exp" / "profile" / "table.txt").read_text()
    for part in PARTS.values():
        assert part in said
        assert part in table
    assert "aten::" in table
    with gzip.open(tmp_path / "exp" / "profile" / "trace.json.gz", "rt") as file:
        assert any(event.get("name", "").startswith("aten::") for event in json.load(file)["traceEvents"])
    assert train(tmp_path / "exp", whole) == 0
    assert rows(tmp_path / "exp") == rows(tmp_path / "whole")
    assert_same(checkpoint(tmp_path / "exp"), checkpoint(tmp_path / "whole"))


def test_a_trial_lies_where_the_runs_folder_would(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that all machines see it, and there is room."""
    make_folder, folders = tempfile.TemporaryDirectory, []

    def made(**options: Any) -> Any:
        folders.append(options["dir"])
        return make_folder(**options)

    monkeypatch.setattr(trial.tempfile, "TemporaryDirectory", made)
    (tmp_path / "disk").mkdir()
    elsewhere = f"exp_dir={tmp_path / 'disk' / 'study' / 'exp'}"
    assert train(tmp_path / "exp", settings("finetune", speech), elsewhere, "--dry-run") == 0
    assert folders == [tmp_path / "disk"]
    assert not list((tmp_path / "disk").iterdir())


@pytest.mark.parametrize("method", ["heterogeneous", "bl_just"])
def test_a_profile_of_a_step_of_its_own_kind(method: str, speech: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "exp", settings(method, speech), "--profile") == 0
    table = (tmp_path / "exp" / "profile" / "table.txt").read_text()
    milliseconds = re.search(rf"{re.escape(PARTS['step'])} +│ +([0-9.]+)", table)
    assert milliseconds is not None
    assert float(milliseconds[1]) > 0


def test_a_part_inside_another_counts_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"time": 0.0}
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: now["time"])
    watch = Stopwatch(torch.device("cpu"))

    class Thing:
        def outer(self) -> None:
            now["time"] += 1
            self.inner()
            now["time"] += 2

        def inner(self) -> None:
            now["time"] += 10

    thing = Thing()
    watch.watch(thing, "outer", "step")
    watch.watch(thing, "inner", "forward")
    with watch.part("rest"):
        now["time"] += 100
        thing.outer()
        next(watch.drawn(iter([[]])))
    assert {name: seconds for name, seconds in watch.seconds.items() if seconds} == {
        "rest": 100.0,
        "step": 3.0,
        "forward": 10.0,
    }
