"""Interpolated modified Kneser-Ney estimation of n-gram models (Chen & Goodman 1999, sections 4.1.6 and 4.1.7).

Conventions are those of KenLM's lmplz, so that models agree: `<unk>` is a word without counts, the unigrams are interpolated
with the uniform distribution over all words but `<s>`, an n-gram that begins a sentence keeps its count at every order, and
discounts that the data are too few for are 0.5, 1 and 1.5.

Every step is a NumPy operation over all tokens. With M distinct n-grams of an order, an n-gram is a row number below M.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from asrkit.decoding.ngram import BEGIN, END, MARKERS, UNKNOWN
from asrkit.errors import AsrkitError

log = logging.getLogger("asrkit.decoding")

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts of counts 1, 2 and 3 or more, where the formula is not defined."""
_UNKNOWN, _BEGIN, _END = 0, 1, 2
_NEVER = -99.0
"""Stands for the log10 of 0 in ARPA files, as for `<s>`, which is never predicted."""


@dataclass(frozen=True)
class Order:
    """All n-grams of one length."""

    ngrams: np.ndarray
    """Word indices, int64 (M, n)."""
    log10: np.ndarray
    """Log10 probabilities, float64 (M,)."""
    backoff: np.ndarray
    """Log10 back-off weights, float64 (M,); all 0 for the longest n-grams."""


@dataclass(frozen=True)
class Estimate:
    """A model as tables, ready to be written."""

    words: tuple[str, ...]
    """`<unk>`, `<s>`, `</s>` and the vocabulary in code-point order."""
    orders: tuple[Order, ...]
    """From unigrams on."""
    discounts: tuple[tuple[float, float, float], ...]
    """Per order."""


@dataclass
class _Counted:
    """Counts of one order while the model is estimated."""

    ngrams: np.ndarray
    """(M, n) word indices."""
    context: np.ndarray
    """(M,) row of the n-gram without its last word, among the next shorter ones."""
    suffix: np.ndarray
    """(M,) row of the n-gram without its first word, likewise."""
    counts: np.ndarray
    """(M,) how often it occurs; once adjusted, how many words precede it."""


def estimate(sentences: Iterable[Sequence[str]], order: int) -> Estimate:
    """Return the model of the sentences.

    Args:
        sentences: words of each; empty ones are left out.
        order: n of the longest n-grams; lowered, with a line in the log, where all sentences are shorter.

    Raises:
        AsrkitError: if there is no word, a marker such as `<s>` among the words, or the order is below 1.
    """
    if order < 1:
        raise AsrkitError(f"an n-gram of order {order}", mend="1 or more")
    words, tokens, depth = _number(sentences)
    levels = _count(tokens, depth, len(words), order)
    if len(levels) < order:
        log.warning("no sentence is long enough for order %d: the order is %d", order, len(levels))
    for shorter, longer in itertools.pairwise(levels):
        preceded = np.bincount(longer.suffix, minlength=len(shorter.counts))
        begins = shorter.ngrams[:, 0] == _BEGIN
        shorter.counts = np.where(begins, shorter.counts, preceded)
    # `<s>` is a context, never predicted.
    levels[0].counts[_BEGIN] = 0

    discounts = [_discounts(level.counts, n + 1) for n, level in enumerate(levels)]
    probabilities: list[np.ndarray] = []
    backoffs: list[np.ndarray] = []
    for n, (level, discount) in enumerate(zip(levels, discounts, strict=True)):
        contexts = 1 if n == 0 else len(levels[n - 1].counts)
        taken = np.array([0.0, *discount])[np.minimum(level.counts, 3)]
        total = np.bincount(level.context, weights=level.counts, minlength=contexts)
        followed = total > 0
        left = np.bincount(level.context, weights=taken, minlength=contexts)
        gamma = np.divide(left, total, out=np.ones(contexts), where=followed)
        lower = np.full(len(level.counts), 1 / (len(words) - 1)) if n == 0 else probabilities[n - 1][level.suffix]
        own = (level.counts - taken) / total[level.context]
        probabilities.append(own + gamma[level.context] * lower)
        if n > 0:
            backoffs.append(np.log10(np.maximum(gamma, 10**_NEVER)))
    backoffs.append(np.zeros(len(levels[-1].counts)))
    logs = [np.minimum(np.log10(p), 0.0) for p in probabilities]
    logs[0][_BEGIN] = _NEVER
    orders = (Order(level.ngrams, p, b) for level, p, b in zip(levels, logs, backoffs, strict=True))
    return Estimate(words, tuple(orders), tuple(discounts))


def _number(sentences: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return the words, all tokens with sentence markers as indices of words, and each token's place in its sentence."""
    seen: dict[str, int] = {}
    numbers: list[int] = []
    lengths: list[int] = []
    for sentence in sentences:
        if sentence:
            lengths.append(len(sentence) + 2)
            numbers.append(_BEGIN)
            numbers.extend(seen.setdefault(word, len(seen) + len(MARKERS)) for word in sentence)
            numbers.append(_END)
    if not lengths:
        raise AsrkitError("the text holds no words", mend="one sentence per line")
    if odd := sorted(MARKERS & seen.keys()):
        raise AsrkitError(f"the text holds the marker {odd[0]} as a word", mend="leave markers out")
    ordered = sorted(seen)
    renumber = np.arange(len(seen) + len(MARKERS))
    for place, word in enumerate(ordered):
        renumber[seen[word]] = place + len(MARKERS)
    tokens = renumber[np.array(numbers)]
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    return (UNKNOWN, BEGIN, END, *ordered), tokens, np.arange(len(tokens)) - starts


def _count(tokens: np.ndarray, depth: np.ndarray, words: int, order: int) -> list[_Counted]:
    """Return the n-grams of each order up to ``order`` that occur, and how often. None crosses a sentence's border."""
    occurs = np.bincount(tokens, minlength=words)
    nothing = np.zeros(words, dtype=np.int64)
    levels = [_Counted(np.arange(words)[:, None], nothing, nothing, occurs)]
    # The row of the n-gram that ends at each token.
    rows = tokens
    for n in range(2, order + 1):
        ends = np.flatnonzero(depth >= n - 1)
        if len(ends) == 0:
            break
        keys = rows[ends - 1] * words + tokens[ends]
        _, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        at = ends[first]
        ngrams = tokens[at[:, None] + np.arange(1 - n, 1)]
        levels.append(_Counted(ngrams, rows[at - 1], rows[at], counts))
        rows = np.zeros_like(tokens)
        rows[ends] = inverse
    return levels


def _discounts(counts: np.ndarray, order: int) -> tuple[float, float, float]:
    """Return what is taken off counts of 1, 2, and 3 or more (equation 26)."""
    n1, n2, n3, n4 = (float(np.count_nonzero(counts == count)) for count in (1, 2, 3, 4))
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 <= discount <= count for discount, count in zip(found, (1, 2, 3), strict=True)):
            return found
    log.info("too few %d-grams to estimate discounts from: %s are used", order, ", ".join(map(str, FALLBACK)))
    return FALLBACK
