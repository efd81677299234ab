"""What processes of this machine there can be."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import BaseContext


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fork_server(module: str) -> BaseContext:
    """Return how to start processes that import a module, and with it what takes long to import, once for all.

    Forking a process whose threads hold locks can hang. The fork server has no threads. Where there is none, processes are spawned.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context
