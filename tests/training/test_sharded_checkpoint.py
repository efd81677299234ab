"""Checkpoints in shares: whole or absent, never code, readable as one."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import assert_same
from torch import nn
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from asrkit.errors import AsrkitError
from asrkit.files import is_full, remove_parts
from asrkit.training.checkpoint import Checkpoints, ShardedCheckpoints, load
from asrkit.training.distributed import Ranks
from asrkit.training.metadata import RestrictedUnpickler
from asrkit.training.saving import CheckpointWriter
from asrkit.training.sharded_checkpoint import FILES, Together, _describe
from asrkit.training.sharding import share_of


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """A group of one process: shares of everything."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(exp_dir: Path, keep: int = 2) -> ShardedCheckpoints:
    return ShardedCheckpoints(exp_dir, keep, Together(dist.group.WORLD, 0, 1))


def whole(update: int) -> dict[str, Any]:
    moments = {"exp_avg": torch.full((5, 2), -float(update)), "step": torch.tensor(float(update))}
    model = {"layer.weight": torch.full((5, 2), float(update)), "running.mean": torch.arange(3.0)}
    return {"model": model, "optimiser": {"layer.weight": moments}, "update": update, "ranks": [{"rows": "é"}]}


def state(update: int) -> dict[str, Any]:
    mesh, held = init_device_mesh("cpu", (1,)), whole(update)
    for values, name in ((held["model"], "layer.weight"), (held["optimiser"]["layer.weight"], "exp_avg")):
        values[name] = DTensor.from_local(values[name], mesh, [Shard(0)])
    return held


def newest(exp_dir: Path) -> int:
    found = Checkpoints(exp_dir).newest()
    assert found is not None
    return int(found["update"])


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = sharded(tmp_path).save(3, state(3), best=True)
    assert path == tmp_path / "checkpoints" / "step_3"
    assert_same(load(path), {"format": 1, **whole(3)})
    assert Checkpoints(tmp_path).named("best") == Checkpoints(tmp_path).named("last") == path
    with CheckpointWriter(sharded(tmp_path), Ranks(), 0) as writer:
        held = state(5)
        writer.submit(5, held, best=False)
        held["model"]["layer.weight"].add_(1)
    assert_same(load(tmp_path / "checkpoints" / "step_5"), {"format": 1, **whole(5)})


def test_files_and_folders_of_one_run_rotate_together(tmp_path: Path) -> None:
    for update in range(1, 7):
        kind = sharded(tmp_path) if update % 2 else Checkpoints(tmp_path, 2)
        kind.save(update, state(update) if update % 2 else whole(update), best=update == 2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert names == ["step_2.pt", "step_5", "step_6.pt"]
    # One update is there once, whichever way it was saved last.
    sharded(tmp_path).save(6, state(6))
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert names == ["step_2.pt", "step_5", "step_6"]
    Checkpoints(tmp_path, 2).save(6, whole(6))
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert names == ["step_2.pt", "step_5", "step_6.pt"]
    assert newest(tmp_path) == 6
    assert sharded(tmp_path).make_room()
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*")) == ["step_2.pt", "step_6.pt"]


@pytest.mark.parametrize("name", ["run.pt", ".metadata", "__0_0.distcp", FILES])
@pytest.mark.parametrize("damage", ["turned", "cut", "gone"])
def test_a_damaged_file_falls_back_to_the_one_before(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for update in (1, 2):
        sharded(tmp_path).save(update, state(update))
    path = tmp_path / "checkpoints" / "step_2" / name
    held = path.read_bytes()
    middle = len(held) // 2
    path.write_bytes(held[:middle] + (bytes([held[middle] ^ 1]) + held[middle + 1 :] if damage == "turned" else b""))
    if damage == "gone":
        path.unlink()
    assert newest(tmp_path) == 1
    assert caplog.text.count("not a readable checkpoint") == 1
    with pytest.raises(AsrkitError, match="not a readable checkpoint"):
        load(tmp_path / "checkpoints" / "step_2")


def forge(path: Path, content: Any) -> None:
    """Put other metadata in a checkpoint's place, with a checksum that fits."""
    (path / ".metadata").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    described = json.loads((path / FILES).read_text())
    described[".metadata"] = _describe(path / ".metadata")
    (path / FILES).write_text(json.dumps(described))


class Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


class GetAttribute:
    def __reduce__(self) -> Any:
        return getattr, (Metadata, "__init__")


def forgeries(found: Metadata, marker: Path) -> dict[str, Any]:
    entries, places = found.state_dict_metadata, found.storage_data
    entry = entries["model/layer.weight"]
    assert isinstance(entry, TensorStorageMetadata)
    huge = TensorStorageMetadata(entry.properties, torch.Size([10**9, 10**4]), entry.chunks)
    outside = {index: _StorageInfo("../../run.pt", place.offset, place.length) for index, place in places.items()}
    encoded = {index: _StorageInfo(p.relative_path, p.offset, p.length, ["zstd"]) for index, p in places.items()}
    return {
        "code": Trap(marker),
        "code inside": Metadata(entries, {"any": Trap(marker)}, places),
        "getattr": GetAttribute(),
        "module": nn.Linear(1, 1),
        "code in an entry": Metadata({**entries, "odd": BytesStorageMetadata()}, None, places),
        "huge": Metadata({**entries, "model/layer.weight": huge}, None, places),
        "outside": Metadata(entries, None, outside),
        "encoded": Metadata(entries, None, encoded),
        "nothing": {"a": 1},
        "no pickle": b"hello",
    }


FORGERIES = (
    "code", "code inside", "getattr", "module", "code in an entry", "huge", "outside", "encoded", "nothing", "no pickle"
)  # fmt: skip


@pytest.mark.parametrize("kind", FORGERIES)
def test_metadata_run_no_code_and_name_no_other_files(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    for update in (1, 2):
        sharded(tmp_path).save(update, state(update))
    path = tmp_path / "checkpoints" / "step_2"
    with open(path / ".metadata", "rb") as file:
        found = RestrictedUnpickler(file).load()
    forged = forgeries(found, tmp_path / "trapped")
    assert tuple(forged) == FORGERIES
    forge(path, forged[kind])
    with pytest.raises(AsrkitError, match="not a readable checkpoint"):
        load(path)
    assert newest(tmp_path) == 1
    assert not (tmp_path / "trapped").exists()
    forge(path, found)
    assert_same(load(path), {"format": 1, **whole(2)})


@pytest.mark.parametrize("limit", [10, 1500])
def test_a_full_disk_leaves_the_one_before(tmp_path: Path, limit: int) -> None:
    sharded(tmp_path).save(1, state(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        with pytest.raises(AsrkitError, match="cannot be written: File too large") as caught:
            sharded(tmp_path).save(2, state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert is_full(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert newest(tmp_path) == 1
    assert list((tmp_path / "checkpoints").glob(".*.part")) == [tmp_path / "checkpoints" / ".step_2.part"]
    sharded(tmp_path).save(2, state(2))
    assert newest(tmp_path) == 2
    sharded(tmp_path).save(2, state(2))
    (tmp_path / "checkpoints" / ".step_3.part").mkdir()
    remove_parts(tmp_path / "checkpoints")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last", "step_1", "step_2"]


def test_a_share_of_one_is_everything_and_holds_on_to_nothing() -> None:
    like = state(1)["model"]["layer.weight"]
    value = torch.randn(5, 2)
    share = share_of(value, like)
    assert torch.equal(share.full_tensor(), value)
    value.zero_()
    assert share.full_tensor().any()
