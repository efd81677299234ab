"""The tables and the plot of a study, made of the results that were kept and of nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from curves import AXES, condition_table, draw_curves
from study import Recipe, Study, place, points, slug

from asrkit.analysis.results import Row, collect, markdown_table, percent, write_results
from asrkit.analysis.seeds import difference_over_seeds
from asrkit.errors import AsrkitError
from asrkit.files import atomic_path

HEADINGS = ("recipe", "WER %", "CER %", "n", "against the first", "95 % interval", "minutes")
RIGHT = HEADINGS[1:]


@dataclass(frozen=True)
class Cell:
    """A recipe on one set with one subset's labels."""

    row: Row
    errors: tuple[tuple[int, ...], ...]
    """Word errors by seed and speaker."""
    speakers: tuple[str, ...]
    words: tuple[int, ...]

    @property
    def minutes(self) -> float:
        """Mean training time."""
        return sum(result.values["training_seconds"] for result in self.row.results) / len(self.row.results) / 60


def read_cell(folder: Path, name: str) -> Cell | None:
    """Read all seeds of a recipe and subset on a set; None if there is none yet."""
    if not folder.is_dir() or not any(folder.glob(f"seed*/{name}/results.json")):
        return None
    results = sorted(collect(sorted(folder.glob(f"seed*/{name}"))), key=lambda result: result.seed)
    tables = [_speakers(result.path.with_name("speakers.tsv")) for result in results]
    speakers = tuple(tables[0])
    if any(tuple(table) != speakers for table in tables):
        raise AsrkitError("its seeds were tested on different speakers", where=folder)
    errors = tuple(tuple(table[speaker][0] for speaker in speakers) for table in tables)
    return Cell(Row(tuple(results)), errors, speakers, tuple(tables[0][speaker][1] for speaker in speakers))


def _speakers(path: Path) -> dict[str, tuple[int, int]]:
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return {speaker: (int(errors), int(words)) for speaker, errors, words in rows}


def write_tables(name: str, study: Study, results: Path, output: Path) -> None:
    """Write the study's part of a Markdown file, and its plot beside the results.

    Raises:
        AsrkitError: if there are no results yet, or the file lacks the markers of this part.
    """
    plot = results / "plot.png"
    parts = _by_condition(study, results, plot) if len(study.conditions) > 1 else _by_subset(study, results, plot)
    if not parts:
        raise AsrkitError("no results of this study yet", where=results, mend="compare.sh without --tables")
    legend = "Word error rates of all seeds"
    if study.plot != "dots":
        legend = f"Word error rates on dev over {AXES[study.plot]}"
    parts += [
        f"![{legend}]({os.path.relpath(plot, output.parent)})\n",
        "± is the sample standard deviation over n seeds. " + _explained(study),
        _searches(study, study.recipes, results),
    ]
    write_results(output, "\n".join(filter(None, [f"## {study.title}\n", *parts])), name)


def _by_condition(study: Study, results: Path, plot: Path) -> list[str]:
    """Return a table of all conditions and recipes for each set and subset, and draw how they learn."""
    parts: list[str] = []
    told: list[Cell] = []
    keys = [(condition, recipe) for condition in study.conditions for recipe in study.recipes]
    for test in study.sets:
        for subset in study.subsets:
            found = {key: read_cell(results / place(key[1], key[0]) / subset, test) for key in keys}
            cells = {key: cell for key, cell in found.items() if cell is not None}
            if not cells:
                continue
            told += cells.values()
            rows = {key: cell.row for key, cell in cells.items()}
            parts += [f"### {test}, labels {subset}\n", condition_table(study, rows, results, subset, test)]
            parts += [
                _pair(cells[condition, one], cells[condition, other], f"{condition}, {one}", other)
                for one, other in study.pairs
                for condition in study.conditions
                if {(condition, one), (condition, other)} <= set(cells)
            ]
            draw_curves(study, rows, results, subset, plot)
    return [_about(told), *parts] if parts else []


def _by_subset(study: Study, results: Path, plot: Path) -> list[str]:
    """Return a table of all recipes for each set and subset, and draw their results."""
    recipes = study.recipes
    condition = next(iter(study.conditions))
    cells = {
        (recipe, subset, test): cell
        for recipe in recipes
        for subset in study.subsets
        for test in study.sets
        if (cell := read_cell(results / place(recipe, condition) / subset, test)) is not None
    }
    if not cells:
        return []
    if study.plot == "dots":
        draw(study, recipes, cells, plot)
    else:
        _, subset, test = list(cells)[-1]
        rows = {(condition, recipe): cell.row for (recipe, *where), cell in cells.items() if where == [subset, test]}
        draw_curves(study, rows, results, subset, plot)
    parts = [_about(cells.values())]
    for test in study.sets:
        for subset in study.subsets:
            lines = [
                _line(recipe, cells, recipes, subset, test) for recipe in recipes if (recipe, subset, test) in cells
            ]
            if lines:
                parts += [f"### {test}, labels {subset}\n", markdown_table(HEADINGS, lines, right=RIGHT)]
                parts += [
                    _pair(cells[one, subset, test], cells[other, subset, test], one, other)
                    for one, other in study.pairs
                    if {(one, subset, test), (other, subset, test)} <= set(cells)
                ]
    return parts


def _explained(study: Study) -> str:
    """Return what the columns mean."""
    if len(study.conditions) == 1:
        return (
            "The interval is of the difference in WER from the first recipe, in points: a paired bootstrap over speakers and "
            "seeds. Minutes are what training took, the shared pre-training apart.\n"
        )
    told = ["Updates and minutes are those of training, the pre-training apart.\n"]
    if study.pairs:
        told.insert(0, "Intervals are of differences in WER: a paired bootstrap over speakers and seeds.")
    if study.target_wer:
        told.insert(
            0,
            "Updates to a WER are counted to the first look at dev that finds it, a mean over the seeds that got there.",
        )
    return " ".join(told)


def _line(
    recipe: str, cells: Mapping[tuple[str, str, str], Cell], recipes: Mapping[str, Recipe], subset: str, test: str
) -> list[str]:
    cell, first = cells[recipe, subset, test], cells.get((next(iter(recipes)), subset, test))
    told = [recipe, percent(cell.row, "wer"), percent(cell.row, "cer"), str(len(cell.row.results))]
    if first is None or first is cell:
        return [*told, "–", "–", f"{cell.minutes:.1f}"]
    base = first.row.mean("wer")
    interval = difference_over_seeds(first.errors, cell.errors, cell.words)
    change = f"{100 * (cell.row.mean('wer') - base) / base:+.0f} %" if base else "–"
    return [*told, change, f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}", f"{cell.minutes:.1f}"]


def _pair(one: Cell, other: Cell, name: str, other_name: str) -> str:
    base = other.row.mean("wer")
    interval = difference_over_seeds(other.errors, one.errors, one.words)
    change = f"{100 * (one.row.mean('wer') - base) / base:+.0f} %" if base else "–"
    span = f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}"
    return f"*{name}* against *{other_name}*: {change}, 95 % interval {span} points.\n"


def _about(cells: Iterable[Cell]) -> str:
    results = [result for cell in cells for result in cell.row.results]
    corpora = {str(result.values.get("corpus")) for result in results}
    # Where a study has several corpora, each has sets of these names.
    of = {corpus: f" of {corpus}" if len(corpora) > 1 else "" for corpus in corpora}
    sets = {(result.set + of[str(result.values.get("corpus"))], result.utterances, result.words) for result in results}
    listed = ", ".join(f"{name} ({utterances} utterances, {words} words)" for name, utterances, words in sorted(sets))

    def named(key: str) -> str:
        return ", ".join(sorted({str(result.values.get(key)) for result in results}))

    return f"{listed}; greedy decoding; hardware {named('hardware')}; commit {named('commit')}.\n"


def _searches(study: Study, recipes: Mapping[str, Recipe], results: Path) -> str:
    """Return what the search on dev tried and chose."""
    settings = [" ".join(point) for point in points(study, "STAGE")]
    lines = []
    for name, recipe in recipes.items():
        path = results / slug(name) / "search.json"
        if recipe.settings_of:
            lines.append([name, *["" for _ in settings], f"as {recipe.settings_of}"])
        elif path.is_file():
            report = json.loads(path.read_text(encoding="utf-8"))
            tried = [f"{100 * point['wer']:.2f}" for point in report["tried"]]
            lines.append([name, *tried, str(report["chosen"] + 1)])
    if not lines or len(settings) < 2:
        return ""
    legend = "\n".join(f"{number}. `{point}`" for number, point in enumerate(settings, 1))
    numbers = [str(number) for number in range(1, len(settings) + 1)]
    table = markdown_table(("recipe", *numbers, "chosen"), lines, right=(*numbers, "chosen"))
    head = (
        f"WER % on {study.search.set} by which each recipe chose its settings (labels {study.subsets[0]}, one seed):\n"
    )
    return "\n".join([head, table, f"{legend}\n", "STAGE is the stage that learns labels first.\n"])


def draw(study: Study, recipes: Mapping[str, Recipe], cells: Mapping[tuple[str, str, str], Cell], path: Path) -> None:
    """Draw every seed's WER on the last set as a dot and each recipe's mean as a line, a panel per subset."""
    test = study.sets[-1]
    shown = [subset for subset in study.subsets if any(key[1:] == (subset, test) for key in cells)]
    names = [name for name in recipes if any((name, subset, test) in cells for subset in shown)]
    figure, axes = plt.subplots(
        1,
        max(1, len(shown)),
        figsize=(2.5 + 3.6 * max(1, len(shown)), 1.2 + 0.42 * len(names)),
        sharey=True,
        squeeze=False,
    )
    for axis, subset in zip(axes[0], shown, strict=False):
        for number, name in enumerate(names):
            cell = cells.get((name, subset, test))
            if cell is None:
                continue
            rates: Sequence[float] = [100 * result.wer for result in cell.row.results]
            axis.plot(rates, [number] * len(rates), "o", color=f"C{number % 10}", alpha=0.6, markeredgewidth=0)
            axis.plot(
                [100 * cell.row.mean("wer")] * 2, [number - 0.3, number + 0.3], color=f"C{number % 10}", linewidth=2
            )
        axis.set_title(f"labels {subset}")
        axis.set_xlabel(f"WER % on {test}")
        axis.set_xlim(left=0)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)
