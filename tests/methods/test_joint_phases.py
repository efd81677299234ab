"""The phases of joint methods: names, lengths, rates, γ, and what a run makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import STILL, checkpoint, make_method, rows, settings, train
from hypothesis import given
from hypothesis import settings as property_settings
from hypothesis import strategies as st

from asrkit.core.clock import Clock
from asrkit.core.phase import Phase
from asrkit.core.schedule import Schedule
from asrkit.errors import AsrkitError
from asrkit.methods.bl_just import BLJust, BLJustConfig
from asrkit.methods.joint import EXPLORATION, FINETUNE, JOINT, JointMethod, StageConfig
from asrkit.methods.penalty import penalty
from asrkit.methods.weighted_sum import WeightedSumConfig

EPOCHS = {"labelled": 5, "unlabelled": 8}
BY_PASSES = {
    "exploration": {"updates": 0, "passes": 2.5},
    "joint": {"updates": 0, "passes": 1.0},
    "finetune": {"updates": 0, "passes": 3.0},
}


def make(**section: Any) -> BLJust:
    method = make_method("bl_just", encoder=STILL, bl_just=section)
    assert isinstance(method, BLJust)
    method.observe_streams(EPOCHS)
    return method


def outline(method: JointMethod) -> list[tuple[str, int]]:
    return [(phase.name, phase.length) for phase in method.phases()]


def walk(phases: list[Phase]) -> list[tuple[Phase, Clock]]:
    """Return the clock of every update, as the loop makes it."""
    clocks = []
    for phase in phases:
        length = phase.length
        clocks += [(phase, Clock(1, len(clocks) + update, phase.name, update, length)) for update in range(length)]
    return clocks


def test_phases_in_updates_and_in_passes() -> None:
    assert outline(make()) == [*[(EXPLORATION, 1), (JOINT, 3)] * 2, (FINETUNE, 2)]
    # 2.5 passes of 8; the longer of two streams; 3 passes of 5.
    assert outline(make(**BY_PASSES)) == [*[(EXPLORATION, 20), (JOINT, 8)] * 2, (FINETUNE, 15)]
    method = make_method("weighted_sum", weighted_sum={"joint": BY_PASSES["joint"], "finetune": {"updates": 0}})
    method.observe_streams({"labelled": 9, "unlabelled": 4})
    assert outline(method) == [(JOINT, 9)]


def test_what_is_left_out() -> None:
    none = {"updates": 0, "passes": 0.0}
    assert outline(make(exploration=none)) == [(JOINT, 3), (JOINT, 3), (FINETUNE, 2)]
    assert outline(make(finetune=none, outer_epochs=1)) == [(EXPLORATION, 1), (JOINT, 3)]
    with pytest.raises(AsrkitError, match=r"joint\.updates and joint\.passes"):
        make(joint=none)


def test_streams_and_groups_of_each_phase() -> None:
    by_name = {phase.name: phase for phase in make(finetune={"freeze_frontend": True}).phases()}
    assert by_name[EXPLORATION].streams == ("unlabelled",)
    assert set(by_name[JOINT].streams) == {"labelled", "unlabelled"}
    assert by_name[FINETUNE].streams == ("labelled",)
    assert set(by_name[EXPLORATION].schedules) == {"frontend", "encoder", "ssl"}
    assert set(by_name[JOINT].schedules) == {"frontend", "encoder", "ctc", "ssl"}
    assert set(by_name[FINETUNE].schedules) == {"encoder", "ctc"}


@given(st.integers(0, 4), st.integers(1, 4), st.integers(1, 6), st.sampled_from(["epoch", "update"]))
@property_settings(max_examples=25)
def test_a_kinds_rate_and_the_penalty_run_through_all_its_phases(
    explored: int, joint: int, epochs: int, by: str
) -> None:
    rate = {"learning_rate": 1e-2, "name": "cosine", "warmup": 0.3}
    method = make(
        outer_epochs=epochs,
        exploration={"updates": explored, "passes": 0.0, "schedule": rate},
        joint={"updates": joint, "schedule": rate},
        gamma={"name": "cosine", "by": by, "start": 0.1},
    )
    config = method.config
    seen = {EXPLORATION: 0, JOINT: 0}
    for phase, clock in walk(list(method.phases())):
        if phase.name == FINETUNE:
            continue
        length, stage = (joint, config.joint) if phase.name == JOINT else (explored, config.exploration)
        wanted = Schedule(stage.schedule, epochs * length).rate(seen[phase.name])
        assert {schedule.rate(clock.phase_update) for schedule in phase.schedules.values()} == {wanted}
        if phase.name == JOINT:
            done, total = (seen[JOINT] // joint, epochs) if by == "epoch" else (seen[JOINT], epochs * joint)
            assert method.joint_update(clock) == seen[JOINT]
            assert method.gamma(clock) == penalty(config.gamma, done, total)
        seen[phase.name] += 1
    assert seen == {EXPLORATION: epochs * explored, JOINT: epochs * joint}


def test_only_the_last_joint_phase_and_the_end_are_milestones(speech: Path, tmp_path: Path) -> None:
    marks = [phase.milestone for phase in make(outer_epochs=3).phases()]
    assert marks == [False] * 5 + [True, True]
    whole = settings("bl_just", speech, bl_just={"outer_epochs": 3, "finetune": {"updates": 1}})
    whole["training"] |= {"validate_every": 1000, "checkpoint_every": 1000}
    assert train(tmp_path / "exp", whole) == 0
    validated = [row["step"] for row in rows(tmp_path / "exp") if "dev/loss" in row]
    assert validated == [12, 13]
    saved = sorted(path.name for path in (tmp_path / "exp" / "checkpoints").glob("step_*.pt"))
    assert saved == ["step_12.pt", "step_13.pt"]
    assert checkpoint(tmp_path / "exp")["finished"]


def test_a_run_may_end_with_a_joint_phase(speech: Path, tmp_path: Path) -> None:
    whole = settings("bl_just", speech, bl_just={"finetune": {"updates": 0, "passes": 0.0}})
    assert train(tmp_path / "exp", whole) == 0
    last = rows(tmp_path / "exp")[-1]
    assert (last["step"], last["phase"]) == (8, JOINT)
    assert "dev/wer" in last
    assert checkpoint(tmp_path / "exp")["finished"]


def test_what_a_run_logs(speech: Path, tmp_path: Path) -> None:
    whole = settings("bl_just", speech, training={"log_every": 1})
    assert train(tmp_path / "exp", whole) == 0
    trained = [row for row in rows(tmp_path / "exp") if "loss" in row]
    assert [row["phase"] for row in trained] == [*[EXPLORATION, *[JOINT] * 3] * 2, *[FINETUNE] * 2]
    joint = [row for row in trained if row["phase"] == JOINT]
    assert [row["gamma"] for row in joint] == [0.0] * 3 + [0.3] * 3
    assert ["grad_cosine" in row for row in joint] == [True, False] * 3
    for row in trained:
        assert ("contrastive" in row) == (row["phase"] != FINETUNE)
        assert ("ctc" in row) == (row["phase"] != EXPLORATION)
    assert {"dev/ctc", "dev/contrastive", "dev/wer"} <= set(rows(tmp_path / "exp")[-1])


def test_a_thousand_phases_are_made_in_no_time() -> None:
    method = make(outer_epochs=500)
    assert len(method.phases()) == 1001
    assert len({id(phase.step) for phase in method.phases()}) <= 4


@pytest.mark.parametrize(
    ("start", "changes", "taken"),
    [
        ("pretrain", {}, {"encoder", "ssl"}),
        ("pretrain", {"pretrain": {"wav2vec2": {"entries": 4}}}, {"encoder"}),
        ("finetune", {}, {"encoder"}),
    ],
)
def test_weights_to_start_from(start: str, changes: dict[str, Any], taken: set[str]) -> None:
    """The self-supervised head comes along where it is the same."""
    other, method = make_method(start, encoder=STILL, **changes), make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.25)
    weights = other.state_dict()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    assert {prefix.rstrip(".") for prefix in method.inherit(weights, keep_head=False)} == taken
    for name, value in method.state_dict().items():
        wanted = weights[name] if name.split(".")[0] in taken else before[name]
        assert torch.equal(value, wanted), name


def test_a_collapse_is_told(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = settings(
        "bl_just", speech, bl_just={"min_code_perplexity": 8.0, "collapse_patience": 2}, training={"log_every": 1}
    )
    assert train(tmp_path / "exp", whole) == 2
    said = capsys.readouterr().err
    assert "stopped at step 2" in said
    assert "bl_just" in said


@pytest.mark.parametrize(
    ("config", "changes", "named"),
    [
        (BLJustConfig, {"outer_epochs": 0}, "outer_epochs"),
        (BLJustConfig, {"diagnose_every": -1}, "diagnose_every"),
        (BLJustConfig, {"frontend_gradient_scale": -1.0}, "frontend_gradient_scale"),
        (WeightedSumConfig, {"weight": 0.0}, "weighted_sum.weight"),
        (WeightedSumConfig, {"collapse_patience": 0}, "collapse_patience"),
        (StageConfig, {"updates": -1}, "updates"),
        (StageConfig, {"passes": -0.5}, "passes"),
    ],
)
def test_impossible_settings_are_refused(config: type, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(AsrkitError, match=named):
        config(**changes)
