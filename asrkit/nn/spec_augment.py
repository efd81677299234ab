"""SpecAugment: bands of mel bins and stretches of mel frames are blanked out in training.

Source: Park et al., "SpecAugment", Interspeech 2019 (without time warping; a stretch is at most a share of the frames,
as in its successor for large datasets, ICASSP 2020).

Shapes: N batch, K mel frames, B mel bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asrkit.errors import AsrkitError
from asrkit.randomness import Purpose, stream_keys, uniform


@dataclass
class SpecAugmentConfig:
    """How much of a log-mel spectrogram is blanked out; off by default."""

    bands: int = 0
    """Bands of mel bins per utterance."""
    band_width: int = 27
    """Widest band, in bins."""
    stretches: int = 0
    """Stretches of time per utterance."""
    stretch_frames: int = 100
    """Longest stretch, in mel frames."""
    stretch_share: float = 0.05
    """Longest stretch as a share of the utterance; the smaller of the two limits holds."""

    def __post_init__(self) -> None:
        for key in ("bands", "band_width", "stretches", "stretch_frames"):
            if getattr(self, key) < 0:
                raise AsrkitError(f"spec_augment.{key} is {getattr(self, key)}", mend="0 or more")
        if not 0 <= self.stretch_share <= 1:
            raise AsrkitError(f"spec_augment.stretch_share is {self.stretch_share}", mend="0 to 1")

    @property
    def active(self) -> bool:
        """Whether anything is blanked out at all."""
        return self.bands > 0 or self.stretches > 0


@dataclass(frozen=True)
class SpecMask:
    """What is blanked out."""

    frames: Tensor
    """Bool of shape (N, K)."""
    bins: Tensor
    """Bool of shape (N, B)."""

    def apply(self, energies: Tensor) -> Tensor:
        """Return normalised log-mel energies (N, K, B) with the blanked-out places at their mean, zero."""
        return energies.masked_fill(self.frames[:, :, None] | self.bins[:, None, :], 0.0)


def draw_spec_mask(
    config: SpecAugmentConfig, keys: Tensor, lengths: Tensor, frames: int, bins: int, *, seed: int, epoch: int
) -> SpecMask:
    """Draw each utterance's bands and stretches; a row depends on its own key and length alone.

    Args:
        config: how much.
        keys: utterance keys, int64 of shape (N,).
        lengths: mel frames per utterance, int64 of shape (N,).
        frames: mel frames K of the padded batch.
        bins: mel bins B.
        seed: the run's seed.
        epoch: the stream's epoch.
    """
    count = config.bands + config.stretches
    draws = uniform(stream_keys(keys, seed=seed, epoch=epoch, purpose=Purpose.SPEC_AUGMENT), 2 * count)
    width, place = draws[:, :count], draws[:, count:]
    longest = (lengths * config.stretch_share).clamp(max=config.stretch_frames).floor()[:, None]
    widest = torch.full_like(longest, min(config.band_width, bins))
    return SpecMask(
        _spans(width[:, config.bands :], place[:, config.bands :], longest, lengths[:, None], frames),
        _spans(
            width[:, : config.bands], place[:, : config.bands], widest, torch.full_like(lengths, bins)[:, None], bins
        ),
    )


def _spans(widths: Tensor, places: Tensor, longest: Tensor, extent: Tensor, size: int) -> Tensor:
    """Return the union of random spans, bool (N, size).

    Args:
        widths: numbers in (0, 1), (N, X), that choose from the widths 0 to ``longest`` (N, 1).
        places: numbers in (0, 1), (N, X), that choose where a span lies within ``extent`` (N, 1).
    """
    # The minima are for products that rounding lifts onto the next integer.
    widths = torch.minimum((widths * (longest + 1)).floor(), longest)[:, :, None]
    room = extent[:, :, None] - widths
    starts = torch.minimum((places[:, :, None] * (room + 1)).floor(), room)
    position = torch.arange(size, device=widths.device)
    return ((position >= starts) & (position < starts + widths)).any(1)
