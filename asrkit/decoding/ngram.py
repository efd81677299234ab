"""Back-off n-gram language models: scores as KenLM gives them, from an ARPA file, in Python and NumPy alone.

The model is a tree of contexts. A node is an n-gram; a state (the context of the next word) is the longest n-gram of the
model that the history ends in, so that a back-off is one step along a node's suffix link. Scores are log10, the unit of
ARPA files, of KenLM and of the weights that are published for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
MARKERS = frozenset({BEGIN, END, UNKNOWN})
ROOT = 0
MISSING_UNKNOWN = -100.0
"""Log10 probability of a word that is not in a model without `<unk>`; KenLM's."""


class LanguageModel(Protocol):
    """Scores words one after the other; a state is hashable and stands for the words so far."""

    @property
    def vocabulary(self) -> Sequence[str]:
        """The words that it knows, without markers."""

    def start(self) -> int:
        """Return the state at the beginning of a sentence."""

    def score(self, state: int, word: str) -> tuple[int, float]:
        """Return the next state, and the word's log10 probability in this one."""

    def finish(self, state: int) -> float:
        """Return the log10 probability that the sentence ends here."""

    def unigram(self, word: str) -> float:
        """Return the log10 probability of a word of which the words before are not known."""


class NGram:
    """A back-off model. Make one with `asrkit.decoding.arpa.read_arpa` or `asrkit.decoding.kneser_ney.estimate`."""

    def __init__(self, words: Sequence[str], order: int) -> None:
        """Start a model without n-grams.

        Args:
            words: all words, markers included; a word's index is its place here.
            order: n of the longest n-grams.
        """
        self.words = list(words)
        self.order = order
        self.index = {word: place for place, word in enumerate(self.words)}
        self.children: dict[int, int] = {}
        self._log10 = [0.0]
        self._backoff = [0.0]
        self._suffix = [ROOT]
        self._length = [0]

    @property
    def vocabulary(self) -> list[str]:
        """The words that it knows, without markers."""
        return [word for word in self.words if word not in MARKERS]

    def add(self, ngram: Sequence[int], log10: float, backoff: float) -> None:
        """Add an n-gram. Shorter ones come before longer ones.

        Raises:
            KeyError: if the n-gram without its last word has not been added.
        """
        parent = ROOT
        for word in ngram[:-1]:
            parent = self.children[parent * len(self.words) + word]
        node = len(self._log10)
        self.children[parent * len(self.words) + ngram[-1]] = node
        self._log10.append(log10)
        self._backoff.append(backoff)
        self._length.append(len(ngram))
        # The longest proper suffix that is in the model; a pruned model may lack some.
        context = parent
        while context != ROOT:
            context = self._suffix[context]
            found = self.children.get(context * len(self.words) + ngram[-1])
            if found is not None:
                self._suffix.append(found)
                return
        self._suffix.append(ROOT)

    def start(self) -> int:
        """See `LanguageModel.start`."""
        # A key below the root is the word's own index.
        return self.children.get(self.index.get(BEGIN, -1), ROOT)

    def score(self, state: int, word: str) -> tuple[int, float]:
        """See `LanguageModel.score`. A word outside the vocabulary counts as `<unk>`."""
        place = self.index.get(word, self.index.get(UNKNOWN, -1))
        if place < 0:
            return ROOT, MISSING_UNKNOWN
        total, size = 0.0, len(self.words)
        while (node := self.children.get(state * size + place)) is None:
            if state == ROOT:
                return ROOT, total + MISSING_UNKNOWN
            total += self._backoff[state]
            state = self._suffix[state]
        total += self._log10[node]
        return (self._suffix[node] if self._length[node] == self.order else node), total

    def finish(self, state: int) -> float:
        """See `LanguageModel.finish`."""
        return self.score(state, END)[1]

    def unigram(self, word: str) -> float:
        """See `LanguageModel.unigram`."""
        return self.score(ROOT, word)[1]


def sentence_log10(model: LanguageModel, words: Sequence[str]) -> float:
    """Return the log10 probability of a sentence, its end included."""
    state, total = model.start(), 0.0
    for word in words:
        state, log10 = model.score(state, word)
        total += log10
    return total + model.finish(state)


def perplexity(model: LanguageModel, sentences: Sequence[Sequence[str]]) -> float:
    """Return the perplexity of sentences, their ends counted as words, unknown words included."""
    total = sum(sentence_log10(model, sentence) for sentence in sentences)
    return float(np.power(10.0, -total / max(1, sum(len(sentence) + 1 for sentence in sentences))))
