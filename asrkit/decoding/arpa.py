"""ARPA files: n-gram models as text, which KenLM, SRILM and flashlight read and write. Files named `*.gz` are compressed."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from asrkit.decoding.kneser_ney import Estimate
from asrkit.decoding.ngram import UNKNOWN, NGram
from asrkit.errors import AsrkitError
from asrkit.files import atomic_path

_LONGEST = 16
"""Orders beyond this are taken for a damaged file."""


def write_arpa(path: Path, model: Estimate) -> None:
    """Write a model, atomically."""
    with atomic_path(path) as temporary, _open(temporary, "wt", compressed=path.suffix == ".gz") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={len(order.log10)}\n" for n, order in enumerate(model.orders, 1))
        for n, order in enumerate(model.orders, 1):
            file.write(f"\n\\{n}-grams:\n")
            longest = n == len(model.orders)
            for row, log10, backoff in zip(
                order.ngrams.tolist(), order.log10.tolist(), order.backoff.tolist(), strict=True
            ):
                spelt = " ".join([model.words[word] for word in row])
                file.write(f"{log10:.7g}\t{spelt}\n" if longest else f"{log10:.7g}\t{spelt}\t{backoff:.7g}\n")
        file.write("\n\\end\\\n")


def read_arpa(path: Path) -> NGram:
    """Read a model.

    Raises:
        AsrkitError: if the file cannot be read, is no ARPA file, or is damaged; with the line.
    """
    try:
        with _open(path, "rt", compressed=path.suffix == ".gz") as file:
            return _read(path, file)
    except UnicodeDecodeError as error:
        raise AsrkitError(
            f"is no ARPA file (not UTF-8 at byte {error.start})", where=path, mend="KenLM binaries need flashlight"
        ) from None
    except (OSError, EOFError) as error:
        raise AsrkitError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=path) from None


def read_vocabulary(path: Path) -> list[str]:
    """Return the words of an ARPA file's unigrams, markers included, without reading further.

    Raises:
        AsrkitError: as `read_arpa`.
    """
    try:
        with _open(path, "rt", compressed=path.suffix == ".gz") as file:
            lines = _Lines(path, file)
            sizes = _header(lines)
            return [words[0] for words, _, _ in _section(lines, 1, sizes[0], last=len(sizes) == 1)]
    except UnicodeDecodeError:
        raise AsrkitError("is no ARPA file", where=path, mend="a KenLM binary needs --lexicon FILE") from None
    except (OSError, EOFError) as error:
        raise AsrkitError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=path) from None


_BLANKS = " \t\r\n"
"""What separates fields, for KenLM as well: a no-break space belongs to its word."""


class _Lines:
    """Lines that hold something, and where they stand."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self.file = file
        self.number = 0

    def next(self) -> str:
        for line in self.file:
            self.number += 1
            if stripped := line.strip(_BLANKS):
                return stripped
        raise self.error("ends too early")

    def error(self, what: str) -> AsrkitError:
        return AsrkitError(f"{what}; not a whole ARPA file", where=f"{self.path}:{self.number}")


def _read(path: Path, file: TextIO) -> NGram:
    lines = _Lines(path, file)
    sizes = _header(lines)
    unigrams = list(_section(lines, 1, sizes[0], last=len(sizes) == 1))
    model = NGram([words[0] for words, _, _ in unigrams], len(sizes))
    if len(model.index) < len(unigrams):
        raise lines.error("a unigram comes twice")
    for place, (_, log10, backoff) in enumerate(unigrams):
        model.add((place,), log10, backoff)
    for n in range(2, len(sizes) + 1):
        for words, log10, backoff in _section(lines, n, sizes[n - 1], last=n == len(sizes)):
            try:
                model.add([model.index[word] for word in words], log10, backoff)
            except KeyError:
                raise lines.error(f"'{' '.join(words)}' comes without its beginning '{' '.join(words[:-1])}'") from None
    if lines.next() != "\\end\\":
        raise lines.error("\\end\\ is missing")
    return model


def _header(lines: _Lines) -> list[int]:
    """Return how many n-grams of each order there are."""
    for _ in range(1000):
        if lines.next() == "\\data\\":
            break
    else:
        raise lines.error("\\data\\ is missing")
    sizes: list[int] = []
    while True:
        line = lines.next()
        if line == "\\1-grams:":
            break
        found = re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line)
        if not found or int(found[1]) != len(sizes) + 1 or len(sizes) == _LONGEST:
            raise lines.error(f"'{line[:40]}' is no count of n-grams")
        sizes.append(int(found[2]))
    if not sizes:
        raise lines.error("there are no counts")
    return sizes


def _section(lines: _Lines, n: int, size: int, *, last: bool) -> Iterator[tuple[list[str], float, float]]:
    """Return (words, log10, backoff) of each n-gram of one order; the heading of unigrams has been read."""
    if n > 1 and (line := lines.next()) != f"\\{n}-grams:":
        raise lines.error(f"'{line[:40]}' instead of \\{n}-grams:")
    for _ in range(size):
        fields = [field for field in lines.next().replace("\t", " ").split(" ") if field]
        try:
            log10, backoff = float(fields[0]), float(fields[n + 1]) if len(fields) > n + 1 else 0.0
        except ValueError:
            fields = []
        if not n + 1 <= len(fields) <= n + (1 if last else 2) or log10 > 1e-4 or log10 != log10:
            raise lines.error(f"no {n}-gram with its log probability")
        words = fields[1 : n + 1]
        if "<UNK>" in words:  # another spelling of the marker, LibriSpeech's among them
            words = [UNKNOWN if word == "<UNK>" else word for word in words]
        yield words, log10, backoff


def _open(path: Path, mode: str, *, compressed: bool) -> TextIO:
    opener = gzip.open if compressed else open
    return opener(path, mode, encoding="utf-8", newline="\n" if "w" in mode else None)  # type: ignore[operator,no-any-return,return-value]
