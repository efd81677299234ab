"""Tables out of results.json files: what is alike but for the seed becomes one row; corpora are never mixed."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asrkit.errors import AsrkitError
from asrkit.files import write_text

FILE = "results.json"
BEGIN = "<!-- asrkit results {name}: begin; what stands between these two lines is overwritten -->"
END = "<!-- asrkit results {name}: end -->"
_TEXTS = ("corpus", "set", "decoder", "recipe", "method", "subset")
_LOG_WIDTH = 150
_NUMBERS = ("wer", "cer", "words", "utterances", "seed")


@dataclass(frozen=True)
class Result:
    """What tables need of a results.json; rates are fractions of corpus totals."""

    path: Path
    """The file."""
    corpus: str
    """Corpus, as `asrkit prepare` named it."""
    set: str
    """Set, such as test-clean."""
    utterances: int
    """Utterances in the set: two sets of one name and different size are different sets."""
    words: int
    """Words in the references."""
    recipe: str
    """The methods that led to the model, such as pretrain+finetune."""
    method: str
    """The last of them."""
    source: str | None
    """Labelled data of a semi-supervised stage."""
    subset: str
    """Labelled data of the last stage."""
    decoder: str
    """Decoder, such as greedy."""
    lm: str | None
    """Language model."""
    seed: int
    """Seed of the last stage."""
    wer: float
    """Word error rate."""
    cer: float
    """Character error rate."""
    values: Mapping[str, Any]
    """The whole file."""

    @property
    def test(self) -> tuple[str, str, int, int]:
        """What the result was measured on; results are compared within one."""
        return self.corpus, self.set, self.utterances, self.words

    @property
    def system(self) -> tuple[str, ...]:
        """What was measured, but for the seed and for weights, which every seed may have tuned for itself."""
        search = (str(self.values.get(name) or "") for name in ("lexicon", "rescore", "beam"))
        return self.recipe, self.method, self.source or "", self.subset, self.decoder, self.lm or "", *search

    @property
    def models(self) -> list[str]:
        """Names of the language models, n-gram first."""
        return [Path(name).name for name in (self.lm, self.values.get("rescore")) if isinstance(name, str)]

    @property
    def search(self) -> str:
        """Decoder and language models in a few words."""
        return " + ".join([self.decoder, *self.models])

    def number(self, name: str) -> float | None:
        """Return a figure of the file that not every version wrote; None where it is missing."""
        value = self.values.get(name)
        return float(value) if _is_number(value) else None


@dataclass(frozen=True)
class Row:
    """A system on a test, over its seeds."""

    results: tuple[Result, ...]
    """One per seed, in the seeds' order; never empty."""

    @property
    def first(self) -> Result:
        """Any of them, for what they share."""
        return self.results[0]

    def mean(self, rate: str) -> float:
        """Return the mean over seeds of ``wer`` or ``cer``."""
        return statistics.fmean(getattr(result, rate) for result in self.results)

    def spread(self, rate: str) -> float | None:
        """Return the sample standard deviation over seeds; None of a single one."""
        rates = [getattr(result, rate) for result in self.results]
        return statistics.stdev(rates) if len(rates) > 1 else None

    def numbers(self, name: str) -> list[float]:
        """Return a figure (see `Result.number`) of every seed; none at all where one is missing."""
        found = [result.number(name) for result in self.results]
        known = [value for value in found if value is not None]
        return known if len(known) == len(found) else []


def read_result(path: Path) -> Result:
    """Read a results.json.

    Raises:
        AsrkitError: if it cannot be read, or lacks what a table needs.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AsrkitError(f"cannot be read: {error.strerror}", where=path) from None
    except ValueError as error:
        raise AsrkitError(f"not JSON: {error}", where=path, mend="decode again") from None
    if not isinstance(values, dict):
        raise AsrkitError("not the results of a decoding", where=path, mend="decode again")
    wrong = [name for name in _TEXTS if not isinstance(values.get(name), str)]
    wrong += [name for name in _NUMBERS if not _is_number(values.get(name))]
    wrong += [name for name in ("source", "lm") if not isinstance(values.get(name), str | None)]
    if wrong:
        raise AsrkitError(f"no usable value for {', '.join(wrong)}", where=path, mend="decode again")
    named: dict[str, Any] = {name: values.get(name) for name in (*_TEXTS, *_NUMBERS, "source", "lm")}
    return Result(path=path, values=values, **named)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def collect(folders: Iterable[Path]) -> list[Result]:
    """Read every results.json in the folders and below, each file once.

    Raises:
        AsrkitError: if there is none in one of them, or one cannot be read.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        paths = sorted(folder.rglob(FILE)) if folder.is_dir() else [folder] if folder.is_file() else []
        if not paths:
            raise AsrkitError(f"no {FILE} in it", where=folder, mend="asrkit decode writes them")
        found |= {path.resolve(): path for path in paths}
    return [read_result(path) for path in found.values()]


def rows(results: Iterable[Result]) -> dict[tuple[str, str, int, int], list[Row]]:
    """Return the rows of each test (`Result.test`), tests and rows in alphabetical order.

    Raises:
        AsrkitError: if a system has two different results for one seed: which of them counts, only its owner knows.
    """
    seeds: dict[tuple[Any, ...], dict[int, Result]] = {}
    for result in results:
        known = seeds.setdefault((result.test, result.system), {})
        other = known.setdefault(result.seed, result)
        # The same file kept in two places is one result.
        if other.values != result.values:
            raise AsrkitError(
                f"another result of the same system, set and seed than {other.path}",
                where=result.path,
                mend="leave one of the two out",
            )
    tests: dict[tuple[str, str, int, int], list[Row]] = {}
    for (test, _), by_seed in sorted(seeds.items(), key=lambda item: item[0]):
        tests.setdefault(test, []).append(Row(tuple(by_seed[seed] for seed in sorted(by_seed))))
    return tests


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    heading: str
    """What stands above it."""
    cell: Callable[[Row], str]
    """What it says of a row."""
    right: bool = True
    """Whether it is aligned to the right."""


def percent(row: Row, rate: str) -> str:
    """Return a rate in percent, mean ± spread where there are several seeds."""
    spread = row.spread(rate)
    return f"{100 * row.mean(rate):.2f}" + (f" ± {100 * spread:.2f}" if spread is not None else "")


def _count(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        values = row.numbers(name)
        return f"{statistics.fmean(values):.{0 if len(values) == 1 else 1}f}" if values else "–"

    return cell


def _decoder(row: Row) -> str:
    beam, lexicon = (row.first.values.get(name) for name in ("beam", "lexicon"))
    words = f"words of {'the LM' if lexicon == 'lm' else Path(str(lexicon)).name}" if lexicon else ""
    return ", ".join(part for part in (row.first.decoder, f"width {beam}" if beam else "", words) if part)


def _language_model(row: Row) -> str:
    """Return the names of n-gram and neural model, their weights, the word score, and where these were tuned."""
    named = row.first.models
    found = [row.numbers(name) for name in ("lm_weight", "word_score", "rescore_weight")]
    weights = ["–".join(dict.fromkeys((f"{min(w):g}", f"{max(w):g}"))) for w in found if w and (named or any(w))]
    tuned = ", ".join(dict.fromkeys(str(result.values["tuned_on"]) for result in row.results if _tuned(result)))
    told = "; ".join(part for part in (", ".join(weights), tuned) if part)
    return " + ".join(named or "–") + (f" ({told})" if told else "")


def _tuned(result: Result) -> bool:
    return isinstance(result.values.get("tuned_on"), str)


def _speed(row: Row) -> str:
    audio, seconds = row.numbers("audio_seconds"), row.numbers("seconds")
    return f"{sum(audio) / sum(seconds):.0f}" if audio and sum(seconds) > 0 else "–"


COLUMNS = (
    Column("recipe", lambda row: row.first.recipe, right=False),
    Column("method", lambda row: row.first.method, right=False),
    Column("source", lambda row: row.first.source or "–", right=False),
    Column("labels", lambda row: row.first.subset or "–", right=False),
    Column("decoder", _decoder, right=False),
    Column("LM (weights; tuned on)", _language_model, right=False),
    Column("WER %", lambda row: percent(row, "wer")),
    Column("CER %", lambda row: percent(row, "cer")),
    Column("n", lambda row: str(len(row.results))),
    Column("sub", _count("substitutions")),
    Column("del", _count("deletions")),
    Column("ins", _count("insertions")),
    Column("audio s/s", _speed),
)
"""The columns of a test's table. The last one is decoding speed: seconds of audio in a second."""
HEADINGS = tuple(column.heading for column in COLUMNS)
_RIGHT = tuple(column.heading for column in COLUMNS if column.right)
_TITLED = ("recipe", "method", "source", "labels", "n")
"""What a table on the terminal leaves to its title where all rows agree."""


def cells(row: Row) -> list[str]:
    """Return a row's cells under `HEADINGS`."""
    return [column.cell(row) for column in COLUMNS]


def title(test: tuple[str, str, int, int]) -> str:
    """Return what a test is: its set, size and corpus."""
    corpus, name, utterances, words = test
    return f"{name} of {corpus} ({utterances:,} utterances, {words:,} words)"


def rich_tables(results: Iterable[Result]) -> list[Table]:
    """Return a table per corpus, for the terminal."""
    corpora: dict[str, list[tuple[tuple[str, str, int, int], Row]]] = {}
    for test, systems in rows(results).items():
        corpora.setdefault(test[0], []).extend((test, row) for row in systems)
    return [_rich_table(corpus, lines) for corpus, lines in corpora.items()]


def _rich_table(corpus: str, lines: Sequence[tuple[tuple[str, str, int, int], Row]]) -> Table:
    alike = {
        column.heading: column.cell(lines[0][1])
        for column in COLUMNS
        if column.heading in _TITLED and len({column.cell(row) for _, row in lines}) == 1
    }
    seeds = sorted({result.seed for _, row in lines for result in row.results})
    told = [alike.get("recipe", "")]
    told += [f"{name} {alike[name]}" for name in ("source", "labels") if alike.get(name, "–") != "–"]
    told.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    table = Table(title=f"{corpus}: {', '.join(filter(None, told))}", title_justify="left")
    shown = [column for column in COLUMNS if column.heading not in alike]
    table.add_column("set")
    for column in shown:
        table.add_column(column.heading, justify="right" if column.right else "left", overflow="fold")
    table.add_column("words", justify="right")
    for (_, name, _, words), row in lines:
        table.add_row(escape(name), *(escape(column.cell(row)) for column in shown), f"{words:,}")
    return table


def show(results: Sequence[Result], output: Path | None = None) -> None:
    """Print the tables, and keep them: in FILE.md as `markdown` between its markers, in any other file as printed.

    Raises:
        AsrkitError: as `rows` and `write_results`.
    """
    # Lines of a log need not fit a screen.
    width = None if Console().is_terminal else _LOG_WIDTH
    shown = Console(width=width, emoji=False)
    kept = Console(width=_LOG_WIDTH, emoji=False, file=io.StringIO(), record=True)
    for table in rich_tables(results):
        shown.print(table)
        kept.print(table)
    if output is not None and output.suffix == ".md":
        write_results(output, markdown(results))
    elif output is not None:
        write_text(output, kept.export_text())


def markdown(results: Iterable[Result]) -> str:
    """Return the tables as Markdown: a heading per corpus, a table per set, and what they were made with."""
    parts: list[str] = []
    corpus = None
    for test, systems in rows(results).items():
        if test[0] != corpus:
            corpus = test[0]
            parts.append(f"## {_escape(corpus)}\n")
        parts.append(f"### {_escape(title(test))}\n")
        parts.append(markdown_table(HEADINGS, [cells(row) for row in systems], right=_RIGHT))
        parts.append(_origin([result for row in systems for result in row.results]))
    parts.append(
        "± is the sample standard deviation over n seeds; rates are errors by reference words or characters; sub, del and "
        "ins are word errors, their mean where n is more than 1; audio s/s is decoding speed. In brackets behind a "
        "language model: its weight, the word score, and the set on which they were searched.\n"
    )
    return "\n".join(parts)


def markdown_table(headings: Sequence[str], lines: Iterable[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Return a Markdown table; columns named in ``right`` are aligned to the right."""
    rules = ["---:" if heading in right else "---" for heading in headings]
    body = [[_escape(cell) for cell in line] for line in ([*headings], *lines)]
    return "".join("| " + " | ".join(line) + " |\n" for line in (body[0], rules, *body[1:]))


def _escape(text: str) -> str:
    """Return text that neither ends a cell nor begins markup."""
    escaped = " ".join(text.split()).replace("\\", "\\\\")
    for character in "|<*_`[":
        escaped = escaped.replace(character, "\\" + character)
    return escaped


def _origin(results: Sequence[Result]) -> str:
    """Return a line that names seeds, updates, hardware and commits behind a table."""

    def named(key: str) -> str:
        values = [result.values.get(key) for result in results]
        return ", ".join(dict.fromkeys(_escape(str(value)) for value in values if value is not None))

    seeds = ", ".join(str(seed) for seed in sorted({result.seed for result in results}))
    facts = {"Seeds" if "," in seeds else "Seed": seeds, "decoded on": named("hardware"), "commit": named("commit")}
    return "; ".join(f"{name} {fact}" for name, fact in facts.items() if fact) + ".\n"


def write_results(path: Path, text: str, name: str = "tables") -> None:
    """Put generated text into a Markdown file between its two markers; whatever else the file holds stays.

    Args:
        path: the file; a new one gets a title and the markers.
        text: what goes between the markers.
        name: the markers' name, so that several generated parts can live in one file.

    Raises:
        AsrkitError: if the file is there without the markers, or cannot be read.
    """
    begin, end = BEGIN.format(name=name), END.format(name=name)
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else f"# Results\n\n{begin}\n{end}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise AsrkitError(f"cannot be read: {error}", where=path) from None
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        mend = f"put these two lines where the tables belong: {begin} and {end}"
        raise AsrkitError("it was not made by this command: its markers are missing", where=path, mend=mend)
    head, rest = old.split(begin)
    write_text(path, f"{head}{begin}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}")
