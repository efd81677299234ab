"""Folders that are either complete or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from asrkit.errors import AsrkitError


def check_replaceable(folder: Path, known: Collection[str]) -> None:
    """Raise AsrkitError when ``folder`` holds anything but the ``known`` files, and so is not ours to replace."""
    if not folder.exists():
        return
    # Dot files are left by file managers and network file systems.
    there = (
        {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
        if folder.is_dir()
        else {folder.name}
    )
    strange = sorted(there - (set(known) if folder.is_dir() else set()))
    if strange:
        what = f"would be replaced, but holds what asrkit did not write: {strange[0]}"
        raise AsrkitError(what, where=folder, mend="choose another output folder")


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that takes ``folder``'s place when the block ends well, and vanishes when it does not.

    Raises AsrkitError when the folder cannot be written.
    """
    # A link stays, and what it leads to is replaced where it lies.
    folder = folder.resolve() if folder.is_symlink() else folder
    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    try:
        if old.exists() and not folder.exists():
            # An earlier run was killed between the two renamings below.
            os.replace(old, folder)
        for left_over in (partial, old):
            shutil.rmtree(left_over, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise AsrkitError(f"cannot be written: {error.strerror or error}", where=folder) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
