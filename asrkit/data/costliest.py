"""The batches that take most memory, known before any audio is read.

Shapes: n utterances of a stream, N batch, S samples, L labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from asrkit.data.batch import SAMPLE_RATE, Batch
from asrkit.data.collate import Example, collate


@dataclass(frozen=True)
class Extent:
    """The size of a micro-batch."""

    rows: int
    """Utterances, N."""
    seconds: float
    """Audio of the longest."""
    labels: int
    """Labels of the one with most; 0 where there are none."""


def extremes(
    utterances: Iterable[tuple[np.ndarray, np.ndarray]], batch_seconds: float, update_seconds: float
) -> list[Extent]:
    """Return bounds on the micro-batches that can be cut from utterances: the longest rows, and the most rows.

    Args:
        utterances: in blocks of any size: seconds as they are loaded, float (n,), the longest that they can be, and
            labels of each, int (n,).
        batch_seconds: the largest padded micro-batch.
        update_seconds: audio per update, of which a micro-batch is a part.
    """
    limit = batch_seconds * (1 + 1e-6)
    rising, labels = np.zeros(0), np.zeros(0, dtype=np.int64)
    longest, most_labels, total, shortest = 0.0, 0, 0, (np.inf, 0)
    for seconds, counts in utterances:
        total += len(seconds)
        longest, most_labels = max(longest, float(seconds.max())), max(most_labels, int(counts.max()))
        first = int(seconds.argmin())
        shortest = min(shortest, (float(seconds[first]), int(counts[first])))
        rising, labels = np.concatenate([rising, seconds]), np.concatenate([labels, counts])
        order = np.argsort(rising, kind="stable")
        # N rows fit if the N shortest do; their padded cost rises with N, and a rank only with further utterances.
        order = order[np.arange(1, len(order) + 1) * rising[order] <= limit]
        rising, labels = rising[order], labels[order]
    few = min(max(int(batch_seconds / longest + 1e-6), 1), total)
    fitting = np.cumsum(rising) <= max(update_seconds, longest)
    many = int(np.argmin(fitting)) if not fitting.all() else len(rising)
    widest = (many, float(rising[many - 1]), int(labels[:many].max())) if many else (1, *shortest)
    return [Extent(rows, seconds, max(0, most)) for rows, seconds, most in ((few, longest, most_labels), widest)]


def synthetic(extent: Extent, symbols: Sequence[int]) -> Batch:
    """Return a batch of noise of that extent, with labels drawn in turn from ``symbols`` (none: without targets)."""
    samples = max(1, round(extent.seconds * SAMPLE_RATE))
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(0)).mul_(0.1).numpy()
    target = [symbols[place % len(symbols)] for place in range(max(1, extent.labels))] if symbols else None
    return collate([Example(f"synthetic-{row}", noise, target) for row in range(extent.rows)], epoch=0)
