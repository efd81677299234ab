"""A run that is stopped and started again is, to the last bit, the run that never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import VARIANTS, assert_same, checkpoint, rows, settings, train, variant

from asrkit.core.clock import Clock
from asrkit.methods.finetune import Finetune
from asrkit.training.checkpoint import update_of
from asrkit.training.log import ProgressView

METHODS = ("pretrain", "heterogeneous", "finetune", "wav2vec_s", "bl_just", "weighted_sum")
INTERRUPTED = 130


@contextmanager
def signal_at(update: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """Send this process a signal once so many updates have stepped, before the last of them is logged."""
    advance = ProgressView.advance
    steps: list[int] = []

    def signalling(view: ProgressView, done: int) -> None:
        advance(view, done)
        steps.append(done)
        if len(steps) == update:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressView, "advance", signalling)
        yield


def assert_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    assert_same(checkpoint(one), checkpoint(other))
    assert (one / "checkpoints" / "best").read_text() == (other / "checkpoints" / "best").read_text()
    assert_same(checkpoint(one, "best")["model"], checkpoint(other, "best")["model"])


@pytest.fixture(scope="module", params=[*METHODS, *VARIANTS])
def whole(request: pytest.FixtureRequest, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A method, and an uninterrupted run of it that kept every update's checkpoint."""
    exp_dir = tmp_path_factory.mktemp("whole") / "exp"
    assert train(exp_dir, variant(request.param, speech, training={"checkpoint_every": 1})) == 0
    return request.param, exp_dir


def start_from(folder: Path, update: int, output: Path) -> None:
    """Copy an experiment as it was after an update."""
    shutil.copytree(folder, output)
    for path in (output / "checkpoints").glob("step_*.pt"):
        if update_of(path) > update:
            path.unlink()
    (output / "checkpoints" / "last").write_text(f"step_{update}.pt\n")
    validated = [row["step"] for row in rows(output) if "dev/loss" in row and row["step"] <= update]
    ends = ("dev/wer",) if (output / "units").is_dir() else ("dev/contrastive", "dev/cross_entropy")
    best: tuple[float, int] | None = None
    for row in rows(output):
        value = next((row[name] for name in ends if name in row), None)
        if row["step"] in validated and value is not None:
            value += row.get("dev/cer", 0.0)
            if best is None or value <= best[0]:
                best = (value, row["step"])
    (output / "checkpoints" / "best").unlink()
    if best is not None:
        (output / "checkpoints" / "best").write_text(f"step_{best[1]}.pt\n")


@pytest.mark.parametrize("update", range(1, 10))
def test_from_any_checkpoint(whole: tuple[str, Path], speech: Path, tmp_path: Path, update: int) -> None:
    method, uninterrupted = whole
    start_from(uninterrupted, update, tmp_path / "exp")
    assert train(tmp_path / "exp", variant(method, speech, training={"checkpoint_every": 1})) == 0
    assert_same_run(tmp_path / "exp", uninterrupted)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("update", [2, 4, 5, 6, 10])
def test_stopped_by_a_signal(method: str, number: int, update: int, speech: Path, tmp_path: Path) -> None:
    """Mid-window, at the border of phases, in the middle of validation, at the end."""
    whole = settings(method, speech, data={"batch_seconds": 1.5})
    assert train(tmp_path / "whole", whole) == 0
    with signal_at(update, number):
        first = train(tmp_path / "exp", whole)
    assert first == INTERRUPTED
    assert train(tmp_path / "exp", whole) == 0
    assert_same_run(tmp_path / "exp", tmp_path / "whole")


def test_ctrl_c_saves_as_other_signals_do(speech: Path, tmp_path: Path) -> None:
    whole = settings("finetune", speech)
    assert train(tmp_path / "whole", whole) == 0
    with signal_at(3, signal.SIGINT):
        assert train(tmp_path / "exp", whole) == INTERRUPTED
    assert train(tmp_path / "exp", whole) == 0
    assert_same_run(tmp_path / "exp", tmp_path / "whole")


def test_torchrun_does_not_take_a_run_for_failed_that_will_be_started_again(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    whole = settings("finetune", speech)
    with signal_at(3, signal.SIGUSR1):
        assert train(tmp_path / "exp", whole) == 0
    assert checkpoint(tmp_path / "exp")["update"] == 3
    with signal_at(3, signal.SIGTERM):
        assert train(tmp_path / "exp", whole) == INTERRUPTED


def test_wav2vec2_by_worker_processes(speech: Path, tmp_path: Path) -> None:
    whole = settings("pretrain", speech, encoder=helpers.WAVEFORM, data={"workers": 1})
    assert train(tmp_path / "whole", whole, "data.workers=0") == 0
    with signal_at(4):
        assert train(tmp_path / "exp", whole) == INTERRUPTED
    assert train(tmp_path / "exp", whole) == 0
    assert_same_run(tmp_path / "exp", tmp_path / "whole")


def test_a_process_that_gets_sigterm_saves_and_says_so(speech: Path, tmp_path: Path) -> None:
    whole = settings("finetune", speech)
    assert train(tmp_path / "whole", whole) == 0
    script = (
        "import sys\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(helpers.__file__).parent / 'training')!r})\n"
        "import json\nfrom helpers import train\nfrom test_resume import signal_at\n"
        "with signal_at(3):\n    sys.exit(train(Path(sys.argv[1]), json.loads(sys.argv[2])))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(tmp_path / "exp"), json.dumps(whole)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == INTERRUPTED, done.stderr
    assert "stopped at step 3, saved; the same command goes on from here" in done.stdout
    assert "Traceback" not in done.stderr
    assert train(tmp_path / "exp", whole) == 0
    assert_same_run(tmp_path / "exp", tmp_path / "whole")


def test_a_signal_in_validation_leaves_it_for_later(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = settings("finetune", speech, data={"batch_seconds": 1.0})
    assert train(tmp_path / "whole", whole) == 0
    validate, seen = Finetune.validate, []

    def interrupted(method: Finetune, batch: Any, clock: Clock) -> Any:
        seen.append(clock.update)
        if len(seen) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(method, batch, clock)

    monkeypatch.setattr(Finetune, "validate", interrupted)
    assert train(tmp_path / "exp", whole) == INTERRUPTED
    assert seen == [4, 4, 4, 4, 5, 5]
    assert [row["step"] for row in rows(tmp_path / "exp") if "dev/wer" in row] == [4]
    assert train(tmp_path / "exp", whole) == 0
    assert seen.count(5) == 2 + 4
    assert_same_run(tmp_path / "exp", tmp_path / "whole")


def test_a_damaged_checkpoint_costs_no_more_than_its_updates(
    whole: tuple[str, Path], speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method, uninterrupted = whole
    start_from(uninterrupted, 7, tmp_path / "exp")
    newest = tmp_path / "exp" / "checkpoints" / "step_7.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert train(tmp_path / "exp", variant(method, speech, training={"checkpoint_every": 1})) == 0
    said = capsys.readouterr().out
    assert "step_7.pt: not a readable checkpoint" in said
    assert "trying the one before" in said
    assert "resumed from step 6" in said
    assert_same_run(tmp_path / "exp", uninterrupted)


def test_a_lost_best_is_chosen_anew(whole: tuple[str, Path], speech: Path, tmp_path: Path) -> None:
    method, uninterrupted = whole
    start_from(uninterrupted, 6, tmp_path / "exp")
    best = tmp_path / "exp" / "checkpoints" / "best"
    (tmp_path / "exp" / "checkpoints" / best.read_text().strip()).unlink()
    assert train(tmp_path / "exp", variant(method, speech, training={"checkpoint_every": 1})) == 0
    assert best.read_text() == "step_10.pt\n"


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides(method: str, speech: Path, tmp_path: Path) -> None:
    whole = settings(method, speech)
    torch.manual_seed(1)
    assert train(tmp_path / "one", whole) == 0
    torch.manual_seed(2)
    assert train(tmp_path / "same", whole) == 0
    assert train(tmp_path / "other", whole, "seed=2") == 0
    assert_same_run(tmp_path / "one", tmp_path / "same")
    assert rows(tmp_path / "one")[0]["loss"] != rows(tmp_path / "other")[0]["loss"]


def test_a_finished_run_is_left_alone(
    whole: tuple[str, Path], speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method, uninterrupted = whole
    shutil.copytree(uninterrupted, tmp_path / "exp")

    def files() -> list[tuple[str, bytes]]:
        found = sorted(path for path in (tmp_path / "exp").rglob("*") if path.is_file() and path.suffix != ".log")
        return [(str(path), path.read_bytes()) for path in found if path.name not in ("config.yaml", ".lock")]

    before = files()
    capsys.readouterr()
    assert train(tmp_path / "exp", variant(method, speech, training={"checkpoint_every": 1})) == 0
    said = capsys.readouterr().out
    assert "complete at step 10, nothing to do" in said
    assert said.count("\n") == 1
    assert files() == before
