"""Checkpoints: `checkpoints/step_N.pt`, with `last` and `best` as one-line text files that name one.

A checkpoint holds tensors, numbers, strings, lists and dicts only and is read with torch's restricted loader, so that loading
never runs code from the file. It is written under a temporary name and renamed, so that a kill never leaves half of one.
"""

from __future__ import annotations

import logging
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
        """Return the file that `last` or `best` names, or None."""
        pointer = self.folder / name
        if not pointer.is_file():
            return None
        return self.folder / pointer.read_text(encoding="utf-8").strip()

    def save(self, update: int, state: dict[str, Any], *, best: bool = False) -> Path:
        """Write a checkpoint, point `last` (and `best`) at it, and remove those that are neither named nor among the newest."""
        path = self.path(update)
        with atomic_path(path) as temporary:
            torch.save({"format": FORMAT, **state}, temporary)
        write_text(self.folder / "last", path.name + "\n")
        if best:
            write_text(self.folder / "best", path.name + "\n")
        self._rotate()
        return path

    def mark_best(self, update: int) -> None:
        """Point `best` at a checkpoint that is there already."""
        write_text(self.folder / "best", self.path(update).name + "\n")
        self._rotate()

    def newest(self) -> dict[str, Any] | None:
        """Load the newest checkpoint that can be read; say so when a newer one is damaged. None if there is none at all.

        Raises:
            AsrkitError: if there are checkpoints but none can be read.
        """
        paths = sorted(self.folder.glob("step_*.pt"), key=lambda p: int(p.stem.split("_")[1]), reverse=True)
        for path in paths:
            try:
                return load(path)
            except AsrkitError as error:
                log.warning("%s; trying the one before", error)
        if paths:
            raise AsrkitError("no checkpoint can be read", where=self.folder, mend="start again with another exp_dir")
        return None

    def _rotate(self) -> None:
        paths = sorted(self.folder.glob("step_*.pt"), key=lambda p: int(p.stem.split("_")[1]))
        named = {self.named("last"), self.named("best")}
        for path in paths[: max(len(paths) - self.keep, 0)]:
            if path not in named:
                path.unlink()


def load(path: Path, map_location: str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Raises:
        AsrkitError: if the file is missing, damaged, of another program, or of a newer asrkit.
    """
    if not path.is_file():
        raise AsrkitError("no such checkpoint", where=path)
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises many kinds for a torn or foreign file; each means the same to the user
        raise AsrkitError(f"not a readable checkpoint: {type(error).__name__}", where=path) from error
    if not isinstance(state, dict) or "format" not in state or "model" not in state:
        raise AsrkitError("not an asrkit checkpoint", where=path, mend="asrkit import brings in other toolkits' files")
    if state["format"] > FORMAT:
        raise AsrkitError(f"written by a newer asrkit (format {state['format']})", where=path, mend="upgrade asrkit")
    return state
