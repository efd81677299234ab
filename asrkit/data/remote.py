"""Bytes of files here or elsewhere: local paths, and whatever URL fsspec knows (s3://, gs://, https://, memory://, …)."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import tempfile
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

from asrkit.errors import AsrkitError
from asrkit.files import atomic_path, file_problem

_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0
_OPEN_FILES = 32
_SURE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors that trying again does not mend."""


def is_url(location: str) -> bool:
    """Whether a location is a URL such as ``s3://bucket/folder`` rather than a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", location) is not None


def check_location(location: str) -> None:
    """Raise AsrkitError when a URL's protocol lacks a package; a local path has none."""
    if is_url(location):
        _file_system(location)


def read_range(location: str, offset: int, size: int) -> bytes:
    """Return the ``size`` bytes of a file from ``offset`` on, fewer only where the file ends.

    A read over the network is tried three times.

    Raises:
        AsrkitError: if the URL's protocol lacks a package.
        OSError: if the file cannot be read.
    """
    if not is_url(location):
        return _LOCAL.read(location, offset, size)
    system, path = _file_system(location)
    for attempt in range(_ATTEMPTS):
        try:
            data: bytes = system.cat_file(path, start=offset, end=offset + size)
            return data
        except Exception as error:  # every protocol has errors of its own
            if isinstance(error, _SURE) or attempt + 1 == _ATTEMPTS:
                reason = " ".join(str(error).split())[:200]
                raise OSError(f"{location}: {type(error).__name__} {reason}") from None
            time.sleep(_PAUSE_SECONDS * 4**attempt)
    raise AssertionError


def put(file: Path, location: str) -> None:
    """Copy a local file to a location; what is there is replaced, and a local one is whole or absent.

    Raises:
        AsrkitError: if it cannot be written, or the URL's protocol lacks a package.
    """
    if not is_url(location):
        with atomic_path(Path(location)) as temporary:
            shutil.copyfile(file, temporary)
        return
    system, path = _file_system(location)
    try:
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.put_file(str(file), path)
    except Exception as error:  # every protocol has errors of its own
        reason = " ".join(str(error).split())[:200]
        raise AsrkitError(f"cannot be written: {type(error).__name__} {reason}", where=location) from None


def holds_something(location: str) -> bool:
    """Whether there is a folder with anything in it.

    Raises:
        AsrkitError: if the URL's protocol lacks a package.
    """
    if not is_url(location):
        folder = Path(location)
        return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    system, path = _file_system(location)
    try:
        return bool(system.ls(path, detail=False))
    except Exception:  # every protocol has its own way to say that there is nothing
        return False


def check_writable(location: str) -> None:
    """Write a small file below a location, and remove it.

    Raises:
        AsrkitError: as `put`.
    """
    probe = f"{location.rstrip('/')}/.asrkit-probe"
    with tempfile.NamedTemporaryFile() as file:
        put(Path(file.name), probe)
    if not is_url(probe):
        os.unlink(probe)
        return
    system, path = _file_system(probe)
    with suppress(Exception):  # who may write may not be allowed to remove
        system.rm_file(path)


def _file_system(location: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it."""
    protocol = location.partition("://")[0]
    mend = 'pip install "asrkit[cloud]"'
    try:
        core = importlib.import_module("fsspec.core")
    except ImportError:
        raise AsrkitError(f"{protocol}:// needs fsspec", where=location, mend=mend) from None
    try:
        system, path = core.url_to_fs(location)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise AsrkitError(f"{protocol}:// needs another package: {reason}", where=location, mend=mend) from None
    except Exception as error:  # an unknown protocol, no credentials, …
        reason = " ".join(str(error).split())[:200]
        raise AsrkitError(f"cannot be reached: {reason}", where=location) from None
    return system, str(path)


class _OpenFiles:
    """The local files that were read last, kept open: on network disks opening one costs more than reading from it."""

    def __init__(self) -> None:
        self._handles: OrderedDict[str, int] = OrderedDict()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return bytes of a file; its place is not moved, so that forked processes may share it."""
        if path not in self._handles:
            problem = file_problem(path)
            if problem:
                raise OSError(f"{path}: {problem}")
            self._handles[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            if len(self._handles) > _OPEN_FILES:
                os.close(self._handles.popitem(last=False)[1])
        self._handles.move_to_end(path)
        # A damaged manifest may ask for any number of bytes.
        size = min(size, max(0, os.fstat(self._handles[path]).st_size - offset))
        parts = []
        while size > 0 and (part := os.pread(self._handles[path], size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)


_LOCAL = _OpenFiles()
