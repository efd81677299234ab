"""How far a word error rate might be off: the percentile bootstrap over speakers.

Source: Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation".
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

DRAWS = 2_000


def interval(
    speakers: Mapping[str, tuple[int, int]], level: float = 0.95, draws: int = DRAWS
) -> tuple[float, float] | None:
    """Return the bounds of the word error rate when speakers are drawn with replacement.

    Args:
        speakers: errors and reference words of each; utterances of one speaker share a fate, so they are drawn together.
        level: share of the draws inside the bounds.
        draws: how many; always the same ones.

    Returns:
        None if there are fewer than two speakers with words: one says nothing about others.
    """
    counts = np.array([pair for pair in speakers.values() if pair[1] > 0], dtype=np.int64).reshape(-1, 2)
    if len(counts) < 2:
        return None
    # A matrix product with how often each speaker was drawn is much smaller than gathering all draws.
    generator = np.random.default_rng(0)
    times = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=draws)
    errors, words = (times @ counts).T
    low, high = np.quantile(errors / words, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
