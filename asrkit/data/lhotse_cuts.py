"""Lhotse's cut manifests (JSON lines, plain or gzipped), read without trust: a bad line is a reject."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lhotse import MonoCut

from asrkit.data.corpus import Reject, Utterance, named_paths


def scan(cuts: Sequence[str | Path]) -> dict[str, Iterator[Utterance | Reject]]:
    """Return a set for each ``PATH`` or ``NAME=PATH`` of a ``.jsonl`` or ``.jsonl.gz`` file of MonoCuts.

    A cut with several supervisions becomes an utterance for each. Audio is referred to, never copied: what is not a
    plain file (commands, arrays, mixes, signals that lhotse changes as it reads them) is a reject. Raises AsrkitError
    for a path that does not exist.
    """
    return {name: _scan(name, path) for name, path in named_paths(cuts).items()}


def _scan(source: str, path: Path) -> Iterator[Utterance | Reject]:
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield from _read_cut(line, source, f"{path}:{number}")
    except (OSError, EOFError, zlib.error) as error:
        yield Reject(path.name, f"{path}:{number + 1}", f"cannot be read: {error}")


def _read_cut(line: bytes, source: str, where: str) -> Iterator[Utterance | Reject]:
    name = where.rpartition("/")[2]
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or record.get("type", "MonoCut") != "MonoCut":
            kind = record.get("type") if isinstance(record, dict) else type(record).__name__
            yield Reject(name, where, f"a {kind}, not a MonoCut")
            return
        name = str(record.get("id", name))
        yield from _utterances(MonoCut.from_dict(record), source, where)
    except Exception as error:
        # lhotse raises whatever a wrong field leads to.
        yield Reject(name, where, f"not a cut: {type(error).__name__} {' '.join(str(error).split())}")


def _utterances(cut: Any, source: str, where: str) -> Iterator[Utterance | Reject]:
    recording = cut.recording
    if recording is None:
        yield Reject(cut.id, where, "a cut without a recording")
        return
    files = [part for part in recording.sources if cut.channel in part.channels]
    if len(files) != 1 or files[0].type != "file" or recording.transforms:
        yield Reject(cut.id, where, "a recording that is not a plain audio file")
        return
    channel = sorted(files[0].channels).index(cut.channel)
    path = str(files[0].source)
    if not cut.supervisions:
        yield Utterance(str(cut.id), path, float(cut.start), float(cut.duration), channel=channel, source=source)
    for supervision in cut.supervisions:
        if not (supervision.text is None or isinstance(supervision.text, str)):
            yield Reject(str(cut.id), where, "a transcript that is not text")
            continue
        several = len(cut.supervisions) > 1
        # A lone supervision's ends may lie beside the cut's: the cut is what was meant.
        yield Utterance(
            str(supervision.id if several else cut.id),
            path,
            float(cut.start + supervision.start if several else cut.start),
            float(supervision.duration if several else cut.duration),
            text=supervision.text,
            speaker=None if supervision.speaker is None else str(supervision.speaker),
            language=None if supervision.language is None else str(supervision.language),
            channel=channel,
            source=source,
        )
