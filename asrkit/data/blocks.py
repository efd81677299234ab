"""Recordings read block by block, so that their length costs no memory.

Shapes: S samples, K channels, B samples of a block.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from asrkit.data.audio import resample
from asrkit.data.mpeg import told_wrong
from asrkit.errors import AsrkitError

RAW_RATE = 16_000
"""Raw audio is signed 16-bit little-endian, one channel, at this rate."""
_STREAMABLE = {b"RIFF": "wav", b"RF64": "wav", b"fLaC": "flac", b"FORM": "aiff", b".snd": "au"}
_UNKNOWN_FRAMES = 1 << 62
_CROSSINGS, _ROLLOFF = 6, 0.99
"""Of the windowed sinc that `asrkit.data.audio.resample` uses."""


class _Sequential(soundfile.SoundFile):
    """A sound file that is read from front to end: soundfile's seeks after each read fail where a length is unknown."""

    def seekable(self) -> bool:
        return False


class PipeFile(io.RawIOBase):
    """Lets libsndfile read a format with a header from a pipe, without waiting for the pipe's end.

    While it opens a file it looks for chunks behind the audio; it is told that there are none.
    """

    def __init__(self, pipe: BinaryIO) -> None:
        self.opening = True
        self._pipe = pipe
        self._bytes = bytearray()
        self._dropped = 0
        self._place = 0

    def peek(self, count: int) -> bytes:
        """Return the first bytes of the pipe."""
        self._bytes += self._pipe.read(count - len(self._bytes)) or b""
        return bytes(self._bytes[:count])

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """As far as libsndfile needs it: behind the current place there is only what was read lately."""
        return True

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move; the end is taken to be very far away."""
        self._place = offset + (0, self._place, 1 << 50)[whence]
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer, waiting for the pipe; fewer bytes come at its end only."""
        here = self._place - self._dropped
        if here < 0 or (self.opening and here > len(self._bytes) + (1 << 16)):
            return 0
        missing = here + len(buffer) - len(self._bytes)
        if missing > 0:
            self._bytes += self._pipe.read(missing) or b""
        found = bytes(self._bytes[here : here + len(buffer)])
        buffer[: len(found)] = found
        self._place += len(found)
        if not self.opening and here > 1 << 20:
            del self._bytes[:here]
            self._dropped += here
        return len(found)


class BlockResampler:
    """Resamples what comes in blocks to just the samples that resampling the whole would give."""

    def __init__(self, source_rate: int, target_rate: int) -> None:
        """Take both rates in Hz."""
        self.source_rate, self.target_rate = source_rate, target_rate
        divisor = math.gcd(source_rate, target_rate)
        self._step, self._out = source_rate // divisor, target_rate // divisor
        reach = math.ceil(_CROSSINGS * self._step / (min(self._step, self._out) * _ROLLOFF)) + self._step
        # The filters repeat every `step` samples, so blocks are divided there.
        self._margin = -(-reach // self._step) * self._step
        self._waiting = np.zeros(0, np.float32)
        self._context = 0

    def push(self, block: np.ndarray) -> np.ndarray:
        """Take a block (B,) at the source's rate; return the samples at the target's that are certain by now."""
        if self.source_rate == self.target_rate:
            return block
        self._waiting = np.concatenate([self._waiting, block])
        ready = (len(self._waiting) - self._margin) // self._step * self._step
        if ready <= self._context:
            return np.zeros(0, np.float32)
        found = self._resample(ready)
        kept = max(0, ready - self._margin)
        self._waiting, self._context = self._waiting[kept:], ready - kept
        return found

    def finish(self) -> np.ndarray:
        """Return the samples that are left at the recording's end."""
        if len(self._waiting) <= self._context:
            return np.zeros(0, np.float32)
        return self._resample(None)

    def _resample(self, until: int | None) -> np.ndarray:
        whole = resample(self._waiting, self.source_rate, self.target_rate)
        end = None if until is None else until // self._step * self._out
        return whole[self._context // self._step * self._out : end]


def read_blocks(
    source: str | Path | PipeFile, sample_rate: int, seconds: float = 30.0, *, raw: bool = False, name: object = None
) -> Iterator[np.ndarray]:
    """Yield a recording's audio in blocks, float32 (B,), its channels averaged, resampled to ``sample_rate``.

    Args:
        source: a file that libsndfile reads, or a pipe with wav, flac, aiff or au.
        sample_rate: the wanted rate.
        seconds: about how long the blocks are; all together they equal the whole file resampled at once.
        raw: the source has no header, see `RAW_RATE`.
        name: what errors call the source.

    Raises:
        AsrkitError: if it is missing, of an unknown format, damaged, shorter than its header says, empty or not finite;
            what was wrong far behind is found far behind.
    """
    where = name if name is not None else source
    with _open(source, raw, where) as file:
        resampler = BlockResampler(file.samplerate, sample_rate)
        read = 0
        while True:
            block = _read(file, max(1, round(seconds * file.samplerate)), where)
            if len(block) == 0:
                break
            read += len(block)
            if len(found := resampler.push(block)):
                yield found
        if read == 0:
            raise AsrkitError("the audio is empty", where=where)
        problem = _wrong_end(source, file, read)
        if problem is not None:
            raise AsrkitError(problem, where=where)
        if len(found := resampler.finish()):
            yield found


def _wrong_end(source: str | Path | PipeFile, file: soundfile.SoundFile, read: int) -> str | None:
    """Return what is wrong with a recording of which so many samples could be read; pipes' headers say nothing."""
    if isinstance(source, PipeFile) or file.frames >= _UNKNOWN_FRAMES:
        return None
    if file.subtype == "MPEG_LAYER_III":
        return told_wrong(source, file.samplerate, file.frames, read)
    # A tenth of a second is what headers of lossy formats may be wrong by.
    if file.frames - read <= file.samplerate // 10:
        return None
    return f"damaged audio: it ends after {read / file.samplerate:.1f} s"


def _open(source: str | Path | PipeFile, raw: bool, where: object) -> soundfile.SoundFile:
    layout = {"samplerate": RAW_RATE, "channels": 1, "format": "RAW", "subtype": "PCM_16", "endian": "LITTLE"}
    if isinstance(source, PipeFile) and not raw and source.peek(4) not in _STREAMABLE:
        known = ", ".join(sorted(set(_STREAMABLE.values())))
        raise AsrkitError("not a format that can be read as it comes", where=where, mend=f"{known}, or --raw")
    try:
        file = _Sequential(source, **(layout if raw else {}))
    except (soundfile.SoundFileError, OSError, RuntimeError, ValueError, TypeError) as error:
        missing = isinstance(source, (str, Path)) and not Path(source).exists()
        what = "no such file" if missing else f"cannot read audio: {_reason(error)}"
        mend = None if missing else "libsndfile reads wav, flac, ogg, opus and mp3; convert others first"
        raise AsrkitError(what, where=where, mend=mend) from None
    if isinstance(source, PipeFile):
        source.opening = False
    return file


def _read(file: soundfile.SoundFile, count: int, where: object) -> np.ndarray:
    """Return the next samples (B,), at most ``count``, of all channels averaged."""
    try:
        block = file.read(count, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise AsrkitError(f"damaged audio: {_reason(error)}", where=where) from None
    if not np.isfinite(block).all():
        raise AsrkitError("the audio holds samples that are not finite", where=where)
    return np.ascontiguousarray(block.mean(axis=1) if block.shape[1] > 1 else block[:, 0])


def _reason(error: BaseException) -> str:
    """Return libsndfile's own words."""
    return getattr(error, "error_string", "") or str(error) or type(error).__name__
