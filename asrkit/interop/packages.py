"""Other people's packages and the network: found when they are needed, and one line when they are not there."""

from __future__ import annotations

import ctypes
import importlib
import socket
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import soundfile

from asrkit.errors import AsrkitError

PATIENCE = 20.0
"""Seconds that a server may be silent."""


def optional(name: str, extra: str, purpose: str) -> Any:
    """Import a package that an extra brings.

    Raises:
        AsrkitError: with the command that installs it.
    """
    try:
        if name.partition(".")[0] == "fairseq2":
            _load_sound_library()
        return importlib.import_module(name)
    except ImportError as error:
        top = name.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == top
        what = f"{purpose} needs {top}" if missing else f"{top} cannot be imported ({error})"
        raise AsrkitError(what, mend=f'pip install "asrkit[{extra}]"') from None


def _load_sound_library() -> None:
    """Load libsndfile, which fairseq2's native library wants and the soundfile wheel carries."""
    for library in (Path(soundfile.__file__).parent / "_soundfile_data").glob("libsndfile*.so*"):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


@contextmanager
def downloading(what: str, mend: str) -> Iterator[None]:
    """Turn a silent or absent network into one line, within `PATIENCE`.

    Raises:
        AsrkitError: naming ``what`` could not be fetched.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    except (TimeoutError, ConnectionError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise AsrkitError(f"cannot be downloaded: {reason}", where=what, mend=mend) from None
    finally:
        socket.setdefaulttimeout(before)
