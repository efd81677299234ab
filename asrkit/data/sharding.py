"""A prepared set put into shards: lhotse's Shar (``cuts.000000.jsonl.gz`` and ``recording.000000.tar``, and so on).

Samples come out of shards of FLAC as they come out of the files, to the bit: an utterance that is a whole compressed
file goes in as it is, all else as FLAC of 16 or 24 bits or, where that would change them (most floats), as AU files of
floats. Shards of Opus are small, and lossy. ``lhotse.CutSet.from_shar`` reads both.

Shapes: S samples, K channels.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut, MultiCut, Recording
from lhotse.audio import AudioSource
from lhotse.utils import fastcopy

from asrkit.data.audio import read, read_channels
from asrkit.data.batch import SAMPLE_RATE
from asrkit.data.folders import building
from asrkit.data.index import CUTS, INDEX, SET, SetIndex, write_index
from asrkit.data.remote import check_location, holds_something, is_url, put
from asrkit.data.shards import SHARDS, Member, checksum
from asrkit.errors import AsrkitError
from asrkit.files import write_text
from asrkit.processes import cores, decoding_pool

FORMATS = ("flac", "opus")
_COMPRESSED = {"FLAC": "flac", "OGG": "ogg", "MP3": "mp3", "MPEG": "mp3"}
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_FLAC_CHANNELS = 8


@dataclass
class ShardConfig:
    """Whether and how audio is put into shards."""

    location: str = ""
    """Folder or URL below which SET/ with its shards comes; empty = the set's own folder."""
    format: str = "flac"
    """flac (the samples stay as they are) or opus (a fraction of the size, lossy)."""
    hours: float = 8.0
    """Audio per shard, in hours; 8 make some 500 MB of FLAC."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise AsrkitError(f"shards cannot be of {self.format}", mend="flac or opus")
        if not 0 < self.hours <= 1000:
            raise AsrkitError(f"the hours of a shard are {self.hours:g}", mend="more than 0, 1000 at most")


@dataclass(frozen=True)
class _Job:
    """One shard: some rows of a set, a folder for its files until they are complete, and what the manifest calls it."""

    set_dir: Path
    rows: range
    number: int
    folder: Path
    name: str
    """The shard's location in the manifest."""
    upload: bool
    """Whether the files go to that location."""
    format: str


def shard_set(
    set_dir: Path, config: ShardConfig, workers: int, advance: Callable[[int], None] = lambda rows: None
) -> int:
    """Put the audio of a prepared set into shards, and have its manifest refer to them; return their number.

    The set stays what it was until all shards are complete. ``advance`` is called with the number of utterances that
    were added.

    Args:
        set_dir: the set, as it was prepared.
        config: where the shards go, and of what kind they are.
        workers: processes; 0 = one per core.
        advance: told of progress.

    Raises:
        AsrkitError: if audio cannot be read, or shards cannot be written.
    """
    index = SetIndex.open(set_dir.absolute())
    where = _destination(config.location, set_dir.name)
    # Before the first shard: what an interrupted run leaves there is this set's to overwrite.
    if where:
        write_text(set_dir / SET, _described(index, shards_begun=where))
    with building(set_dir) as partial:
        folder = partial / SHARDS
        folder.mkdir()
        jobs = [
            _Job(index.dir, rows, number, folder, where or SHARDS, bool(where), config.format)
            for number, rows in enumerate(_divide(index.durations, config.hours * 3600))
        ]
        write_index(partial, _sharded(jobs, workers or cores(), advance), map(int, index.rows["source"]))
        if where:
            folder.rmdir()
        (partial / SET).write_text(_described(index, shards=where or SHARDS), encoding="utf-8")
        for path in set_dir.iterdir():
            if path.is_file() and path.name not in (CUTS, INDEX, SET):
                shutil.copyfile(path, partial / path.name)
    return len(jobs)


def check_own(set_dir: Path, config: ShardConfig) -> None:
    """Raise AsrkitError where a set's shards would overwrite those of another one."""
    where = _destination(config.location, set_dir.name)
    if not where or not holds_something(where):
        return
    try:
        info = json.loads((set_dir / SET).read_text(encoding="utf-8"))
        own = where in (info.get("shards"), info.get("shards_begun"))
    except (OSError, ValueError, AttributeError):
        own = False
    if not own:
        raise AsrkitError("holds what is not this set's shards", where=where, mend="choose another WHERE, or remove it")


def _described(index: SetIndex, **changes: str) -> str:
    return json.dumps({**index.info, **changes}, ensure_ascii=False, indent=1) + "\n"


def _destination(location: str, name: str) -> str:
    """Return the folder or URL of a set's shards, "" where they stay in the set's own folder."""
    if not location:
        return ""
    check_location(location)
    return f"{location.rstrip('/')}/{name}" if is_url(location) else str(Path(location).absolute() / name)


def _divide(durations: np.ndarray, seconds: float) -> list[range]:
    """Cut the rows of a set into runs of about ``seconds`` of audio."""
    before = np.cumsum(durations, dtype=np.float64) - durations
    first = [*np.unique(before // seconds, return_index=True)[1].tolist(), len(durations)]
    return [range(start, end) for start, end in pairwise(first)]


def _sharded(jobs: Sequence[_Job], workers: int, advance: Callable[[int], None]) -> Iterator[MonoCut | MultiCut]:
    """Write all shards, a bounded number at a time, and yield their cuts in order."""
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            yield from _write_shard(job)
            advance(len(job.rows))
        return
    with decoding_pool(workers) as pool:
        waiting: deque[tuple[_Job, Future[list[MonoCut | MultiCut]]]] = deque()
        try:
            for job in jobs:
                waiting.append((job, pool.submit(_write_shard, job)))
                if len(waiting) > 2 * workers:
                    yield from _finished(*waiting.popleft(), advance)
            while waiting:
                yield from _finished(*waiting.popleft(), advance)
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(
    job: _Job, future: Future[list[MonoCut | MultiCut]], advance: Callable[[int], None]
) -> list[MonoCut | MultiCut]:
    try:
        cuts = future.result()
    except BrokenProcessPool:
        raise AsrkitError("a process that writes shards died", mend="out of memory? lower --workers") from None
    advance(len(job.rows))
    return cuts


def _write_shard(job: _Job) -> list[MonoCut | MultiCut]:
    """Write one shard and return its cuts as they are to stand in the set's manifest."""
    index = SetIndex.open(job.set_dir)
    names = [f"cuts.{job.number:06d}.jsonl.gz", f"recording.{job.number:06d}.tar"]
    lines, archive = (job.folder / name for name in names)
    found: list[MonoCut | MultiCut] = []
    try:
        with (
            open(lines, "wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as manifest,
            tarfile.open(archive, "w") as tar,
        ):
            for row in job.rows:
                data, suffix, cut = _encode(index.read_cut(row), job.format)
                offset = _add(tar, f"{cut.id}.{suffix}", data)
                _add(tar, f"{cut.id}.json", json.dumps(cut.recording.to_dict()).encode() + b"\n")
                manifest.write(json.dumps(cut.to_dict(), ensure_ascii=False).encode() + b"\n")
                member = Member(f"{job.name}/{names[1]}", offset, len(data), checksum(cut.id, data))
                cut.recording.sources[0].source = str(member)
                found.append(cut)
        if job.upload:
            for file in (lines, archive):
                put(file, f"{job.name}/{file.name}")
                file.unlink()
    except OSError as error:
        raise AsrkitError(f"a shard cannot be written: {error.strerror or error}", where=archive) from None
    return found


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a member and return where its content begins."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
    return tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _encode(cut: MonoCut | MultiCut, form: str) -> tuple[bytes, str, MonoCut | MultiCut]:
    """Return a cut's audio as a file of its own, the file's suffix, and the cut that it makes, its source left open."""
    if form == "opus":
        rate = cut.sampling_rate if cut.sampling_rate in _OPUS_RATES else SAMPLE_RATE
        data = _written(read(cut, rate)[None], rate, "OGG", "OPUS")
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            return data, "opus", _own_recording(cut, 1, rate, file.frames)
    whole = _whole_file(cut)
    if whole is not None:
        data, suffix = whole
        return data, suffix, _own_recording(cut, len(cut.recording.channel_ids), cut.sampling_rate, cut.num_samples)
    samples = read_channels(cut)
    data, suffix = _lossless(samples, cut.sampling_rate)
    return data, suffix, _own_recording(cut, len(samples), cut.sampling_rate, samples.shape[1])


def _own_recording(cut: MonoCut | MultiCut, channels: int, rate: int, samples: int) -> MonoCut | MultiCut:
    """Return the cut of a recording that holds just what the cut holds."""
    numbers = list(range(channels))
    channel = numbers if isinstance(cut, MultiCut) and channels > 1 else 0
    # A file that goes in whole may have a channel beside the one that is wanted.
    if isinstance(cut, MonoCut) and channels > 1:
        channel = cut.channel
    duration = samples / rate
    recording = Recording(cut.id, [AudioSource("shar", numbers, "")], rate, samples, duration)
    labels = [
        fastcopy(label, recording_id=cut.id, start=0.0, duration=duration, channel=channel)
        for label in cut.supervisions
    ]
    kind = MultiCut if isinstance(channel, list) else MonoCut
    return kind(cut.id, 0.0, duration, channel, labels, recording=recording)


def _whole_file(cut: MonoCut | MultiCut) -> tuple[bytes, str] | None:
    """Return a compressed file as it is, and its suffix, if the cut is all of it."""
    path = cut.recording.sources[0].source
    if cut.start or cut.num_samples != cut.recording.num_samples or len(cut.recording.sources) > 1:
        return None
    read(cut, cut.sampling_rate)
    with soundfile.SoundFile(path) as file:
        suffix = _COMPRESSED.get(file.format)
    return (Path(path).read_bytes(), suffix) if suffix else None


def _lossless(samples: np.ndarray, rate: int) -> tuple[bytes, str]:
    """Return the smallest file that gives back ``samples`` float32 (K, S) to the bit, and its suffix."""
    for bits, kind, subtype in ((16, np.int16, "PCM_16"), (24, np.int32, "PCM_24")):
        scaled = np.rint(samples.astype(np.float64) * 2 ** (bits - 1))
        if len(samples) > _FLAC_CHANNELS or np.abs(scaled + 0.5).max() > 2 ** (bits - 1):
            continue
        # libsndfile takes 24 bits from the upper end of 32.
        data = _written((scaled * 2 ** (8 * np.dtype(kind).itemsize - bits)).astype(kind), rate, "FLAC", subtype)
        if np.array_equal(soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0].T, samples):
            return data, "flac"
    # WAV files of floats would hold the time of writing.
    return _written(samples, rate, "AU", "FLOAT"), "au"


def _written(samples: np.ndarray, rate: int, form: str, subtype: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.T, rate, format=form, subtype=subtype)
    return buffer.getvalue()
