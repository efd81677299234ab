"""Weights and the optimiser's moments divided among the processes (torch's FSDP2), for models that are large for one GPU.

Outside of the optimiser's step every rank has the whole weights as plain tensors, so that methods, Steps, teachers and validation
need not know: ranks may have different numbers of micro-batches, none at all, pseudo-labels to make or not, or one that ran out
of memory and is cut in halves. Gathering block by block inside a forward pass would have to be matched call by call on all ranks.
Inside of the optimiser's step every rank has its share of weights and gradients alone. An update thus costs one reduction and
one gathering of the weights, however many micro-batches and streams it has; a rank holds 8 + 16 / W bytes per parameter where
16 are held without sharding (weights, gradient, two moments in float32, W ranks).

`fully_shard` is given holders of the modules, which are never called: none of its hooks on forward and backward passes runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from asrkit.core.method import Method
from asrkit.training import watch as watching
from asrkit.training.distributed import Ranks


class Weights(Protocol):
    """Where a method's weights are between updates."""

    sharded: bool
    """Whether each rank keeps a share of its own."""

    def divided(self) -> Any:
        """Return a context in which the method's parameters and gradients are those that the optimiser and checkpoints see."""
        ...

    def fit(self, name: str, value: Any) -> Any:
        """Return what is stored for a parameter, its weights or a moment, as the optimiser needs it here."""
        ...

    def room(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return a tensor, not yet filled, for what is stored in full size for a parameter."""
        ...


class Replicas:
    """The whole of them on every rank."""

    sharded = False

    @contextmanager
    def divided(self) -> Iterator[None]:
        """See `Weights.divided`: nothing changes."""
        yield

    def fit(self, name: str, value: Any) -> Any:
        """See `Weights.fit`."""
        return value

    def room(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """See `Weights.room`."""
        return torch.empty(size, dtype=dtype)


class _Holder(nn.Module):
    """Names the modules that `fully_shard` puts into one group, without being called itself."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Shards:
    """A share on every rank: that of dimension 0 of each parameter."""

    sharded = True

    def __init__(self, method: Method, ranks: Ranks, device: torch.device) -> None:
        """Divide a method's weights, which are the same on all ranks, and gather them again."""
        mesh = init_device_mesh(device.type, (ranks.world_size,))
        self.method = method
        blocks = list(method.encoder.blocks)
        self.groups: list[FSDPModule] = [fully_shard(_Holder(block), mesh=mesh) for block in blocks]
        inner = {parameter for block in blocks for parameter in block.parameters()}
        self.groups.append(fully_shard(_Holder(method), mesh=mesh, ignored_params=inner))
        self.shards = dict(method.named_parameters())
        self._gather()

    @contextmanager
    def divided(self) -> Iterator[None]:
        """See `Weights.divided`: this rank's share of the weights and, where there are gradients, of these."""
        whole = dict(self.method.named_parameters())
        for name, parameter in whole.items():
            gradient, parameter.grad = parameter.grad, None
            self.shards[name].grad = None if gradient is None else share_of(gradient, self.shards[name])
        for group in self.groups:
            group.reshard()
        try:
            yield
        finally:
            for shard in self.shards.values():
                shard.grad = None
            self._gather()

    def _gather(self) -> None:
        with watching.watch.meeting():
            for group in self.groups:
                group.unshard()

    def fit(self, name: str, value: Any) -> Any:
        """See `Weights.fit`: of what has the parameter's size, the share."""
        shard = self.shards.get(name)
        if shard is None or not isinstance(value, Tensor) or isinstance(value, DTensor) or value.shape != shard.shape:
            return value
        return share_of(value.to(shard.device), shard)

    def room(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """See `Weights.room`: for the share, where the parameter is."""
        shard = self.shards.get(name)
        if shard is None or shard.shape != size:
            return torch.empty(size, dtype=dtype)
        return torch.empty_like(shard, dtype=dtype, requires_grad=False)


def share_of(whole: Tensor, shard: Tensor) -> DTensor:
    """Return this rank's share of a tensor that all ranks have, divided as ``shard`` is; the whole can then be freed."""
    assert isinstance(shard, DTensor)
    mesh = shard.device_mesh
    parts = whole.detach().chunk(mesh.size(), 0)
    rank = mesh.get_local_rank()
    mine = parts[rank] if rank < len(parts) else whole.detach()[:0]
    return DTensor.from_local(
        mine.clone(), mesh, shard.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def whole_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of gradients, of which each rank may have a share: a scalar, the same on all ranks."""
    norm = nn.utils.get_total_norm(list(gradients))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def local_part(tensor: Tensor) -> Tensor:
    """Return what of a tensor is on this rank, without asking the others."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
