"""Which utterances an update is made of, and how they are shared out over ranks.

The law: an epoch is cut into updates whose composition is a function of (seed, epoch) alone. Only inside an update does
the number of ranks matter: its utterances are cut into micro-batches, of which rank r of W takes every W-th. The whole
state of a stream is therefore (epoch, updates consumed); resuming costs nothing and W may change at any update.

Shapes: n utterances of an epoch, U its updates, W ranks.
"""

from __future__ import annotations

import numpy as np


def update_count(durations: np.ndarray, seconds_per_update: float) -> int:
    """Return how many updates of about ``seconds_per_update`` an epoch over ``durations`` (n,) is cut into."""
    whole = round(float(np.sum(durations, dtype=np.float64)) / seconds_per_update)
    return min(max(whole, 1), len(durations))


class EpochPlan:
    """The updates of one epoch.

    The utterances are permuted by (seed, epoch, salt); stretches of ``bucket`` updates' worth of audio are sorted by
    duration and sliced into updates of equal audio; the updates are put into random order. Every utterance is in
    exactly one update, and no update is empty.
    """

    def __init__(
        self,
        durations: np.ndarray,
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
        self.durations = np.asarray(durations, dtype=np.float64)
        count = len(self.durations)
        total = min(updates, count) if updates is not None else update_count(self.durations, seconds_per_update)
        random = np.random.Generator(np.random.PCG64([abs(seed), epoch, salt, int(seed < 0)]))
        order = random.permutation(count) if shuffle else np.arange(count)

        # Windows of `bucket` updates, by cumulative audio in random order.
        first = np.append(np.arange(0, total, bucket), total)
        windows = _edges(self.durations[order], targets=first / total, ranks=first)
        window_of = np.repeat(np.arange(len(first) - 1), np.diff(windows))
        order = order[np.lexsort((self.durations[order], window_of))]

        # Each window's updates, by cumulative audio in order of duration.
        cumulative = np.concatenate([[0.0], np.cumsum(self.durations[order])])
        window = np.repeat(np.arange(len(first) - 1), np.diff(first))
        share = (np.arange(total) - first[window]) / np.diff(first)[window]
        start, end = cumulative[windows[window]], cumulative[windows[window + 1]]
        edges = np.append(_nearest(cumulative, start + share * (end - start)), count)
        edges[first] = windows
        edges[:-1] = np.minimum(edges[:-1], windows[window + 1] - (first[window + 1] - np.arange(total)))
        self._edges = _at_least_one_each(edges)
        self._order = order.astype(np.int64)
        self._updates = random.permutation(total) if shuffle else np.arange(total)

    @property
    def updates(self) -> int:
        """Updates in the epoch, U."""
        return len(self._updates)

    def update(self, number: int) -> np.ndarray:
        """Return the utterances of update ``number``, longest first, int64."""
        place = self._updates[number]
        return self._order[self._edges[place] : self._edges[place + 1]][::-1]

    def micro_batches(self, number: int, world_size: int = 1) -> list[np.ndarray]:
        """Return update ``number`` cut into micro-batches; rank r of W takes number r, r + W, … of them."""
        rows = self.update(number)
        sizes = micro_batch_sizes(self.durations[rows], self.batch_seconds, world_size)
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


def _edges(durations: np.ndarray, targets: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Cut (n,) utterances at the shares ``targets`` of their audio, with at least diff(ranks) of them between cuts."""
    cumulative = np.concatenate([[0.0], np.cumsum(durations)])
    edges = _nearest(cumulative, targets * cumulative[-1])
    edges[0], edges[-1] = 0, len(durations)
    edges = np.minimum(edges, len(durations) - (ranks[-1] - ranks))
    return np.maximum.accumulate(edges - ranks) + ranks


def _at_least_one_each(edges: np.ndarray) -> np.ndarray:
    steps = np.arange(len(edges))
    return np.maximum.accumulate(edges - steps) + steps


def _nearest(cumulative: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the index of the entry of the rising ``cumulative`` that is nearest to each target."""
    right = np.clip(np.searchsorted(cumulative, targets), 1, len(cumulative) - 1)
    return np.where(targets - cumulative[right - 1] < cumulative[right] - targets, right - 1, right)
