"""Ctrl-C and SIGTERM ask a run to save and stop; a second Ctrl-C stops it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from asrkit.training.distributed import Ranks

ASK_EVERY = 10
"""Updates between the ranks' asking each other; alone, a process looks after every update."""


class StopRequest:
    """A context in which SIGINT and SIGTERM set a flag instead of ending the process."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.flag = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Signals reach the main thread alone; elsewhere (a notebook's worker, say) the defaults stay.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._set)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.flag = True

    def requested(self, update: int) -> bool:
        """Whether to stop, agreed between all ranks."""
        if self.ranks.world_size == 1:
            return self.flag
        return update % ASK_EVERY == 0 and self.ranks.any(self.flag)
