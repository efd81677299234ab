"""A prepared set on disk: a manifest of cuts, one per line, and a memory-mapped index of it.

A set is a folder with ``cuts.jsonl`` (lhotse's MonoCut as JSON, one per line; a MultiCut where the channels of a
recording are to be averaged), ``index.npy`` (a numpy structured array, a row per line) and ``set.json`` (what the set
is). Training plans an epoch from the index alone and reads a line of the manifest only when its audio is due, so that
ten million utterances cost no memory and opening a set costs no time.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import MonoCut, MultiCut

from asrkit.data.remote import check_location
from asrkit.data.shards import locate
from asrkit.errors import AsrkitError
from asrkit.randomness import utterance_key

CUTS = "cuts.jsonl"
INDEX = "index.npy"
SET = "set.json"
_BLOCK_ROWS = 1 << 16
_MOST_SECONDS = 1e6

INDEX_DTYPE = np.dtype([("offset", "<i8"), ("duration", "<f4"), ("key", "<i8"), ("source", "<i2"), ("units", "<i4")])
"""A row of the index: byte offset of the cut's line, seconds, `randomness.utterance_key` of the id, place in the
set's list of sources, and characters of the transcript (-1 where there is none)."""


def write_index(set_dir: Path, cuts: Iterable[MonoCut | MultiCut], sources: Iterable[int] | None = None) -> int:
    """Write the manifest and the index of ``cuts`` into ``set_dir`` and return how many there were.

    ``sources`` gives each cut's place in the set's list of sources (all 0 when left out). The index is written last,
    and the caller is expected to build a set in a temporary folder, so that no half-written set is ever seen.
    """
    blocks: list[np.ndarray] = []
    rows: list[tuple[int, float, int, int, int]] = []
    offset = 0
    with open(set_dir / CUTS, "wb") as manifest:
        for cut, source in zip(cuts, sources if sources is not None else repeat(0), strict=False):
            record = cut.to_dict()
            line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
            manifest.write(line)
            text = record_text(record)
            units = -1 if text is None else len(text)
            rows.append((offset, cut.duration, utterance_key(cut.id), source, units))
            offset += len(line)
            if len(rows) == _BLOCK_ROWS:
                blocks.append(np.array(rows, dtype=INDEX_DTYPE))
                rows.clear()
    index = np.concatenate([*blocks, np.array(rows, dtype=INDEX_DTYPE)])
    np.save(set_dir / INDEX, index)
    return len(index)


def record_text(record: dict[str, Any]) -> str | None:
    """Return the transcript of a cut's JSON record, or None where there is none."""
    supervisions = record.get("supervisions")
    return supervisions[0].get("text") if supervisions else None


class SetIndex:
    """A prepared set, memory-mapped: opening it reads nothing but a few headers.

    Safe to hand to forked and to spawned worker processes (pickling it sends the folder's name). Never empty.
    """

    def __init__(self, set_dir: Path, rows: np.ndarray, manifest: mmap.mmap, info: dict[str, Any]) -> None:
        self.dir = set_dir
        self.rows = rows
        self.info = info
        self._manifest = manifest

    @classmethod
    def open(cls, set_dir: str | Path) -> SetIndex:
        """Map the set in ``set_dir``; raises AsrkitError when it is not a prepared set, or a damaged one."""
        index = cls._map(set_dir)
        for first in range(0, len(index), _BLOCK_ROWS):
            durations = index.durations[first : first + _BLOCK_ROWS]
            if not ((durations > 0) & (durations < _MOST_SECONDS)).all():
                what = "a damaged set: durations that no utterance has"
                raise AsrkitError(what, where=index.dir / INDEX, mend="run `asrkit prepare` again")
        return index

    @classmethod
    def _map(cls, set_dir: str | Path) -> SetIndex:
        folder = Path(set_dir)
        mend = "run `asrkit prepare` again"
        for name in (CUTS, INDEX, SET):
            if not (folder / name).is_file():
                raise AsrkitError(f"not a prepared set: {name} is missing", where=folder, mend="see `asrkit prepare`")
        try:
            rows = np.load(folder / INDEX, mmap_mode="r", allow_pickle=False)
            info = json.loads((folder / SET).read_text(encoding="utf-8"))
            with open(folder / CUTS, "rb") as file:
                manifest = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except Exception as error:  # numpy raises whatever a damaged header leads to
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise AsrkitError(f"a damaged set: {reason}", where=folder, mend=mend) from None
        if rows.dtype != INDEX_DTYPE or rows.ndim != 1 or len(rows) == 0 or not isinstance(info, dict):
            raise AsrkitError("the index has another format than this version's", where=folder / INDEX, mend=mend)
        if not 0 <= int(rows["offset"][-1]) < len(manifest):
            raise AsrkitError("the index and the manifest are of different runs", where=folder, mend=mend)
        if info.get("shards"):
            check_location(str(info["shards"]))
        return cls(folder, rows, manifest, info)

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return (SetIndex._map, (self.dir,))

    @property
    def name(self) -> str:
        """The set's name, such as ``train-clean-100``."""
        return str(self.info.get("name", self.dir.name))

    @property
    def labelled(self) -> bool:
        """Whether the set has transcripts."""
        return bool(self.info.get("labelled", False))

    @property
    def durations(self) -> np.ndarray:
        """Seconds per utterance, float32 of shape (len,)."""
        return self.rows["duration"]

    @property
    def keys(self) -> np.ndarray:
        """`randomness.utterance_key` of every id, int64 of shape (len,)."""
        return self.rows["key"]

    @property
    def units(self) -> np.ndarray:
        """Characters per transcript, int32 of shape (len,); -1 where there is none."""
        return self.rows["units"]

    def read_record(self, row: int) -> dict[str, Any]:
        """Return the JSON record of utterance ``row``: cheaper than a cut where only ids or texts are wanted."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a set of {len(self)} utterances")
        wanted = self.rows[row]
        offset = int(wanted["offset"])
        end = self._manifest.find(b"\n", offset) if 0 <= offset < len(self._manifest) else -1
        mend = "run `asrkit prepare` again"
        try:
            record = json.loads(self._manifest[offset : end if end >= 0 else len(self._manifest)])
            text = record_text(record)
            found = (utterance_key(record["id"]), np.float32(record["duration"]), -1 if text is None else len(text))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
            raise AsrkitError(f"a damaged line at byte {offset}", where=self.dir / CUTS, mend=mend) from None
        if found != (wanted["key"], wanted["duration"], wanted["units"]):
            what = f"the line at byte {offset} is not the utterance of the index"
            raise AsrkitError(what, where=self.dir / CUTS, mend=mend)
        return record

    def read_cut(self, row: int) -> MonoCut | MultiCut:
        """Return utterance ``row`` as a lhotse cut."""
        record = self.read_record(row)
        try:
            cut = (MultiCut if record.get("type") == "MultiCut" else MonoCut).from_dict(record)
            for source in cut.recording.sources:
                if source.type == "shar":
                    source.source = locate(self.dir, source.source)
            return cut
        except Exception as error:  # lhotse raises whatever a wrong field leads to
            what = f"a damaged line: {type(error).__name__} {error}"
            raise AsrkitError(what, where=record["id"], mend="run `asrkit prepare` again") from None

    def records(self) -> Iterator[dict[str, Any]]:
        """Return the JSON records of the whole set, in the manifest's order."""
        return (self.read_record(row) for row in range(len(self)))
