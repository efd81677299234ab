"""The studies of BEST-RQ and of self-conditioned CTC compare like with like, in an hour of one core and an hour of another."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import UNITS

from asrkit.training.config import ExperimentConfig, load_experiment_config
from asrkit.training.experiment import build_method

ROOT = Path(__file__).parents[1]
HOME = ROOT / "examples" / "librispeech"
sys.path.insert(0, str(HOME))

from study import Recipe, load, points  # noqa: E402

STUDIES = {name: load(name, HOME)[1] for name in ("best_rq", "self_conditioning")}


def config(file: str, *overrides: str) -> ExperimentConfig:
    return load_experiment_config(ROOT / "conf" / "study" / f"{file}_mini.yaml", ["exp_dir=x", *overrides])


def seconds(made: ExperimentConfig) -> float:
    """Audio of a run."""
    phases = build_method(made, UNITS).phases()
    return sum(
        phase.length * getattr(made.data, stream).seconds_per_update for phase in phases for stream in phase.streams
    )


def pretraining(study: str, recipe: Recipe) -> ExperimentConfig:
    return config("pretrain", *STUDIES[study].pretraining, *recipe.pretraining)


def tuning(study: str, recipe: Recipe, point: int) -> ExperimentConfig:
    scratch = "scratch" in recipe.arguments
    chosen = points(STUDIES[study], recipe.stage)[point]
    return config("scratch" if scratch else "finetune", *chosen, *recipe.overrides)


def test_both_losses_pre_train_on_as_much_audio() -> None:
    recipes = STUDIES["best_rq"].recipes
    made = {name: pretraining("best_rq", recipe) for name, recipe in recipes.items()}
    assert {seconds(one) for one in made.values()} == {48_000}
    assert [one.options.head for one in made.values()] == ["wav2vec2", "best_rq", "best_rq"]
    assert [one.options.best_rq.codebooks for one in list(made.values())[1:]] == [1, 4]
    assert len({str(one.encoder) for one in made.values()}) == 1


def test_the_four_recipes_differ_in_blocks_and_conditioning_alone() -> None:
    recipes = STUDIES["self_conditioning"].recipes
    made = [tuning("self_conditioning", recipe, 0) for recipe in recipes.values()]
    found = [(one.encoder.attention_block, one.options.ctc.intermediate) for one in made]
    assert found == [(0, []), (0, [3]), (25, []), (25, [3])]
    assert {(one.encoder.positions, one.encoder.reach) for one in made} == {("shaw", 24)}
    for one in made:
        one.encoder.attention_block = one.encoder.position_reach = 0
        one.options.ctc.intermediate = []
    assert len({str(one) for one in made}) == 1
    assert {seconds(one) for one in made} == {21_600}


@pytest.mark.parametrize("study", STUDIES)
def test_the_study_keeps_within_an_hour(study: str) -> None:
    """At 90 seconds of audio per second and core."""
    found = STUDIES[study]
    total = 0.0
    own = {tuple(recipe.pretraining): recipe for recipe in found.recipes.values() if "--init" not in recipe.arguments}
    total += sum(seconds(pretraining(study, recipe)) for recipe in own.values())
    for recipe in found.recipes.values():
        tried = len(points(found, recipe.stage))
        # One of the search's runs is a seed's.
        runs = tried - 1 + len(recipe.seeds)
        total += runs * len(found.subsets) * seconds(tuning(study, recipe, 0))
    assert total <= 60 * 60 * 90
