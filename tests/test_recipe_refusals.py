"""The recipe's scripts: what they refuse, how they go on, and that they never mix settings."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from recipe_project import ALL, LIBRISPEECH, ROOT, Project, assert_refused


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--foo"], "unknown argument '--foo'"),
        (["optimiser.x=1"], "configuration goes behind --"),
        (["--stage"], "--stage needs a value"),
        (["--stage", "--seed"], "--stage needs a value"),
        (["--stage", "7"], "--stage 7: not one of 0 1"),
        (["--stop-stage", "x"], "--stop-stage x: not one of"),
        (["--stage", "4", "--stop-stage", "2"], "--stage 4 comes after --stop-stage 2"),
        (["--corpus", "timit"], "--corpus timit: not one of mini librispeech"),
        (["--config", "big"], "--config big: not one of librispeech mini"),
        (["--size", "huge"], "--size huge: not one of mini"),
        (["--subset", "3h"], "--subset 3h: not one of 10min"),
        (["--method", "wav2vec"], "--method wav2vec: not one of"),
        (["--method", "scratch"], "--method scratch: not one of"),
        (["--method", "wav2vec_s_scratch"], "--method wav2vec_s_scratch: not one of"),
        (["--method", "wav2vec_s", "--source", "3h"], "--source 3h: not one of 10min"),
        (["--method", "bl_just", "--source", "9h"], "the method bl_just has labels of --subset only"),
        (["--method", "bl_just", "--", "finetune.updates=5"], "this run has no stage of the method finetune"),
        (["--", "wav2vec_s.updates=5"], "this run has no stage of the method wav2vec_s"),
        (["--method", "pretrain"], "--method pretrain: not one of"),
        (["--method", "model"], "--method model: not one of"),
        (["--source", "100h"], "the method finetune has labels of --subset only"),
        (["--size", "large"], "--size large: not one of mini"),
        (["--seed", "one"], "--seed one: not a whole number"),
        (["--lm", "big"], "--lm big: not one of none train official"),
        (["--lm", "official"], "--lm official is made for LibriSpeech; for mini there is --lm train"),
        (["--nproc", "0"], "--nproc 0: at least 1"),
        (["--nnodes", "0"], "--nnodes 0: at least 1"),
        (["--nnodes", "2"], "--nnodes 2: which of them is this one? (--node-rank R, from 0)"),
        (["--nnodes", "2", "--node-rank", "1"], "--nnodes 2: how do the others reach the first one?"),
        (["--nnodes", "2", "--node-rank", "2", "--master", "a"], "--node-rank 2: not one of 0 to 1"),
        (["--nnodes", "2", "--node-rank", "0", "--master", "a:b"], "--master-port b: not a whole number"),
        (["--master", "a"], "--node-rank and --master are for several machines (--nnodes N)"),
        (["--follow", "me"], "--follow me: not one of fairseq paper"),
        (["--follow", "paper", "--subset", "1h"], "the paper's are for librispeech, base and large"),
        (["--follow", "paper", "--method", "bl_just"], "this run has no fine-tuning of a pre-trained model"),
        (["--follow", "paper", "--init", "scratch"], "this run has no fine-tuning of a pre-trained model"),
        (["--", "lr"], "'lr' behind -- is not KEY=VALUE"),
        (["--", "seed=2"], "'seed=2' behind --: use --seed"),
        (["--", "exp_dir=x"], "'exp_dir=x' behind --: use --exp-dir"),
        (["--", "data.dir=x"], "'data.dir=x' behind --: use --data-dir"),
        (["--", "data.labelled.sets=[1h]"], "use --subset"),
        (["--init", "scratch", "--", "pretrain.updates=5"], "this run has no stage of the method pretrain"),
        (["--config", "mini", "--corpus", "librispeech", "--corpus-dir", "nowhere"], "nowhere: no such folder"),
        (["--stage", "4"], "data/mini holds no prepared set 10h (run stage 1"),
        (["--stage", "5"], "holds no trained model (run stage 4)"),
        (["--stage", "6"], "holds no results (run stage 5)"),
    ],
)
def test_refuses_in_one_line(project: Project, arguments: Sequence[str], says: str) -> None:
    assert_refused(project.run(*arguments), says)
    assert project.calls() == []


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (["--seed", "2"], "seed '1', not '2'"),
        (["--corpus-dir", "elsewhere"], "elsewhere'"),
        (["--stage", "2", "--data-dir", "data/other"], "data/other'"),
        (["--stage", "4", "--seed", "2"], "seed '1', not '2'"),
        (["--stage", "5", "--init", "scratch_"], "init '', not '"),
        (["--stage", "6", "--seed", "2"], "seed '1', not '2'"),
    ],
)
def test_outputs_of_different_settings_are_not_mixed(project: Project, changed: Sequence[str], names: str) -> None:
    assert project.run(*ALL).returncode == 0
    done = project.run(*ALL, *changed)
    assert_refused(done, names)
    assert "choose another" in done.stderr
    assert all(call.startswith("prepare") for call in project.calls())


def test_the_same_settings_go_on(project: Project) -> None:
    assert project.run(*ALL).returncode == 0
    first = project.calls()
    done = project.run(*ALL)
    assert done.returncode == 0
    assert "data/mini is prepared (--stage 1 does it again)" in done.stdout
    assert project.calls() == first[1:]
    assert project.run(*ALL, "--stage", "1").returncode == 0
    assert project.calls() == first


def test_a_corpus_that_has_grown_is_prepared_again(project: Project) -> None:
    assert project.run(*ALL, "--stop-stage", "1").returncode == 0
    (project.folder / "corpora/mini/LibriSpeech/train-clean-360").mkdir(parents=True)
    for count in (1, 0):
        assert project.run(*ALL, "--stop-stage", "1").returncode == 0
        assert len(project.calls()) == count


@pytest.mark.parametrize(
    ("settings", "status", "says"),
    [
        ({"INTERRUPT": "train", "STATUS": "130"}, 130, "interrupted in stage 2; the same command goes on from there"),
        ({"INTERRUPT": "decode", "STATUS": "0"}, 130, "interrupted in stage 5; the same command goes on from there"),
        ({"FAIL": "train", "STATUS": "130"}, 130, "interrupted in stage 2; the same command goes on from there"),
        (
            {"FAIL": "prepare", "STATUS": "1"},
            1,
            "stage 1 failed, see above; once that is mended, the same command goes",
        ),
        ({"FAIL": "train", "STATUS": "137"}, 137, "stage 2 was killed, perhaps for want of memory; the same command"),
    ],
)
def test_a_run_that_ends_early_says_how_to_go_on(
    project: Project, settings: dict[str, str], status: int, says: str
) -> None:
    done = project.run(*ALL, **settings)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert done.stderr.startswith(f"run.sh: {says}")
    stopped_in = settings.get("INTERRUPT", settings.get("FAIL", ""))
    assert project.calls()[-1].startswith(stopped_in)
    assert project.run(*ALL).returncode == 0


def test_a_stage_that_made_nothing_binds_nobody(project: Project) -> None:
    """A mistake in the first run's settings can be mended without removing anything."""
    assert project.run(*ALL, FAIL="train", STATUS="2").returncode == 2
    assert project.run(*ALL, "--seed", "2").returncode == 0


def test_two_runs_do_not_write_into_one_folder(project: Project) -> None:
    (project.folder / "exp/a/pretrain").mkdir(parents=True)
    descriptor = os.open(project.folder / "exp/a/pretrain/.run.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert_refused(project.run(*ALL), "another run is writing to")
    assert project.calls() == ["prepare mini --corpus-dir corpora/mini --output-dir data/mini"]
    os.close(descriptor)
    assert project.run(*ALL).returncode == 0


def test_corpus_is_checked_for_what_the_configuration_reads(project: Project) -> None:
    for arguments, part in (
        (["--subset", "1h"], "c/LibriSpeech/dev-clean"),
        (["--subset", "1h"], "c/librispeech_finetuning"),
        (["--subset", "1h"], "c/LibriSpeech/train-clean-100"),
        (["--subset", "1h"], "c/LibriSpeech/test-clean"),
        (["--subset", "960h"], "c/LibriSpeech/train-clean-360"),
        (["--subset", "960h"], "c/LibriSpeech/train-other-500"),
        (["--subset", "1h", "--", "data.dev=[dev-other]"], "c/LibriSpeech/dev-other"),
    ):
        (project.folder / "c" / "LibriSpeech").mkdir(parents=True, exist_ok=True)
        assert_refused(project.run(*LIBRISPEECH, *arguments), "has no folder")
        (project.folder / part).mkdir()
    for subset in ("1h", "100h", "960h"):
        done = project.run(*LIBRISPEECH, "--subset", subset)
        assert done.returncode == 0, done.stderr


def test_a_broken_override_is_one_line(project: Project) -> None:
    (project.folder / "c").mkdir()
    assert_refused(project.run(*LIBRISPEECH, "--", "data.dev=[dev"), "data.dev")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [("finetune.updatess=3", "did you mean 'finetune.updates'?"), ("pretrain.updates=many", "pretrain.updates")],
)
def test_a_wrong_setting_of_a_later_stage_is_told_before_the_first(project: Project, wrong: str, says: str) -> None:
    assert_refused(project.run(*ALL, "--", wrong, CHECK="yes"), says)
    assert project.calls() == []
    assert project.run(*ALL, "--", "finetune.updates=3", CHECK="yes").returncode == 0


def test_quickstart_refuses_unknown_arguments() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "quickstart.sh"), "--fast"], capture_output=True, text=True, check=False
    )
    assert_refused(done, "unknown argument '--fast'")


def test_environment_without_a_python_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/env.sh", "scripts/install.sh", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(
        ["bash", "-c", ". scripts/env.sh || exit 7"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHON": "/no/python"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7
    assert (
        done.stderr == "install.sh: PYTHON=/no/python is not a working Python >= 3.10 with its venv and ssl modules\n"
    )
    assert not (tmp_path / ".venv").exists()
