"""What a scanner of a corpus yields: utterances that seem usable, and rejects with the reason.

A scanner reads folders and lists, never audio, and never raises for a bad entry: it yields a `Reject`. Only an
argument that is wrong as a whole (no such folder, no such column) is an AsrkitError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from asrkit.errors import AsrkitError

AUDIO_SUFFIXES = frozenset(
    (
        ".aif",
        ".aifc",
        ".aiff",
        ".au",
        ".caf",
        ".flac",
        ".mp3",
        ".nist",
        ".oga",
        ".ogg",
        ".opus",
        ".rf64",
        ".sph",
        ".w64",
    )
) | {".snd", ".wav", ".wave"}
"""File names that libsndfile is expected to read."""

FOREIGN_SUFFIXES = frozenset(
    (".3gp", ".aac", ".ac3", ".alac", ".amr", ".ape", ".m4a", ".mka", ".mkv", ".mov", ".mp4", ".webm", ".wma", ".wv")
)
"""Recordings that libsndfile does not read: listed as rejects, so that nobody wonders where they went."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """A stretch of one channel of one audio file, and what is known about it."""

    id: str
    """Unique within its set; no white space, since transcripts are written as ``ID TEXT`` lines."""
    path: str
    """The audio file, absolute or relative to the working directory."""
    start: float = 0.0
    """Where it begins, in seconds."""
    duration: float | None = None
    """Its length in seconds; None goes to the end of the file."""
    text: str | None = None
    """Its transcript as found; None where the corpus gives none, "" where it gives an empty one."""
    speaker: str | None = None
    """The speaker's name in the corpus."""
    language: str | None = None
    """The language's name in the corpus."""
    channel: int | None = None
    """The channel, counted from 0; None averages all of them."""
    source: str = ""
    """The part of the set that it came from, such as a fold or a table's name."""


@dataclass(frozen=True, slots=True)
class Reject:
    """An entry that cannot be used."""

    id: str
    path: str
    reason: str


def is_set_name(name: str) -> bool:
    """Whether a set may be called so: letters, digits, "_", "-", "+" and ".", but not "units", which is taken."""
    return re.fullmatch(r"\w[\w.+-]*", name) is not None and name != "units"


def is_evaluation(name: str) -> bool:
    """Whether a set of this name is for evaluation: dev… or test…; every other set is for training."""
    return name.lower().startswith(("dev", "test"))


def is_test(name: str) -> bool:
    """Whether a set of this name is for testing: nothing is chosen by it."""
    return name.lower().startswith("test")


def named_paths(arguments: Iterable[str | Path]) -> dict[str, Path]:
    """Return the set names of ``NAME=PATH`` or ``PATH`` arguments (then the name is the file's or folder's stem).

    Raises AsrkitError for a path that does not exist and for two arguments of one name.
    """
    named: dict[str, Path] = {}
    for argument in arguments:
        name, separator, rest = str(argument).partition("=")
        path = Path(argument)
        if separator and name and "/" not in name and not path.exists():
            path = Path(rest)
        else:
            resolved = path.resolve()
            name = resolved.name if resolved.is_dir() else resolved.name.split(".")[0]
        if not path.exists():
            raise AsrkitError("no such file or folder", where=path)
        if name in named:
            raise AsrkitError(f"two inputs would both be the set '{name}'", where=path, mend="name one as NAME=PATH")
        named[name] = path
    if not named:
        raise AsrkitError("nothing to prepare: no input was given")
    return named


def walk(folder: Path) -> Iterator[tuple[Path, list[str], str | None]]:
    """Yield (folder, sorted file names, None) of a tree in a fixed order; (folder, [], reason) of an unreadable one.

    Links to folders are followed, each real folder once; hidden files and folders are left out.
    """
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            yield here, [], f"unreadable folder: {error.strerror}"
            continue
        seen_here = [entry for entry in entries if not entry.name.startswith(".")]
        waiting += reversed([Path(entry.path) for entry in seen_here if _is_folder(entry)])
        yield here, [entry.name for entry in seen_here if not _is_folder(entry)], None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry leads to a folder; a link that leads in a circle leads to none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def lines_of(path: Path) -> Iterator[tuple[int, str | None]]:
    """Yield (line number, line) of a UTF-8 text file without blank lines; None for a line that is not UTF-8.

    Raises AsrkitError when the file cannot be read at all.
    """
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                try:
                    line = raw.decode()
                except UnicodeDecodeError:
                    yield number, None
                    continue
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise AsrkitError(f"cannot be read: {error.strerror}", where=path) from None


class Names:
    """Makes utterance ids out of file names: no white space, and each id once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def make(self, path: Path, tail: str = "") -> str:
        """Return an id for a relative ``path``: its parts joined by "-", the suffix only where needed, and ``tail``."""
        full = "_".join("-".join(path.parts).split()) or "audio"
        stem = full.removesuffix(path.suffix) or full
        name, count = stem + tail, 1
        while name in self._taken:
            name = full + tail if count == 1 else f"{full}{tail}-{count}"
            count += 1
        self._taken.add(name)
        return name
