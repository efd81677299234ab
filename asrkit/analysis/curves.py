"""metrics.jsonl as columns: the curves of a run, thinned so that a page stays small."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"
MOST_ROWS = 2_500
"""Rows kept of training and of validation each; a screen has fewer columns."""
_PLACES = frozenset({"step", "epoch", "phase", "phase_step", "phase_steps", "seconds", "seconds_left"})
"""Keys that say where a row stands and are no curves."""


@dataclass
class Curves:
    """Columns of the rows that were kept."""

    steps: list[int] = field(default_factory=list)
    """Update of each row."""
    seconds: list[float | None] = field(default_factory=list)
    """Training time at each row."""
    phases: list[str] = field(default_factory=list)
    """Phase of each row."""
    series: dict[str, tuple[list[int], list[float | None]]] = field(default_factory=dict)
    """For each figure the rows that have it, and its values; None where a value is not finite."""
    rows: int = 0
    """Rows in the file."""
    last: dict[str, Any] = field(default_factory=dict)
    """The newest row's place: step, phase, seconds and the like."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl; none if there is no file. A row that is being written is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    rows = []
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def curves(rows: list[dict[str, Any]], most: int = MOST_ROWS) -> Curves:
    """Return the columns of rows, of which at most about ``most`` of training and of validation are kept.

    Kept are every k-th row and the last, so that what is shown was measured and is no average.
    """
    found = Curves(rows=len(rows))
    for row in rows:
        found.last |= {name: value for name, value in row.items() if name in _PLACES}
    for row in _thin(rows, most):
        place = len(found.steps)
        found.steps.append(row["step"])
        found.seconds.append(_finite(row.get("seconds")))
        found.phases.append(str(row.get("phase", "")))
        for name, value in row.items():
            if name not in _PLACES and isinstance(value, int | float) and not isinstance(value, bool):
                places, values = found.series.setdefault(name, ([], []))
                places.append(place)
                values.append(_finite(value))
    return found


def _thin(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    counts = {True: 0, False: 0}
    for row in rows:
        counts[_is_validation(row)] += 1
    strides = {kind: max(1, math.ceil(count / most)) for kind, count in counts.items()}
    kept, left = [], dict(counts)
    for row in rows:
        kind = _is_validation(row)
        left[kind] -= 1
        if left[kind] % strides[kind] == 0:
            kept.append(row)
    return kept


def _is_validation(row: dict[str, Any]) -> bool:
    return any(name.startswith("dev/") for name in row)


def _finite(value: Any) -> float | None:
    """Six significant digits are more than a screen shows."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def best(rows: list[dict[str, Any]], name: str) -> tuple[float, int] | None:
    """Return the lowest value of a figure and its update; None if no row has it."""
    found = [(row[name], row["step"]) for row in rows if _finite(row.get(name)) is not None]
    return min(found, default=None)
