"""Tables of utterances: csv, tsv or JSON lines, a row each."""

from __future__ import annotations

import csv
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from asrkit.data.corpus import Names, Reject, Utterance, is_set_name, lines_of, named_paths
from asrkit.errors import AsrkitError

COLUMNS = ("audio", "text", "id", "speaker", "language", "start", "duration", "channel", "set")
"""The columns that are read; only ``audio`` must be there, others are passed over."""

Entry = Utterance | Reject

_CELL_LINES = 100
"""Lines that one quoted cell may go through."""


def scan(files: Sequence[str | Path]) -> dict[str, list[Entry]]:
    """Return the sets of tables given as ``PATH`` or ``NAME=PATH``.

    The suffix tells the kind: ``.csv``, ``.tsv`` (no quoting) with a line of column names, or ``.jsonl`` with an
    object per line. A relative ``audio`` path starts from the table's folder. A ``set`` column names each row's set;
    otherwise the set has the table's name. Raises AsrkitError for a table that does not exist, is of another kind, or
    has no ``audio`` column.
    """
    sets: dict[str, list[Entry]] = {}
    for name, path in named_paths(files).items():
        suffix = path.suffix.lower()
        if suffix not in (".csv", ".tsv", ".jsonl") or not path.is_file():
            raise AsrkitError("not a table", where=path, mend="give .csv, .tsv or .jsonl files")
        names = Names()
        for where, row in _read_objects(path) if suffix == ".jsonl" else _read_columns(path, suffix):
            if isinstance(row, str):
                sets.setdefault(name, []).append(Reject(f"{path.name}:{where}", str(path), row))
                continue
            chosen, entry = _entry(row, path, where, name, names)
            sets.setdefault(chosen, []).append(entry)
    return sets


def _read_columns(path: Path, suffix: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (line, row) or (line, what is wrong with it)."""
    rows = _read_cells(path, tabs=suffix == ".tsv")
    _, first = next(rows, (1, []))
    header = [name.strip() for name in first] if not isinstance(first, str) else []
    if any("\0" in name or any("\udc80" <= letter <= "\udcff" for letter in name) for name in header):
        raise AsrkitError("not UTF-8", where=path, mend="save the file as UTF-8")
    if "audio" not in header:
        found = ", ".join(header) or "none"
        what = f"no column 'audio' (columns: {found if len(found) < 100 else found[:97] + '...'})"
        mend = f"known: {', '.join(COLUMNS)}"
        raise AsrkitError(what, where=path, mend="separate columns by commas" if ";" in found else mend)
    for number, cells in rows:
        if isinstance(cells, str):
            yield number, cells
        elif len(cells) > len(header):
            yield number, f"a row of {len(cells)} cells under {len(header)} columns"
        elif any(cells):
            yield number, dict(zip(header, cells, strict=False))


def _read_cells(path: Path, tabs: bool) -> Iterator[tuple[int, list[str] | str]]:
    """Yield (line, cells) or (line, what is wrong with it).

    A quoted cell may go on in further lines. Where its quote is never closed, the line alone is wrong: the lines after
    it are utterances of their own.
    """
    lines: deque[str] = deque()
    number = 0
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            while True:
                if not lines and not (line := file.readline()):
                    return
                elif not lines:
                    lines.append(line)
                taken, cells = _parse(lines, file, tabs)
                yield number + 1, cells
                number += taken
                for _ in range(taken):
                    lines.popleft()
    except OSError as error:
        raise AsrkitError(f"cannot be read: {error.strerror}", where=path) from None


def _parse(lines: deque[str], file: TextIO, tabs: bool) -> tuple[int, list[str] | str]:
    """Return how many of the waiting lines the first row takes, and its cells, or what is wrong with its first line."""

    def feed() -> Iterator[str]:
        for place in range(_CELL_LINES):
            if place == len(lines):
                lines.append(file.readline())
            # At the end of the file there are empty lines for ever.
            if not lines[place]:
                return
            yield lines[place]

    reader = csv.reader(feed(), delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(feed(), strict=True)
    try:
        cells = next(reader, [])
    except csv.Error as error:
        return 1, f"not a row: {error}"
    return max(1, reader.line_num), cells


def _read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (line, object) or (line, what is wrong with it)."""
    for number, line in lines_of(path):
        try:
            row = json.loads(line) if line is not None else None
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON: {error}"
            continue
        yield number, row if isinstance(row, dict) else "not an object" if line is not None else "not UTF-8"


def _entry(row: Mapping[str, Any], path: Path, line: int, name: str, names: Names) -> tuple[str, Entry]:
    """Return the set and the utterance of a row, or a reject that names the cell."""
    label = f"{path.name}:{line}"
    try:
        wanted = _text(row, "set") or name
        if wanted != name and not is_set_name(wanted):
            return name, Reject(label, str(path), f"a set cannot be called '{wanted}'")
        name = wanted
        audio = _text(row, "audio")
        if not audio:
            return name, Reject(label, str(path), "no audio")
        start, duration, channel = _number(row, "start"), _number(row, "duration"), _number(row, "channel")
        if channel is not None and not channel.is_integer():
            return name, Reject(label, str(path), f"channel is {channel:g}")
        utterance = _text(row, "id")
        if not utterance:
            part = Path(audio)
            tail = "" if start is None else f"-{max(0, round(1000 * start)):07d}"
            utterance = names.make(Path(*part.parts[1:]) if part.is_absolute() else part, tail)
        found = Utterance(
            utterance,
            str(path.parent / audio),
            start or 0.0,
            duration,
            _text(row, "text") if "text" in row else None,
            _text(row, "speaker") or None,
            _text(row, "language") or None,
            None if channel is None else int(channel),
            path.name,
        )
    except ValueError as error:
        return name, Reject(label, str(path), str(error))
    return name, found


def _text(row: Mapping[str, Any], column: str) -> str:
    """Return a cell as text, "" where it is empty or missing."""
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{column} is neither text nor a number")
    return value.strip() if isinstance(value, str) else str(value)


def _number(row: Mapping[str, Any], column: str) -> float | None:
    """Return a cell as a finite number, None where it is empty or missing."""
    text = _text(row, column)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{column} is '{text}', not a number")
    return number
