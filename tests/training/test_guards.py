"""What is not finite never reaches the weights, and is told with the utterances that it came from."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLOCK, STILL, assert_same, checkpoint, make_batch, make_method, rows, settings, train
from hypothesis import given
from hypothesis import strategies as st

from asrkit.core.step import Accumulate, Totals
from asrkit.errors import AsrkitError
from asrkit.training import engine
from asrkit.training.checkpoint import update_of
from asrkit.training.config import TrainingConfig
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine
from asrkit.training.guards import NumericalGuard, threshold
from asrkit.training.optimiser import Optimiser, OptimiserConfig

run_step = Accumulate.run


def poison(monkeypatch: pytest.MonkeyPatch, updates: set[int], what: str) -> list[tuple[str, ...]]:
    """Make some updates' loss or gradient infinite or huge; return the list that will hold their utterances."""
    poisoned: list[tuple[str, ...]] = []

    def run(self: Accumulate, method: Any, micro_batches: Any, clock: Any, engine: Any, totals: Totals) -> None:
        run_step(self, method, micro_batches, clock, engine, totals)
        if clock.update not in updates:
            return
        poisoned.append(tuple(name for batches in micro_batches.values() for batch in batches for name in batch.ids))
        if what == "loss":
            totals.values["loss"] = (totals.values["loss"][0] * math.nan, totals.values["loss"][1])
        else:
            moving = [p for p in method.parameters() if p.grad is not None]
            moving[-1].grad.mul_(math.inf if what == "gradient" else 1e4)

    monkeypatch.setattr(Accumulate, "run", run)
    return poisoned


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_skipped_update_changes_nothing_and_is_told(
    what: str, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exp_dir = tmp_path / "exp"
    poisoned = poison(monkeypatch, {1, 3}, what)
    whole = settings("pretrain", speech, pretrain={"updates": 4}, training={"checkpoint_every": 1, "log_every": 1})
    assert train(exp_dir, whole) == 0
    states = [torch.load(exp_dir / "checkpoints" / f"step_{n}.pt", weights_only=True) for n in (1, 2, 3, 4)]
    assert_same(states[0]["model"], states[1]["model"])
    assert_same(states[0]["optimiser"], states[1]["optimiser"])
    assert any(not torch.equal(states[1]["model"][name], value) for name, value in states[2]["model"].items())
    assert capsys.readouterr().out.count(f"the {what} is not finite; skipped, see {exp_dir}") == 2
    assert [row.get("skipped_updates") for row in rows(exp_dir) if "dev/loss" not in row] == [None, 1, None, 1]
    for step, names in zip((2, 4), poisoned, strict=True):
        told = json.loads((exp_dir / "skipped" / f"step_{step}.json").read_text())
        (rank,) = told["ranks"]
        batches = rank["batches"]["unlabelled"]
        assert tuple(name for batch in batches for name in batch["ids"]) == names
        assert told["reason"] == f"the {what} is not finite"
        assert all(batch["finite"] == [True] * len(batch["ids"]) for batch in batches)
        assert all(
            0 < rms < peak <= 1.5 for b in batches for rms, peak in zip(b["root_mean_square"], b["peak"], strict=True)
        )
        if what == "loss":
            assert rank["figures"]["loss"][0] == "nan"
            assert told["parameters_without_a_finite_gradient"] == []
        else:
            assert "inf" in told["gradient_norm"].values()
            assert len(told["parameters_without_a_finite_gradient"]) == 1
    assert "NaN" not in (exp_dir / "metrics.jsonl").read_text()


def test_too_many_in_a_row_end_the_run_and_the_last_good_checkpoint_goes_on(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = settings("finetune", speech, training={"checkpoint_every": 3, "max_skipped_updates": 2})
    assert train(tmp_path / "whole", whole) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        poison(patch, {2, 7, 8}, "gradient")
        assert train(tmp_path / "exp", whole) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "2 updates in a row had a loss or gradient that is not finite" in said
    assert "skipped/step_9.json" in said
    state = checkpoint(tmp_path / "exp")
    assert state["update"] == 6
    assert state["guard"]["in_a_row"] == 0
    # With the cause gone, the run goes on from there.
    assert train(tmp_path / "exp", whole) == 0
    assert checkpoint(tmp_path / "exp")["finished"]


def test_a_spike_is_told_and_taken(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    still = {"wav2vec2": {"features_dropout": 0.0, "diversity_weight": 0.0}}
    whole = settings("pretrain", speech, encoder=STILL, pretrain={"updates": 40, **still}, training={"log_every": 20})
    names = poison(monkeypatch, {35}, "spike")
    assert train(tmp_path / "exp", whole) == 0
    assert capsys.readouterr().out.count("update 35: the gradient norm is") == 1
    told = json.loads((tmp_path / "exp" / "spikes" / "step_36.json").read_text())
    assert tuple(name for batch in told["ranks"][0]["batches"]["unlabelled"] for name in batch["ids"]) == names[0]
    assert [row.get("gradient_spikes") for row in rows(tmp_path / "exp") if "dev/loss" not in row] == [None, 1]
    assert len(checkpoint(tmp_path / "exp")["guard"]["history"]) == 40
    assert not (tmp_path / "exp" / "skipped").exists()


@given(
    usual=st.lists(st.floats(-1, 1), min_size=40, max_size=128),
    wild=st.lists(st.floats(-30, 30), max_size=12),
    scale=st.floats(-20, 20),
)
def test_the_threshold_is_robust_and_goes_with_the_scale(usual: list[float], wild: list[float], scale: float) -> None:
    """A tenth of anything at all among the norms moves it within the usual norms' own spread, not with the outliers."""
    plain = math.log(threshold(usual, 8.0))
    mixed = math.log(threshold([*usual, *wild[: len(usual) // 10]], 8.0))
    assert math.log(3) - 1 - 1e-9 <= plain <= 1 + 8 * 1.4826 * 2
    assert -1 + math.log(3) - 1e-9 <= mixed <= 1 + 8 * 1.4826 * 2 + 1e-9
    assert math.log(threshold([value + scale for value in usual], 8.0)) == pytest.approx(plain + scale, abs=1e-9)
    assert threshold(usual[:31], 8.0) == math.inf
    assert threshold(usual, 0.0) == math.inf


class Scaled:
    """An update under fp16's loss scale, on a CPU: fp16 itself needs a GPU."""

    def __init__(self, tmp_path: Path, floor: float) -> None:
        self.method = make_method("finetune", encoder=STILL)
        config = TrainingConfig(min_loss_scale=floor, max_skipped_updates=3)
        self.engine = TrainingEngine(torch.device("cpu"), "fp32", Ranks(), floor)
        self.engine.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=True)
        self.guard = NumericalGuard(self.method, self.engine, config, tmp_path)
        self.optimiser = Optimiser(self.method, OptimiserConfig())
        self.phase = self.method.phases()[1]
        self.optimiser.enter(self.phase)

    def update(self, overflow: bool) -> bool:
        totals, batches = Totals({}), {"labelled": [make_batch([1, 2])]}
        run_step(Accumulate(), self.method, batches, CLOCK, self.engine, totals)
        if overflow:
            next(p for p in self.method.parameters() if p.grad is not None).grad.fill_(math.inf)
        allow = partial(self.guard.allows, CLOCK, batches, totals)
        return self.optimiser.update(self.phase, 0, self.engine, allow)[1]


def test_an_overflow_lowers_the_loss_scale_to_its_floor_and_counts_from_there(tmp_path: Path) -> None:
    run = Scaled(tmp_path, floor=1.5)
    before = {name: value.clone() for name, value in run.method.state_dict().items()}
    assert not run.update(overflow=True)
    assert run.engine.scaler.get_scale() == 2.0
    assert not run.update(overflow=True)
    assert run.engine.scaler.get_scale() == 1.5
    assert run.guard.in_a_row == 0
    assert not (tmp_path / "skipped").exists()
    assert_same(dict(run.method.state_dict()), before)
    assert not run.update(overflow=True)
    assert not run.update(overflow=True)
    assert run.guard.in_a_row == 2
    assert (tmp_path / "skipped").exists()
    with pytest.raises(AsrkitError, match="3 updates in a row"):
        run.update(overflow=True)
    assert run.engine.scaler.get_scale() == 1.5
    assert run.guard.figures() == {"skipped_updates": 5}


def in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have fp16's loss scale on the CPU, where fp16 itself is not to be had."""
    monkeypatch.setattr(engine, "choose_precision", lambda name, device: "fp16")
    monkeypatch.setattr(engine, "autocast", lambda device, precision: nullcontext())


def test_a_rank_that_had_no_audio_yet_can_take_the_others_update(monkeypatch: pytest.MonkeyPatch) -> None:
    in_fp16(monkeypatch)
    method = make_method("finetune", encoder=STILL)
    alone = TrainingEngine(torch.device("cpu"), "fp16", Ranks())
    optimiser, phase = Optimiser(method, OptimiserConfig()), method.phases()[1]
    optimiser.enter(phase)
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    norms, taken = optimiser.update(phase, 0, alone)
    assert taken
    assert all(0 < norm < math.inf for norm in norms.values())


def test_a_run_goes_on_in_fp16_where_that_has_become_its_precision(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = settings("finetune", speech, training={"checkpoint_every": 1})
    assert train(tmp_path / "exp", whole) == 0
    for path in (tmp_path / "exp" / "checkpoints").glob("step_*.pt"):
        if update_of(path) > 5:
            path.unlink()
    (tmp_path / "exp" / "checkpoints" / "last").write_text("step_5.pt\n")
    in_fp16(monkeypatch)
    assert train(tmp_path / "exp", whole) == 0
    assert checkpoint(tmp_path / "exp")["update"] == 10
    assert checkpoint(tmp_path / "exp")["scaler"]["scale"] > 0


def test_inner_steps_that_overflow_lower_the_loss_scale_and_count_as_no_broken_loss(tmp_path: Path) -> None:
    run = Scaled(tmp_path, floor=1.0)
    for before, counted in ((1.0, 0), (math.nan, 1)):
        totals = Totals({"loss": (torch.tensor(math.nan), 1.0), "loss_before_inner": (torch.tensor(before), 1.0)})
        assert not run.guard.allows(CLOCK, {"labelled": [make_batch([1])]}, totals, {"encoder": math.nan})
        assert run.guard.in_a_row == counted


def test_scaled_updates_are_those_without_a_scale(tmp_path: Path) -> None:
    scaled, plain = Scaled(tmp_path, floor=1.0), Scaled(tmp_path, floor=1.0)
    plain.engine.scaler = torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(3):
        assert scaled.update(overflow=False)
        assert plain.update(overflow=False)
    for name, value in scaled.method.state_dict().items():
        torch.testing.assert_close(value, plain.method.state_dict()[name])
