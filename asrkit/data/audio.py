"""From files to mono float32 samples at the wanted rate.

Decoding is libsndfile's (wav, flac, ogg, opus, mp3, aiff, …) on every machine alike: other backends of lhotse differ in
the number of samples they give.

Shapes: S samples, K channels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import MonoCut
from lhotse.audio.backend import LibsndfileBackend, get_current_audio_backend, set_current_audio_backend
from lhotse.augmentation import get_or_create_resampler

from asrkit.errors import AsrkitError

_BACKEND = LibsndfileBackend()


def read(cut: MonoCut, sample_rate: int) -> np.ndarray:
    """Return a cut's audio, float32 (S,), its channels averaged, resampled to ``sample_rate``.

    Raises:
        AsrkitError: if the file is missing, damaged, shorter than the manifest says, empty or not finite.
    """
    previous = get_current_audio_backend()
    set_current_audio_backend(_BACKEND)
    try:
        samples = cut.load_audio()
    except Exception as error:  # lhotse and libsndfile raise a dozen kinds for a bad file, AssertionError among them
        raise AsrkitError(f"cannot read audio: {_first_line(error)}", where=cut.id) from None
    finally:
        set_current_audio_backend(previous)
    return _finish(samples, cut.sampling_rate, sample_rate, cut.id)


def load_file(path: str | Path, sample_rate: int, start: int = 0, frames: int = -1) -> np.ndarray:
    """Return the audio of a file, float32 (S,), its channels averaged, resampled to ``sample_rate``.

    Args:
        path: any file that libsndfile reads.
        sample_rate: the wanted rate.
        start: first sample to read, at the file's own rate.
        frames: samples to read, at the file's own rate; -1 reads to the end.

    Raises:
        AsrkitError: if the file is missing, of an unknown format, damaged, empty or not finite.
    """
    try:
        samples, rate = soundfile.read(path, start=start, frames=frames, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, RuntimeError, ValueError, TypeError) as error:
        mend = "libsndfile reads wav, flac, ogg, opus and mp3; convert others first" if Path(path).is_file() else None
        raise AsrkitError(f"cannot read audio: {_first_line(error)}", where=path, mend=mend) from None
    return _finish(samples.T, rate, sample_rate, path)


def resample(wave: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Return ``wave`` (S,) at another rate by windowed-sinc interpolation, ceil(S * target / source) samples."""
    if source_rate == target_rate:
        return wave
    with torch.no_grad():
        return get_or_create_resampler(source_rate, target_rate)(torch.from_numpy(wave)[None])[0].numpy()


def _finish(samples: np.ndarray, rate: int, sample_rate: int, where: object) -> np.ndarray:
    """Average the channels of ``samples`` (K, S), check and resample."""
    wave = samples.mean(axis=0) if len(samples) > 1 else samples[0]
    wave = np.ascontiguousarray(wave, dtype=np.float32)
    if wave.size == 0:
        raise AsrkitError("the audio is empty", where=where)
    # One such sample would turn every weight into NaN.
    if not np.isfinite(wave).all():
        raise AsrkitError("the audio holds samples that are not finite", where=where)
    return resample(wave, int(rate), sample_rate)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
