"""Checkpoints: `checkpoints/step_N.pt`, with `last` and `best` as one-line text files that name one.

A checkpoint holds tensors, numbers, strings, lists and dicts only and is read with torch's restricted loader, so that loading
never runs code from the file. It is written under a temporary name and renamed, so that a kill never leaves half of one. It
counts from the moment that `last` names it: whatever is newer belongs to a future that will be computed again.

torch writes a zip archive with the CRC-32 of every record but does not look at it when it reads. Here it is looked at, so that
a file in which the disk has lost or turned bits is not taken for a good one.
"""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from asrkit.errors import AsrkitError
from asrkit.files import atomic_path, write_text

FORMAT = 1
log = logging.getLogger("asrkit.training")


class Checkpoints:
    """The checkpoints folder of one experiment."""

    def __init__(self, exp_dir: Path, keep: int = 2) -> None:
        self.folder = exp_dir / "checkpoints"
        self.keep = keep

    def path(self, update: int) -> Path:
        """Return the file of an update."""
        return self.folder / f"step_{update}.pt"

    def named(self, name: str) -> Path | None:
        """Return the file that `last` or `best` names, or None if it names none that is there."""
        pointer = self.folder / name
        if not pointer.is_file():
            return None
        path = self.folder / pointer.read_text(encoding="utf-8", errors="replace").strip()
        # A damaged pointer may hold anything, also what no file can be called.
        return path if update_of(path) >= 0 and path.parent == self.folder and path.is_file() else None

    def save(self, update: int, state: dict[str, Any], *, best: bool = False) -> Path:
        """Write a checkpoint, point `last` (and `best`) at it, and remove those that are neither named nor among the newest.

        Raises:
            AsrkitError: if it cannot be written.
        """
        path = self.path(update)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            try:
                torch.save({"format": FORMAT, **state}, file)
            except RuntimeError as error:  # what torch makes of a full disk
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        # `last` comes at the end: a kill in between leaves a `best` that the resumed run will find again.
        if best:
            write_text(self.folder / "best", path.name + "\n")
        write_text(self.folder / "last", path.name + "\n")
        self._rotate(update)
        return path

    def newest(self) -> dict[str, Any] | None:
        """Load the checkpoint that `last` names, or the newest before it that can be read, saying so; None if there is none.

        Raises:
            AsrkitError: if there are checkpoints but none can be read.
        """
        paths = self._by_update()
        last = self.named("last")
        start = update_of(last) if last is not None else max(paths, default=0)
        for update in sorted((update for update in paths if update <= start), reverse=True):
            try:
                return load(paths[update])
            except AsrkitError as error:
                log.warning("%s; trying the one before", error)
        if paths:
            raise AsrkitError("no checkpoint can be read", where=self.folder, mend="start again with another exp_dir")
        return None

    def updates(self) -> list[int]:
        """Return the updates of which there is a file, in order."""
        return sorted(self._by_update())

    def make_room(self) -> bool:
        """Remove all but what `last` and `best` name, if `last` names a file; return whether there was anything."""
        last = self.named("last")
        spare = [path for path in self._by_update().values() if path not in (last, self.named("best"))]
        if last is None or not spare:
            return False
        for path in spare:
            path.unlink(missing_ok=True)
        return True

    def _by_update(self) -> dict[int, Path]:
        return {update: path for path in self.folder.glob("step_*.pt") if (update := update_of(path)) >= 0}

    def _rotate(self, newest: int) -> None:
        paths = self._by_update()
        stay = {self.named("last"), self.named("best")}
        past = sorted(update for update in paths if update <= newest)
        for update, path in paths.items():
            if path not in stay and update not in past[-self.keep :]:
                path.unlink(missing_ok=True)


def update_of(path: Path) -> int:
    """Return the update that a checkpoint's name states, -1 for another file's name."""
    match = re.fullmatch(r"step_(\d+)\.pt", path.name)
    return int(match.group(1)) if match else -1


def load(path: Path, map_location: str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Raises:
        AsrkitError: if the file is missing, damaged, of another program, or of a newer asrkit.
    """
    if not path.is_file():
        raise AsrkitError("no such checkpoint", where=path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        state = None if damaged else torch.load(path, map_location=map_location, weights_only=True)
    except (
        Exception
    ) as error:  # torch and zipfile raise many kinds for a torn or foreign file; all mean the same to the user
        raise AsrkitError(f"not a readable checkpoint: {type(error).__name__}", where=path) from error
    if damaged:
        raise AsrkitError(f"not a readable checkpoint: the checksum of {damaged} is wrong", where=path)
    if not isinstance(state, dict) or not isinstance(state.get("format"), int) or "model" not in state:
        raise AsrkitError("not an asrkit checkpoint", where=path, mend="asrkit import brings in other toolkits' files")
    if state["format"] > FORMAT:
        raise AsrkitError(f"written by a newer asrkit (format {state['format']})", where=path, mend="upgrade asrkit")
    return state
