"""Worker processes that read audio ahead of training."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from asrkit.data.batch import SAMPLE_RATE
from asrkit.data.collate import Loaded, Reader, Request
from asrkit.data.config import DataConfig
from asrkit.processes import fork_server

log = logging.getLogger("asrkit.data")

_SHARED_MEMORY = Path("/dev/shm")


def load(reader: Reader, requests: Iterator[Request], config: DataConfig, *, pin: bool) -> Iterator[Loaded]:
    """Return what becomes of ``requests``, in their order.

    They are read by ``config.workers`` processes or, without any, by this one as they are asked for. The workers end
    when the iterator is dropped.

    Args:
        reader: what reads them.
        requests: any number of them; taken from the iterator a little ahead of what is returned.
        config: for workers, prefetch and batch_seconds.
        pin: whether batches go into page-locked memory.
    """
    workers, prefetch = _affordable(config)
    if workers == 0:
        return (reader[request].pin_memory() if pin else reader[request] for request in requests)
    context = fork_server(Reader.__module__)
    loader: DataLoader[Loaded] = DataLoader(
        reader,  # type: ignore[arg-type]
        batch_size=None,
        sampler=requests,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=prefetch,
        collate_fn=_identity,  # type: ignore[arg-type]
        worker_init_fn=_start_worker,
        multiprocessing_context=context,
        pin_memory=pin,
        # A generator of its own: the loader would draw a seed from the default one, whose state dropout depends on.
        generator=torch.Generator(),
    )
    return iter(loader)


def _affordable(config: DataConfig) -> tuple[int, int]:
    """Return (workers, prefetch) such that what is read ahead fits into shared memory, which containers keep small.

    Overfilling it kills the process without a word (SIGBUS).
    """
    workers, prefetch = config.workers, config.prefetch
    if workers == 0 or not _SHARED_MEMORY.is_dir():
        return workers, prefetch
    batch_bytes = 4 * SAMPLE_RATE * config.batch_seconds
    # Half of what is free, since a method may have two streams, and this node's other ranks need theirs.
    room = shutil.disk_usage(_SHARED_MEMORY).free / 2 / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # Beside the batches that wait, a worker holds the one that it is making.
    while workers > 0 and workers * (prefetch + 1) * batch_bytes > room:
        workers, prefetch = (workers, prefetch - 1) if prefetch > 1 else (workers - 1, config.prefetch)
    if workers < config.workers:
        log.warning("/dev/shm is small: %d of %d data workers are used", workers, config.workers)
    return workers, prefetch


def _identity(loaded: Loaded) -> Loaded:
    return loaded


def _start_worker(_: int) -> None:
    """Hold a worker to one thread, and leave what all processes get, Ctrl-C and a scheduler's SIGUSR1, to the training process."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
