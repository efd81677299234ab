"""How fast recipes learn: the table of a study with conditions, and WER on dev over updates or minutes as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from keeping import COLUMNS, CURVE
from study import Study, place

from asrkit.analysis.results import Row, markdown_table, percent
from asrkit.errors import AsrkitError
from asrkit.files import atomic_path

AXES = {"updates": "updates", "all_updates": "updates, pre-training included", "minutes": "minutes of training"}


@dataclass(frozen=True)
class Curve:
    """WER on dev through a run, the pre-training apart; parallel tuples."""

    seed: int
    updates: tuple[int, ...]
    seconds: tuple[float, ...]
    wer: tuple[float, ...]

    def reaches(self, percent: float) -> int | None:
        """Return the updates after which WER was first seen at or below so many percent; None if never."""
        return next((at for at, wer in zip(self.updates, self.wer, strict=True) if 100 * wer <= percent), None)


def read_curves(folder: Path) -> list[Curve]:
    """Read the curves of all seeds of a recipe under a condition with some labels.

    Raises:
        AsrkitError: if a file is none of these.
    """
    found = []
    for path in sorted(folder.glob(f"seed*/{CURVE}")):
        head, *lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        if tuple(head) != COLUMNS:
            raise AsrkitError(
                f"its columns are {', '.join(head)}", where=path, mend="remove the run's results, run it again"
            )
        columns = list(zip(*lines, strict=True)) or [(), (), ()]
        updates, seconds, wer = (
            tuple(map(int, columns[0])),
            tuple(map(float, columns[1])),
            tuple(map(float, columns[2])),
        )
        found.append(Curve(int(path.parent.name.removeprefix("seed")), updates, seconds, wer))
    return found


def condition_table(study: Study, rows: Mapping[tuple[str, str], Row], results: Path, subset: str, test: str) -> str:
    """Return the table of all recipes under all conditions, of which ``rows`` has the results by (condition, recipe)."""
    target = study.target_wer
    headings = [study.axis, "recipe", f"WER % on {test}", "n"]
    if target:
        headings += [f"updates to {target:g} % on dev", "with pre-training"]
    headings += ["updates", "minutes", "pre-training, minutes"]
    lines = []
    for (condition, recipe), row in rows.items():
        line = [condition, recipe, percent(row, "wer"), str(len(row.results))]
        before = {result.seed: int(result.values["pretraining_updates"]) for result in row.results}
        curves = [curve for curve in read_curves(results / place(recipe, condition) / subset) if curve.seed in before]
        if target:
            reached = {curve.seed: at for curve in curves if (at := curve.reaches(target)) is not None}
            line.append(_mean(list(reached.values()), len(before)))
            line.append(_mean([at + before[seed] for seed, at in reached.items()], len(before)))
        line.append(
            f"{statistics.mean(curve.updates[-1] for curve in curves):.0f}" if all(c.updates for c in curves) else "–"
        )
        for key in ("training_seconds", "pretraining_seconds"):
            line.append(f"{statistics.mean(result.values[key] for result in row.results) / 60:.1f}")
        lines.append(line)
    return markdown_table(headings, lines, right=headings[2:])


def _mean(values: Sequence[int], of: int) -> str:
    """Return the mean of updates with its spread, and of how many runs it is where not all of them got there."""
    if not values:
        return "not reached"
    text = f"{statistics.mean(values):.0f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.0f}"
    return text if len(values) == of else f"{text} ({len(values)} of {of})"


def draw_curves(study: Study, rows: Mapping[tuple[str, str], Row], results: Path, subset: str, path: Path) -> None:
    """Draw WER on dev, a panel for each condition, a colour for each recipe, a thin line for each seed and a mark at its end."""
    conditions = list(dict.fromkeys(condition for condition, _ in rows))
    names = [name for name in study.recipes if any(recipe == name for _, recipe in rows)]
    width = 3.6 * len(conditions) + 2.6
    figure, axes = plt.subplots(1, len(conditions), figsize=(width, 3.6), sharey=True, squeeze=False)
    for axis, condition in zip(axes[0], conditions, strict=True):
        for colour, name in enumerate(names):
            row = rows.get((condition, name))
            before = {result.seed: result.values["pretraining_updates"] for result in row.results} if row else {}
            for number, curve in enumerate(read_curves(results / place(name, condition) / subset)):
                if curve.seed not in before or not curve.updates:
                    continue
                over: list[float] = list(curve.updates)
                if study.plot == "minutes":
                    over = [seconds / 60 for seconds in curve.seconds]
                elif study.plot == "all_updates":
                    over = [updates + before[curve.seed] for updates in curve.updates]
                rates = [100 * wer for wer in curve.wer]
                label = name if number == 0 and condition == next(c for c, r in rows if r == name) else None
                axis.plot(over, rates, color=f"C{colour % 10}", linewidth=1, alpha=0.7, label=label)
                axis.plot(over[-1:], rates[-1:], "o", color=f"C{colour % 10}", markersize=4)
        if study.target_wer:
            axis.axhline(study.target_wer, color="grey", linewidth=0.8, linestyle="--")
        axis.set_title(condition)
        axis.set_xlabel(AXES[study.plot])
        axis.set_xlim(left=0)
        axis.set_ylim(0, 105)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("WER % on dev")
    figure.legend(loc="center left", bbox_to_anchor=(1 - 2.4 / width, 0.5), frameon=False, fontsize="small")
    figure.tight_layout(rect=(0, 0, 1 - 2.4 / width, 1))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)
