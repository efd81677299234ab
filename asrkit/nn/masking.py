"""Span masks over time and channels, drawn on the device, each row from its utterance's key alone.

Source: Baevski et al., "wav2vec 2.0", NeurIPS 2020, section 3.1 and appendix A.2; channel masks: section 4.3. As in the
authors' code a probability states the share of positions that would be masked if spans did not overlap, and the number
of spans is rounded up or down at random. Unlike there, counts are drawn per row, and rows are not cut to the batch's
least count unless `batch_minimum` asks for it.

Shapes: N batch, T frames, C channels, M most masked frames in a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asrkit.errors import AsrkitError
from asrkit.nn.lengths import inside, on_device
from asrkit.randomness import Purpose, bits, stream_keys, uniform


@dataclass
class MaskConfig:
    """How much of the encoder's input is masked."""

    time_probability: float = 0.65
    """Frames masked by non-overlapping spans would be this share; overlaps leave about half of them at 0.65."""
    time_length: int = 10
    """Frames per span; an utterance that is shorter is not masked."""
    time_minimum: int = 2
    """Least number of spans in an utterance, as far as it has room; 0 where time_probability is 0."""
    channel_probability: float = 0.0
    """As time_probability, over channels: masked channels are zero in every frame of the utterance."""
    channel_length: int = 64
    """Channels per span."""
    batch_minimum: bool = False
    """Unmask frames at random until every row has as many as the row with the fewest, as fairseq does."""

    def __post_init__(self) -> None:
        for key in ("time_probability", "channel_probability"):
            if not 0 <= getattr(self, key) <= 1:
                raise AsrkitError(f"mask.{key} is {getattr(self, key)}", mend="0 to 1")
        for key in ("time_length", "channel_length"):
            if getattr(self, key) < 1:
                raise AsrkitError(f"mask.{key} is {getattr(self, key)}", mend="1 or more")
        if self.time_minimum < 0:
            raise AsrkitError(f"mask.time_minimum is {self.time_minimum}", mend="0 or more")


@dataclass(frozen=True)
class SpanMask:
    """What is masked in a batch."""

    time: Tensor | None
    """Masked frames, bool of shape (N, T); padding is never masked. None: no time mask."""
    channels: Tensor | None
    """Masked channels, bool of shape (N, C). None: no channel mask."""
    most: int = 0
    """A bound M on the masked frames of any row, known without asking the device."""


def draw_mask(config: MaskConfig, keys: Tensor, frames: Sequence[int], dim: int, *, seed: int, epoch: int) -> SpanMask:
    """Draw the masks of a batch.

    Args:
        config: how much to mask.
        keys: utterance keys, int64 of shape (N,), on the device where the mask is wanted.
        frames: frames of each utterance; T is the largest, and at least 1.
        dim: channels C.
        seed: the run's seed.
        epoch: the stream's epoch.
    """
    time = channels = None
    most = 0
    if config.time_probability > 0:
        drawn = stream_keys(keys, seed=seed, epoch=epoch, purpose=Purpose.TIME_MASK)
        lengths = on_device(frames, keys.device)
        size = max(1, *frames)
        time = _spans(drawn, lengths, size, config.time_probability, config.time_length, config.time_minimum)
        most = max(1, *(_most(count, config) for count in frames))
        if config.batch_minimum:
            time = _thin(time, drawn)
    if config.channel_probability > 0:
        drawn = stream_keys(keys, seed=seed, epoch=epoch, purpose=Purpose.CHANNEL_MASK)
        width = torch.full_like(keys, dim)
        channels = _spans(drawn, width, dim, config.channel_probability, config.channel_length, 0)
    return SpanMask(time, channels, most)


def pack(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return where each row is masked.

    Args:
        mask: bool of shape (N, T).
        most: a bound M on the masked frames of a row.

    Returns:
        The indices of a row's masked frames in order, then of others, int64 (N, M); and which are masked, bool (N, M).
    """
    order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return order, mask.gather(1, order)


def take(frames: Tensor, places: Tensor) -> Tensor:
    """Return the frames (N, M, C) of (N, T, C) at places (N, M)."""
    return frames.gather(1, places[..., None].expand(-1, -1, frames.shape[2]))


def _spans(keys: Tensor, lengths: Tensor, size: int, probability: float, length: int, minimum: int) -> Tensor:
    """Return the union of spans that start at distinct random places, bool (N, size), inside each row's length."""
    rounding = uniform(keys, 1, torch.float64)[:, 0]
    room = (lengths - length + 1).clamp(min=0)
    # In float64, as in `_most`, whose bound would otherwise not hold for every draw.
    spans = (lengths.double() * (probability / length) + rounding).floor().to(torch.int64).clamp(min=minimum)
    spans = torch.minimum(torch.minimum(spans, lengths // length), room)
    # The first word of a row's stream was used for the rounding; scores are 64 bits wide so that ties do not occur.
    scores = bits(keys, size + 1)[:, 1:]
    scores = scores.masked_fill(~inside(room, size), torch.iinfo(torch.int64).max)
    started = (_ranks(scores) < spans[:, None]).to(torch.int32).cumsum(1)
    before = torch.zeros_like(started)
    before[:, length:] = started[:, :-length]
    return started > before


def _thin(mask: Tensor, keys: Tensor) -> Tensor:
    """Keep in each row of (N, T) a random choice of as many masked frames as the row with the fewest has."""
    # A stream of its own, keyed by the first word of the row's stream.
    scores = bits(bits(keys, 1)[:, 0], mask.shape[1]).masked_fill(~mask, torch.iinfo(torch.int64).max)
    return mask & (_ranks(scores) < mask.sum(1).min())


def _ranks(scores: Tensor) -> Tensor:
    """Return each score's rank in its row, 0 for the lowest, int64 of the same shape."""
    order = scores.argsort(dim=1)
    rank = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, rank)


def _most(frames: int, config: MaskConfig) -> int:
    """Return a bound on the masked frames of an utterance that holds for every draw."""
    spans = max(math.floor(frames * (config.time_probability / config.time_length)) + 1, config.time_minimum)
    return max(0, min(frames, spans * config.time_length, frames // config.time_length * config.time_length))
