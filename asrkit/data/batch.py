"""What the loader hands to a method.

Shapes: N batch, S samples, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
"""Samples per second of every batch: recordings at other rates are resampled as they are read."""


@dataclass(frozen=True)
class Batch:
    """Utterances of one stream, padded at the end."""

    waves: Tensor
    """Audio in [-1, 1], float32 of shape (N, S), zero behind each utterance's end."""
    wave_lengths: Tensor
    """Samples per utterance, int64 of shape (N,)."""
    host_lengths: tuple[int, ...]
    """The same lengths as Python integers, so that no output size has to be asked of the device."""
    keys: Tensor
    """Stable 64-bit keys, int64 of shape (N,), for `asrkit.randomness`: of the utterance ids, and of their further draws."""
    ids: tuple[str, ...]
    """Utterance ids."""
    epoch: int
    """The stream's epoch, a coordinate of every random draw."""
    targets: Tensor | None = None
    """Unit indices, int64 of shape (N, L), padded with 0 behind each target's end; None for an unlabelled stream."""
    target_lengths: Tensor | None = None
    """Units per target, int64 of shape (N,)."""
    host_target_lengths: tuple[int, ...] | None = None
    """The same as Python integers."""
    texts: tuple[str, ...] | None = None
    """Reference transcripts (normalised), where they are known: for scoring, never for training."""

    @property
    def seconds(self) -> float:
        """Audio in the batch, in seconds, padding not counted."""
        return sum(self.host_lengths) / SAMPLE_RATE

    def rows(self, chosen: Sequence[int]) -> Batch:
        """Return some of the utterances (at least one) as a batch of their own, padded no longer than they need."""
        index = torch.tensor(chosen, dtype=torch.int64, device=self.waves.device)
        lengths = tuple(self.host_lengths[row] for row in chosen)
        targets, target_lengths, host_target_lengths = self.targets, self.target_lengths, self.host_target_lengths
        if targets is not None and target_lengths is not None and host_target_lengths is not None:
            host_target_lengths = tuple(host_target_lengths[row] for row in chosen)
            targets = targets[index, : max(host_target_lengths)]
            target_lengths = target_lengths[index]
        return Batch(
            waves=self.waves[index, : max(lengths)],
            wave_lengths=self.wave_lengths[index],
            host_lengths=lengths,
            keys=self.keys[index],
            ids=tuple(self.ids[row] for row in chosen),
            epoch=self.epoch,
            targets=targets,
            target_lengths=target_lengths,
            host_target_lengths=host_target_lengths,
            texts=None if self.texts is None else tuple(self.texts[row] for row in chosen),
        )

    def to(self, device: torch.device, non_blocking: bool = True) -> Batch:
        """Return the batch with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin(self) -> Batch:
        """Return the batch with its tensors in page-locked memory, for asynchronous copies to a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = change(value)
        return replace(self, **changed)
