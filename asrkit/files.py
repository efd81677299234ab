"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from asrkit.errors import AsrkitError

_PART = ".*.part"
log = logging.getLogger("asrkit")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it is flushed to disk and renamed, on failure removed.

    Raises:
        AsrkitError: if the operating system refuses: no room, no permission, no such folder.
    """
    # With room for what is added: names may have 255 bytes.
    short = path.name.encode()[:200].decode(errors="ignore")
    temporary = path.with_name(f".{short}.{os.getpid()}.part")
    try:
        _make_folder(path.parent)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise AsrkitError(f"cannot be written: {error.strerror or error}", where=path) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power failure, where the file system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_utf8(path: Path) -> str:
    """Return a file's text, without a byte order mark.

    Raises:
        AsrkitError: if the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise AsrkitError(f"not UTF-8 at byte {error.start}", where=path, mend="save the file as UTF-8") from None
    except OSError as error:
        raise AsrkitError(f"cannot be read: {error.strerror}", where=path) from None


def file_problem(path: str | Path) -> str | None:
    """Return why a path names no plain file with something in it, None where it does; a pipe would be waited for."""
    try:
        found = os.stat(path)
    except OSError as error:
        return "no such file" if isinstance(error, FileNotFoundError) else f"unreadable file: {error.strerror}"
    except ValueError:
        return "unreadable file: a name that no file can have"
    if not stat.S_ISREG(found.st_mode):
        return "not a plain file"
    if not os.access(path, os.R_OK):
        return "unreadable file: Permission denied"
    return "an empty file" if found.st_size == 0 else None


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed while they wrote left in a folder; nobody may be writing in it."""
    for path in folder.glob(_PART):
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_full(error: BaseException) -> bool:
    """Whether an error, or the one that it came from, says that there is no room on the disk."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Appender:
    """A file that grows at its end, and that a full disk neither stops nor tears: what has no room waits in memory."""

    def __init__(self, path: Path) -> None:
        """Open the file, made if absent, for writing at its end.

        Raises:
            AsrkitError: if it cannot be opened.
        """
        self.path = path
        self.waiting = b""
        """What is not in the file yet."""
        self._told: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open until it is closed
        except OSError as error:
            raise AsrkitError(f"cannot be written: {error.strerror or error}", where=path) from error

    def write(self, data: bytes) -> None:
        """Append, as far as there is room."""
        self.waiting += data
        self.flush()

    def flush(self) -> None:
        """Try again to write what waits."""
        try:
            while self.waiting:
                self.waiting = self.waiting[self._file.write(self.waiting) or 0 :]
        except OSError as error:
            if self._told != error.errno:
                log.warning("%s: cannot be written for now: %s", self.path, error.strerror or error)
            self._told = error.errno
        else:
            self._told = None

    def sync(self) -> None:
        """Have what was written survive a power failure."""
        self.flush()
        with suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write what waits, if there is room now, and close."""
        self.flush()
        self._file.close()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; raises as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def held_alone(folder: Path, patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold a folder (made if absent) against other processes that ask for it in this way, until the context ends.

    Args:
        folder: what is held.
        patience_seconds: how long it is asked for while another process holds it.

    Raises:
        AsrkitError: if another process holds it, or it cannot be made.
    """
    lock = folder / ".lock"
    try:
        _make_folder(folder)
        handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise AsrkitError(f"cannot be written: {error.strerror}", where=lock) from None
    try:
        with suppress(OSError):  # a file system without locks
            _lock(handle, folder, time.monotonic() + patience_seconds)
        yield
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        for one in (folder, *folder.parents):
            if os.path.isfile(one):
                raise AsrkitError("is a file, not a folder", where=one) from None
        raise


def _lock(handle: int, folder: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise AsrkitError("another process is at work in this folder", where=folder) from None
        time.sleep(1.0)
