"""Kaldi's data folders (Povey et al., "The Kaldi speech recognition toolkit", ASRU 2011)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from asrkit.data.corpus import Reject, Utterance, lines_of, named_paths
from asrkit.errors import AsrkitError


def scan(dirs: Sequence[str | Path]) -> dict[str, Iterator[Utterance | Reject]]:
    """Return a set for each ``PATH`` or ``NAME=PATH`` of a folder with ``wav.scp``.

    Read are ``segments``, ``text``, ``utt2spk`` and ``utt2lang`` where they exist; with a ``text`` the set is
    labelled. Relative audio paths start from the working directory, as in Kaldi, or else from the folder. Commands
    (lines that end with "|") are never run: they are rejects. Raises AsrkitError for a path that does not exist and
    for a folder without ``wav.scp``.
    """
    named = named_paths(dirs)
    for folder in named.values():
        if not (folder / "wav.scp").is_file():
            raise AsrkitError("no wav.scp in here", where=folder, mend="give Kaldi data folders")
    return {name: _scan(name, folder) for name, folder in named.items()}


def _scan(source: str, folder: Path) -> Iterator[Utterance | Reject]:
    rejects: list[Reject] = []
    audio = _read(folder / "wav.scp", rejects)
    segments = _read(folder / "segments", rejects)
    texts = _read(folder / "text", rejects)
    speakers = _read(folder / "utt2spk", rejects) or {}
    languages = _read(folder / "utt2lang", rejects) or {}
    yield from rejects
    stretches = segments if segments is not None else {name: f"{name} 0 -1" for name in audio or {}}
    for name, stretch in stretches.items():
        where = str(folder / ("wav.scp" if segments is None else "segments"))
        fields = stretch.split()
        try:
            recording, start, end = fields[0], float(fields[1]), float(fields[2])
            channel = int(fields[3]) if len(fields) > 3 else None
        except (IndexError, ValueError):
            what = "not a segment: utterance, recording, start and end are wanted, and a channel perhaps"
            yield Reject(name, where, what)
            continue
        place = (audio or {}).get(recording)
        if not place:
            yield Reject(name, where, f"recording {recording} is not in wav.scp")
        elif place.endswith("|"):
            yield Reject(name, where, "audio that a command makes: run it and list the files")
        elif texts is not None and name not in texts:
            yield Reject(name, where, "no transcript line of this id")
        else:
            # An end of -1 stands for the end of the recording.
            duration = None if end == -1 else end - start
            text = None if texts is None else texts[name]
            path = _resolve(place, folder)
            speaker, language = speakers.get(name), languages.get(name)
            yield Utterance(name, path, start, duration, text, speaker, language, channel, source)
    for name in texts or {}:
        if name not in stretches:
            yield Reject(name, str(folder / "text"), "a transcript line without audio")


def _read(path: Path, rejects: list[Reject]) -> dict[str, str] | None:
    """Return a file's lines, the first field to the rest, or None where there is no such file."""
    if not path.exists():
        return None
    lines: dict[str, str] = {}
    try:
        for number, line in lines_of(path):
            where = f"{path}:{number}"
            if line is None:
                rejects.append(Reject(path.name, where, "a line that is not UTF-8"))
                continue
            name, *rest = line.split(maxsplit=1)
            if name in lines:
                rejects.append(Reject(name, where, "a second line of this id; the first is used"))
            else:
                lines[name] = "".join(rest).strip()
    except AsrkitError as error:
        rejects.append(Reject(path.name, str(path), str(error)))
    return lines


def _resolve(place: str, folder: Path) -> str:
    return place if os.path.exists(place) else str(folder / place)
