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
from lhotse import MonoCut, MultiCut
from lhotse.audio.backend import LibsndfileBackend, get_current_audio_backend, set_current_audio_backend
from lhotse.augmentation import get_or_create_resampler

from asrkit.errors import AsrkitError

_BACKEND = LibsndfileBackend()


def read(cut: MonoCut | MultiCut, sample_rate: int) -> np.ndarray:
    """Return a cut's audio, float32 (S,), its channels averaged, resampled to ``sample_rate``.

    Raises:
        AsrkitError: if the file is missing, damaged, shorter than the manifest says, empty or not finite.
    """
    previous = get_current_audio_backend()
    set_current_audio_backend(_BACKEND)
    try:
        samples = _load(cut)
    except Exception as error:  # lhotse and libsndfile raise a dozen kinds for a bad file, AssertionError among them
        raise AsrkitError(f"cannot read audio: {_root(error)}", where=cut.id) from None
    finally:
        set_current_audio_backend(previous)
    return _finish(samples, cut.sampling_rate, sample_rate, cut.id)


def _load(cut: MonoCut | MultiCut) -> np.ndarray:
    """Return the samples (K, S) of the cut's channels, read source by source.

    The cut's own method mirrors up to half a second at the end of a file that has become shorter, and says nothing.
    """
    if cut.recording.transforms:
        return cut.load_audio()
    wanted = {cut.channel} if isinstance(cut.channel, int) else set(cut.channel)
    channels = [
        samples
        for source in cut.recording.sources
        if wanted.intersection(source.channels)
        for channel, samples in zip(source.channels, source.load_audio(cut.start, cut.duration), strict=True)
        if channel in wanted
    ]
    # A hundredth of a second is what decoders of lossy formats may differ by.
    missing = cut.num_samples - min(len(samples) for samples in channels)
    if missing > cut.sampling_rate // 100:
        raise ValueError(f"{missing} of {cut.num_samples} samples are missing")
    return np.stack(channels)


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
        raise AsrkitError(f"cannot read audio: {_root(error)}", where=path, mend=mend) from None
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


def _root(error: BaseException) -> str:
    """Return the first line of the error that began the chain; lhotse's wrapping of it can fail itself."""
    while error.__context__ is not None:
        error = error.__context__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
