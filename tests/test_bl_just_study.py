"""The study bl_just compares like with like: every recipe takes as many seconds of audio."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import UNITS

from asrkit.training.config import load_experiment_config
from asrkit.training.experiment import build_method

ROOT = Path(__file__).parents[1]
HOME = ROOT / "examples" / "librispeech"
sys.path.insert(0, str(HOME))

from study import load, points  # noqa: E402

_, STUDY = load("bl_just", HOME)
UNTRANSCRIBED, TRANSCRIBED = 18_000, 12_000


def spent(name: str, point: int) -> tuple[dict[str, float], int]:
    """Return a recipe's seconds of audio per stream, pre-training included, and its updates."""
    recipe = STUDY.recipes[name]
    stage = (STUDY.recipes[recipe.settings_of] if recipe.settings_of else recipe).stage
    scratch = "scratch" in recipe.arguments
    method = recipe.arguments[recipe.arguments.index("--method") + 1]
    file = "scratch" if method == "finetune" and scratch else method
    overrides = [*points(STUDY, stage)[point], *recipe.overrides]
    config = load_experiment_config(ROOT / "conf" / "study" / f"{file}_mini.yaml", ["exp_dir=x", *overrides])
    seconds = {"labelled": 0.0, "unlabelled": 0.0 if scratch else float(UNTRANSCRIBED)}
    updates = 0
    for phase in build_method(config, UNITS).phases():
        length = phase.updates({})
        updates += length
        for stream in phase.streams:
            seconds[stream] += length * getattr(config.data, stream).seconds_per_update
    return seconds, updates


def test_the_pre_training_is_what_the_budget_says() -> None:
    path = ROOT / "conf" / "study" / "pretrain_mini.yaml"
    config = load_experiment_config(path, ["exp_dir=x", *STUDY.pretraining])
    assert config.options.updates * config.data.unlabelled.seconds_per_update == UNTRANSCRIBED


@pytest.mark.parametrize("name", STUDY.recipes)
def test_every_recipe_takes_as_much_audio(name: str) -> None:
    for point in range(len(points(STUDY, "x"))):
        seconds, updates = spent(name, point)
        assert sum(seconds.values()) == UNTRANSCRIBED + TRANSCRIBED
        assert seconds["labelled"] == TRANSCRIBED or name == "supervised only"
        assert updates <= 1000
