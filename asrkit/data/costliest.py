"""The batches that take most memory, known before any audio is read.

Shapes: n utterances of a stream, N batch, S samples, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def extremes(durations: np.ndarray, labels: np.ndarray, batch_seconds: float, update_seconds: float) -> list[Extent]:
    """Return bounds on the micro-batches that can be cut from utterances: the longest rows, and the most rows.

    Args:
        durations: seconds as they are loaded, float (n,), the longest that they can be.
        labels: labels of each, int (n,).
        batch_seconds: the largest padded micro-batch.
        update_seconds: audio per update, of which a micro-batch is a part.
    """
    order = np.argsort(durations, kind="stable")
    rising = durations[order].astype(np.float64)
    longest = float(rising[-1])
    few = min(max(int(batch_seconds / longest + 1e-6), 1), len(rising))
    # N rows fit if the N shortest do; their padded cost rises with N.
    ranks = np.arange(1, len(rising) + 1)
    fitting = (ranks * rising <= batch_seconds * (1 + 1e-6)) & (np.cumsum(rising) <= max(update_seconds, longest))
    many = max(int(np.argmin(fitting)) if not fitting.all() else len(rising), 1)
    return [
        Extent(few, longest, max(0, int(labels.max()))),
        Extent(many, float(rising[many - 1]), max(0, int(labels[order[:many]].max()))),
    ]


def synthetic(extent: Extent, symbols: Sequence[int]) -> Batch:
    """Return a batch of noise of that extent, with labels drawn in turn from ``symbols`` (none: without targets)."""
    samples = max(1, round(extent.seconds * SAMPLE_RATE))
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(0)).mul_(0.1).numpy()
    target = [symbols[place % len(symbols)] for place in range(max(1, extent.labels))] if symbols else None
    return collate([Example(f"synthetic-{row}", noise, target) for row in range(extent.rows)], epoch=0)
