"""The utterances of several sets as one list, without copies: what is asked of them comes from the mapped indices.

Shapes: n utterances in all, k of them asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from asrkit.data.augment import loaded_seconds, speed_factors
from asrkit.data.index import SetIndex
from asrkit.data.plan import total_seconds
from asrkit.data.sampling import Everything, Items
from asrkit.randomness import copy_keys

_BLOCK = 1 << 18


class Utterances:
    """Those utterances of some sets that are wanted, numbered from 0: their *places*.

    Where all are wanted nothing is kept of them, otherwise four bytes of each.
    """

    def __init__(self, sets: Sequence[SetIndex], wanted: Callable[[SetIndex, slice], np.ndarray]) -> None:
        """Choose utterances.

        Args:
            sets: the sets, in the order in which their utterances are numbered.
            wanted: tells of a stretch of a set's rows which are wanted, bool.
        """
        self.sets = list(sets)
        self._starts = np.cumsum([0, *(len(index) for index in sets)])
        self._kind = np.int32 if self._starts[-1] < 1 << 31 else np.int64
        chosen = [
            (int(start) + first + np.flatnonzero(wanted(index, slice(first, first + _BLOCK)))).astype(self._kind)
            for start, index in zip(self._starts[:-1], self.sets, strict=True)
            for first in range(0, len(index), _BLOCK)
        ]
        self._count = sum(map(len, chosen))
        self._rows = None if self._count == self._starts[-1] else np.concatenate(chosen)

    def __len__(self) -> int:
        return self._count

    def limit(self, seconds: float) -> None:
        """Keep at most so many seconds of speech, but one utterance at least: those whose keys are lowest.

        Keys are hashes, so that this is a fair sample, one that a larger one holds. It takes some 24 bytes of each
        utterance for a moment.
        """
        keys = np.concatenate([self.column("key", places) for places in self.blocks()])
        durations = np.concatenate([self.column("duration", places) for places in self.blocks()])
        order = np.argsort(keys, kind="stable")
        sums = np.cumsum(durations[order], dtype=np.float64)
        kept = np.sort(order[: max(1, int(np.searchsorted(sums, seconds, side="right")))])
        if len(kept) < len(self):
            self._rows = kept.astype(self._kind) if self._rows is None else self._rows[kept]
            self._count = len(kept)

    def locate(self, places: np.ndarray) -> tuple[tuple[int, int], ...]:
        """Return (set, row in the set) of utterances at ``places`` int (k,)."""
        sets, rows = self._locate(places)
        return tuple(zip(sets.tolist(), rows.tolist(), strict=True))

    def column(self, name: str, places: np.ndarray) -> np.ndarray:
        """Return a column of the indices at ``places`` int (k,)."""
        if len(self.sets) == 1:
            return np.asarray(self.sets[0].rows[name][places if self._rows is None else self._rows[places]])
        sets, rows = self._locate(places)
        found = np.empty(len(places), dtype=self.sets[0].rows.dtype[name])
        for number in np.unique(sets):
            here = sets == number
            found[here] = self.sets[number].rows[name][rows[here]]
        return found

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all places, in order, some at a time."""
        for first in range(0, len(self), _BLOCK):
            yield np.arange(first, min(first + _BLOCK, len(self)))

    def _locate(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = places if self._rows is None else self._rows[places]
        return locate(self._starts, numbers)


def locate(starts: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sets and rows in them of utterances that are numbered through all sets, whose first are ``starts``."""
    sets = np.searchsorted(starts, numbers, side="right") - 1
    return sets, numbers - starts[sets]


class LoadedSeconds:
    """The seconds that an epoch's items have once they are sped up and cropped, reckoned when they are asked for."""

    def __init__(
        self,
        utterances: Utterances,
        crop_seconds: float,
        speed_factors: Sequence[float] | float,
        seed: int = 0,
        epoch: int = 0,
        items: Items | None = None,
    ) -> None:
        """Take a crop (0 crops nothing), one speed of all or the speeds of which an epoch draws, and what the epoch is made of."""
        self._utterances = utterances
        self._crop_seconds = crop_seconds
        self._speeds = speed_factors
        self._seed, self._epoch = seed, epoch
        self._items = Everything(len(utterances)) if items is None else items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        places = self._items.places(numbers)
        factors: np.ndarray | float = 1.0
        if isinstance(self._speeds, (int, float)):
            factors = self._speeds
        elif self._speeds:
            copies = torch.from_numpy(self._items.copies(numbers).astype(np.int64))
            keys = copy_keys(torch.from_numpy(self._utterances.column("key", places)), copies)
            factors = speed_factors(keys, self._speeds, self._seed, self._epoch)
        return loaded_seconds(self._utterances.column("duration", places), factors, self._crop_seconds)

    def total(self) -> float:
        """Return their sum."""
        return total_seconds(self)
