"""Audio files inspected in parallel processes, the reports in the files' order.

A decoder that crashes on a malformed file takes its process with it, not the run: the files that were in hand are
then tried one at a time, and the one that crashes again is a reject.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType

from asrkit.data.inspect import FileReport, Job, Limits, inspect_file
from asrkit.processes import cores, decoding_pool

_CHUNK = 16


def _inspect_chunk(jobs: Sequence[Job], limits: Limits) -> list[FileReport]:
    return [inspect_file(job, limits) for job in jobs]


class Inspector:
    """Inspects files in ``workers`` processes (0: one per core; 1: in this process); a context manager."""

    def __init__(self, limits: Limits, workers: int = 0) -> None:
        self._limits = limits
        self._workers = workers or cores()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Inspector:
        if self._workers > 1:
            # The first task starts every process: here, before the caller has threads, such as a progress display's.
            self._submit([]).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def reports(self, jobs: Sequence[Job]) -> Iterator[FileReport]:
        """Yield the report of every job, in order, with a bounded number of them in hand."""
        if self._workers == 1:
            yield from (inspect_file(job, self._limits) for job in jobs)
            return
        waiting: deque[tuple[Sequence[Job], Future[list[FileReport]]]] = deque()
        for first in range(0, len(jobs), _CHUNK):
            chunk = jobs[first : first + _CHUNK]
            waiting.append((chunk, self._submit(chunk)))
            if len(waiting) > 4 * self._workers:
                yield from self._result(*waiting.popleft())
        while waiting:
            yield from self._result(*waiting.popleft())

    def _submit(self, chunk: Sequence[Job]) -> Future[list[FileReport]]:
        if self._pool is None:
            self._pool = decoding_pool(self._workers)
        try:
            return self._pool.submit(_inspect_chunk, chunk, self._limits)
        except BrokenProcessPool:
            self._pool = decoding_pool(self._workers)
            return self._pool.submit(_inspect_chunk, chunk, self._limits)

    def _result(self, chunk: Sequence[Job], future: Future[list[FileReport]]) -> list[FileReport]:
        try:
            return future.result()
        except BrokenProcessPool:
            return [self._inspect_alone(job) for job in chunk]

    def _inspect_alone(self, job: Job) -> FileReport:
        with decoding_pool(1) as pool:
            try:
                return pool.submit(_inspect_chunk, [job], self._limits).result()[0]
            except BrokenProcessPool:
                return FileReport("unreadable audio: it crashes the decoder")
