"""Crops, speed perturbation and noise: pure functions of (seed, epoch, utterance key).

Speed perturbation follows Ko et al., "Audio augmentation for speech recognition", Interspeech 2015: resampling, which
changes tempo and pitch together.

Shapes: N utterances, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from asrkit.data.audio import load_file, resample
from asrkit.data.corpus import AUDIO_SUFFIXES
from asrkit.errors import AsrkitError
from asrkit.randomness import Purpose, integers, stream_keys, uniform


@dataclass
class NoiseConfig:
    """Recorded noise that is added to speech."""

    dir: str = ""
    """Folder of noise recordings, searched with its sub-folders; empty = no noise."""
    probability: float = 0.0
    """Share of the utterances that get noise."""
    min_snr: float = 10.0
    """Lowest signal-to-noise ratio, in dB."""
    max_snr: float = 20.0
    """Highest signal-to-noise ratio, in dB."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise AsrkitError(f"noise.probability is {self.probability}", mend="a share: 0 to 1")
        if self.min_snr > self.max_snr:
            raise AsrkitError(f"noise.min_snr {self.min_snr} is above noise.max_snr {self.max_snr}")
        if self.probability > 0 and not self.dir:
            raise AsrkitError("noise.probability is set, but noise.dir is empty", mend="name a folder of recordings")


def speed_factors(keys: Tensor, factors: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """Return the factors in an epoch of utterances with ``keys`` int64 (N,), float64 (N,); 1 where none are given."""
    if not factors:
        return np.ones(len(keys))
    streams = stream_keys(keys, seed=seed, epoch=epoch, purpose=Purpose.SPEED)
    choice = integers(streams, 1, torch.tensor(len(factors)))[:, 0]
    return np.asarray(factors, dtype=np.float64)[choice.numpy()]


def crop_positions(keys: Tensor, seed: int, epoch: int) -> np.ndarray:
    """Return where each utterance's crop lies in an epoch: 0 its earliest and 1 its latest place, float64 (N,)."""
    streams = stream_keys(keys, seed=seed, epoch=epoch, purpose=Purpose.CROP)
    return uniform(streams, 1, torch.float64)[:, 0].numpy()


def loaded_seconds(durations: np.ndarray, factors: np.ndarray | float, crop_seconds: float) -> np.ndarray:
    """Return the seconds of utterances (N,) once they are sped up and cropped; ``crop_seconds`` 0 crops nothing."""
    seconds = np.asarray(durations, dtype=np.float64) / factors
    return np.minimum(seconds, crop_seconds) if crop_seconds > 0 else seconds


def perturb_speed(wave: np.ndarray, factor: float, sample_rate: int) -> np.ndarray:
    """Return ``wave`` (S,) played ``factor`` times as fast, about S / factor samples."""
    return resample(wave, round(sample_rate * factor), sample_rate)


class NoiseMixer:
    """Adds a stretch of a recording, chosen by (seed, epoch, key), at a chosen signal-to-noise ratio."""

    def __init__(self, config: NoiseConfig, sample_rate: int) -> None:
        """List the recordings; raises AsrkitError if ``config.dir`` holds none."""
        self.config = config
        self.sample_rate = sample_rate
        folder = Path(config.dir)
        found = (path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        # Sorted, so that a draw means the same file on every machine.
        self.files = sorted(found, key=lambda path: path.relative_to(folder).as_posix())
        if not self.files:
            raise AsrkitError("no noise recordings found", where=config.dir, mend="see noise.dir")

    def mix(self, wave: np.ndarray, key: int, seed: int, epoch: int) -> np.ndarray:
        """Return ``wave`` (S,) with noise, or as it is where the draw, or silence in either, leaves it clean.

        Raises:
            AsrkitError: if the recording cannot be read.
        """
        stream = stream_keys(torch.tensor([key]), seed=seed, epoch=epoch, purpose=Purpose.NOISE)
        gate, file, position, level = uniform(stream, 4, torch.float64)[0].tolist()
        if gate >= self.config.probability:
            return wave
        noise = self._stretch(self.files[int(file * len(self.files))], len(wave), position)
        speech_power, noise_power = float(np.mean(np.square(wave))), float(np.mean(np.square(noise)))
        if speech_power == 0 or noise_power == 0:
            return wave
        ratio = self.config.min_snr + level * (self.config.max_snr - self.config.min_snr)
        mixed = wave + noise * np.float32(np.sqrt(speech_power / (noise_power * 10 ** (ratio / 10))))
        return mixed / max(1.0, float(np.abs(mixed).max()))

    def _stretch(self, path: Path, samples: int, position: float) -> np.ndarray:
        """Return ``samples`` samples of a recording; one that is too short is repeated from a random point on."""
        try:
            about = soundfile.info(str(path))
        except (soundfile.SoundFileError, OSError) as error:
            raise AsrkitError(f"cannot read noise: {error}", where=path) from None
        # One more than the ratio asks, because resampling rounds.
        needed = samples * about.samplerate // self.sample_rate + 1
        if about.frames > needed:
            start = int(position * (about.frames - needed))
            return load_file(path, self.sample_rate, start, needed)[:samples]
        noise = load_file(path, self.sample_rate)
        return np.resize(np.roll(noise, -int(position * len(noise))), samples)
