"""Processes that find each other anew after some of them have died.

torchrun keeps one store over all its restarts, with what the dead have left in it: a process that looks up where another
listens may find an address of before, and wait for nobody. So the processes of a start first agree on a name for it, below which
nothing is old.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Protocol

from asrkit.errors import AsrkitError

_PAUSE = 0.05


class Store(Protocol):
    """What is asked of torch's stores."""

    def set(self, key: str, value: str) -> None:
        """Keep a value."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether there are values for all keys."""
        ...

    def get(self, key: str) -> bytes:
        """Return a value."""
        ...


def agree_on_name(store: Store, rank: int, world_size: int, timeout: float) -> str:
    """Return a name that all processes of this start, and none of another, have agreed on.

    Each makes up a word that was never said before. The first one's word is the name. It says the words of all as it hears
    them; who hears its own among them knows that the first one is alive, and says so in turn.

    Raises:
        AsrkitError: if they have not all come after ``timeout`` seconds.
    """
    own = uuid.uuid4().hex
    store.set(f"asrkit/word/{rank}", own)
    others = [other for other in range(world_size) if other != rank]
    said: list[str] = []
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if rank == 0:
            words = [own, *(_read(store, f"asrkit/word/{other}") for other in others)]
            if words != said:
                said = words
                store.set("asrkit/words", json.dumps(words))
            if all(_read(store, f"asrkit/heard/{other}") == own + words[other] for other in others):
                return own
        else:
            words = json.loads(_read(store, "asrkit/words") or "[]")
            if len(words) == world_size and words[rank] == own:
                store.set(f"asrkit/heard/{rank}", words[0] + own)
                return str(words[0])
        time.sleep(_PAUSE)
    missing = [
        str(other) for other in others if rank == 0 and _read(store, f"asrkit/heard/{other}") != own + said[other]
    ]
    who = f"rank {', '.join(missing)}" if missing else "the first rank"
    raise AsrkitError(f"rank {rank} does not find {who}", mend="do all nodes run the same command?")


def _read(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""
