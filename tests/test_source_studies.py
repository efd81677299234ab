"""The studies soft_random, heterogeneous and scaling: every setting exists, and what is compared took as much audio."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import UNITS

from asrkit.methods.heterogeneous import HeterogeneousConfig
from asrkit.training.config import ExperimentConfig, load_experiment_config
from asrkit.training.experiment import build_method

ROOT = Path(__file__).parents[1]
HOME = ROOT / "examples" / "librispeech"
sys.path.insert(0, str(HOME))

from study import Study, load, pretraining_of  # noqa: E402

STUDIES = {name: load(name, HOME)[1] for name in ("soft_random", "heterogeneous", "scaling", "scaling_librispeech")}


def configured(study: Study, file: str, overrides: list[str], known: tuple[str, ...]) -> ExperimentConfig:
    """Read a stage's configuration as run.sh has it: a method's own keys go to its stage only."""
    folder = study.arguments[study.arguments.index("--config") + 1]
    size = study.arguments[study.arguments.index("--size") + 1]
    own = "finetune" if file in ("scratch", "finetune") else file
    mine = [word for word in overrides if word.partition(".")[0] not in known or word.startswith(f"{own}.")]
    return load_experiment_config(ROOT / "conf" / folder / f"{file}_{size}.yaml", ["exp_dir=x", *mine])


def stages(study: Study, recipe: str, condition: str) -> list[ExperimentConfig]:
    """Return the configurations of all stages of a recipe under a condition, in order."""
    one = study.recipes[recipe]
    method = one.arguments[one.arguments.index("--method") + 1]
    methods = ("finetune", "wav2vec_s", "bl_just", "pretrain", "heterogeneous")
    overrides = [*study.overrides, *one.overrides, *study.conditions[condition].overrides]
    files = [method]
    if "scratch" in one.arguments and method == "finetune":
        files = ["scratch"]
    if method == "wav2vec_s":
        files.append("finetune")
    found = [configured(study, file, overrides, methods) for file in files]
    if "scratch" not in one.arguments:
        kind = (
            study.arguments[study.arguments.index("--pretraining") + 1]
            if "--pretraining" in study.arguments
            else "pretrain"
        )
        start = pretraining_of(study, recipe, condition, 1)
        found.insert(0, configured(study, kind, [word.replace("DATA/", "data/") for word in start.overrides], methods))
    return found


def seconds(config: ExperimentConfig) -> dict[str, float]:
    """Return the audio of a stage by stream."""
    found: dict[str, float] = {}
    method = build_method(config, UNITS)
    method.observe_streams(dict.fromkeys(config.data.sources, 10))
    sections = {"labelled": config.data.labelled, "unlabelled": config.data.unlabelled, **config.data.sources}
    for phase in method.phases():
        for stream in phase.streams:
            found[stream] = found.get(stream, 0.0) + phase.length * sections[stream].seconds_per_update
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_every_setting_exists(name: str) -> None:
    study = STUDIES[name]
    for condition in study.conditions:
        for recipe in study.recipes:
            assert all(config.data.dev for config in stages(study, recipe, condition))


def test_soft_random_sampling_goes_through_as_many_epochs_for_every_ratio() -> None:
    study = STUDIES["soft_random"]
    updates = {}
    for recipe in study.recipes:
        (config,) = stages(study, recipe, "")
        updates[recipe] = config.options.updates
        if recipe.startswith("r = "):
            assert config.data.labelled.sampling == "soft_random"
            assert config.data.labelled.ratio == float(recipe.removeprefix("r = "))
            assert config.options.updates == 1500 * config.data.labelled.ratio
        else:
            assert config.data.labelled.sampling == "all"
    for one, control in study.pairs:
        assert updates[one] == updates[control]


def test_pooled_training_takes_as_many_gradients_of_as_much_audio() -> None:
    study = STUDIES["heterogeneous"]
    rates = set()
    for recipe in list(study.recipes)[:3]:
        start, _ = stages(study, recipe, "slow")
        options = start.options
        assert isinstance(options, HeterogeneousConfig)
        gradients = options.updates * len(start.data.sources) * (options.inner.steps + 1)
        assert gradients == 1800
        for source in start.data.sources.values():
            assert source.seconds_per_update / (options.inner.steps + 1) == 10
        assert sum(seconds(start).values()) == 18_000
        rates.add(options.schedule.learning_rate)
    assert len(rates) == 1
    assert stages(study, "pooled", "slow")[0].options.inner.steps == 0


def test_recipes_of_the_scaling_study_take_as_much_audio() -> None:
    study = STUDIES["scaling"]
    totals: dict[tuple[str, str], float] = {}
    for condition in study.conditions:
        for recipe in study.recipes:
            spent = [seconds(config) for config in stages(study, recipe, condition)]
            totals[condition, recipe] = sum(sum(one.values()) for one in spent)
            assert sum(one.get("unlabelled", 0.0) for one in spent) == 18_000
    assert set(totals.values()) == {30_000}


def test_a_condition_limits_untranscribed_speech_alone() -> None:
    study = STUDIES["scaling"]
    hours: dict[str, set[float]] = {}
    for condition in study.conditions:
        for recipe in study.recipes:
            for config in stages(study, recipe, condition):
                hours.setdefault(condition, set()).add(config.data.unlabelled.hours)
                assert config.data.labelled.hours == 0
    assert hours == {"8 min": {0.1333}, "24 min": {0.4}, "70 min": {0.0}}


def test_scaling_says_what_it_takes() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(HOME / "scaling.sh"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "--part" in run("--help").stdout
    refused = run("timit")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "neither mini nor librispeech" in refused.stderr
