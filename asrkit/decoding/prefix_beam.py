"""CTC prefix beam search in plain Python, with a word or unit n-gram (Graves 2006; Hannun et al. 2014, algorithm 1).

A prefix is a unit sequence as `asrkit.decoding.words` reads it; its probability is the sum over all frame paths that collapse
to it, those that end in a blank kept apart from those that end in its last unit. With an unlimited beam the score of a text
is exactly the log of the sum over every path that spells it, plus the weighted language model.

Shapes: T frames, V units (with blank).
"""

from __future__ import annotations

import heapq
from math import exp, inf, log1p
from typing import Any

import numpy as np

from asrkit.decoding.config import BeamConfig
from asrkit.decoding.hypothesis import Decoder, Hypothesis, merge_texts
from asrkit.decoding.lexicon import Lexicon
from asrkit.decoding.ngram import UNKNOWN, LanguageModel
from asrkit.decoding.words import LexiconSpeller, OpenVocabulary, Speller
from asrkit.text.units import Units


class _Prefix:
    """A unit sequence, and the probability of the paths that have led to it so far."""

    __slots__ = (
        "blank",
        "bonus",
        "children",
        "frame",
        "label",
        "lm",
        "lm_state",
        "new_blank",
        "new_label",
        "parent",
        "starts",
        "state",
        "unit",
        "word",
        "words",
    )

    def __init__(self, parent: _Prefix | None, unit: int, state: Any, word: str | None, starts: bool) -> None:
        self.parent = parent
        self.unit = unit
        self.state = state
        self.word = word
        self.starts = starts
        self.words = 0
        self.lm_state = 0
        self.lm = 0.0
        self.bonus = 0.0
        self.children: dict[int, tuple[_Prefix, ...]] = {}
        self.blank = self.label = self.new_blank = self.new_label = -inf
        self.frame = -1


class PrefixBeamDecoder(Decoder):
    """Needs nothing compiled, and is exact; slower than flashlight."""

    name = "beam"

    def __init__(
        self,
        units: Units,
        frame_rate: float,
        config: BeamConfig,
        *,
        model: LanguageModel | None = None,
        unit_level: bool = False,
        lexicon: Lexicon | None = None,
    ) -> None:
        """Make a decoder.

        Args:
            units: what log-probabilities are for.
            frame_rate: frames per second.
            config: width and weights.
            model: an n-gram.
            unit_level: the n-gram is over unit symbols instead of words.
            lexicon: the only words that there are; without, every unit sequence is allowed, and words that a word
                n-gram does not know are its `<unk>`. Phones always need one.
        """
        super().__init__(units, frame_rate)
        self.config = config
        self.model = model
        self.unit_level = unit_level
        self.lexicon = lexicon
        unigrams = None
        if model is not None and not unit_level:
            unigrams = {word: model.unigram(word) for word in (lexicon or model.vocabulary)}
        self.speller: Speller
        if lexicon is not None:
            self.speller = LexiconSpeller(units, lexicon, unigrams)
        else:
            unknown = model.unigram(UNKNOWN) if model is not None and not unit_level else 0.0
            self.speller = OpenVocabulary(units, unigrams, unknown)
        self.weights = ("lm_weight", "word_score") if model is not None else ("word_score",)
        self._slack = _slack(config, model)
        self._boundary = -1 if units.boundary is None else units.index.get(units.boundary, -1)
        self._separator = units.boundary if units.kind == "char" else None

    def reweighted(self, config: BeamConfig) -> PrefixBeamDecoder:
        """Return a decoder with other weights that shares this one's tables."""
        other = object.__new__(PrefixBeamDecoder)
        other.__dict__.update(self.__dict__, config=config, _slack=_slack(config, self.model))
        return other

    def search(self, log_probs: np.ndarray) -> list[Hypothesis]:
        """See `Decoder.search`."""
        # Before the first word, as between two, a boundary unit changes nothing and may be repeated.
        root = _Prefix(None, self._boundary, self.speller.start, None, False)
        root.blank = 0.0
        root.lm_state = self.model.start() if self.model is not None else 0
        beam = [root]
        scores = np.array(log_probs, dtype=np.float64)
        if len(scores):
            scores[:, self.units.blank] = np.logaddexp.reduce(scores[:, list(self.units.silent)], axis=1)
            candidates = scores > self.config.token_floor
            candidates[:, list(self.units.silent)] = False
            for frame, row in enumerate(scores):
                likely = [unit for unit in np.argsort(-row, kind="stable").tolist() if candidates[frame, unit]]
                beam = self._advance(beam, frame, row.tolist(), likely)
        return self._finish(beam)

    def _advance(self, beam: list[_Prefix], frame: int, row: list[float], candidates: list[int]) -> list[_Prefix]:
        """Return the best prefixes after one more frame; ``candidates`` are units, the likeliest first."""
        blank = row[self.units.blank]
        reached: list[_Prefix] = []
        totals: list[float] = []
        stays: list[float] = []
        for prefix in beam:
            total = _add(prefix.blank, prefix.label)
            prefix.frame = frame
            prefix.new_blank = total + blank
            prefix.new_label = prefix.label + row[prefix.unit] if prefix.label > -inf else -inf
            totals.append(total)
            stays.append(_add(prefix.new_blank, prefix.new_label) + prefix.bonus)
            reached.append(prefix)
        # A full beam stays full: what comes out worse than all who stay need not be looked at.
        cutoff = min(stays) if len(beam) == self.config.beam else -inf
        cutoff = max(cutoff, max(stays) - self.config.threshold)
        for prefix, total in zip(beam, totals, strict=True):
            reach = cutoff - total - prefix.bonus - self._slack
            for unit in candidates:
                if row[unit] < reach:
                    break
                before = prefix.blank if unit == prefix.unit else total
                if before == -inf:
                    continue
                following = prefix.children.get(unit)
                if following is None:
                    following = prefix.children[unit] = self._extend(prefix, unit)
                score = before + row[unit]
                for child in following:
                    if child.frame == frame:
                        child.new_label = _add(child.new_label, score)
                    elif score + child.bonus >= cutoff:
                        child.frame, child.new_blank, child.new_label = frame, -inf, score
                        reached.append(child)
        ranked = []
        for order, prefix in enumerate(reached):
            prefix.blank, prefix.label = prefix.new_blank, prefix.new_label
            ranked.append((_add(prefix.blank, prefix.label) + prefix.bonus, -order, prefix))
        best = heapq.nlargest(self.config.beam, ranked)
        return [prefix for rank, _, prefix in best if rank >= best[0][0] - self.config.threshold]

    def _extend(self, prefix: _Prefix, unit: int) -> tuple[_Prefix, ...]:
        """Return the prefixes that a unit makes of one: none, one, or several where a lexicon is ambiguous."""
        children = []
        for step in self.speller.steps(prefix.state, unit):
            if step.word is None and step.state == prefix.state:
                children.append(prefix)
                continue
            child = _Prefix(prefix, unit, step.state, step.word, step.starts)
            child.words = prefix.words + (step.word is not None)
            child.lm, child.lm_state = self._language(prefix, step.word, unit, step.starts)
            started = step.state != self.speller.start
            ahead = child.lm + self.speller.lookahead(step.state)
            child.bonus = self.config.lm_weight * ahead + self.config.word_score * (child.words + started)
            children.append(child)
        return tuple(children)

    def _language(self, prefix: _Prefix, word: str | None, unit: int, starts: bool) -> tuple[float, int]:
        """Return the log10 probability and the state of the language model once a prefix has been extended."""
        model, total, state = self.model, prefix.lm, prefix.lm_state
        if model is None:
            return total, state
        if not self.unit_level:
            symbols = [] if word is None else [word]
        elif self._separator is not None:
            # A boundary counts when the next word begins: one at the end of the text says nothing.
            symbols = [] if unit == self._boundary else [self.units.symbols[unit]]
            if starts and prefix.words:
                symbols.insert(0, self._separator)
        else:
            symbols = [self.units.symbols[unit]]
        for symbol in symbols:
            state, log10 = model.score(state, symbol)
            total += log10
        return total, state

    def _finish(self, beam: list[_Prefix]) -> list[Hypothesis]:
        found = [
            self._hypothesis(prefix, [] if word is None else [word])
            for prefix in beam
            for word in self.speller.finish(prefix.state)
        ]
        # Where every prefix ends within a word that the lexicon does not have, that word is left out.
        return merge_texts(found or [self._hypothesis(prefix, None) for prefix in beam], self.config.nbest)

    def _hypothesis(self, prefix: _Prefix, last: list[str] | None) -> Hypothesis:
        """Return the reading of a prefix whose unfinished word becomes ``last``, or is dropped if that is None."""
        acoustic = _add(prefix.blank, prefix.label)
        lm, state, count = prefix.lm, prefix.lm_state, prefix.words + len(last or ())
        if self.model is not None:
            for word in [] if self.unit_level else last or ():
                state, log10 = self.model.score(state, word)
                lm += log10
            lm += self.model.finish(state)
        path: list[_Prefix] = []
        node: _Prefix | None = prefix
        while node is not None and node.parent is not None:
            path.append(node)
            node = node.parent
        path.reverse()
        words = [node.word for node in path if node.word is not None] + list(last or ())
        begins = [place for place, node in enumerate(path) if node.starts]
        spans = []
        # An unfinished word that is dropped is the last to begin.
        for begin, end in list(zip(begins, [*begins[1:], len(path)], strict=False))[: len(words)]:
            while end > begin + 1 and self.units.divides(path[end - 1].unit):
                end -= 1
            spans.append((begin, end))
        units = tuple(node.unit for node in path[: spans[-1][1] if spans else 0])
        score = acoustic + self.config.lm_weight * lm + self.config.word_score * count
        return Hypothesis(" ".join(words), units, tuple(spans), score, acoustic, lm)


def _slack(config: BeamConfig, model: LanguageModel | None) -> float:
    """Return by how much a unit may raise what a prefix expects of its words: a hundredfold probability."""
    return max(0.0, config.word_score) + (2 * config.lm_weight if model is not None else 0.0)


def _add(a: float, b: float) -> float:
    """Return log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -inf else a + log1p(exp(b - a))
