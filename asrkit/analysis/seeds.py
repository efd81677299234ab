"""How sure a difference between two systems is, when each was trained with several seeds.

Shapes: S seeds, G groups (speakers), D draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asrkit.errors import AsrkitError
from asrkit.text.significance import DRAWS, LEVEL, Interval


def difference_over_seeds(
    first: Sequence[Sequence[int]],
    second: Sequence[Sequence[int]],
    words: Sequence[int],
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Return the bootstrap's interval of the second system's mean WER less the first's.

    Both what is tested and what is trained is a sample: speakers are drawn with replacement, the same for both systems
    (the paired bootstrap of Bisani and Ney 2004), and with them each system's seeds.

    Args:
        first: word errors of each seed's model on each speaker (S, G).
        second: the other system's, with as many or fewer or more seeds.
        words: reference words of each speaker (G,).
        draws: how often.
        level: share of the draws inside the interval.
        seed: the draws follow from it.

    Raises:
        AsrkitError: if there is no seed or fewer than two speakers, or the speakers are not the same.
    """
    errors = [np.asarray(rows, dtype=np.float64) for rows in (first, second)]
    spoken = np.asarray(words, dtype=np.float64)
    if any(rows.ndim != 2 or rows.shape[1] != len(spoken) for rows in errors):
        raise AsrkitError("the two systems were not tested on the same speakers")
    if len(spoken) < 2:
        raise AsrkitError("a bootstrap needs at least two speakers")
    generator = np.random.default_rng(seed)
    speakers = _shares(generator, draws, len(spoken))
    total = speakers @ spoken
    rates = [_shares(generator, draws, len(rows)) * (speakers @ rows.T) for rows in errors]
    first_rate, second_rate = (rate.sum(1) / total for rate in rates)
    low, high = np.quantile(second_rate - first_rate, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, draws, len(spoken))


def _shares(generator: np.random.Generator, draws: int, count: int) -> np.ndarray:
    """Return how often each of ``count`` things is drawn, as a share of the draw, (D, count)."""
    return generator.multinomial(count, np.full(count, 1 / count), draws) / count
