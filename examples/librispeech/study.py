"""A study: which recipes are compared, on what, over which seeds, and which settings each may choose from on dev."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from asrkit import config
from asrkit.data.corpus import is_test
from asrkit.errors import AsrkitError, nearest

PLOTS = ("dots", "updates", "all_updates", "minutes")


@dataclass
class Search:
    """What every recipe may choose from."""

    set: str = ""
    """The dev set whose WER decides."""
    grid: list[list[str]] = field(default_factory=list)
    """Lists of alternatives, each one or more KEY=VALUE; STAGE stands for the recipe's own stage."""


@dataclass
class Recipe:
    """One row of the tables."""

    stage: str = ""
    """The stage that the grid applies to: what STAGE stands for."""
    seeds: list[int] = field(default_factory=list)
    """Seeds of its runs."""
    arguments: list[str] = field(default_factory=list)
    """Of run.sh."""
    overrides: list[str] = field(default_factory=list)
    """KEY=VALUE for run.sh, in addition to those that the search chooses."""
    pretraining: list[str] = field(default_factory=list)
    """KEY=VALUE for a pre-training of its own, in addition to those of the study; empty = the one that recipes share."""
    settings_of: str = ""
    """Another recipe whose choice this one takes over instead of searching: for ablations."""


@dataclass
class Condition:
    """What all recipes go through in turn: an amount of untranscribed speech, a domain to adapt to."""

    overrides: list[str] = field(default_factory=list)
    """KEY=VALUE for its runs."""
    pretraining: list[str] = field(default_factory=list)
    """KEY=VALUE for a pre-training of its own; empty = the one that conditions share."""
    data: str = ""
    """Its prepared data, a folder in --data-dir; empty = --data-dir itself."""
    arguments: list[str] = field(default_factory=list)
    """Of run.sh, where its data is prepared and used."""


@dataclass
class Study:
    """A comparison."""

    title: str = ""
    """Heading of its tables."""
    arguments: list[str] = field(default_factory=list)
    """Of run.sh, for all runs."""
    pretraining: list[str] = field(default_factory=list)
    """KEY=VALUE for the pre-training that the recipes share; DATA/ stands for --data-dir."""
    overrides: list[str] = field(default_factory=list)
    """KEY=VALUE for all runs, the pre-training apart; recipes and conditions may say otherwise."""
    pretraining_per_seed: bool = False
    """Pre-train with every seed that recipes have, instead of once with seed 1."""
    conditions: dict[str, Condition] = field(default_factory=dict)
    """By name, in the order of the table; empty = one without a name. The search uses the first."""
    axis: str = "condition"
    """What the conditions are: heading of their column."""
    target_wer: float = 0.0
    """WER in percent, on dev, to which the table with conditions counts updates."""
    plot: str = "dots"
    """dots: the WER of all seeds; updates, all_updates or minutes: WER on dev over these (all: with pre-training)."""
    subsets: list[str] = field(default_factory=list)
    """Labels of the last stage; the search uses the first."""
    sets: list[str] = field(default_factory=list)
    """Sets that the tables show."""
    search: Search = field(default_factory=Search)
    """What every recipe may choose from."""
    pairs: list[list[str]] = field(default_factory=list)
    """Further comparisons, of the first recipe with the second each."""
    recipes: dict[str, Recipe] = field(default_factory=dict)
    """By name; the first is what the others are compared with."""


@dataclass(frozen=True)
class Pretraining:
    """A pre-training, which several runs may start from."""

    folder: str
    """Name of its experiment folder."""
    condition: str
    """Whose data are at hand."""
    seed: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One call of run.sh per subset, in a folder of its own."""

    recipe: str
    condition: str
    point: int
    seed: int
    pretraining: Pretraining | None
    """Where it starts; None where its arguments say so."""
    arguments: tuple[str, ...]
    overrides: tuple[str, ...]

    @property
    def cell(self) -> str:
        """Name of the folder of its recipe and condition."""
        return place(self.recipe, self.condition)

    @property
    def folder(self) -> str:
        """Name of its experiment folder."""
        return f"{self.cell}/point{self.point}_seed{self.seed}"


def load(name: str, home: Path) -> tuple[str, Study]:
    """Read a study by name or path; return its name and itself.

    Raises:
        AsrkitError: if it cannot be read or says something impossible.
    """
    path = Path(name) if name.endswith(".yaml") else home / "studies" / f"{name}.yaml"
    study = config.load(Study, path)
    recipes = study.recipes
    study.conditions = study.conditions or {"": Condition()}
    if study.plot not in PLOTS:
        raise AsrkitError(f"plot is '{study.plot}'", where=path, mend=nearest(study.plot, PLOTS))
    if not recipes or not study.subsets or not study.sets:
        raise AsrkitError("a study needs recipes, subsets and sets", where=path)
    if study.search.grid and (not study.search.set or is_test(study.search.set)):
        raise AsrkitError(
            f"search.set is '{study.search.set}'", where=path, mend="a dev set: nothing is chosen on test"
        )
    for key, recipe in recipes.items():
        if not recipe.seeds or not (recipe.stage or recipe.settings_of):
            raise AsrkitError(f"the recipe '{key}' needs seeds, and a stage or settings_of", where=path)
        if recipe.pretraining and "--init" in recipe.arguments:
            raise AsrkitError(f"the recipe '{key}' has a pre-training of its own and --init", where=path)
        if recipe.settings_of and (recipe.settings_of not in recipes or recipes[recipe.settings_of].settings_of):
            raise AsrkitError(f"the recipe '{key}' takes its settings of '{recipe.settings_of}'", where=path)
    if any(len(pair) != 2 or not set(pair) <= set(recipes) for pair in study.pairs):
        raise AsrkitError("pairs holds lists of two recipes' names", where=path)
    return path.stem, study


def points(study: Study, stage: str) -> list[tuple[str, ...]]:
    """Return the combinations of the grid's alternatives, as overrides of a stage; one empty one without a grid."""
    combinations = itertools.product(*study.search.grid)
    return [tuple(word.replace("STAGE", stage) for part in choice for word in part.split()) for choice in combinations]


def pretraining_of(study: Study, recipe: str, condition: str, seed: int) -> Pretraining:
    """Return the pre-training that a run of a recipe starts from."""
    own, here = study.recipes[recipe].pretraining, study.conditions[condition].pretraining
    name = "_".join(filter(None, ["shared", own and slug(recipe), here and slug(condition)]))
    # Without settings of its own, a condition is at home in the data of the first.
    home = condition if here else next(iter(study.conditions))
    seeded = study.pretraining_per_seed
    overrides = (*study.pretraining, *own, *here)
    return Pretraining(f"{name}_seed{seed}" if seeded else name, home, seed if seeded else 1, overrides)


def place(recipe: str, condition: str) -> str:
    """Return the name of the folder that a recipe's results under a condition have."""
    return "/".join(filter(None, [slug(recipe), slug(condition)]))


def slug(name: str) -> str:
    """Return a name as a folder's."""
    kept = "".join(character if character.isalnum() else "_" for character in name)
    return "_".join(filter(None, kept.split("_"))).lower()
