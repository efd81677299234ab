"""Files of pronunciations and spellings: a word and its symbols on each line, as in CMU's dictionary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from asrkit.files import read_utf8


def entries(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the line number, the word and the symbols of every line that has a word.

    The number of a pronunciation is taken off a word (CMU's ``WORD(2)``). Left out are CMU's comments: lines that begin with
    ``;;;``, and what follows a ``#`` behind a word and a symbol.

    Raises:
        AsrkitError: if the file cannot be read or is not UTF-8.
    """
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        fields = line.split()
        if not fields or line.startswith(";;;"):
            continue
        word, *symbols = fields[: fields.index("#", 2)] if "#" in fields[2:] else fields
        yield number, re.sub(r"(?<=.)\(\d+\)$", "", word), symbols
