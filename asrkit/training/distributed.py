"""Processes that train together, started by torchrun; one process needs nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from asrkit.errors import AsrkitError
from asrkit.training import watch as watching
from asrkit.training.meeting import agree_on_name

BUCKET_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Add each tensor over all ranks, in place, in flat buckets of one type: few messages instead of hundreds."""
        if self.world_size == 1:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for same in by_type.values():
            for bucket in _buckets(same):
                flat = _flatten_dense_tensors(bucket)
                with watching.watch.meeting():
                    dist.all_reduce(flat)
                for tensor, total in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
                    tensor.copy_(total)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Bring each tensor to its mean over all ranks, in place."""
        self.add(tensors)
        if self.world_size > 1:
            for tensor in tensors:
                tensor.div_(self.world_size)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on some rank."""
        return self.votes(flag)[0]

    def votes(self, *flags: bool) -> list[bool]:
        """Return of each flag whether it is set on some rank."""
        if self.world_size == 1:
            return list(flags)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(flags, dtype=torch.float32, device=device)
        with watching.watch.meeting():
            dist.all_reduce(total)
            return [count > 0 for count in total.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order, on all ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with watching.watch.meeting():
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            with watching.watch.meeting():
                dist.barrier()


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        size += tensor.numel() * tensor.element_size()
        if size > BUCKET_BYTES and buckets[-1]:
            buckets.append([])
            size = tensor.numel() * tensor.element_size()
        buckets[-1].append(tensor)
    return buckets


def ranks_of_environment() -> Ranks:
    """Return this process's place as torchrun describes it in the environment; without torchrun, it is alone.

    Raises:
        AsrkitError: if the environment tells only half of it.
    """
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Ranks()
        return Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    except (KeyError, ValueError) as error:
        what = f"the environment says WORLD_SIZE={os.environ['WORLD_SIZE']}, but {error.args[0]} is amiss"
        raise AsrkitError(what, mend="start several processes with torchrun") from None


def restarted() -> bool:
    """Whether torchrun or Slurm has started this run before: what held its folder then may hold it for a little while yet."""
    return any(os.environ.get(name, "0") != "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def join(ranks: Ranks, device: torch.device, timeout_minutes: float = 30.0) -> None:
    """Join the other processes' group.

    Args:
        ranks: this process's place.
        device: where it computes.
        timeout_minutes: how long processes wait for one that does not come; then all end, in a line that names it.

    Raises:
        AsrkitError: if they cannot be reached.
    """
    if ranks.world_size == 1:
        return
    seconds = 60 * timeout_minutes
    store, name = None, ""
    try:
        store = _shared_store() if _torchrun_keeps_store() else None
        if store is not None:
            name = agree_on_name(store, ranks.rank, ranks.world_size, seconds)
        if not dist.is_initialized():
            _join(ranks, device, seconds, name)
    except (RuntimeError, ValueError) as error:
        raise AsrkitError(f"the processes do not find each other: {str(error).splitlines()[0]}") from error
    store = store or _shared_store()
    watching.keep_watch(watching.Watch(ranks.rank, ranks.world_size, seconds, store, name, mistake_number))


def _join(ranks: Ranks, device: torch.device, seconds: float, name: str) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    # The backends' own ways to end, with many lines and no names, come later.
    timeout = timedelta(seconds=2 * seconds)
    if not name:
        dist.init_process_group(backend, timeout=timeout)
        return
    # With a connection of its own: NCCL waits by it at the first exchange, and the store's patience is then the backend's.
    store = _shared_store(2 * seconds)
    if store is None:
        raise RuntimeError("torchrun's store is gone")
    own = dist.PrefixStore(name, store)
    dist.init_process_group(backend, timeout=timeout, store=own, rank=ranks.rank, world_size=ranks.world_size)


def _torchrun_keeps_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _shared_store(patience_seconds: float = 10.0) -> dist.Store | None:
    """Return a connection of its own to the store by which the processes have found each other."""
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return dist.TCPStore(host, port, timeout=timedelta(seconds=patience_seconds))
    except (KeyError, ValueError, RuntimeError):
        return None


def threads_group() -> dist.ProcessGroup:
    """Return a further group of all processes, for a thread of each that must not get in the way of the first group's messages."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    return group


def leave() -> None:
    """Leave the group, if there is one."""
    watching.keep_watch(None)
    if dist.is_initialized():
        dist.destroy_process_group()


def mistake_number() -> int:
    """Count this process's fatal mistake among those of all processes; 1 is the first, whose process should tell it.

    The others fail for the same reason, or because the first is gone. They may be stuck in different places, so that the
    store that torchrun keeps is asked, and not the group.
    """
    if not _torchrun_keeps_store():
        return 1
    store = _shared_store()
    try:
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"asrkit/mistakes/{start}", 1) if store is not None else 1
    except RuntimeError:  # better told twice than never
        return 1
