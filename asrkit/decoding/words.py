"""How a growing unit sequence becomes words: the part of beam search that knows spelling.

Three kinds of unit sequences: characters with a boundary *between* words; BPE pieces, of which some *begin* a word; and phones
(or characters of a script without spaces), where only a lexicon tells. A `Speller` follows a sequence unit by unit. Its states
are hashable, and one sequence may be in several states at once where a lexicon reads it in several ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from asrkit.decoding.lexicon import Lexicon
from asrkit.text.units import Units


class Step(NamedTuple):
    """Where a unit leads."""

    state: Any
    """The next state; the same one where a unit changes nothing."""
    word: str | None = None
    """A word that is complete now."""
    starts: bool = False
    """Whether the unit is the first of a word."""


class Speller(Protocol):
    """Follows unit sequences."""

    start: Any
    """The state before the first unit, in which no word has begun."""

    def steps(self, state: Any, unit: int) -> Sequence[Step]:
        """Return where a unit (not the blank) leads from ``state``: nowhere, to one state, or to several."""

    def finish(self, state: Any) -> Sequence[str | None]:
        """Return how the sequence may end: with a word (complete now), or with None where no word is under way.

        Nothing where a word is under way that cannot end here.
        """

    def lookahead(self, state: Any) -> float:
        """Return the best log10 probability that the unfinished word can still reach, at most 0; 0 if none has begun."""


class OpenVocabulary:
    """Any sequence of characters or pieces is a word. A state is the text of the unfinished word."""

    start: str = ""

    def __init__(self, units: Units, unigrams: Mapping[str, float] | None = None, unknown: float = 0.0) -> None:
        """Make a speller.

        Args:
            units: characters or BPE pieces.
            unigrams: log10 probabilities of a language model's words, for `lookahead`.
            unknown: its log10 probability of any other word.
        """
        self._units = units
        self._best: dict[str, float] = {}
        self._unknown = unknown
        for word, log10 in (unigrams or {}).items():
            for end in range(1, len(word) + 1):
                self._best[word[:end]] = max(log10, self._best.get(word[:end], unknown))

    def steps(self, state: str, unit: int) -> Sequence[Step]:
        """See `Speller.steps`."""
        symbol = self._units.symbols[unit]
        if self._units.divides(unit):
            return (Step("", state or None, False),)
        if self._units.begins(unit):
            return (Step(symbol.removeprefix(self._units.boundary or ""), state or None, True),)
        return (Step(state + symbol, None, not state),)

    def finish(self, state: str) -> Sequence[str | None]:
        """See `Speller.finish`."""
        return (state or None,)

    def lookahead(self, state: str) -> float:
        """See `Speller.lookahead`."""
        return self._best.get(state, self._unknown) if state else 0.0


class _Node:
    """A place in the tree of spellings."""

    __slots__ = ("best", "children", "words")

    def __init__(self) -> None:
        self.children: dict[int, _Node] = {}
        self.words: list[str] = []
        self.best = -float("inf")


class LexiconSpeller:
    """The words of a lexicon and nothing else. A state is a place in the tree of spellings, the root between words."""

    def __init__(self, units: Units, lexicon: Lexicon, unigrams: Mapping[str, float] | None = None) -> None:
        """Make a speller.

        Args:
            units: units of any kind.
            lexicon: the words.
            unigrams: log10 probabilities of the words, for `lookahead`; a word without one counts as possible.
        """
        self.start = _Node()
        self._boundary = units.index.get(units.boundary) if units.kind == "char" and units.boundary else None
        self._initial: frozenset[int] = frozenset()
        if units.kind == "bpe" and units.boundary:
            begins = (unit for unit, symbol in enumerate(units.symbols) if symbol.startswith(units.boundary))
            self._initial = frozenset(begins)
        self._free = self._boundary is None and not self._initial
        for word, spellings in lexicon.items():
            log10 = 0.0 if unigrams is None else unigrams.get(word, 0.0)
            for spelling in spellings:
                node = self.start
                for unit in spelling:
                    node = node.children.setdefault(unit, _Node())
                    node.best = max(node.best, log10)
                node.words.append(word)

    def steps(self, state: _Node, unit: int) -> Sequence[Step]:
        """See `Speller.steps`."""
        if unit == self._boundary:
            if state is self.start:
                return (Step(state),)
            return [Step(self.start, word) for word in state.words]
        found = []
        inner = state.children.get(unit)
        if inner is not None and (inner.children or not self._free):
            found.append(Step(inner, None, state is self.start))
        if self._free and inner is not None:
            found += [Step(self.start, word, state is self.start) for word in inner.words]
        if unit in self._initial and state is not self.start and (first := self.start.children.get(unit)):
            found += [Step(first, word, True) for word in state.words]
        return found

    def finish(self, state: _Node) -> Sequence[str | None]:
        """See `Speller.finish`."""
        return (None,) if state is self.start else state.words if not self._free else ()

    def lookahead(self, state: _Node) -> float:
        """See `Speller.lookahead`."""
        return 0.0 if state is self.start else min(0.0, state.best)
