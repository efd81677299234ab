"""What an epoch is made of: every utterance once, or draws with replacement.

Soft random sampling (Cui et al., arXiv 2311.12727): an epoch is r·N utterances, each drawn uniformly from all N. About
1 - e^-r of them are then heard in an epoch, and after E epochs an utterance has been heard about Poisson(r·E) times.

An utterance that is drawn again within an epoch is another sample, as it is where every draw is read and augmented on
its own: it gets crops, speed, noise and masks of its own (`asrkit.randomness.copy_keys`). They depend on seed, epoch,
utterance, and on which of the epoch's draws of this utterance it is; never on rank, batch or order.

Shapes: N utterances of a stream, n items of an epoch, k of either.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

ALL, SOFT_RANDOM = "all", "soft_random"
SAMPLINGS = (ALL, SOFT_RANDOM)
_PURPOSE = 1
"""Tells the generator of the draws from that of the order."""


class Items(Protocol):
    """The items of an epoch, numbered from 0."""

    def __len__(self) -> int: ...

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """Return which of the stream's utterances the items ``numbers`` int (k,) are, int (k,)."""
        ...

    def copies(self, numbers: np.ndarray) -> np.ndarray:
        """Return how often the epoch's items before them are the same utterance, int (k,)."""
        ...


class Everything:
    """Each utterance once."""

    def __init__(self, utterances: int) -> None:
        self._utterances = utterances

    def __len__(self) -> int:
        return self._utterances

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """See `Items.places`."""
        return numbers

    def copies(self, numbers: np.ndarray) -> np.ndarray:
        """See `Items.copies`."""
        return np.zeros_like(numbers)


class Draws:
    """Utterances drawn uniformly with replacement, a function of (seed, epoch, salt); four bytes for each draw."""

    def __init__(self, utterances: int, ratio: float, *, seed: int, epoch: int, salt: int = 0) -> None:
        """Draw ``ratio`` times as many items as there are ``utterances``; the other arguments are those of `EpochPlan`."""
        random = np.random.Generator(np.random.PCG64([abs(seed), epoch, salt, int(seed < 0), _PURPOSE]))
        kind = np.int32 if utterances < 1 << 31 else np.int64
        # In order of utterances, so that the draws of one are neighbours and can be told apart by counting.
        self._places = np.sort(random.integers(utterances, size=draw_count(utterances, ratio), dtype=kind))

    def __len__(self) -> int:
        return len(self._places)

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """See `Items.places`."""
        return self._places[numbers]

    def copies(self, numbers: np.ndarray) -> np.ndarray:
        """See `Items.copies`."""
        return numbers - np.searchsorted(self._places, self._places[numbers], side="left")


def draw_count(utterances: int, ratio: float) -> int:
    """Return the draws of an epoch, n."""
    return max(1, round(ratio * utterances))
