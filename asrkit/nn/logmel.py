"""Log-mel frontend: filter-bank energies, normalised per utterance, subsampled by convolutions.

Every valid frame is computed from valid samples and zeros only, so that padding changes nothing.

Shapes: N batch, S samples, K mel frames (before subsampling), B mel bins, T frames, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.functional import melscale_fbanks

from asrkit.data.batch import SAMPLE_RATE
from asrkit.errors import AsrkitError, nearest
from asrkit.nn.lengths import inside
from asrkit.nn.spec_augment import SpecMask

NORMALISATIONS = ("utterance", "global", "none")
CONVOLUTIONS = ("2d", "1d")
_KERNEL, _STRIDE, _PAD = 3, 2, 1
# Added to each bin's energy: some 80 dB below full scale, so that digital silence stays finite.
_FLOOR = 1e-6
_Length = TypeVar("_Length", int, Tensor)


@dataclass
class LogMelConfig:
    """Settings of the log-mel frontend."""

    bins: int = 80
    """Mel bins."""
    window_ms: float = 25.0
    """Length of the Hann window in milliseconds."""
    hop_ms: float = 10.0
    """Distance of two windows in milliseconds."""
    low_hz: float = 20.0
    """Lower edge of the lowest mel bin."""
    high_hz: float = 8000.0
    """Upper edge of the highest mel bin."""
    normalisation: str = "utterance"
    """utterance (mean 0 and variance 1 per bin), global (by global_mean and global_deviation) or none."""
    global_mean: float = -5.0
    """Mean of the corpus's log energies, for normalisation: global."""
    global_deviation: float = 4.0
    """Standard deviation of the corpus's log energies, for normalisation: global."""
    subsampling: int = 4
    """Mel frames per encoder frame, a power of 2: each factor of 2 is a convolution of stride 2 (1: none)."""
    convolution: str = "2d"
    """2d: convolutions over time and mel bins; 1d: over time only, all bins at once (cheaper)."""
    channels: int = 32
    """Channels of the subsampling convolutions."""

    def __post_init__(self) -> None:
        for key in ("bins", "global_deviation", "channels"):
            if getattr(self, key) <= 0:
                raise AsrkitError(f"logmel.{key} is {getattr(self, key)}", mend="more than 0")
        for key in ("window_ms", "hop_ms"):
            if not 1 <= getattr(self, key) <= 1000:
                raise AsrkitError(f"logmel.{key} is {getattr(self, key)}", mend="milliseconds: 1 to 1000")
        if not 0 <= self.low_hz < self.high_hz <= SAMPLE_RATE / 2:
            raise AsrkitError(f"logmel.low_hz {self.low_hz} and logmel.high_hz {self.high_hz} do not lie in 0 to 8000")
        if self.normalisation not in NORMALISATIONS:
            raise AsrkitError(
                f"logmel.normalisation is '{self.normalisation}'", mend=nearest(self.normalisation, NORMALISATIONS)
            )
        if self.subsampling < 1 or self.subsampling & (self.subsampling - 1):
            raise AsrkitError(f"logmel.subsampling is {self.subsampling}", mend="1, 2, 4 or 8")
        if self.convolution not in CONVOLUTIONS:
            raise AsrkitError(f"logmel.convolution is '{self.convolution}'", mend="2d or 1d")


class LogMel(nn.Module):
    """Log filter-bank energies of a Hann-windowed power spectrum, in float32, without gradient and without weights."""

    window: Tensor
    bank: Tensor

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        self.config = config
        self.width = round(config.window_ms * SAMPLE_RATE / 1000)
        self.hop = round(config.hop_ms * SAMPLE_RATE / 1000)
        self.bins = config.bins
        self.size = 1 << math.ceil(math.log2(self.width))
        bank = melscale_fbanks(self.size // 2 + 1, config.low_hz, config.high_hz, config.bins, SAMPLE_RATE)
        self.register_buffer("window", torch.hann_window(self.width), persistent=False)
        self.register_buffer("bank", bank, persistent=False)

    def frames(self, samples: int) -> int:
        """Return how many whole windows fit into ``samples``."""
        return max(0, 1 + (samples - self.width) // self.hop)

    @torch.no_grad()
    def forward(self, waves: Tensor, lengths: Tensor) -> Tensor:
        """Return normalised log energies (N, K, B), zero behind each utterance's end.

        Args:
            waves: audio in [-1, 1], of shape (N, S).
            lengths: mel frames per utterance, int64 of shape (N,).
        """
        with torch.autocast(waves.device.type, enabled=False):
            waves = functional.pad(waves.float(), (0, max(0, self.width - waves.shape[1])))
            windows = waves.unfold(1, self.width, self.hop) * self.window
            spectrum = torch.fft.rfft(windows, n=self.size)
            power = spectrum.real.square() + spectrum.imag.square()
            return self.energies(power, lengths)

    def energies(self, power: Tensor, lengths: Tensor) -> Tensor:
        """Return normalised log energies (N, K, B), zero behind each utterance's end, of a power spectrum (N, K, bins)."""
        energies = (power @ self.bank + _FLOOR).log()
        valid = inside(lengths, energies.shape[1])[..., None]
        return torch.where(valid, self._normalise(energies, valid, lengths), 0.0)

    def _normalise(self, energies: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        if self.config.normalisation == "none":
            return energies
        if self.config.normalisation == "global":
            return (energies - self.config.global_mean) / self.config.global_deviation
        count = lengths.clamp(min=1)[:, None, None]
        centred = energies - torch.where(valid, energies, 0.0).sum(1, keepdim=True) / count
        variance = torch.where(valid, centred.square(), 0.0).sum(1, keepdim=True) / count
        return centred * torch.rsqrt(variance + 1e-5)


class LogMelFrontend(nn.Module):
    """Log-mel energies and the convolutions that subsample them."""

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = LogMel(config)
        self.convolutions = nn.ModuleList()
        planar = config.convolution == "2d"
        channels, height = (1, config.bins) if planar else (config.bins, 1)
        layer = nn.Conv2d if planar else nn.Conv1d
        for _ in range(config.subsampling.bit_length() - 1):
            self.convolutions.append(layer(channels, config.channels, _KERNEL, _STRIDE, _PAD))
            channels, height = config.channels, _halved(height) if planar else 1
        self.feature_dim = channels * height
        """Features F per frame."""

    def frames(self, samples: int) -> int:
        """Return the frames T that come out of ``samples`` samples."""
        count = self.mel.frames(samples)
        for _ in self.convolutions:
            count = _halved(count)
        return count

    def forward(
        self, waves: Tensor, wave_lengths: Tensor, host_lengths: Sequence[int], spec_mask: SpecMask | None = None
    ) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Turn audio into features.

        Args:
            waves: audio in [-1, 1], of shape (N, S).
            wave_lengths: samples per utterance, int64 of shape (N,).
            host_lengths: the same as Python integers.
            spec_mask: mel bins and mel frames to blank out (SpecAugment), in training.

        Returns:
            Features (N, T, F), zero behind each utterance's end; frames per utterance (N,), and the same as integers.
        """
        lengths = torch.where(wave_lengths >= self.mel.width, (wave_lengths - self.mel.width) // self.mel.hop + 1, 0)
        features = self.mel(waves[:, : max(host_lengths)], lengths)
        if spec_mask is not None:
            features = spec_mask.apply(features)
        return *self.subsample(features, lengths), tuple(self.frames(samples) for samples in host_lengths)

    def subsample(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, T, F) and frames (N,) of log energies (N, K, B) with so many valid ones, (N,)."""
        planar = self.config.convolution == "2d"
        features = features[:, None] if planar else features.transpose(1, 2)
        for convolution in self.convolutions:
            features = functional.gelu(convolution(features))
            lengths = _halved(lengths)
            # The next layer's kernel must find zeros behind the end, as it would at the end of an unpadded utterance.
            valid = inside(lengths, features.shape[2])[:, None]
            features = torch.where(valid[..., None] if planar else valid, features, 0.0)
        return features.transpose(1, 2).flatten(2), lengths


def _halved(length: _Length) -> _Length:
    """Return the frames after a convolution of kernel 3 and stride 2 that pads by 1."""
    return (length + 1) // 2
