"""N-gram models from text files and from prepared sets' transcripts."""

from __future__ import annotations

import gzip
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from asrkit.data.corpus import is_evaluation
from asrkit.data.index import SetIndex, record_text
from asrkit.decoding.arpa import write_arpa
from asrkit.decoding.kneser_ney import estimate
from asrkit.errors import AsrkitError
from asrkit.text.normalise import TextConfig, normalise
from asrkit.text.units import Units, UnknownSymbols


@dataclass(frozen=True)
class LMConfig:
    """What kind of model."""

    order: int = 4
    """n of the longest n-grams."""
    units: Path | None = None
    """A folder with units (or an experiment): the model is over them instead of over words."""
    text: TextConfig = field(default_factory=lambda: TextConfig(case="keep", punctuation="keep"))
    """Spelling of the text files; transcripts of prepared sets are in theirs already."""


def train_lm(
    texts: Sequence[Path], output: Path, config: LMConfig, *, data_dir: Path | None = None, sets: Sequence[str] = ()
) -> str:
    """Estimate a model and write it as ARPA.

    Args:
        texts: files with a sentence per line; `*.trans.txt` with ids; either compressed (`.gz`); folders of them.
        output: where the model goes.
        config: what kind of model.
        data_dir: prepared data.
        sets: sets of it, of which the transcripts are taken.

    Returns:
        A line on what was made.

    Raises:
        AsrkitError: if there is no text, a file cannot be read, or a set is one for evaluation.
    """
    if not texts and not sets:
        raise AsrkitError("no text for the language model", mend="give files, or --data DATA --sets SET")
    if bool(sets) != (data_dir is not None):
        raise AsrkitError("prepared transcripts need both --data and --sets")
    for name in sets:
        if is_evaluation(name):
            raise AsrkitError(f"'{name}' is a set for evaluation, its transcripts are no text for a language model")
    units = None
    if config.units is not None:
        units = Units.load(config.units / "units" if (config.units / "units").is_dir() else config.units)
    read = (sentence for path in texts for sentence in read_sentences(path, config.text))
    taken = (sentence for name in sets for sentence in transcripts(Path(data_dir or ".") / name))
    count = Counter[str]()

    def spelt() -> Iterator[list[str]]:
        for sentence in itertools.chain(read, taken):
            try:
                words = sentence.split() if units is None else [units.symbols[u] for u in units.encode(sentence)]
            except UnknownSymbols:
                count["skipped"] += 1
                continue
            count["sentences"] += bool(words)
            count["tokens"] += len(words)
            yield words

    model = estimate(spelt(), config.order)
    write_arpa(output, model)
    counts = ", ".join(f"{len(order.log10):,} {n}-grams" for n, order in enumerate(model.orders, 1))
    left_out = f", {count['skipped']:,} that the units cannot spell left out" if count["skipped"] else ""
    what = "words" if units is None else "units"
    return f"{output}: {counts} from {count['sentences']:,} sentences, {count['tokens']:,} {what}{left_out}"


def read_sentences(path: Path, config: TextConfig) -> Iterator[str]:
    """Return the sentences of a text file, of LibriSpeech's `*.trans.txt` without their ids, or of a folder of such files.

    Raises:
        AsrkitError: if something cannot be read, or a folder holds no text.
    """
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.name.removesuffix(".gz").endswith(".txt") and p.is_file())
        if not found:
            raise AsrkitError("holds no *.txt", where=path)
        for file in found:
            yield from read_sentences(file, config)
        return
    numbered = path.name.removesuffix(".gz").endswith(".trans.txt")
    packed = path.suffix == ".gz"
    try:
        # Not universal newlines: only \n and \r\n end a sentence.
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="\n") if packed else _open(path) as lines:
            for line in lines:
                text = line.strip()
                yield normalise(" ".join(text.split(maxsplit=1)[1:]) if numbered else text, config)
    except UnicodeDecodeError as error:
        raise AsrkitError(f"not UTF-8 at byte {error.start}", where=path, mend="save the file as UTF-8") from None
    except (OSError, EOFError) as error:
        raise AsrkitError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=path) from None


def _open(path: Path) -> TextIO:
    return open(path, encoding="utf-8-sig", newline="\n")


def transcripts(folder: Path) -> Iterator[str]:
    """Return the transcripts of a prepared set.

    Raises:
        AsrkitError: if it has none.
    """
    index = SetIndex.open(folder)
    if not index.labelled:
        raise AsrkitError("the set has no transcripts", where=folder)
    for record in index.records():
        yield record_text(record) or ""
