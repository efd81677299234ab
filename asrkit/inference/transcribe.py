"""Recordings of any number and length to text: windows of all of them, sorted by length, in batches.

Memory is bounded by a few batches of audio, however long or many the recordings are; of what is recognised only the
best unit of each frame is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from asrkit.data.collate import Example, collate
from asrkit.errors import AsrkitError
from asrkit.inference.chunking import CHUNK_SECONDS, CONTEXT_SECONDS, Chunking, Window
from asrkit.inference.transcript import Path, Transcript

if TYPE_CHECKING:
    from asrkit.inference.recogniser import Recogniser

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
class _Job:
    """A recording under way."""

    name: str
    samples: int = 0
    read: bool = False
    paths: list[Path | None] = field(default_factory=list)
    error: AsrkitError | None = None

    @property
    def finished(self) -> bool:
        return self.error is not None or (self.read and None not in self.paths)

    def count(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self.samples += len(block)
            yield block


@dataclass(frozen=True)
class _Piece:
    job: _Job
    number: int
    window: Window


def default_batch_seconds(recogniser: Recogniser) -> float:
    """Return how much audio goes through the encoder at once unless asked otherwise."""
    return 60.0 if recogniser.device.type == "cpu" else 480.0


def transcribe(
    recogniser: Recogniser,
    sources: Iterable[Source],
    *,
    batch_seconds: float | None = None,
    chunk_seconds: float = CHUNK_SECONDS,
    context_seconds: float = CONTEXT_SECONDS,
) -> Iterator[tuple[str, Transcript | AsrkitError]]:
    """Yield each source's name with its transcript, or with what is wrong with it, in the sources' order.

    Args:
        recogniser: the model.
        sources: the recordings; each is opened when there is room for it.
        batch_seconds: padded audio in a batch; a longer window is a batch of its own. None for the device's default.
        chunk_seconds: longer recordings are recognised in overlapping windows of this length.
        context_seconds: how far windows overlap on each side beyond what they contribute.

    Raises:
        AsrkitError: if the chunks or the batches are too short.
    """
    batch_seconds = default_batch_seconds(recogniser) if batch_seconds is None else batch_seconds
    if batch_seconds <= 0:
        raise AsrkitError(f"batches of {batch_seconds:g} s", mend="more than 0")
    rate = recogniser.sample_rate
    chunking = Chunking.of(recogniser.frame_samples, rate, chunk_seconds, context_seconds)
    jobs: deque[_Job] = deque()
    pool: list[_Piece] = []
    for source in sources:
        job = _Job(source.name)
        jobs.append(job)
        try:
            for number, window in enumerate(chunking.windows(job.count(source.blocks()))):
                job.paths.append(None)
                pool.append(_Piece(job, number, window))
                if sum(len(piece.window.wave) for piece in pool) >= _POOL * batch_seconds * rate:
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
        path = Path.join([path for path in job.paths if path is not None])
        seconds_per_frame = recogniser.frame_samples / recogniser.sample_rate
        yield job.name, path.transcript(recogniser.units, seconds_per_frame, job.samples / recogniser.sample_rate)


def _recognise(recogniser: Recogniser, pieces: Sequence[_Piece], batch_samples: float) -> None:
    """Put the windows' best paths into their jobs."""
    wanted = [piece for piece in pieces if piece.job.error is None]
    for batch in pack([len(piece.window.wave) for piece in wanted], batch_samples):
        chosen = [wanted[n] for n in batch]
        examples = [Example(f"{n}", piece.window.wave) for n, piece in zip(batch, chosen, strict=True)]
        for piece, log_probs in zip(chosen, recogniser.log_probs(collate(examples, epoch=0)), strict=True):
            piece.job.paths[piece.number] = Path.of(piece.window.keep(log_probs))


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
