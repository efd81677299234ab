"""Checkpoints of which every process writes its share: a folder `checkpoints/step_N` in the place of the file `step_N.pt`.

`run.pt` holds what all processes share; the weights and moments lie in the format of torch.distributed.checkpoint, from which any
number of processes reads the shares that it needs, and one process everything. `files.json` has size and CRC-32 of each file. The
folder is written under a temporary name and renamed when all is there.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.tensor import DTensor

from asrkit.errors import AsrkitError
from asrkit.files import sync_folder
from asrkit.training.metadata import RestrictedReader

RUN, FILES = "run.pt", "files.json"
SECTIONS = ("model", "optimiser")
"""What may be in shares: weights by name, and the moments of each weight by name."""
_CHUNK = 1 << 22

T = TypeVar("T")
Room = Callable[[str, torch.Size, torch.dtype], Tensor]
"""Makes the tensor that is read into, for a parameter's name, full size and type."""


class Together:
    """Processes that write one checkpoint, each in a thread of its own: what fails on one fails on all."""

    def __init__(self, group: dist.ProcessGroup, rank: int, world_size: int) -> None:
        self.group = group
        self.rank = rank
        self.world_size = world_size

    def gather(self, value: T) -> list[T]:
        """Return every rank's value.

        Raises:
            AsrkitError: if one of them is gone.
        """
        values: list[Any] = [None] * self.world_size
        try:
            dist.all_gather_object(values, value, group=self.group)
        except RuntimeError as error:
            what = f"rank {self.rank} has lost another process while they wrote a checkpoint"
            raise AsrkitError(f"{what}: {str(error).strip().splitlines()[0]}") from error
        return values

    def run(self, what: Callable[[], T], where: Path) -> list[T]:
        """Do something on every rank and return all results.

        Raises:
            AsrkitError: on every rank if the operating system refuses on one.
        """
        value, problem = None, None
        try:
            value = what()
        except (OSError, RuntimeError) as error:
            cause = _system_error(error)
            problem = (cause.errno, cause.strerror or str(cause)) if cause is not None else (None, str(error))
        found = self.gather((value, problem))
        for _, failure in found:
            if failure is not None:
                number, text = failure
                refused = AsrkitError(f"cannot be written: {text.splitlines()[0]}", where=where)
                raise refused from (OSError(number, text) if number is not None else None)
        return [one for one, _ in found]  # type: ignore[misc]


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the error of the operating system behind what torch makes of it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


class _Writer(dcp.FileSystemWriter):
    def __init__(self, path: Path) -> None:
        """Write into a folder; what is written lies in the host's memory, so that no GPU is asked for it."""
        super().__init__(path, per_thread_copy_ahead=0)

    def storage_meta(self) -> StorageMeta:
        """Leave out where the folder was when it was written."""
        return StorageMeta()


def write_folder(path: Path, state: Mapping[str, Any], together: Together) -> None:
    """Write a checkpoint; every rank calls this with its share.

    Args:
        path: the folder.
        state: nested dicts and lists; what in it is sharded is written by all ranks, everything else by the first.
        together: the ranks.

    Raises:
        AsrkitError: on every rank if it cannot be written; nothing but an unfinished folder is left then.
    """
    part = path.with_name(f".{path.name}.part")
    first = together.rank == 0
    together.run(lambda: _new_folder(part) if first else None, path)
    shares, rest = _divide(state)
    planner, writer = dcp.DefaultSavePlanner(), _Writer(part)
    planner.set_up_planner(shares, writer.storage_meta(), first)
    writer.set_up_storage_writer(first)
    plans = together.run(lambda: writer.prepare_local_plan(planner.create_local_plan()), path)
    central, metadata = planner.create_global_plan(plans)
    mine = planner.finish_plan(writer.prepare_global_plan(central)[together.rank])
    results = together.run(lambda: writer.write_data(mine, planner).wait(), path)
    # Each rank has what it wrote in its memory still.
    own = {result.storage_data.relative_path for result in results[together.rank]}
    sums = together.run(lambda: {name: _describe(part / name) for name in sorted(own)}, path)

    def finish() -> None:
        writer.finish(metadata, results)
        with open(part / RUN, "wb") as file:
            torch.save(rest, file)
            file.flush()
            os.fsync(file.fileno())
        described = {name: one for share in sums for name, one in share.items()}
        described |= {name: _describe(part / name) for name in (RUN, ".metadata")}
        with open(part / FILES, "w", encoding="utf-8") as file:
            json.dump(described, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(part)
        if path.exists():  # of a future that was given up when the run went back to an earlier checkpoint
            shutil.rmtree(path)
        os.replace(part, path)
        sync_folder(path.parent)

    together.run(lambda: finish() if first else None, path)


def _new_folder(part: Path) -> None:
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)


def _describe(path: Path) -> dict[str, int]:
    total, checksum = 0, 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            total += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return {"bytes": total, "crc32": checksum}


def _divide(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the shares by their place in the state, and the state without them."""
    rest = {key: value for key, value in state.items() if key not in SECTIONS}
    shares: dict[str, Tensor] = {}
    rest["model"], rest["optimiser"] = {}, {}
    for name, weight in state["model"].items():
        _place(shares, rest["model"], f"model/{name}", name, weight)
    for name, moments in state["optimiser"].items():
        rest["optimiser"][name] = {}
        for key, moment in moments.items():
            _place(shares, rest["optimiser"][name], f"optimiser/{name}/{key}", key, moment)
    return shares, rest


def _place(shares: dict[str, Tensor], rest: dict[str, Any], place: str, key: str, value: Any) -> None:
    if isinstance(value, DTensor):
        shares[place] = value
    else:
        rest[key] = value


def damage(path: Path, rank: int = 0, world_size: int = 1) -> str | None:
    """Return what is wrong with a checkpoint's files, None if nothing is; of several ranks each looks at its share of them."""
    try:
        described = _described(path)
        for name in sorted(described)[rank::world_size]:
            if _describe(path / name) != described[name]:
                return f"the checksum of {name} is wrong"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return type(error).__name__
    return None


def _described(path: Path) -> dict[str, dict[str, int]]:
    described: dict[str, dict[str, int]] = json.loads((path / FILES).read_text(encoding="utf-8"))
    if RUN not in described or any(Path(name).name != name for name in described):
        raise ValueError("not the list of a checkpoint's files")
    return described


def read_run(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds beside the shares, with ``shards``: the folder that has them."""
    _reader(path).read_metadata()
    state: dict[str, Any] = torch.load(path / RUN, map_location="cpu", weights_only=True)
    return {**state, "shards": path}


def _reader(path: Path) -> RestrictedReader:
    return RestrictedReader(path, {name: one["bytes"] for name, one in _described(path).items()})


def read_shares(state: Mapping[str, Any], room: Room) -> dict[str, Any]:
    """Return a checkpoint with the shares that `read_run` left in their folder; any other one as it is.

    Args:
        state: the checkpoint.
        room: gives tensors to read into, of full size or divided in some way.
    """
    if "shards" not in state:
        return dict(state)
    reader = _reader(state["shards"])
    entries = reader.read_metadata().state_dict_metadata
    shares: dict[str, Any] = {}
    for place, entry in entries.items():
        name = place.split("/")[1]
        shares[place] = room(name, entry.size, entry.properties.dtype)  # type: ignore[union-attr]
    dcp.load(shares, storage_reader=reader, no_dist=True)
    whole = {key: value for key, value in state.items() if key != "shards"}
    for place, value in shares.items():
        section, name, *key = place.split("/", 2)  # a key may have a part before a stroke: named moments
        if section == "model":
            whole["model"][name] = value
        else:
            whole["optimiser"][name][key[0]] = value
    return whole
