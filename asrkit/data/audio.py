"""From files to mono float32 samples at the wanted rate.

Decoding is libsndfile's (wav, flac, ogg, opus, mp3, aiff, …) on every machine alike: other backends of lhotse differ in
the number of samples they give.

Shapes: S samples, K channels.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import AudioSource, MonoCut, MultiCut
from lhotse.augmentation import get_or_create_resampler
from lhotse.utils import compute_num_samples

from asrkit.data.shards import read_member
from asrkit.errors import AsrkitError
from asrkit.files import file_problem

_LOSSY_SECONDS = 0.1
"""What decoders of lossy formats may differ by from the length that a file states."""


def read(cut: MonoCut | MultiCut, sample_rate: int) -> np.ndarray:
    """Return a cut's audio, float32 (S,), its channels averaged, resampled to ``sample_rate``.

    Raises:
        AsrkitError: if the file is missing, damaged, empty or not finite, or is not the one that the manifest describes.
    """
    return _finish(read_channels(cut), cut.sampling_rate, sample_rate, cut.id)


def read_channels(cut: MonoCut | MultiCut) -> np.ndarray:
    """Return a cut's channels as they were recorded, float32 (K, S); raises as `read` does."""
    wanted = {cut.channel} if isinstance(cut.channel, int) else set(cut.channel)
    try:
        channels = [
            samples
            for source in cut.recording.sources
            if wanted.intersection(source.channels)
            for channel, samples in zip(source.channels, _load(source, cut), strict=True)
            if channel in wanted
        ]
        return np.stack(channels)
    except (soundfile.SoundFileError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise AsrkitError(f"cannot read audio: {_reason(error)}", where=cut.id) from None


def _load(source: AudioSource, cut: MonoCut | MultiCut) -> np.ndarray:
    """Return the samples (K, S) of a cut's stretch of a file or of a member of a shard, all channels of it."""
    place: str | io.BytesIO = source.source
    if source.type == "shar":
        place = io.BytesIO(read_member(source.source, cut.id))
    elif problem := file_problem(source.source):
        raise ValueError(problem)
    rate = cut.sampling_rate
    with soundfile.SoundFile(place) as file:
        if (file.samplerate, file.channels) != (rate, len(source.channels)):
            found = f"{file.samplerate} Hz and {file.channels} channel(s)"
            raise ValueError(f"the file has {found}, but had {rate} Hz and {len(source.channels)} when it was prepared")
        if abs(file.frames - cut.recording.num_samples) > _LOSSY_SECONDS * rate:
            length = f"{file.frames} samples, but had {cut.recording.num_samples}"
            raise ValueError(f"the file has {length} when it was prepared")
        start = compute_num_samples(cut.start, rate) if cut.start > 0 else 0
        if start:
            file.seek(start)
        samples = file.read(cut.num_samples, dtype="float32", always_2d=True)
    missing = cut.num_samples - len(samples)
    if missing > rate // 100:
        raise ValueError(f"{missing} of {cut.num_samples} samples are missing")
    return samples.T


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
    problem = file_problem(path)
    if problem:
        raise AsrkitError(f"cannot read audio: {problem}", where=path)
    try:
        samples, rate = soundfile.read(path, start=start, frames=frames, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, RuntimeError, ValueError, TypeError) as error:
        mend = "libsndfile reads wav, flac, ogg, opus and mp3; convert others first"
        raise AsrkitError(f"cannot read audio: {_reason(error)}", where=path, mend=mend) from None
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


def _reason(error: BaseException) -> str:
    """Return libsndfile's own words, without the path."""
    lines = str(getattr(error, "error_string", "") or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
