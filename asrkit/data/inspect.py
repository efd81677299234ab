"""Is this audio file fit for use? Told in one pass over it, in worker processes.

Headers alone do not tell: a FLAC cut short in a broken download opens well and fails when it is read in the middle of
a run. So a file is decoded in full unless the caller declines: some hundreds of files a second on one core (16 kHz
FLAC), thousands when only headers are read. It is read in blocks, so that a day-long recording costs no more memory
than a minute.

Shapes: S samples, C channels, F energy frames of 10 ms.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from dataclasses import dataclass, replace

import numpy as np
import soundfile

from asrkit.data.mpeg import told_wrong
from asrkit.data.pauses import FRAMES_PER_SECOND, cut_at_pauses
from asrkit.files import file_problem

_BLOCK_SECONDS = 30
_SAMPLED_BYTES = 1 << 16
_UNKNOWN_SIZE = 0x7FFF0000
_OVERSHOOT_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked of an audio file."""

    min_seconds: float
    max_seconds: float
    min_sample_rate: int
    decode: bool


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch that an utterance wants, in seconds, of one channel or (None) of all.

    ``cut`` allows a long one to become several pieces.
    """

    start: float
    duration: float | None
    channel: int | None
    cut: bool


@dataclass(frozen=True, slots=True)
class Job:
    """One file and what is wanted of it."""

    path: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A usable stretch in samples, or the reason why it is not."""

    start: int
    samples: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class FileReport:
    """What was found: a reason that holds for the whole file, or the pieces of each span."""

    reason: str | None = None
    sample_rate: int = 0
    samples: int = 0
    channels: int = 0
    digest: int = 0
    pieces: tuple[tuple[Piece, ...], ...] = ()


def inspect_file(job: Job, limits: Limits) -> FileReport:
    """Check one file; whatever is wrong with it is told in the report and never raised."""
    try:
        problem = file_problem(job.path)
        if problem:
            return FileReport(problem)
        with soundfile.SoundFile(job.path) as audio:
            report = FileReport(None, audio.samplerate, audio.frames, audio.channels, content_digest(job.path))
            problem = _check_header(job.path, report, limits)
            if problem:
                return FileReport(problem)
            report = _check_spans(job, report, limits)
            wants_cut = any(
                piece.reason is None and piece.samples > limits.max_seconds * report.sample_rate
                for pieces in report.pieces
                for piece in pieces
            )
            return _check_samples(audio, job, report, limits) if limits.decode or wants_cut else report
    except MemoryError:
        return FileReport("unreadable audio: not enough memory")
    except Exception as error:
        # libsndfile's wrapper raises RuntimeError, TypeError (headerless files), ValueError and OSError alike.
        return FileReport("unreadable audio: " + " ".join(getattr(error, "error_string", str(error)).split()))


def content_digest(path: str) -> int:
    """Return a 64-bit hash of a file's size and of samples of its bytes (all of a small file): equal for copies."""
    size = os.path.getsize(path)
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    with open(path, "rb") as file:
        if size <= 4 * _SAMPLED_BYTES:
            digest.update(file.read())
        else:
            for part in range(3):
                file.seek((size - _SAMPLED_BYTES) * part // 2)
                digest.update(file.read(_SAMPLED_BYTES))
    return int.from_bytes(digest.digest(), "little")


def _check_header(path: str, report: FileReport, limits: Limits) -> str | None:
    if report.sample_rate < limits.min_sample_rate:
        return f"low sample rate: {report.sample_rate} Hz, at least {limits.min_sample_rate} Hz are wanted"
    if report.samples <= 0:
        return "no audio in the file"
    declared, present = _riff_data_bytes(path)
    if declared > present:
        return f"cut short: {present} of {declared} bytes of audio"
    return None


def _riff_data_bytes(path: str) -> tuple[int, int]:
    """Return the bytes of audio that a WAV file declares, and those that it has; (0, 0) where it declares none.

    libsndfile reads a WAV file that was cut short without a word. Recorders that write to a pipe leave a placeholder
    size.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return 0, 0
        while len(chunk := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", chunk)
            if name == b"data":
                present = os.path.getsize(path) - file.tell()
                return (0, 0) if size == 0 or size >= _UNKNOWN_SIZE else (size, present)
            file.seek(size + size % 2, os.SEEK_CUR)
    return 0, 0


def _check_spans(job: Job, report: FileReport, limits: Limits) -> FileReport:
    """Turn the spans from seconds into samples and check them against the file's length and the limits."""
    return replace(report, pieces=tuple((_check_span(span, report, limits),) for span in job.spans))


def _check_span(span: Span, report: FileReport, limits: Limits) -> Piece:
    rate = report.sample_rate
    if span.channel is not None and not 0 <= span.channel < report.channels:
        return Piece(0, 0, f"no such channel: {span.channel} of {report.channels}, counted from 0")
    if not (math.isfinite(span.start) and span.start >= 0):
        return Piece(0, 0, f"bad start: {span.start:g} s")
    if span.duration is not None and not (math.isfinite(span.duration) and span.duration > 0):
        return Piece(0, 0, f"bad duration: {span.duration:g} s")
    start = round(min(span.start * rate, 2.0**62))
    samples = report.samples - start if span.duration is None else round(min(span.duration * rate, 2.0**62))
    if start >= report.samples or start + samples > report.samples + _OVERSHOOT_SECONDS * rate:
        end = (start + samples) / rate if span.duration is not None else span.start
        return Piece(0, 0, f"outside the recording: ends at {end:.2f} s of {report.samples / rate:.2f} s")
    # Lists of segments round to 10 ms, which may lie just behind the end.
    samples = min(samples, report.samples - start)
    if samples < limits.min_seconds * rate:
        return Piece(start, samples, f"too short: {samples / rate:.3f} s, at least {limits.min_seconds:g} s are wanted")
    if samples > limits.max_seconds * rate and not span.cut:
        return Piece(
            start, samples, f"too long: {samples / rate:.1f} s, at most {limits.max_seconds:g} s with a transcript"
        )
    return Piece(start, samples)


def _check_samples(audio: soundfile.SoundFile, job: Job, report: FileReport, limits: Limits) -> FileReport:
    """Decode the file, look for what no model can learn from, and cut the long spans at pauses."""
    # 16-bit integers decode fastest; other subtypes may hold what they cannot tell (low bits, not-a-numbers).
    dtype = "int16" if audio.subtype in ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW") else "float32"
    hop = max(1, report.sample_rate // FRAMES_PER_SECOND)
    blocks: list[np.ndarray] = []
    decoded = 0
    while len(block := audio.read(hop * FRAMES_PER_SECOND * _BLOCK_SECONDS, dtype=dtype, always_2d=True)):
        if dtype == "float32" and not np.isfinite(block).all():
            return FileReport("audio with infinite values or not-a-numbers")
        blocks.append(_energy(block, hop))
        decoded += len(block)
    if audio.subtype == "MPEG_LAYER_III":
        problem = told_wrong(job.path, report.sample_rate, report.samples, decoded)
        if problem is not None:
            return FileReport(problem)
    elif decoded < report.samples - _OVERSHOOT_SECONDS * report.sample_rate:
        return FileReport(f"cut short: {decoded} of {report.samples} samples")
    if decoded != report.samples:
        report = _check_spans(job, replace(report, samples=decoded), limits)
    energy = np.concatenate(blocks)
    pieces: list[tuple[Piece, ...]] = []
    for span, (piece,) in zip(job.spans, report.pieces, strict=True):
        if piece.reason is None:
            heard = energy.mean(1) if span.channel is None else energy[:, span.channel]
            pieces.append(tuple(_finish(piece, heard, hop, report.sample_rate, limits)))
        else:
            pieces.append((piece,))
    return replace(report, pieces=tuple(pieces))


def _energy(block: np.ndarray, hop: int) -> np.ndarray:
    """Return the mean square per 10 ms, float32 of shape (F, C), of a block (S, C); the last frame may be shorter."""
    whole = len(block) // hop * hop
    with np.errstate(over="ignore"):  # told of the piece, see `_finish`
        frames = np.square(block[:whole], dtype=np.float32).reshape(-1, hop, block.shape[1]).mean(1)
        if whole < len(block):
            frames = np.concatenate([frames, np.square(block[whole:], dtype=np.float32).mean(0, keepdims=True)])
    return frames


def _finish(piece: Piece, energy: np.ndarray, hop: int, rate: int, limits: Limits) -> list[Piece]:
    """Cut a piece where it is too long, and refuse what is digital silence."""
    parts = [piece]
    if piece.samples > limits.max_seconds * rate:
        ends = cut_at_pauses(energy, hop, piece.start, piece.start + piece.samples, int(limits.max_seconds * rate))
        starts = [piece.start, *ends[:-1]]
        parts = [Piece(begin, end - begin) for begin, end in zip(starts, ends, strict=True)]
    # The frames that lie within: those on the edges may hold a neighbour's sound.
    heard = [energy[-(-part.start // hop) : (part.start + part.samples) // hop] for part in parts]
    return [replace(part, reason=_fault(sound)) for part, sound in zip(parts, heard, strict=True)]


def _fault(energy: np.ndarray) -> str | None:
    if not np.isfinite(energy).all():
        return "samples beyond all measure: those of a wave lie between -1 and 1"
    return None if energy.any() else "digital silence: all samples are zero"
