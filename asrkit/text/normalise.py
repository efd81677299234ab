"""Transcripts in one spelling, for any script."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal, cast

from asrkit.errors import AsrkitError, nearest

CASES = ("upper", "lower", "keep")
FORMS = ("NFC", "NFKC", "NFD", "NFKD")
PUNCTUATION = ("strip", "keep")
# Joiners shape letters in Persian and the Indic scripts; every other format character is invisible and goes.
_JOINERS = "\u200c\u200d"
# They ask for one picture of a character or another: an emoji in colours, a variant of a Chinese character.
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_APOSTROPHES = str.maketrans({"\u2019": "'", "\uff07": "'"})


@dataclass
class TextConfig:
    """How transcripts are spelt before they become units or are scored."""

    case: str = "upper"
    """upper, lower or keep (for Turkish, say: upper case merges its i and dotless i)."""
    unicode: str = "NFC"
    """Unicode normal form: NFC, NFKC, NFD or NFKD."""
    punctuation: str = "strip"
    """strip (punctuation and symbols become spaces, apostrophes of words stay) or keep."""

    def __post_init__(self) -> None:
        for key, known in (("case", CASES), ("unicode", FORMS), ("punctuation", PUNCTUATION)):
            value = getattr(self, key)
            if value not in known:
                raise AsrkitError(f"{key} cannot be '{value}'", mend=nearest(value, known))


def normalise(text: str, config: TextConfig) -> str:
    """Return ``text`` in the config's spelling, words separated by single spaces; a second time changes nothing."""
    form = cast("Literal['NFC', 'NFKC', 'NFD', 'NFKD']", config.unicode)
    text = _SELECTORS.sub("", unicodedata.normalize(form, text))
    if config.punctuation == "strip":
        # Single curly quotes go in pairs, so that the apostrophe of "dogs’" is not taken for a quote.
        text = re.sub(r"\u2018(.*?)\u2019(?!\w)", r" \1 ", text).translate(_APOSTROPHES)
    text = "".join(_keep(character, config.punctuation == "strip") for character in text)
    if config.punctuation == "strip":
        text = _without_stray_marks(text)
    if config.punctuation == "strip":
        text = re.sub(r"(?<![^\s'])'+(?![^\s'])", " ", text)
    text = {"upper": text.upper, "lower": text.lower, "keep": text.__str__}[config.case]()
    return " ".join(unicodedata.normalize(form, text).split())


def _without_stray_marks(text: str) -> str:
    """Return text without the marks that enclose a character, and those that stand on none, as where an emoji was."""
    kept: list[str] = []
    carried = False
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Me" or (kind[0] == "M" and not carried):
            continue
        carried = kind[0] in "LMN" or (carried and character in _JOINERS)
        kept.append(character)
    return "".join(kept)


def _keep(character: str, strip: bool) -> str:
    """Return the character, a space in its place, or nothing."""
    kind = unicodedata.category(character)
    if kind in ("Cf", "Cs"):
        return character if character in _JOINERS else ""
    if kind == "Cc" or (strip and kind[0] in "PS" and character != "'"):
        return " "
    return character
