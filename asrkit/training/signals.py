"""Ctrl-C, SIGTERM and SIGUSR1 ask a run to save and stop; a second Ctrl-C stops it at once.

SIGUSR1 is what schedulers send before a job's time is over: the run will be started again by whoever sent it.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from asrkit.training.distributed import Ranks


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""

    def __init__(self, postponed: bool) -> None:
        super().__init__()
        self.postponed = postponed
        """Whether it was asked by SIGUSR1."""


class StopRequest:
    """A context in which SIGINT, SIGTERM and SIGUSR1 set a flag instead of ending the process."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.flag = False
        """Whether this process was asked to stop."""
        self.postponed = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Signals reach the main thread alone; elsewhere (a notebook's worker, say) the defaults stay.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self.previous[number] = signal.signal(number, self._set)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _set(self, number: int, frame: FrameType | None) -> None:
        # One Ctrl-C under torchrun arrives twice: from the terminal and from torchrun, which also ends what does not end.
        if self.flag and number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        self.flag = True
        self.postponed = self.postponed or number == signal.SIGUSR1

    def interruption(self) -> Interrupted:
        """Return what to raise once everything is saved, the same on all ranks."""
        return Interrupted(self.ranks.any(self.postponed))
