"""The studies of BL-JUST compare like with like: every recipe takes as many seconds of audio."""

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

STUDIES = {name: load(name, HOME)[1] for name in ("bl_just", "bl_just_speech")}
BUDGETS = {"bl_just": (18_000, 12_000, 1000), "bl_just_speech": (36_000, 24_000, 1500)}
"""Seconds of untranscribed and of transcribed audio, and the most updates."""


def spent(study: str, name: str, point: int) -> tuple[dict[str, float], int]:
    """Return a recipe's seconds of audio per stream, pre-training included, and its updates."""
    recipes = STUDIES[study].recipes
    recipe = recipes[name]
    stage = (recipes[recipe.settings_of] if recipe.settings_of else recipe).stage
    scratch = "scratch" in recipe.arguments
    method = recipe.arguments[recipe.arguments.index("--method") + 1]
    file = "scratch" if method == "finetune" and scratch else method
    overrides = [*points(STUDIES[study], stage)[point], *recipe.overrides]
    config = load_experiment_config(ROOT / "conf" / "study" / f"{file}_mini.yaml", ["exp_dir=x", *overrides])
    seconds = {"labelled": 0.0, "unlabelled": 0.0 if scratch else float(BUDGETS[study][0])}
    updates = 0
    for phase in build_method(config, UNITS).phases():
        length = phase.length
        updates += length
        for stream in phase.streams:
            seconds[stream] += length * getattr(config.data, stream).seconds_per_update
    return seconds, updates


@pytest.mark.parametrize("study", STUDIES)
def test_the_pre_training_is_what_the_budget_says(study: str) -> None:
    path = ROOT / "conf" / "study" / "pretrain_mini.yaml"
    config = load_experiment_config(path, ["exp_dir=x", *STUDIES[study].pretraining])
    assert config.options.updates * config.data.unlabelled.seconds_per_update == BUDGETS[study][0]


@pytest.mark.parametrize(
    ("study", "name"), [(study, name) for study, found in STUDIES.items() for name in found.recipes]
)
def test_every_recipe_takes_as_much_audio(study: str, name: str) -> None:
    untranscribed, transcribed, most = BUDGETS[study]
    for point in range(len(points(STUDIES[study], "x"))):
        seconds, updates = spent(study, name, point)
        assert sum(seconds.values()) == untranscribed + transcribed
        assert seconds["labelled"] == transcribed or name == "supervised only"
        assert updates <= most
