"""What `asrkit transcribe` and `asrkit align` read: files, folders of them, standard input.

Shapes: S samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from asrkit.data.blocks import PipeFile, read_blocks
from asrkit.data.corpus import AUDIO_SUFFIXES, FOREIGN_SUFFIXES, walk
from asrkit.errors import AsrkitError
from asrkit.inference.transcribe import Source

STDIN = "-"
_SILENCE = 1e-4
"""Peaks at or below this (80 dB below full scale) are a converter's noise."""


def find_audio(paths: Iterable[Path]) -> Iterator[tuple[Path, AsrkitError | None]]:
    """Yield every recording among files and folders, folders searched to any depth, with a reason where there is none.

    In folders, files whose suffix is not a recording's are passed over.
    """
    for path in paths:
        if not path.is_dir():
            yield path, None
            continue
        found = False
        for folder, files, problem in walk(path):
            if problem:
                yield folder, AsrkitError(problem, where=folder)
            for file in (folder / name for name in files):
                suffix = file.suffix.lower()
                if suffix in AUDIO_SUFFIXES:
                    yield file, None
                elif suffix in FOREIGN_SUFFIXES:
                    yield file, AsrkitError("not a format that libsndfile reads", where=file, mend="convert it to flac")
                found = found or suffix in AUDIO_SUFFIXES | FOREIGN_SUFFIXES
        if not found:
            yield path, AsrkitError("holds no recordings", where=path)


def file_source(path: Path, sample_rate: int, *, raw: bool = False, name: str | None = None) -> Source:
    """Return a file as a source; see `speech` for what it raises when read."""
    name = str(path) if name is None else name
    return Source(name, partial(speech, path, sample_rate, raw=raw, name=name))


def failed_source(path: Path, error: AsrkitError) -> Source:
    """Return a source that raises what is known to be wrong with a path."""

    def fail() -> Iterator[np.ndarray]:
        raise error

    return Source(str(path), fail)


def speech(
    source: str | Path | PipeFile, sample_rate: int, *, raw: bool = False, name: object = None
) -> Iterator[np.ndarray]:
    """Yield a recording's blocks, float32 (S,).

    Raises:
        AsrkitError: as `read_blocks`, and in the end if there was nothing but silence.
    """
    peak = 0.0
    for block in read_blocks(source, sample_rate, raw=raw, name=name):
        peak = max(peak, float(np.abs(block).max()))
        yield block
    if peak <= _SILENCE:
        raise AsrkitError("the recording is silent", where=name if name is not None else source)
