"""Folders of untranscribed recordings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from asrkit.data.corpus import AUDIO_SUFFIXES, FOREIGN_SUFFIXES, Names, Reject, Utterance, named_paths, walk


def scan(dirs: Sequence[str | Path]) -> dict[str, Iterator[Utterance | Reject]]:
    """Return a set for each ``PATH`` or ``NAME=PATH``, a folder that is searched for audio, or a single file.

    Any audio that libsndfile reads is taken; other recordings (m4a, mp4, …) are rejects, and everything else is
    passed over. Ids are made of the files' places in the folder. Raises AsrkitError for a path that does not exist.
    """
    return {name: _scan(name, path) for name, path in named_paths(dirs).items()}


def _scan(source: str, top: Path) -> Iterator[Utterance | Reject]:
    names = Names()
    if not top.is_dir():
        yield Utterance(names.make(Path(top.name)), str(top), source=source)
        return
    for folder, files, problem in walk(top):
        if problem:
            yield Reject(folder.name, str(folder), problem)
        for file in files:
            path = folder / file
            suffix = path.suffix.lower()
            if suffix in AUDIO_SUFFIXES:
                yield Utterance(names.make(path.relative_to(top)), str(path), source=source)
            elif suffix in FOREIGN_SUFFIXES:
                mend = "not a format that libsndfile reads: convert it to flac or wav"
                yield Reject(names.make(path.relative_to(top)), str(path), mend)
