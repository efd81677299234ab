"""Which unit sequences spell which words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from asrkit.errors import AsrkitError
from asrkit.text.lexicon import entries
from asrkit.text.units import Units, UnknownSymbols

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
    """Read lines ``WORD UNIT UNIT …`` (see `entries`); a word may have several.

    A boundary at the end of a spelling, which flashlight wants, is optional. A line with the word alone is spelt by
    the units themselves.

    Raises:
        AsrkitError: unreadable, a symbol that is not among the units, or no entries.
    """
    lexicon: dict[str, list[tuple[int, ...]]] = {}
    for number, word, symbols in entries(path):
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
