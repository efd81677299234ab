"""The mean of checkpoints is an experiment like any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import checkpoint, settings, train

from asrkit.errors import AsrkitError
from asrkit.training.averaging import average
from asrkit.training.checkpoint import load
from asrkit.training.experiment import open_experiment

SCRIPT = Path(__file__).parents[2] / "scripts" / "average_checkpoints.py"


@pytest.fixture(scope="module")
def trained(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    exp_dir = tmp_path_factory.mktemp("trained") / "exp"
    assert train(exp_dir, settings("finetune", speech, finetune={"updates": 6}, training={"checkpoint_every": 2})) == 0
    return exp_dir


def test_the_mean_by_brute_force(trained: Path, tmp_path: Path) -> None:
    assert average(trained, tmp_path / "mean", newest=2) == [5, 6]
    models = [load(trained / "checkpoints" / f"step_{update}.pt")["model"] for update in (5, 6)]
    method, update = open_experiment(tmp_path / "mean").method()
    assert update == 6
    for name, value in method.state_dict().items():
        expected = (models[0][name].double() + models[1][name].double()) / 2
        torch.testing.assert_close(value, expected.to(value.dtype), rtol=0, atol=0)
    assert any(not torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert open_experiment(tmp_path / "mean").recipe == "finetune"


def test_the_script(trained: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    command = [sys.executable, str(SCRIPT), str(trained), "--steps", "2", "4", "--output", str(tmp_path / "mean")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'mean'}: the mean of steps 2, 4\n"
    assert checkpoint(tmp_path / "mean")["averaged"] == [2, 4]
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "exists already" in again.stderr
    # It can be an `init`; trained further it cannot be, for it has no optimiser.
    whole = settings("finetune", speech, init=str(tmp_path / "mean"), finetune={"updates": 1, "freeze_updates": 0})
    assert train(tmp_path / "next", whole) == 0


def test_a_missing_checkpoint_is_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(AsrkitError, match=r"step_3\.pt: no such checkpoint"):
        average(trained, tmp_path / "mean", updates=[3])
    assert not (tmp_path / "mean").exists()
