"""Checkpoints: `checkpoints/step_N.pt`, or a folder `step_N` if sharded; `last` and `best` are one-line text files that name one.

A checkpoint holds tensors, numbers, strings, lists and dicts only and is read with torch's restricted loader, so that loading
never runs code from the file. It is written under a temporary name and renamed, so that a kill never leaves half of one. It
counts from the moment that `last` names it: whatever is newer belongs to a future that will be computed again.

torch writes a zip archive with the CRC-32 of every record but does not look at it when it reads. Here it is looked at, so that
a file in which the disk has lost or turned bits is not taken for a good one.
"""

from __future__ import annotations

import logging
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from asrkit.errors import AsrkitError
from asrkit.files import atomic_path, write_text
from asrkit.training.distributed import Ranks
from asrkit.training.sharded_checkpoint import Room, Together, damage, read_run, read_shares, write_folder

FORMAT = 1
log = logging.getLogger("asrkit.training")


class Checkpoints:
    """The checkpoints folder of one experiment."""

    def __init__(self, exp_dir: Path, keep: int = 2) -> None:
        self.folder = exp_dir / "checkpoints"
        self.keep = keep

    def path(self, update: int) -> Path:
        """Return the file of an update, or its folder where it was sharded."""
        folder = self.folder / f"step_{update}"
        return folder if folder.is_dir() else folder.with_suffix(".pt")

    def named(self, name: str) -> Path | None:
        """Return the checkpoint that `last` or `best` names, or None if it names none that is there."""
        pointer = self.folder / name
        if not pointer.is_file():
            return None
        path = self.folder / pointer.read_text(encoding="utf-8", errors="replace").strip()
        # A damaged pointer may hold anything, also what no file can be called.
        return path if update_of(path) >= 0 and path.parent == self.folder and path.exists() else None

    def save(self, update: int, state: dict[str, Any], *, best: bool = False) -> Path:
        """Write a checkpoint, point `last` (and `best`) at it, and remove those that are neither named nor among the newest.

        Raises:
            AsrkitError: if it cannot be written.
        """
        path = self.folder / f"step_{update}.pt"
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            try:
                torch.save({"format": FORMAT, **state}, file)
            except RuntimeError as error:  # what torch makes of a full disk
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        self._settle(path, best)
        return path

    def _settle(self, path: Path, best: bool) -> None:
        """Have a checkpoint that is written count."""
        update = update_of(path)
        other = path.with_suffix("" if path.suffix else ".pt")
        _remove(other)  # of a run that was sharded then, and is not now, or the other way round
        # `last` comes at the end: a kill in between leaves a `best` that the resumed run will find again.
        if best:
            write_text(self.folder / "best", path.name + "\n")
        write_text(self.folder / "last", path.name + "\n")
        self._rotate(update)

    def newest(self, ranks: Ranks | None = None) -> dict[str, Any] | None:
        """Load the checkpoint that `last` names, or the newest before it that can be read, saying so; None if there is none.

        What it has in shares is left to `read_shares`.

        Args:
            ranks: the processes that ask, all of them at once; they agree. None: this one alone.

        Raises:
            AsrkitError: if there are checkpoints but none can be read, or the processes see different ones.
        """
        ranks = ranks or Ranks()
        paths = self._by_update()
        last = self.named("last")
        start = update_of(last) if last is not None else max(paths, default=0)
        candidates = sorted((update for update in paths if update <= start), reverse=True)
        if any(seen != candidates for seen in ranks.gather(candidates)):
            mend = "use a folder that all share"
            raise AsrkitError("the processes see different checkpoints", where=self.folder, mend=mend)
        for update in candidates:
            state, problem = None, None
            try:
                state = _open(paths[update], ranks)
            except AsrkitError as error:
                problem = str(error)
            problems = [one for one in ranks.gather(problem) if one is not None]
            if not problems:
                return state
            log.warning("%s; trying the one before", problems[0])
        if paths:
            raise AsrkitError("no checkpoint can be read", where=self.folder, mend="start again with another exp_dir")
        return None

    def updates(self) -> list[int]:
        """Return the updates of which there is a checkpoint, in order."""
        return sorted(self._by_update())

    def make_room(self) -> bool:
        """Remove all but what `last` and `best` name, if `last` names one; return whether there was anything."""
        last = self.named("last")
        spare = [path for path in self._by_update().values() if path not in (last, self.named("best"))]
        if last is None or not spare:
            return False
        for path in spare:
            _remove(path)
        return True

    def agree(self, flag: bool) -> bool:
        """Return what all processes that write the checkpoints go by: the first one's flag."""
        return flag

    def _by_update(self) -> dict[int, Path]:
        return {update: path for path in self.folder.glob("step_*") if (update := update_of(path)) >= 0}

    def _rotate(self, newest: int) -> None:
        paths = self._by_update()
        stay = {self.named("last"), self.named("best")}
        past = sorted(update for update in paths if update <= newest)
        for update, path in paths.items():
            if path not in stay and update not in past[-self.keep :]:
                _remove(path)


class ShardedCheckpoints(Checkpoints):
    """The same, written by several processes together, each its share; all of them make every call."""

    def __init__(self, exp_dir: Path, keep: int, together: Together) -> None:
        super().__init__(exp_dir, keep)
        self.together = together

    def save(self, update: int, state: dict[str, Any], *, best: bool = False) -> Path:
        """See `Checkpoints.save`."""
        path = self.folder / f"step_{update}"
        write_folder(path, {"format": FORMAT, **state}, self.together)
        self.together.run(lambda: self._settle(path, best) if self.together.rank == 0 else None, path)
        return path

    def make_room(self) -> bool:
        """See `Checkpoints.make_room`."""
        return self.agree(super().make_room() if self.together.rank == 0 else False)

    def agree(self, flag: bool) -> bool:
        """See `Checkpoints.agree`."""
        return self.together.gather(flag)[0]


def _remove(path: Path) -> None:
    """Remove a checkpoint; a kill in between leaves none that looks whole."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    old = path.with_name(f".{path.name}.old.part")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def update_of(path: Path) -> int:
    """Return the update that a checkpoint's name states, -1 for another name."""
    match = re.fullmatch(r"step_(\d+)(\.pt)?", path.name)
    return int(match.group(1)) if match else -1


def load(path: Path, map_location: str = "cpu") -> dict[str, Any]:
    """Read a checkpoint, whole, without running code from it.

    Raises:
        AsrkitError: if it is missing, damaged, of another program, or of a newer asrkit.
    """
    state = _open(path, Ranks(), map_location)
    return fetch_shares(state, lambda _, size, dtype: torch.empty(size, dtype=dtype, device=map_location))


def fetch_shares(state: dict[str, Any], room: Room) -> dict[str, Any]:
    """Return the checkpoint with what `Checkpoints.newest` left in shares.

    Args:
        state: the checkpoint.
        room: gives the tensors to read into, by parameter name, full size and type.

    Raises:
        AsrkitError: if they cannot be read.
    """
    with _readable(state.get("shards", Path())):
        return read_shares(state, room)


def _open(path: Path, ranks: Ranks, map_location: str = "cpu") -> dict[str, Any]:
    if not path.exists():
        raise AsrkitError("no such checkpoint", where=path)
    with _readable(path):
        if path.is_dir():
            damaged = damage(path, ranks.rank, ranks.world_size)
            state = None if damaged else read_run(path)
        else:
            damaged = _torn(path)
            state = None if damaged else torch.load(path, map_location=map_location, weights_only=True)
    if damaged:
        raise AsrkitError(f"not a readable checkpoint: {damaged}", where=path)
    if not isinstance(state, dict) or not isinstance(state.get("format"), int) or "model" not in state:
        raise AsrkitError("not an asrkit checkpoint", where=path, mend="asrkit import brings in other toolkits' files")
    if state["format"] > FORMAT:
        raise AsrkitError(f"written by a newer asrkit (format {state['format']})", where=path, mend="upgrade asrkit")
    return state


def _torn(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    return f"the checksum of {damaged} is wrong" if damaged else None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        Exception
    ) as error:  # torch, zipfile and pickle raise many kinds for a torn or foreign file; all mean the same
        detail = f" ({error})" if isinstance(error, pickle.UnpicklingError) and path.is_dir() else ""
        raise AsrkitError(f"not a readable checkpoint: {type(error).__name__}{detail}", where=path) from error
