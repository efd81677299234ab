"""Which utterances an update is made of, and how they are shared out over ranks.

The law: an epoch's items (`asrkit.data.sampling`: all utterances, or draws from them) are cut into updates whose
composition is a function of (seed, epoch) alone. Only inside an update does the number of ranks matter: its utterances are
cut into micro-batches, of which rank r of W takes every W-th. The whole state of a stream is therefore (epoch, updates
consumed); resuming costs nothing and W may change at any update.

Memory: an epoch's order takes four bytes per item, and that is all that grows with a corpus of any usual number of
updates. Durations are asked for in blocks, so that they can stay in a file.

Shapes: n items of an epoch, U its updates, W ranks. An item is called an utterance, even where one is drawn twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

_BLOCK = 1 << 18
"""Utterances that are looked at together."""


class Durations(Protocol):
    """Seconds of n utterances, such as an array float (n,)."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: np.ndarray, /) -> np.ndarray:
        """Return the seconds at ``places`` int (k,), float (k,)."""


def update_count(durations: Durations, seconds_per_update: float) -> int:
    """Return how many updates of about ``seconds_per_update`` an epoch over ``durations`` (n,) is cut into."""
    return count_updates(total_seconds(durations), len(durations), seconds_per_update)


def count_updates(seconds: float, utterances: int, seconds_per_update: float) -> int:
    """Return the same of the sum of the durations and their number."""
    return min(max(round(seconds / seconds_per_update), 1), utterances)


def total_seconds(durations: Durations) -> float:
    """Return the sum of durations."""
    count = len(durations)
    blocks = (durations[np.arange(first, min(first + _BLOCK, count))] for first in range(0, count, _BLOCK))
    return float(sum(np.sum(block, dtype=np.float64) for block in blocks))


class EpochPlan:
    """The updates of one epoch.

    The utterances are permuted by (seed, epoch, salt); stretches of ``bucket`` updates' worth of audio are sorted by
    duration and sliced into updates of equal audio; the updates are put into random order. Every utterance is in
    exactly one update, and no update is empty.
    """

    def __init__(
        self,
        durations: Durations,
        *,
        seconds_per_update: float,
        batch_seconds: float,
        seed: int,
        epoch: int,
        updates: int | None = None,
        bucket: int = 8,
        shuffle: bool = True,
        salt: int = 0,
    ) -> None:
        """Plan an epoch in O(n log n).

        Args:
            durations: seconds of audio that each utterance will have when it is loaded (cropped, sped up), (n,); n >=
                1.
            seconds_per_update: audio of an update, padding not counted; met approximately.
            batch_seconds: the largest padded micro-batch.
            seed: the run's seed.
            epoch: the epoch's number.
            updates: U, if it is not to follow from these durations (speed perturbation changes them from epoch to
                epoch).
            bucket: updates whose utterances are sorted by duration together; 1 leaves every update a random sample.
            shuffle: whether utterances and updates are permuted.
            salt: tells streams apart that share a seed.
        """
        self.batch_seconds = batch_seconds
        self.durations = durations
        count = len(durations)
        total = min(updates, count) if updates is not None else update_count(durations, seconds_per_update)
        random = np.random.Generator(np.random.PCG64([abs(seed), epoch, salt, int(seed < 0)]))
        self._order = np.arange(count, dtype=np.int32 if count < 1 << 31 else np.int64)
        if shuffle:
            random.shuffle(self._order)

        # Windows of `bucket` updates, by cumulative audio in random order.
        first = np.append(np.arange(0, total, bucket), total)
        windows = self._cut_windows(first, total)
        # Each window's updates, by cumulative audio in order of duration.
        edges = self._cut_updates(first, windows, total)
        edges[first] = windows
        window = np.repeat(np.arange(len(first) - 1), np.diff(first))
        edges[:-1] = np.minimum(edges[:-1], windows[window + 1] - (first[window + 1] - np.arange(total)))
        self._edges = _at_least_one_each(edges)
        self._updates = random.permutation(total) if shuffle else np.arange(total)

    def _seconds(self, places: np.ndarray) -> np.ndarray:
        return np.asarray(self.durations[places], dtype=np.float64)

    def _cut_windows(self, first: np.ndarray, total: int) -> np.ndarray:
        """Cut the order at the shares ``first / total`` of its audio, with as many utterances between as updates."""
        count = len(self._order)
        whole = 0.0
        for _, cumulative in self._sums():
            whole = float(cumulative[-1])
        targets = first / total * whole
        edges = np.full(len(targets), count, dtype=np.int64)
        done = 0
        for start, cumulative in self._sums():
            end = start + len(cumulative) - 1
            until = len(targets) if end == count else int(np.searchsorted(targets, cumulative[-1], side="right"))
            edges[done:until] = start + _nearest(cumulative, targets[done:until])
            done = until
        edges[0], edges[-1] = 0, count
        edges = np.minimum(edges, count - (total - first))
        return np.maximum.accumulate(edges - first) + first

    def _sums(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the cumulative audio of the order, block by block: a block's first place, and the sums at its edges."""
        before = 0.0
        for start in range(0, len(self._order), _BLOCK):
            cumulative = np.cumsum(np.concatenate([[before], self._seconds(self._order[start : start + _BLOCK])]))
            yield start, cumulative
            before = float(cumulative[-1])

    def _cut_updates(self, first: np.ndarray, windows: np.ndarray, total: int) -> np.ndarray:
        """Sort each window by duration, and cut it into its updates, by their shares of its audio; return U + 1 edges."""
        edges = np.full(total + 1, len(self._order), dtype=np.int64)
        before = 0.0
        low = 0
        while low < len(first) - 1:
            # As many windows as make a block, at least one.
            high = max(low + 1, int(np.searchsorted(windows, windows[low] + _BLOCK, side="right")) - 1)
            high = min(high, len(first) - 1)
            bounds = windows[low : high + 1]
            rows = self._order[bounds[0] : bounds[-1]]
            seconds = self._seconds(rows)
            sorting = np.lexsort((seconds, np.repeat(np.arange(high - low), np.diff(bounds))))
            self._order[bounds[0] : bounds[-1]] = rows[sorting]
            cumulative = np.cumsum(np.concatenate([[before], seconds[sorting]]))
            numbers = np.arange(first[low], first[high])
            window = np.repeat(np.arange(low, high), np.diff(first[low : high + 1]))
            share = (numbers - first[window]) / np.diff(first)[window]
            start, end = cumulative[windows[window] - bounds[0]], cumulative[windows[window + 1] - bounds[0]]
            edges[numbers] = bounds[0] + _nearest(cumulative, start + share * (end - start))
            before = float(cumulative[-1])
            low = high
        return edges

    @property
    def updates(self) -> int:
        """Updates in the epoch, U."""
        return len(self._updates)

    def update(self, number: int) -> np.ndarray:
        """Return the utterances of update ``number``, longest first, int64."""
        place = self._updates[number]
        return self._order[self._edges[place] : self._edges[place + 1]][::-1].astype(np.int64)

    def micro_batches(self, number: int, world_size: int = 1) -> list[np.ndarray]:
        """Return update ``number`` cut into micro-batches; rank r of W takes number r, r + W, … of them."""
        rows = self.update(number)
        sizes = micro_batch_sizes(self._seconds(rows), self.batch_seconds, world_size)
        return np.split(rows, np.cumsum(sizes)[:-1])


def micro_batch_sizes(durations: np.ndarray, batch_seconds: float, world_size: int = 1) -> list[int]:
    """Cut utterances that are sorted longest first into runs of at most ``batch_seconds`` of padded audio.

    The number of runs is the smallest possible multiple of ``world_size`` (one utterance each where there are too few
    for that), and the costliest run is as cheap as that number allows. An utterance longer than ``batch_seconds`` is a
    run of its own.
    """
    fewest = len(_greedy(durations, batch_seconds))
    wanted = min(-(-fewest // world_size) * world_size, len(durations))
    # The largest padded run is a length times a count: bisection on it, far below a sample's resolution.
    low, high = 0.0, batch_seconds
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if len(_greedy(durations, middle)) <= wanted else (middle, high)
    sizes = _greedy(durations, high)
    while len(sizes) < wanted:
        starts = np.cumsum([0, *sizes[:-1]])
        costs = [size * durations[start] if size > 1 else 0.0 for size, start in zip(sizes, starts, strict=True)]
        place = int(np.argmax(costs))
        sizes[place : place + 1] = [sizes[place] // 2, sizes[place] - sizes[place] // 2]
    return sizes


def _greedy(durations: np.ndarray, limit: float) -> list[int]:
    """Return run lengths, each what fits into ``limit`` when padded to its first utterance, which is its longest."""
    sizes: list[int] = []
    start = 0
    while start < len(durations):
        # The tolerance keeps ten utterances of a tenth of the limit together.
        sizes.append(min(max(int(limit / durations[start] + 1e-6), 1), len(durations) - start))
        start += sizes[-1]
    return sizes


def _at_least_one_each(edges: np.ndarray) -> np.ndarray:
    steps = np.arange(len(edges))
    return np.maximum.accumulate(edges - steps) + steps


def _nearest(cumulative: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the index of the entry of the rising ``cumulative`` that is nearest to each target."""
    right = np.clip(np.searchsorted(cumulative, targets), 1, len(cumulative) - 1)
    return np.where(targets - cumulative[right - 1] < cumulative[right] - targets, right - 1, right)
