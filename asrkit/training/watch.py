"""Ends a run whose processes wait for each other in vain, with a line that says who is missing, where, and doing what.

Each process counts the meetings (reductions, votes) that it has come to and notes what it is doing. A thread of it tells this to
the store that all share, and sees whether the process still moves. A process that has not moved for the time that the config
allows hangs, or waits for one that hangs: the ranks that have come to the fewest meetings are those that are missing.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from asrkit.errors import AsrkitError
from asrkit.training.meeting import Store
from asrkit.training.memory import out_of_memory

_TICK = 5.0
_LAST_WORDS = 10.0


@dataclass(frozen=True)
class Place:
    """Where a process is."""

    meetings: int = 0
    """How often it has met the others."""
    step: int = 0
    """Updates done."""
    phase: str = ""
    """Of the method; empty before the first update."""
    doing: str = "starting"
    """In words for a user."""

    def __str__(self) -> str:
        return f"step {self.step}{f', phase {self.phase}' if self.phase else ''}, {self.doing}"


class Watch:
    """A process's notes of what it is doing, and the thread that looks after them."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        timeout: float,
        store: Store | None,
        prefix: str = "",
        mistake_number: Callable[[], int] = lambda: 1,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            rank: this process.
            world_size: how many there are.
            timeout: seconds without movement after which the process is ended.
            store: shared by all; None lets each speak for itself.
            prefix: of the keys in it, different for every start of the run.
            mistake_number: counts the mistakes that have ended a process; the first is told.
        """
        self.rank = rank
        self.world_size = world_size
        self.timeout = timeout
        self.store = store
        self.prefix = f"asrkit/watch/{prefix}"
        self.mistake_number = mistake_number
        self.place = Place()
        self.moved = time.monotonic()
        self._told: Place | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def note(self, doing: str, step: int | None = None, phase: str | None = None) -> None:
        """Say what the process does from now on, and where in the run."""
        old = self.place
        self.place = Place(
            old.meetings, old.step if step is None else step, old.phase if phase is None else phase, doing
        )
        self.moved = time.monotonic()

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Count what only all processes can do together.

        Raises:
            AsrkitError: if another process is gone.
        """
        old = self.place
        self.place = Place(old.meetings + 1, old.step, old.phase, old.doing)
        self.moved = time.monotonic()
        try:
            yield
        except RuntimeError as error:  # all that torch's backends raise
            if out_of_memory(error):
                raise
            what = f"rank {self.rank} has lost another process ({self.place})"
            detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise AsrkitError(f"{what}: {detail}", mend="its own message says why it ended, if it could") from error
        finally:
            self.moved = time.monotonic()

    def look(self, now: float) -> str | None:
        """Tell the others where this process is; return what to say if it has not moved for too long."""
        if self.store is not None and self.place != self._told:
            self._told = self.place
            with suppress(RuntimeError):
                self.store.set(f"{self.prefix}/{self.rank}", json.dumps(vars(self.place)))
        if now - self.moved <= self.timeout:
            return None
        return self._verdict(self._places())

    def _places(self) -> dict[int, Place | None]:
        found: dict[int, Place | None] = dict.fromkeys(range(self.world_size))
        for rank in found:
            key = f"{self.prefix}/{rank}"
            with suppress(RuntimeError, ValueError, TypeError):
                if self.store is not None and self.store.check([key]):
                    found[rank] = Place(**json.loads(self.store.get(key)))
        return {**found, self.rank: self.place}

    def _verdict(self, places: Mapping[int, Place | None]) -> str:
        waited = f"rank {self.rank} has not got on for {self.timeout / 60:g} min ({self.place})"
        known = {rank: place for rank, place in places.items() if place is not None}
        fewest = min(place.meetings for place in known.values())
        missing = {rank: place for rank, place in known.items() if place.meetings == fewest}
        silent = [rank for rank in places if rank not in known]
        parts = [f"rank {rank} ({place})" for rank, place in missing.items()]
        if silent:
            parts = [f"rank {rank} (has never told where it is)" for rank in silent]
        elif len(missing) == self.world_size:
            return f"{waited}, nor have the others: all have come equally far"
        elif self.rank in missing:
            return f"{waited}: the others wait for it"
        return f"{waited}: it waits for {', '.join(parts)}"

    def start(self) -> None:
        """Begin to watch; the process's end, also by a mistake, ends it."""
        self.moved = time.monotonic()
        atexit.register(self.stop)
        self._thread.start()

    def stop(self) -> None:
        """Cease to watch."""
        self._ended.set()
        # A thread inside the store when the interpreter ends would abort the process. The store may be gone, hence the limit.
        if self._thread.is_alive():
            self._thread.join(_LAST_WORDS)

    def _run(self) -> None:
        while not self._ended.wait(min(_TICK, self.timeout / 4)):
            said = self.look(time.monotonic())
            if said is not None and not self._ended.is_set():
                self._end(said)

    def _end(self, said: str) -> None:
        """End this process: its main thread sits in a call that does not return."""
        if self.mistake_number() == 1:
            mend = "see that rank's machine; training.timeout_minutes is how long ranks wait"
            sys.stderr.write(f"asrkit: error: {AsrkitError(said, mend=mend)}\n")
            sys.stderr.flush()
        else:
            time.sleep(_LAST_WORDS)  # torchrun ends all as soon as one has ended: let it be the one that has spoken
        os._exit(2)


class _Nobody(Watch):
    """A process alone waits for nobody."""

    def __init__(self) -> None:
        super().__init__(0, 1, 0.0, None)

    @contextmanager
    def meeting(self) -> Iterator[None]:
        yield


watch: Watch = _Nobody()
"""This process's."""


def keep_watch(new: Watch | None) -> None:
    """Begin to watch with ``new``, or cease."""
    global watch
    watch.stop()
    watch = new or _Nobody()
    if new is not None:
        new.start()
