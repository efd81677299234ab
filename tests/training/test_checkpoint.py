"""Checkpoints: whole or absent, never code, and always one to go on from."""

from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from asrkit import files
from asrkit.errors import AsrkitError
from asrkit.files import held_alone, write_text
from asrkit.training.checkpoint import Checkpoints, load


def state(update: int) -> dict[str, Any]:
    return {"model": {"weight": torch.full((3,), float(update))}, "update": update}


def kept(checkpoints: Checkpoints) -> list[int]:
    return sorted(int(path.stem.split("_")[1]) for path in checkpoints.folder.glob("step_*.pt"))


def newest(checkpoints: Checkpoints) -> int:
    found = checkpoints.newest()
    assert found is not None
    return int(found["update"])


def test_rotation_keeps_the_newest_and_what_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for update in (90, 100, 110, 1000, 1010):
        checkpoints.save(update, state(update), best=update == 100)
    assert kept(checkpoints) == [100, 1000, 1010]
    assert checkpoints.named("best") == checkpoints.path(100)
    assert checkpoints.named("last") == checkpoints.path(1010)
    assert newest(checkpoints) == 1010


@hypothesis_settings(max_examples=25, deadline=None)
@given(bests=st.lists(st.booleans(), min_size=1, max_size=12), keep=st.integers(1, 4))
def test_rotation_by_brute_force(tmp_path_factory: pytest.TempPathFactory, bests: list[bool], keep: int) -> None:
    checkpoints = Checkpoints(tmp_path_factory.mktemp("run"), keep)
    for update, best in enumerate(bests):
        checkpoints.save(update, state(update), best=best)
    last_best = [update for update, best in enumerate(bests) if best][-1:]
    assert kept(checkpoints) == sorted({*range(len(bests))[-keep:], *last_best})


def test_what_last_does_not_name_yet_is_not_gone_on_from(tmp_path: Path) -> None:
    """A kill between the file and its pointer: the file belongs to a future that is computed again."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(5, state(5))
    checkpoints.save(9, state(9))
    write_text(checkpoints.folder / "last", "step_5.pt\n")
    checkpoints.save(5, state(5))
    assert newest(checkpoints) == 5
    assert kept(checkpoints) == [5]


@hypothesis_settings(max_examples=150)
@given(data=st.data())
def test_a_bit_that_turns_is_noticed_or_means_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("run")
    path = Checkpoints(folder).save(1, {**state(1), "ranks": [{"generators": {"cpu": torch.arange(64)}}], "best": 0.5})
    good, content = load(path), bytearray(path.read_bytes())
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    with suppress(AsrkitError):
        assert_same(load(path), good)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "gone", "turned"])
def test_a_damaged_newest_falls_back(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for update in (1, 2, 3):
        checkpoints.save(update, state(update))
    path = checkpoints.path(3)
    whole = path.read_bytes()
    path.unlink()
    if damage != "gone":
        weight = whole.index(state(3)["model"]["weight"].numpy().tobytes())
        turned = whole[:weight] + bytes([whole[weight] ^ 1]) + whole[weight + 1 :]
        damaged = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"step 3\n", "turned": turned}
        path.write_bytes(damaged[damage])
    assert newest(checkpoints) == 2
    assert ("trying the one before" in caplog.text) == (damage != "gone")


def test_none_is_readable(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    checkpoints.save(1, state(1))
    checkpoints.path(1).write_bytes(b"")
    with pytest.raises(AsrkitError, match="no checkpoint can be read"):
        checkpoints.newest()


class Malice:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_code_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    path, content = tmp_path / "step_1.pt", {"format": 1, "model": Malice(tmp_path / "ran")}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(AsrkitError, match=r"step_1\.pt: not a readable checkpoint") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "not an asrkit checkpoint"),
        ({"model": {}}, "not an asrkit checkpoint"),
        ({"args": None, "model": {}, "format": "fairseq"}, "not an asrkit checkpoint"),
        ({"format": 99, "model": {}}, "written by a newer asrkit"),
    ],
)
def test_foreign_files_are_one_line(tmp_path: Path, content: object, says: str) -> None:
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(AsrkitError, match=says):
        load(tmp_path / "foreign.pt")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    big = {"model": {"weight": torch.zeros(100_000)}, "update": 2}
    with full_disk(50_000), pytest.raises(AsrkitError, match=r"step_2\.pt: cannot be written: File too large"):
        checkpoints.save(2, big)
    with full_disk(2), pytest.raises(AsrkitError, match=r"last: cannot be written: File too large"):
        write_text(checkpoints.folder / "last", "step_2.pt\n")
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["last", "step_1.pt"]
    assert newest(checkpoints) == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AsrkitError, match="file: is a file, not a folder"):
        write_text(tmp_path / "file" / "below" / "x", "y")
    with pytest.raises(AsrkitError, match="is a file, not a folder"), held_alone(tmp_path / "file"):
        pass


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with held_alone(tmp_path / "exp"):
        with pytest.raises(AsrkitError, match="another process is at work"), held_alone(tmp_path / "exp"):
            pass
        assert os.listdir(tmp_path / "exp") == [".lock"]
    with held_alone(tmp_path / "exp"):
        pass


def test_a_folder_is_waited_for_as_long_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ExitStack()
    first.enter_context(held_alone(tmp_path / "exp"))
    monkeypatch.setattr(files.time, "sleep", lambda seconds: first.close())
    with held_alone(tmp_path / "exp", patience_seconds=60), pytest.raises(AsrkitError), held_alone(tmp_path / "exp"):
        pass
