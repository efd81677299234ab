"""Recordings of any number and length to text: windows of all of them, sorted by length, in batches.

Memory is bounded by a few batches of audio, however long or many the recordings are; of what is recognised only the
best unit of each frame is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asrkit.data.collate import Example, collate
from asrkit.data.index import SetIndex
from asrkit.errors import AsrkitError
from asrkit.inference.chunking import CHUNK_SECONDS, Chunking, Window
from asrkit.inference.transcript import BestPath, Transcript, read_transcript

if TYPE_CHECKING:
    from asrkit.inference.recogniser import Recogniser

_SHORTEST_CHUNK, _SLACK = 2.0, 1.25
_POOL = 4
"""Batches of audio that are sorted by length together."""


@dataclass(frozen=True)
class Source:
    """A recording to be read when its turn comes."""

    name: str
    """What results and errors call it."""
    blocks: Callable[[], Iterator[np.ndarray]]
    """Reads it in blocks at the recogniser's sample rate, float32 (S,); raises AsrkitError where it cannot."""


@dataclass
class _Piece:
    """A window's place in its recording, and what became of it."""

    place: int
    pause: bool
    path: BestPath | None = None


@dataclass
class _Job:
    """A recording under way."""

    name: str
    samples: int = 0
    read: bool = False
    pieces: list[_Piece] = field(default_factory=list)
    error: AsrkitError | None = None

    @property
    def finished(self) -> bool:
        return self.error is not None or (self.read and all(piece.path for piece in self.pieces))

    def stretches(self) -> Iterator[tuple[int, BestPath]]:
        """Yield first frame and best path of what lies between pauses."""
        group: list[_Piece] = []
        for piece in self.pieces:
            group.append(piece)
            if piece.pause or piece is self.pieces[-1]:
                yield group[0].place, BestPath.join([piece.path for piece in group if piece.path])
                group = []

    def count(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self.samples += len(block)
            yield block


def default_batch_seconds(recogniser: Recogniser) -> float:
    """Return how much audio goes through the encoder at once unless asked otherwise."""
    return 60.0 if recogniser.device.type == "cpu" else 480.0


def longest_heard(recogniser: Recogniser) -> float:
    """Return a quarter more than the longest labelled utterance of training, at most `CHUNK_SECONDS`.

    A model that has heard single sentences only is lost in anything longer. Where the prepared data are not at hand any
    more, it is taken for one that has heard long utterances.
    """
    data = recogniser.experiment.config.data
    try:
        sets = [SetIndex.open(Path(data.dir) / name) for name in data.labelled.sets]
    except AsrkitError:
        return CHUNK_SECONDS
    longest = max((float(index.durations.max()) for index in sets), default=CHUNK_SECONDS)
    return min(max(_SLACK * longest, _SHORTEST_CHUNK), CHUNK_SECONDS)


def transcribe(
    recogniser: Recogniser,
    sources: Iterable[Source],
    *,
    batch_seconds: float | None = None,
    chunk_seconds: float | None = None,
    context_seconds: float | None = None,
) -> Iterator[tuple[str, Transcript | AsrkitError]]:
    """Yield each source's name with its transcript, or with what is wrong with it, in the sources' order.

    Args:
        recogniser: the model.
        sources: the recordings; each is opened when there is room for it.
        batch_seconds: padded audio in a batch; a longer window is a batch of its own. None for the device's default.
        chunk_seconds: longer recordings are recognised in windows of at most this length; None for `longest_heard`.
        context_seconds: what windows hear on each side beyond what they contribute, where there is no pause; None for
            what suits the chunks.

    Raises:
        AsrkitError: if the chunks or the batches are too short.
    """
    batch_seconds = default_batch_seconds(recogniser) if batch_seconds is None else batch_seconds
    if batch_seconds <= 0:
        raise AsrkitError(f"batches of {batch_seconds:g} s", mend="more than 0")
    chunk_seconds = longest_heard(recogniser) if chunk_seconds is None else chunk_seconds
    rate = recogniser.sample_rate
    chunking = Chunking.of(recogniser.frame_samples, rate, chunk_seconds, context_seconds)
    jobs: deque[_Job] = deque()
    pool: list[tuple[_Job, _Piece, Window]] = []
    for source in sources:
        job = _Job(source.name)
        jobs.append(job)
        try:
            for window in chunking.windows(job.count(source.blocks())):
                job.pieces.append(_Piece(window.place, window.pause))
                pool.append((job, job.pieces[-1], window))
                if sum(len(window.wave) for _, _, window in pool) >= _POOL * batch_seconds * rate:
                    _recognise(recogniser, pool, batch_seconds * rate)
                    pool.clear()
        except AsrkitError as error:
            job.error = error
        job.read = True
        yield from _finished(jobs, recogniser)
    _recognise(recogniser, pool, batch_seconds * rate)
    yield from _finished(jobs, recogniser)


def _finished(jobs: deque[_Job], recogniser: Recogniser) -> Iterator[tuple[str, Transcript | AsrkitError]]:
    """Take the jobs that are finished off the front of the queue."""
    while jobs and jobs[0].finished:
        job = jobs.popleft()
        if job.error is not None:
            yield job.name, job.error
            continue
        rate = recogniser.sample_rate
        seconds_per_frame = recogniser.frame_samples / rate
        yield job.name, read_transcript(job.stretches(), recogniser.units, seconds_per_frame, job.samples / rate)


def _recognise(recogniser: Recogniser, pool: Sequence[tuple[_Job, _Piece, Window]], batch_samples: float) -> None:
    """Put the windows' best paths into their pieces."""
    wanted = [(piece, window) for job, piece, window in pool if job.error is None]
    for batch in pack([len(window.wave) for _, window in wanted], batch_samples):
        examples = [Example(f"{n}", wanted[n][1].wave) for n in batch]
        for n, log_probs in zip(batch, recogniser.log_probs(collate(examples, epoch=0)), strict=True):
            piece, window = wanted[n]
            piece.path = BestPath.of(window.keep(log_probs))


def pack(lengths: Sequence[int], most: float) -> list[list[int]]:
    """Return batches of indices, the longest first: ``most`` bounds each one's longest length times its size."""
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if room == 0:
            batches.append([])
            room = max(1, int(most // max(1, lengths[index])))
        batches[-1].append(index)
        room -= 1
    return batches
