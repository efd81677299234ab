"""Read a folder of transcribed speech, and cut dev and test sets of other speakers off it where there are none.

    python split.py LABELLED --output labelled.jsonl [--share 0.1] [--seed 1]

LABELLED holds tables (`*.tsv`, `*.csv`, `*.jsonl` with columns audio and text), Kaldi data (wav.scp and text, here or in
folders), or recordings with a text file of the same name beside each (`a/b.wav`, `a/b.txt`); there, folders are speakers. Sets
that are called dev… or test… stay as they are. The result is one table with a column `set`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from asrkit.data import kaldi, tables
from asrkit.data.corpus import AUDIO_SUFFIXES, FOREIGN_SUFFIXES, Reject, Utterance, is_evaluation
from asrkit.errors import AsrkitError
from asrkit.files import read_utf8, write_text

TABLES = (".tsv", ".csv", ".jsonl")
LARGEST = 0.25
"""A speaker with more than this share of the speech stays in training, as far as there are others."""


@dataclass(frozen=True)
class Found:
    """What a folder holds."""

    sets: dict[str, list[Utterance]]
    """Utterances by set; without sets all of them are `train`."""
    rejects: list[Reject]


def read(folder: Path) -> Found:
    """Return the transcribed utterances of a folder.

    Raises:
        AsrkitError: if there are none.
    """
    if not folder.is_dir():
        raise AsrkitError("no such folder", where=folder)
    listed = sorted(path for path in folder.iterdir() if path.suffix.lower() in TABLES)
    data = sorted(path.parent for path in (*folder.glob("wav.scp"), *folder.glob("*/wav.scp")))
    if listed:
        entries: Mapping[str, Iterable[Utterance | Reject]] = tables.scan(listed)
    elif data:
        entries = {name: rows for path in data for name, rows in kaldi.scan([path]).items()}
    else:
        entries = _pairs(folder)
    sets: dict[str, list[Utterance]] = {}
    rejects: list[Reject] = []
    for name, rows in entries.items():
        # One file or folder of a name of its own, such as corpus.tsv, is what there is to train on.
        chosen = name if is_evaluation(name) else "train"
        for row in rows:
            if isinstance(row, Utterance) and (row.text or "").strip():
                sets.setdefault(chosen, []).append(row)
            else:
                rejects.append(row if isinstance(row, Reject) else Reject(row.id, row.path, "no transcript"))
    if not sets.get("train"):
        reason = f"; the first of {len(rejects)} entries passed over: {rejects[0].reason}" if rejects else ""
        mend = "a table with columns audio and text, Kaldi data, or a .txt beside each recording"
        raise AsrkitError(f"no transcribed speech in here{reason}", where=folder, mend=mend)
    return Found(sets, rejects)


def _pairs(folder: Path) -> dict[str, list[Utterance | Reject]]:
    """Return recordings with the texts beside them; the folder that a recording lies in is its speaker."""
    sets: dict[str, list[Utterance | Reject]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES | FOREIGN_SUFFIXES):
        parts = path.relative_to(folder).parts
        name = parts[0] if len(parts) > 1 and parts[0].startswith(("train", "dev", "test")) else "train"
        inner = parts[1:] if name == parts[0] else parts
        label = "-".join("_".join(part.split()) for part in (*inner[:-1], path.stem))
        if path.suffix.lower() in FOREIGN_SUFFIXES:
            reason = f"{path.suffix} is not read: convert it to wav or flac"
            sets.setdefault(name, []).append(Reject(label, str(path), reason))
            continue
        beside = path.with_suffix(".txt")
        if not beside.exists():
            sets.setdefault(name, []).append(Reject(label, str(path), f"no text in {beside.name}"))
            continue
        try:
            text = " ".join(read_utf8(beside).split())
        except AsrkitError as error:
            sets.setdefault(name, []).append(Reject(label, str(path), str(error)))
            continue
        speaker = inner[-2] if len(inner) > 1 else None
        sets.setdefault(name, []).append(Utterance(label, str(path.resolve()), text=text, speaker=speaker))
    return sets


def split(
    utterances: Sequence[Utterance], wanted: Sequence[str], share: float, seed: int
) -> dict[str, list[Utterance]]:
    """Cut sets of other speakers off the utterances; the rest is `train`.

    Args:
        utterances: with speakers, or else each recording counts as one.
        wanted: the sets to cut off.
        share: of all seconds, for each of them.
        seed: of the choice of speakers.

    Returns:
        The sets, each with at least one speaker, none of whom is in another.

    Raises:
        AsrkitError: if there are too few speakers.
    """
    seconds = {utterance.id: _seconds(utterance) for utterance in utterances}
    spoken: dict[str, float] = {}
    for utterance in utterances:
        spoken[_speaker(utterance)] = spoken.get(_speaker(utterance), 0.0) + seconds[utterance.id]
    if len(spoken) <= len(wanted):
        what = f"{len(spoken)} speakers cannot be shared out among {len(wanted) + 1} sets"
        raise AsrkitError(what, mend="give dev and test sets of your own: tables or folders named dev and test")
    total = sum(spoken.values())
    shuffled = sorted(spoken, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    # Those who speak most come last: they are taken only where there is nobody else.
    order = sorted(shuffled, key=lambda name: spoken[name] > LARGEST * total)
    place: dict[str, str] = {}
    for name in wanted:
        taken = 0.0
        while taken < share * total or name not in place.values():
            left = [speaker for speaker in order if speaker not in place]
            others = [one for one in wanted if one != name and one not in place.values()]
            has_one = name in place.values()
            if has_one and (len(left) <= 1 + len(others) or spoken[left[0]] > LARGEST * total):
                break
            place[left[0]] = name
            taken += spoken[left[0]]
    sets: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        sets.setdefault(place.get(_speaker(utterance), "train"), []).append(utterance)
    return sets


def _speaker(utterance: Utterance) -> str:
    return utterance.speaker or utterance.path


def _seconds(utterance: Utterance) -> float:
    """Return an utterance's length; 1 where its file cannot be read, which `asrkit prepare` will tell."""
    if utterance.duration is not None:
        return max(utterance.duration, 0.0)
    try:
        return float(soundfile.info(utterance.path).duration)
    except (OSError, RuntimeError):
        return 1.0


def rows(sets: Mapping[str, Sequence[Utterance]]) -> Iterator[str]:
    """Return the lines of a table of utterances, with their sets."""
    for name in sorted(sets):
        for utterance in sets[name]:
            row = {
                "id": utterance.id,
                "audio": os.path.abspath(utterance.path),
                "text": utterance.text,
                "speaker": utterance.speaker,
                "start": utterance.start or None,
                "duration": utterance.duration,
                "channel": utterance.channel,
                "set": name,
            }
            kept = {key: value for key, value in row.items() if value is not None}
            yield json.dumps(kept, ensure_ascii=False) + "\n"


def _tell(rejects: Sequence[Reject]) -> None:
    for reject in rejects[:5]:
        print(f"   passed over: {reject.id}: {reject.reason}")
    if len(rejects) > 5:
        print(f"   passed over: {len(rejects) - 5} more")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, and say how the speech is shared out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labelled", type=Path, metavar="LABELLED")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.jsonl")
    parser.add_argument("--share", type=float, default=0.1, help="of the speech for dev, and for test (0.1)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of speakers (1)")
    options = parser.parse_args(arguments)
    try:
        found = read(options.labelled)
        _tell(found.rejects)
        wanted = [name for name in ("dev", "test") if not any(given.startswith(name) for given in found.sets)]
        sets = dict(found.sets)
        if wanted:
            sets |= split(found.sets["train"], wanted, options.share, options.seed)
        write_text(options.output, "".join(rows(sets)))
    except AsrkitError as error:
        print(f"split.py: {error}", file=sys.stderr)
        return 2
    if wanted and not all(utterance.speaker for utterance in found.sets["train"]):
        print("   not all speakers are known: recordings stand for them, so that sets may share speakers")
    for name in sorted(sets):
        minutes = sum(map(_seconds, sets[name])) / 60
        speakers = len({_speaker(utterance) for utterance in sets[name]})
        print(f"   {name}: {len(sets[name])} utterances, {speakers} speakers, {minutes:.1f} min")
    return 0


if __name__ == "__main__":
    sys.exit(main())
