"""What processes of this machine there can be."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
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


def decoding_pool(workers: int) -> ProcessPoolExecutor:
    """Return processes that read audio.

    They end at once and without a word on Ctrl-C, and keep what decoders complain of off the screen.
    """
    # Forked processes start at once and ask nothing of the user's main module.
    method = "fork" if sys.platform == "linux" else None
    return ProcessPoolExecutor(workers, multiprocessing.get_context(method), _start_decoding)


def _start_decoding() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    os.close(silence)
