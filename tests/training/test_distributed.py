"""Two processes learn what one learns, and a mistake in one of them ends both and is told once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import STILL, assert_same, checkpoint, merged, rows, settings, train, variant, write_config
from test_resume import signal_at

from asrkit.core.step import Accumulate

WORKER = Path(__file__).with_name("distributed_worker.py")
COMPARED = {
    "loss",
    "grad_norm",
    "dev/loss",
    "dev/wer",
    "mask_share",
    "epoch",
    "infeasible",
    "pseudo_confidence",
    "pseudo_cer",
    "contrastive",
    "cross_entropy",
    "intermediate_ctc",
    "pseudo_intermediate_ctc",
    "gamma",
    "grad_cosine",
    "grad_norm_sup",
    "grad_norm_unsup",
    "loss/plain",
    "loss/slow",
    "loss_before_inner",
}
LAYER_DROP = {**STILL, "layer_drop": 0.3}
KINDS = ["", "-sharded"]


def torchrun(jobs: list[dict[str, Any]], folder: Path, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the worker's jobs in two processes, which are started again so often if one of them dies."""
    for job in jobs:
        write_config(folder / job["exp"], job.pop("settings"))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "--max-restarts", str(restarts), str(WORKER), str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def recipes(speech: Path) -> dict[str, dict[str, Any]]:
    # Adam divides by the gradient's size: with its usual epsilon, rounding decides the sign of steps whose gradient is zero.
    exact = {"optimiser": {"epsilon": 1e-2, "clip_norm": 5.0}, "training": {"log_every": 1}}
    no_diversity = {"updates": 12, "wav2vec2": {"diversity_weight": 0.0, "features_dropout": 0.0}}
    sources = {**no_diversity, "updates": 10}
    joint = {"ssl": {"wav2vec2": no_diversity["wav2vec2"]}}
    whole = {
        "finetune": settings("finetune", speech, encoder=LAYER_DROP, finetune={"updates": 12}, **exact),
        "pretrain": settings("pretrain", speech, encoder=LAYER_DROP, pretrain=no_diversity, **exact),
        "wav2vec_s": settings("wav2vec_s", speech, encoder=LAYER_DROP, **exact),
        "heterogeneous": settings("heterogeneous", speech, encoder=LAYER_DROP, heterogeneous=sources, **exact),
        "bl_just": settings("bl_just", speech, encoder=LAYER_DROP, bl_just=joint, **exact),
        "family": variant("bl_just, best_rq, conditioned", speech, encoder=LAYER_DROP, **exact),
        # An utterance per update: one of two ranks is without audio every time.
        "starved": settings(
            "finetune", speech, encoder=LAYER_DROP, data={"labelled": {"seconds_per_update": 0.2}}, **exact
        ),
    }
    return {**whole, **{f"{name}-sharded": merged(run, {"training": {"shard": True}}) for name, run in whole.items()}}


LONG: dict[str, dict[str, Any]] = {
    "finetune": {"updates": 50},
    "pretrain": {"updates": 50},
    "wav2vec_s": {"updates": 50, "collapse_patience": 0},
    "heterogeneous": {"updates": 50},
    "bl_just": {"outer_epochs": 12},
}
"""What makes each method's run fifty updates long."""


def long_recipes(speech: Path) -> dict[str, dict[str, Any]]:
    """Return the recipes with fifty updates."""
    return {name: merged(run, {run["method"]: LONG[run["method"]]}) for name, run in recipes(speech).items()}


@pytest.fixture(scope="module")
def together(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the experiments of two processes."""
    folder = tmp_path_factory.mktemp("together")
    jobs = [{"exp": name, "settings": whole, "status": 0} for name, whole in recipes(speech).items()]
    normed = settings("finetune", speech, encoder={**STILL, "conv_norm": "batch"}, finetune={"updates": 5})
    jobs.append({"exp": "normed", "settings": normed, "status": 0})
    for kind in KINDS:
        joint = recipes(speech)[f"bl_just{kind}"]
        # Between two phases of exploration, whose moments are its own.
        jobs.append({"exp": f"explored{kind}", "settings": joint, "signal": 2, "status": 130})
        jobs.append({"exp": f"explored{kind}", "settings": joint, "status": 0})
        finetune = recipes(speech)[f"finetune{kind}"]
        jobs.append({"exp": f"stopped{kind}", "settings": finetune, "signal": 7, "status": 130})
        jobs.append({"exp": f"moved{kind}", "settings": finetune, "signal": 7, "status": 130})
        jobs.append({"exp": f"stopped{kind}", "settings": finetune, "status": 0})
    done = torchrun(jobs, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def assert_close(one: Path, other: Path) -> None:
    weights, others = checkpoint(one)["model"], checkpoint(other)["model"]
    assert sorted(weights) == sorted(others)
    for name, weight in weights.items():
        torch.testing.assert_close(
            weight, others[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name} {text}"
        )
    for row, same in zip(rows(one), rows(other), strict=True):
        assert sorted(row) == sorted(same)
        for key in COMPARED & set(row):
            assert row[key] == pytest.approx(same[key], rel=1e-3), key


@pytest.mark.parametrize("name", ["finetune", "pretrain", "starved", "wav2vec_s", "heterogeneous", "bl_just", "family"])
def test_two_processes_learn_what_one_learns(together: Path, speech: Path, tmp_path: Path, name: str) -> None:
    assert train(tmp_path / name, recipes(speech)[name]) == 0
    assert checkpoint(tmp_path / name)["update"] >= 10
    assert_close(together / name, tmp_path / name)
    sharded = together / f"{name}-sharded"
    assert (sharded / "checkpoints" / (sharded / "checkpoints" / "last").read_text().strip()).is_dir()
    assert_close(sharded, tmp_path / name)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_in_fifty_updates(speech: Path, tmp_path: Path) -> None:
    runs = long_recipes(speech)
    jobs = [{"exp": name, "settings": whole, "status": 0} for name, whole in runs.items()]
    done = torchrun(jobs, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in runs:
        alone = tmp_path / f"{name}-alone"
        assert train(alone, runs[name]) == 0
        assert checkpoint(alone)["update"] == 50
        assert_close(tmp_path / name, alone)


def test_gradients_and_running_statistics_are_equal_on_all_ranks(together: Path) -> None:
    told = json.loads((together / "gradients.json").read_text())
    assert told["updates"] > 50
    assert told["unequal"] == []
    assert told["statistics"] == 5
    # The head's phase leaves the rest without gradient, LayerDrop a layer.
    assert told["without"]["encoder.projection.weight"] > 0
    assert told["without"]["encoder.blocks.0.norm.weight"] > told["without"]["encoder.projection.weight"]
    assert told["empty_shares"] >= 10


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_by_a_signal_to_one_of_two(together: Path, kind: str) -> None:
    assert rows(together / f"stopped{kind}") == rows(together / f"finetune{kind}")
    assert_same(checkpoint(together / f"stopped{kind}"), checkpoint(together / f"finetune{kind}"))


@pytest.mark.parametrize("kind", KINDS)
def test_exploration_goes_on_with_moments_of_its_own(together: Path, kind: str) -> None:
    assert rows(together / f"explored{kind}") == rows(together / f"bl_just{kind}")
    assert_same(checkpoint(together / f"explored{kind}"), checkpoint(together / f"bl_just{kind}"))


@pytest.mark.parametrize("kind", KINDS)
def test_goes_on_with_another_number_of_processes(together: Path, speech: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(together / f"moved{kind}", tmp_path / "moved")
    assert checkpoint(tmp_path / "moved")["update"] == 7
    assert train(tmp_path / "moved", recipes(speech)[f"finetune{kind}"]) == 0
    assert_close(tmp_path / "moved", together / "finetune")


@pytest.fixture(scope="module")
def later(together: Path, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs that one process took over from two, and two from it; and with runs of which a process was killed."""
    folder, jobs = tmp_path_factory.mktemp("later"), []
    for kind in KINDS:
        run = recipes(speech)[f"finetune{kind}"]
        shutil.copytree(together / f"moved{kind}", folder / f"moved{kind}")
        for rank in range(2):
            shutil.copy(together / f"moved{kind}.{rank}.ids", folder)
        with signal_at(2), recording(folder / f"moved{kind}.0.ids"):
            assert train(folder / f"moved{kind}", run) == 130
        # One process alone has nobody to share with.
        assert (folder / f"moved{kind}" / "checkpoints" / "last").read_text() == "step_9.pt\n"
        jobs.append({"exp": f"moved{kind}", "settings": run, "status": 0})
        every = merged(run, {"training": {"checkpoint_every": 1}})
        jobs.append({"exp": f"killed{kind}", "settings": every, "fault": "death", "status": 0})
    done = torchrun(jobs, folder, restarts=len(KINDS))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@contextmanager
def recording(path: Path) -> Iterator[None]:
    """Note the utterances of each update as the worker does."""
    run_step = Accumulate.run

    def recorded(self: Accumulate, method: Any, micro_batches: Any, clock: Any, *others: Any) -> None:
        run_step(self, method, micro_batches, clock, *others)
        ids = [name for batches in micro_batches.values() for batch in batches for name in batch.ids]
        with open(path, "a") as file:
            file.write(json.dumps([clock.update, ids]) + "\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accumulate, "run", recorded)
        yield


def utterances(exp_dir: Path) -> dict[int, list[str]]:
    """Return what all ranks together learnt from in each update."""
    found: dict[int, list[str]] = {}
    for rank in range(2):
        for line in exp_dir.with_name(f"{exp_dir.name}.{rank}.ids").read_text().splitlines():
            update, ids = json.loads(line)
            found.setdefault(update, []).extend(ids)
    return {update: sorted(ids) for update, ids in sorted(found.items())}


@pytest.mark.parametrize("kind", KINDS)
def test_two_one_and_two_processes_see_every_utterance_of_an_epoch_once(later: Path, together: Path, kind: str) -> None:
    seen = utterances(later / f"moved{kind}")
    assert list(seen) == list(range(12))
    assert seen == utterances(together / "finetune")
    per_epoch = next(row["step"] for row in rows(later / f"moved{kind}") if row.get("epoch") == 1)
    assert per_epoch < 12
    first = [name for update in range(per_epoch) for name in seen[update]]
    assert len(first) == len(set(first)) == 14
    assert_close(later / f"moved{kind}", together / "finetune")


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_is_started_again_and_the_end_is_the_same(later: Path, together: Path, kind: str) -> None:
    assert (later / f"killed{kind}.killed").exists()
    assert rows(later / f"killed{kind}") == rows(together / f"finetune{kind}")
    assert_same(checkpoint(later / f"killed{kind}"), checkpoint(together / f"finetune{kind}"))


SLOW = pytest.mark.slow


@pytest.mark.parametrize("fault", ["mistake", pytest.param("config", marks=SLOW), pytest.param("crash", marks=SLOW)])
def test_a_mistake_ends_all_and_is_told_once(speech: Path, tmp_path: Path, fault: str) -> None:
    whole = settings("finetune", speech)
    if fault == "config":
        whole["finetune"]["updates"] = -1
    done = torchrun([{"exp": "exp", "settings": whole, "fault": fault, "status": 0}], tmp_path)
    assert done.returncode != 0
    said = {
        "mistake": "asrkit: error: broken by the test",
        "config": "finetune.updates is -1",
        "crash": "ZeroDivisionError: broken",
    }
    # What torchrun itself says names the processes, not the reason.
    assert done.stderr.count(said[fault]) == 1, done.stderr
    assert done.stderr.count("asrkit: error") == (fault != "crash")
    assert "Connection closed" not in done.stderr


@pytest.mark.slow
def test_a_process_that_does_not_come_is_named_with_its_place(speech: Path, tmp_path: Path) -> None:
    limits = {"timeout_minutes": 1.5, "disk_patience_minutes": 0.1}
    whole = settings("finetune", speech, training=limits)
    done = torchrun([{"exp": "exp", "settings": whole, "fault": "hang", "status": 0}], tmp_path)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("asrkit: error:")]
    assert len(told) == 1, done.stderr
    assert "rank 1" in told[0]
    assert "has not got on for 1.5 min" in told[0]
    assert "step 2, phase head, computing an update" in told[0]


@pytest.mark.slow
def test_a_process_that_dies_is_missed_in_one_line(speech: Path, tmp_path: Path) -> None:
    done = torchrun([{"exp": "exp", "settings": settings("finetune", speech), "fault": "death", "status": 0}], tmp_path)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("asrkit: error:")]
    assert len(told) <= 1, done.stderr  # torchrun may end the survivor before it has noticed
    assert all("rank 0 has lost another process (step 2, phase head" in line for line in told)
    assert "cli.py" not in done.stderr
