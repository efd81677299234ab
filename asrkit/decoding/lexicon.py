"""Which unit sequences spell which words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from asrkit.errors import AsrkitError
from asrkit.text.units import Units, UnknownSymbols, without_comment

Lexicon = Mapping[str, Sequence[tuple[int, ...]]]
"""Each word's spellings in unit indices, without a boundary unit at either end, at least one."""


def spell(words: Iterable[str], units: Units) -> tuple[dict[str, list[tuple[int, ...]]], int]:
    """Return the spellings of ``words`` in ``units``, and how many words cannot be spelt and are left out."""
    lexicon: dict[str, list[tuple[int, ...]]] = {}
    missing = 0
    for word in words:
        try:
            sequence = tuple(units.encode(word))
        except UnknownSymbols:
            sequence = ()
        if sequence and (units.kind == "phone" or units.decode(sequence) == word):
            lexicon[word] = [sequence]
        else:
            missing += 1
    return lexicon, missing


def read_spellings(path: Path, units: Units) -> dict[str, list[tuple[int, ...]]]:
    """Read lines ``WORD UNIT UNIT …``; a word may have several lines (also CMU's ``WORD(2)``).

    A boundary at the end of a spelling, which flashlight wants, is optional. A line with the word alone is spelt by
    the units themselves.

    Raises:
        AsrkitError: unreadable, a symbol that is not among the units, or no entries.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise AsrkitError(f"not UTF-8 at byte {error.start}", where=path, mend="save the file as UTF-8") from None
    except OSError as error:
        raise AsrkitError(f"cannot be read: {error.strerror}", where=path) from None
    lexicon: dict[str, list[tuple[int, ...]]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        word, *symbols = without_comment(line.split()) or [""]
        if not word or line.startswith(";;;"):
            continue
        word = re.sub(r"(?<=.)\(\d+\)$", "", word)
        if units.kind == "char":
            symbols = [symbol for symbol in symbols if symbol != units.boundary]
        try:
            sequence = tuple(units.index[symbol] for symbol in symbols) or tuple(units.encode(word))
        except KeyError as error:
            raise AsrkitError(f"'{error.args[0]}' is not among the units", where=f"{path}:{number}") from None
        except UnknownSymbols as error:
            raise AsrkitError(str(error), where=f"{path}:{number}", mend="give the word a spelling") from None
        if sequence not in lexicon.setdefault(word, []):
            lexicon[word].append(sequence)
    if not lexicon:
        raise AsrkitError("holds no words", where=path, mend="one line per word: WORD UNIT UNIT …")
    return lexicon
