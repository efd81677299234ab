"""Checkpoints are written while training goes on.

What is to be saved is copied to the CPU at once; a thread writes it. One attempt runs at a time, in the order in which the
checkpoints were made, so that `last` never names one whose predecessor is still missing. A checkpoint that cannot be written
(a full disk) is tried again together with the next one, which takes its place unless it was the best: the run goes on, and the
last good checkpoint stays what it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor

from asrkit.errors import AsrkitError
from asrkit.files import is_full
from asrkit.training.checkpoint import Checkpoints, ShardedCheckpoints
from asrkit.training.distributed import Ranks
from asrkit.training.signals import Interrupted

log = logging.getLogger("asrkit.training")

_PAUSE_SECONDS = 2.0


@dataclass(frozen=True)
class _Job:
    update: int
    state: dict[str, Any]
    best: bool


class CheckpointWriter:
    """Writes an experiment's checkpoints in the background. As a context it ends once all of them are written.

    Leaving the context raises AsrkitError if a checkpoint could not be written for ``patience_seconds``.
    """

    def __init__(self, checkpoints: Checkpoints, ranks: Ranks, patience_seconds: float) -> None:
        self.checkpoints = checkpoints
        self.ranks = ranks
        self.patience_seconds = patience_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._attempt: Future[list[_Job]] | None = None
        self._error: AsrkitError | None = None

    def submit(self, update: int, state: Mapping[str, Any], *, best: bool) -> None:
        """Copy a state and write it soon. Waits for the attempt that runs: no more than two copies are ever held."""
        left = [job for job in self._unwritten() if job.best and not best]
        jobs = [*left, _Job(update, snapshot(state), best)]
        self._attempt = self._thread.submit(self._write, jobs)

    @property
    def behind(self) -> bool:
        """Whether the newest attempt has failed; does not wait."""
        return self._attempt is not None and self._attempt.done() and bool(self._attempt.result())

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            jobs = self._unwritten()
            # After a mistake the other ranks, which would have to write their shares, may be anywhere.
            alone = not isinstance(self.checkpoints, ShardedCheckpoints)
            if jobs and (kind is None or issubclass(kind, Interrupted) or (alone and issubclass(kind, AsrkitError))):
                self._insist(jobs)
        finally:
            self._thread.shutdown(cancel_futures=True)
        if kind is None or issubclass(kind, Interrupted):
            # A rank that left before the file is written would have torchrun end the one that writes it.
            self.ranks.barrier()

    def _unwritten(self) -> list[_Job]:
        """Wait for the attempt that runs, and return what it could not write."""
        return self._attempt.result() if self._attempt is not None else []

    def _insist(self, jobs: list[_Job]) -> None:
        log.warning("the run ends, but its checkpoint waits for room: for %g s at most", self.patience_seconds)
        deadline = time.monotonic() + self.patience_seconds
        while jobs and self.checkpoints.agree(time.monotonic() < deadline):
            time.sleep(min(_PAUSE_SECONDS, self.patience_seconds))
            jobs = self._write(jobs)
        if jobs:
            assert self._error is not None
            raise self._error

    def _write(self, jobs: list[_Job]) -> list[_Job]:
        """Write checkpoints in order; return those that could not be written, from the first failure on."""
        for number, job in enumerate(jobs):
            try:
                self._write_one(job)
            except AsrkitError as error:
                if self._error is None:
                    log.warning("step %d is not saved, training goes on and tries again: %s", job.update, error)
                self._error = error
                return jobs[number:]
        if self._error is not None:
            log.info("step %d is saved: checkpoints can be written again", jobs[-1].update)
        self._error = None
        return []

    def _write_one(self, job: _Job) -> None:
        try:
            self.checkpoints.save(job.update, job.state, best=job.best)
        except AsrkitError as error:
            # An older checkpoint is worth less than a newer one.
            if not is_full(error) or not self.checkpoints.make_room():
                raise
            log.warning("no room for step %d: all checkpoints but `last` and `best` are removed", job.update)
            self.checkpoints.save(job.update, job.state, best=job.best)


def snapshot(value: Any) -> Any:
    """Return a copy of nested dicts, lists and tuples whose tensors are on the CPU and never change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: snapshot(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(snapshot(part) for part in value)
    return value
