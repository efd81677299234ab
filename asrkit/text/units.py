"""The symbols that a supervised head chooses from: characters, BPE pieces or phones, and the CTC blank."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from asrkit.errors import AsrkitError, nearest
from asrkit.files import atomic_path, read_utf8, write_text
from asrkit.text.lexicon import entries

BLANK = "<blank>"
BOUNDARY = "|"
KINDS = ("char", "bpe", "phone")
_PIECE_BOUNDARY = "\u2581"
# Markers of other toolkits' dictionaries: they have a place in the order, and stand for no text.
_SILENT = frozenset({BLANK, "<s>", "</s>", "<pad>", "<unk>"})
FILES = {"json": "units.json", "model": "units.model", "lexicon": "lexicon.txt"}


class UnknownSymbols(AsrkitError):
    """A text holds characters or words for which there are no units."""

    def __init__(self, symbols: Iterable[str], kind: str = "char") -> None:
        self.kind = kind
        self.symbols = tuple(symbols)
        """The unknown characters (or words, for phones), each once, in order of appearance."""
        more = len(self.symbols) - 10
        shown = ", ".join(_spell(s) for s in self.symbols[:10]) + (f", … ({more} more)" if more > 0 else "")
        what = "words not in the lexicon" if kind == "phone" else "characters not among the units"
        super().__init__(f"{what}: {shown}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.symbols, self.kind)


@dataclass(frozen=True)
class Units:
    """An ordered list of symbols, one of them the blank, and how text maps to them."""

    symbols: tuple[str, ...]
    """All symbols in the order of the head's outputs."""
    blank: int = 0
    """Index of the CTC blank."""
    boundary: str | None = BOUNDARY
    """The symbol that stands for a space between words (characters), or marks a word's start (BPE); None for phones."""
    kind: str = "char"
    """char, bpe or phone."""
    model: bytes | None = field(default=None, repr=False)
    """bpe: the serialised sentencepiece model."""
    lexicon: Mapping[str, tuple[str, ...]] | None = field(default=None, repr=False, hash=False)
    """phone: the pronunciation of each word."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise AsrkitError(f"units cannot be of kind '{self.kind}'", mend=nearest(self.kind, KINDS))
        if not 0 <= self.blank < len(self.symbols):
            raise AsrkitError(
                f"the blank is unit {self.blank} of {len(self.symbols)}", mend="an index into the symbols"
            )
        if len(self.index) < len(self.symbols):
            twice = next(s for i, s in enumerate(self.symbols) if self.index[s] != i)
            raise AsrkitError(f"symbol {_spell(twice)} is listed twice", mend="each symbol once")
        if self.kind == "char" and self.boundary is not None and self.boundary not in self.index:
            raise AsrkitError(f"the word boundary {_spell(self.boundary)} is not among the symbols", mend="add it")
        if (self.model is not None) != (self.kind == "bpe") or (self.lexicon is not None) != (self.kind == "phone"):
            raise AsrkitError(f"units of kind '{self.kind}'", mend="a model belongs to bpe and a lexicon to phone")

    @classmethod
    def characters(cls, texts: Iterable[str]) -> Units:
        """Return units for every character of the texts (an alphabet in one string will do), in code-point order.

        The blank comes first, then the word boundary. A boundary character inside a text gets no unit.

        Raises:
            AsrkitError: the texts hold no character at all.
        """
        found: set[str] = set()
        for text in texts:
            found.update(text)
        letters = sorted(c for c in found if not c.isspace() and c != BOUNDARY)
        if not letters:
            raise AsrkitError("the transcripts hold no characters", mend="check that the training sets have text")
        return cls((BLANK, BOUNDARY, *letters))

    @classmethod
    def train_bpe(cls, texts: Iterable[str], size: int) -> Units:
        """Return the blank and ``size`` byte-pair pieces that sentencepiece learns from the texts.

        Raises:
            AsrkitError: the texts are too few for that many pieces, or have more characters than that.
        """
        lines = [line for line in (" ".join(text.split()) for text in texts) if line]
        if not lines:
            raise AsrkitError("the transcripts hold no characters", mend="check that the training sets have text")
        model = _train_sentencepiece(lines, size + 1)
        processor = SentencePieceProcessor(model_proto=model)
        # The blank takes the place of sentencepiece's unknown piece, which no transcript may hold.
        pieces = [processor.id_to_piece(i) for i in range(1, processor.get_piece_size())]
        return cls((BLANK, *pieces), boundary=_PIECE_BOUNDARY, kind="bpe", model=model)

    @classmethod
    def phones(cls, lexicon_path: Path) -> Units:
        """Return the phones of a pronunciation lexicon, sorted, behind the blank.

        Raises:
            AsrkitError: as `read_lexicon`.
        """
        lexicon = read_lexicon(lexicon_path)
        found = sorted({phone for pronunciation in lexicon.values() for phone in pronunciation})
        return cls((BLANK, *found), boundary=None, kind="phone", lexicon=lexicon)

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def index(self) -> dict[str, int]:
        """Index of each symbol."""
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    @cached_property
    def silent(self) -> tuple[int, ...]:
        """Indices that stand for no text: the blank first, then markers of other toolkits' dictionaries."""
        markers = (i for i, symbol in enumerate(self.symbols) if symbol in _SILENT and i != self.blank)
        return (self.blank, *markers)

    def encode(self, text: str) -> list[int]:
        """Return the unit indices of a text.

        Raises:
            UnknownSymbols: listing the characters (words, for phones) that have no units.
        """
        words = text.split()
        if self.kind == "phone":
            return self._encode_words(words)
        if self.kind == "bpe":
            return self._encode_pieces(" ".join(words))
        spelt = " ".join(words)
        # A boundary character in the text itself would be read back as a space.
        table = {**self._letters, " ": self.index[self.boundary]} if self.boundary is not None else self._letters
        if unknown := [c for c in dict.fromkeys(spelt) if c not in table]:
            raise UnknownSymbols(unknown)
        return [table[character] for character in spelt]

    def covers(self, alphabet: str) -> bool:
        """Return whether every text of these characters has units: certain for characters and pieces, never for phones."""
        known = {"char": self._letters, "bpe": self.index, "phone": {}}[self.kind]
        return all(character in known for character in alphabet)

    def decode(self, indices: Iterable[int]) -> str:
        """Return the text of unit indices that are collapsed already: repeats are kept, blanks say nothing."""
        spoken = [self.symbols[i] for i in indices if i not in self.silent]
        joined = (" " if self.kind == "phone" else "").join(spoken)
        if self.boundary is not None:
            joined = joined.replace(self.boundary, " ")
        return " ".join(joined.split())

    def reference(self, text: str) -> str:
        """Return a transcript as `decode` would write it if all were heard rightly: for phones, their sequence.

        A word that is not in the lexicon stands for itself there, so that it counts as a phone that is never right.
        """
        if self.kind != "phone":
            return text
        lexicon = self.lexicon or {}
        return " ".join(phone for word in text.split() for phone in lexicon.get(word, (word,)))

    def divides(self, unit: int) -> bool:
        """Whether a unit stands between words: the boundary symbol, or white space, which imported vocabularies may have."""
        symbol = self.symbols[unit]
        return symbol == self.boundary or symbol.isspace()

    def begins(self, unit: int) -> bool:
        """Whether a unit begins a word, whatever stands before it: each phone, and a piece that begins with the boundary."""
        bounded = self.boundary is not None and self.symbols[unit].startswith(self.boundary)
        return not self.divides(unit) and (self.kind == "phone" or bounded)

    def unknown(self, texts: Iterable[str]) -> UnknownSymbols | None:
        """Return what in some texts has no units, each once, in order of appearance; None if all has."""
        found: dict[str, None] = {}
        for text in texts:
            try:
                self.encode(text)
            except UnknownSymbols as error:
                found |= dict.fromkeys(error.symbols)
        return UnknownSymbols(found, self.kind) if found else None

    def unwritable(self, name: str, texts: Sequence[str]) -> str | None:
        """Return a warning of what in a set's texts the units cannot write, and whether that is a matter of case; else None."""
        unknown = self.unknown(texts)
        if unknown is None:
            return None
        told = f"{name}: {unknown}; the model cannot write them, which counts as errors"
        cases = {"lower": [text.lower() for text in texts], "upper": [text.upper() for text in texts]}
        fitting = next((case for case, changed in cases.items() if self.unknown(changed) is None), None)
        return told if fitting is None else f"{told} (it writes {fitting} case: asrkit prepare … --case {fitting})"

    def save(self, directory: Path) -> None:
        """Write `units.json`, and `units.model` or `lexicon.txt` where there is one, each atomically."""
        if self.model is not None:
            with atomic_path(directory / FILES["model"]) as temporary:
                temporary.write_bytes(self.model)
        if self.lexicon is not None:
            lines = (f"{word} {' '.join(phones)}\n" for word, phones in self.lexicon.items())
            write_text(directory / FILES["lexicon"], "".join(lines))
        stored = {"kind": self.kind, "blank": self.blank, "boundary": self.boundary, "symbols": self.symbols}
        write_text(directory / FILES["json"], json.dumps(stored, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Units:
        """Read what `save` wrote.

        Raises:
            AsrkitError: a file is missing or damaged.
        """
        path = directory / FILES["json"]
        stored = _read_json(path)
        try:
            kind = str(stored["kind"])
            units = {"symbols": tuple(stored["symbols"]), "blank": int(stored["blank"]), "boundary": stored["boundary"]}
            well = all(isinstance(s, str) for s in units["symbols"]) and isinstance(
                units["boundary"], (str, type(None))
            )
        except (KeyError, TypeError, ValueError):
            well = False
        if not well:
            raise AsrkitError("is not a list of units", where=path, mend="kind, blank, boundary and symbols are wanted")
        try:
            model = (directory / FILES["model"]).read_bytes() if kind == "bpe" else None
        except OSError as error:
            raise AsrkitError(f"cannot be read: {error.strerror}", where=directory / FILES["model"]) from None
        lexicon = read_lexicon(directory / FILES["lexicon"]) if kind == "phone" else None
        try:
            return cls(kind=kind, model=model, lexicon=lexicon, **units)
        except AsrkitError as error:
            raise AsrkitError(str(error), where=path) from None

    @cached_property
    def _letters(self) -> dict[str, int]:
        """Index of each symbol that a text may hold as a character."""
        outside = {self.symbols[self.blank], self.boundary}
        return {s: i for s, i in self.index.items() if len(s) == 1 and s not in outside}

    @cached_property
    def _processor(self) -> Any:
        try:
            return SentencePieceProcessor(model_proto=self.model)
        except RuntimeError:
            raise AsrkitError("the sentencepiece model is damaged", where=FILES["model"]) from None

    def _encode_pieces(self, text: str) -> list[int]:
        pieces = self._processor.encode(text, out_type=str)
        unknown = [c for piece in pieces if piece not in self.index for c in piece.strip(_PIECE_BOUNDARY)]
        if _PIECE_BOUNDARY in text:
            unknown.append(_PIECE_BOUNDARY)
        if unknown:
            raise UnknownSymbols(dict.fromkeys(unknown), self.kind)
        return [self.index[piece] for piece in pieces]

    def _encode_words(self, words: Sequence[str]) -> list[int]:
        lexicon = self.lexicon or {}
        if unknown := [word for word in dict.fromkeys(words) if word not in lexicon]:
            raise UnknownSymbols(unknown, self.kind)
        return [self.index[phone] for word in words for phone in lexicon[word]]


def read_lexicon(path: Path) -> dict[str, tuple[str, ...]]:
    """Read lines ``WORD PHONE PHONE …`` (see `entries`). Of several pronunciations the first counts.

    Raises:
        AsrkitError: unreadable, a word without phones, or no entries.
    """
    lexicon: dict[str, tuple[str, ...]] = {}
    for number, word, pronunciation in entries(path):
        if not pronunciation:
            raise AsrkitError(f"word '{word}' has no phones", where=f"{path}:{number}", mend="WORD PHONE PHONE …")
        lexicon.setdefault(word, tuple(pronunciation))
    if not lexicon:
        raise AsrkitError("holds no pronunciations", where=path, mend="one line per word: WORD PHONE PHONE …")
    return lexicon


def _train_sentencepiece(lines: Sequence[str], size: int) -> bytes:
    model = io.BytesIO()
    try:
        # One thread, and no spelling rules of its own: the result is a function of the texts.
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=size,
            model_type="bpe",
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=1 << 20,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        what = f"no {size - 1} BPE pieces can be learnt from {len(lines)} transcripts"
        most, least = (re.search(pattern + r" (\d+)", str(error)) for pattern in ("<=", "vs"))
        limit = [f"at {word} {int(m[1]) - 1}" for word, m in (("most", most), ("least", least)) if m]
        raise AsrkitError(what, mend=limit[0] if limit else None) from None
    return model.getvalue()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(read_utf8(path))
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        raise AsrkitError("is not a JSON object", where=path, mend="prepare the data again")
    return stored


def _spell(symbol: str) -> str:
    """Return a symbol so that look-alikes can be told apart."""
    if len(symbol) != 1 or "!" <= symbol <= "~":
        return f"'{symbol}'"
    return f"'{symbol}' (U+{ord(symbol):04X})" if symbol.isprintable() else f"U+{ord(symbol):04X}"
