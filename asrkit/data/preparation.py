"""One set: from what a scanner yields to a checked folder with manifest, index and rejects.

The order of a manifest is the scanner's order of files, whatever the number of processes.
"""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from lhotse import MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from asrkit.data.checking import Inspector
from asrkit.data.corpus import Reject, Utterance, is_evaluation
from asrkit.data.folders import building
from asrkit.data.index import CUTS, INDEX, INDEX_DTYPE, SET, write_index
from asrkit.data.inspect import FileReport, Job, Piece, Span
from asrkit.data.overlap import FINGERPRINT, Fingerprint
from asrkit.data.shards import SHARDS
from asrkit.errors import AsrkitError
from asrkit.randomness import utterance_key
from asrkit.text.normalise import TextConfig, normalise
from asrkit.text.units import BOUNDARY

REJECTS = "rejects.tsv"
FILES = (CUTS, INDEX, SET, REJECTS, FINGERPRINT, SHARDS)
"""Everything that a prepared set consists of."""


@dataclass
class SetSummary:
    """What a prepared set is: the contents of its ``set.json``."""

    name: str
    """The set's name, also its folder's."""
    corpus: str
    """The corpus that it belongs to; results of different corpora are never compared."""
    labelled: bool = False
    """Whether its utterances have transcripts."""
    utterances: int = 0
    """Usable utterances."""
    seconds: float = 0.0
    """Their audio."""
    speakers: int = 0
    """Different speakers among those that are known."""
    rejected: int = 0
    """Entries that cannot be used."""
    longest: float = 0.0
    """Seconds of the longest utterance."""
    sentences: int = 0
    """Different transcripts."""
    alphabet: str = ""
    """Every character of the transcripts but the space, in code-point order."""
    unknown: int = 0
    """Utterances of an evaluation set with characters that the training sets do not have; they are kept."""
    sources: list[str] = field(default_factory=list)
    """Where the utterances came from; the index gives each one's place in this list."""


@dataclass(frozen=True)
class TextRules:
    """What a transcript must be."""

    config: TextConfig
    alphabet: frozenset[str] | None
    """Characters that are known; None accepts all."""


@dataclass
class _Tally:
    """What is counted while a set is written."""

    rejects: list[Reject] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    sources: dict[str, int] = field(default_factory=dict)
    source: int = 0
    speakers: set[str] = field(default_factory=set)
    recordings: set[int] = field(default_factory=set)
    sentences: list[int] = field(default_factory=list)
    alphabet: set[str] = field(default_factory=set)
    samples: Counter[int] = field(default_factory=Counter)
    longest: float = 0.0
    unknown: int = 0


def _absolute(path: str) -> str:
    """Return a path from the root on; `..` leads out of where a link leads, not of where it stands."""
    if ".." in path.split(os.sep):
        folder, name = os.path.split(path)
        path = os.path.join(os.path.realpath(folder), name)
    return os.path.abspath(path)


def prepare_set(
    name: str,
    corpus: str,
    entries: Sequence[Utterance | Reject],
    folder: Path,
    inspector: Inspector,
    rules: TextRules,
    advance: Callable[[int], None] = lambda files: None,
) -> tuple[SetSummary, list[Reject]]:
    """Check a set's entries and write what is usable into ``folder``.

    With nothing usable only the rejects are written; a set that is there stays. A set is labelled as soon as one of its utterances
    has a transcript; those without are then rejects. ``advance`` is called with the number of entries that are done. In an
    evaluation set an utterance with unknown characters is kept, since leaving it out would flatter every result; in a
    training set it is a reject.
    """
    tally = _Tally()
    labelled = any(isinstance(entry, Utterance) and entry.text is not None for entry in entries)
    by_file: dict[str, list[tuple[Utterance, str | None]]] = {}
    for entry in entries:
        reason = entry.reason if isinstance(entry, Reject) else _check_names(entry)
        if reason is None and isinstance(entry, Utterance):
            text, reason = _check_text(entry.text, labelled, rules, name)
            if reason is None:
                by_file.setdefault(_absolute(entry.path), []).append((entry, text))
        if reason is not None:
            tally.rejects.append(Reject(entry.id, entry.path, reason))
            advance(1)
    jobs = [Job(path, tuple(_span(entry, labelled) for entry, _ in group)) for path, group in by_file.items()]
    reports = zip(by_file.items(), inspector.reports(jobs), strict=True)
    with building(folder) as partial:
        # Each cut is counted as it is drawn, so its source is the tally's latest.
        count = write_index(partial, _cuts(reports, rules, tally, advance), iter(lambda: tally.source, None))
        _write_rejects(partial / REJECTS, tally.rejects)
        seconds = sum(samples / rate for rate, samples in sorted(tally.samples.items()))
        summary = SetSummary(
            name=name,
            corpus=corpus,
            labelled=labelled,
            utterances=count,
            seconds=round(seconds, 3),
            speakers=len(tally.speakers),
            rejected=len(tally.rejects),
            longest=round(tally.longest, 3),
            sentences=len(set(tally.sentences)),
            alphabet="".join(sorted(tally.alphabet)),
            unknown=tally.unknown,
            sources=list(tally.sources),
        )
        if count == 0:
            (partial / CUTS).unlink()
            (partial / INDEX).unlink()
            if (folder / SET).is_file():
                # As links: a set may hold shards.
                others = shutil.ignore_patterns(REJECTS)
                shutil.copytree(folder, partial, ignore=others, copy_function=os.link, dirs_exist_ok=True)
        else:
            described = json.dumps(asdict(summary), ensure_ascii=False, indent=1)
            (partial / SET).write_text(described + "\n", encoding="utf-8")
            recordings = np.array(sorted(tally.recordings), dtype=np.uint64)
            sentences = np.array(tally.sentences, dtype=np.int64)
            Fingerprint(corpus, frozenset(tally.speakers), recordings, sentences).save(partial)
    return summary, tally.rejects


def _check_names(entry: Utterance) -> str | None:
    """Return what is wrong with an utterance's names, which end up in text files."""
    if not entry.id or entry.id.split() != [entry.id]:
        return "an id with white space, or none"
    if entry.id.startswith("/") or ".." in entry.id.split("/"):
        return "an id that leads out of a folder: files are named after it"
    for value in (entry.id, entry.path, entry.speaker or "", entry.language or "", entry.source):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            return "a name that is not UTF-8"
    return None


def _check_text(text: str | None, labelled: bool, rules: TextRules, name: str) -> tuple[str | None, str | None]:
    """Return the normalised transcript and None, or the reason why there is none."""
    if text is None:
        return None, "no transcript" if labelled else None
    broken = [character for character in text if _is_debris(character)]
    if broken and "\udc80" <= broken[0] <= "\udcff":
        return None, f"a transcript that is not UTF-8: it holds the byte 0x{ord(broken[0]) - 0xDC00:02X}"
    if broken:
        return None, f"a damaged transcript: it holds U+{ord(broken[0]):04X}"
    text = normalise(text, rules.config)
    if not text:
        return None, "an empty transcript"
    if BOUNDARY in text:
        return None, f"a transcript with '{BOUNDARY}', which stands for the word boundary"
    unknown = _unknown(text, rules)
    if unknown and not is_evaluation(name):
        return None, "unknown characters in the transcript: " + " ".join(unknown)
    return text, None


def _is_debris(character: str) -> bool:
    """Whether a character is what damage and wrong encodings leave behind, so that the word around it is not to be trusted.

    Line ends and their kin are white space. What is not UTF-8 comes as lone surrogates.
    """
    kind = unicodedata.category(character)
    return kind == "Cs" or (kind == "Cc" and not character.isspace()) or character in "\ufffd\ufffe\uffff"


def _unknown(text: str, rules: TextRules) -> list[str]:
    return sorted(set(text) - rules.alphabet - {" "}) if rules.alphabet is not None else []


def _span(entry: Utterance, labelled: bool) -> Span:
    return Span(entry.start, entry.duration, entry.channel, cut=not labelled)


def _cuts(
    reports: Iterable[tuple[tuple[str, Sequence[tuple[Utterance, str | None]]], FileReport]],
    rules: TextRules,
    tally: _Tally,
    advance: Callable[[int], None],
) -> Iterator[MonoCut | MultiCut]:
    """Yield the cuts of what is usable, and enter everything into the tally."""
    for (path, group), report in reports:
        for place, (entry, text) in enumerate(group):
            pieces = (Piece(0, 0, report.reason),) if report.reason else report.pieces[place]
            for piece in pieces:
                utterance = entry.id
                if len(pieces) > 1:
                    ends = (piece.start, piece.start + piece.samples)
                    first, last = (1000 * end // report.sample_rate for end in ends)
                    utterance = f"{entry.id}-{first:07d}-{last:07d}"
                reason = piece.reason or ("a second utterance of this id" if utterance in tally.ids else None)
                if reason:
                    tally.rejects.append(Reject(utterance, path, reason))
                    continue
                _count(tally, utterance, entry, text, piece, report)
                tally.unknown += bool(text and _unknown(text, rules))
                yield _cut(utterance, path, entry, text, piece, report)
        advance(len(group))


def _count(tally: _Tally, utterance: str, entry: Utterance, text: str | None, piece: Piece, report: FileReport) -> None:
    tally.ids.add(utterance)
    tally.recordings.add(report.digest)
    tally.source = tally.sources.setdefault(entry.source, len(tally.sources))
    if tally.source > np.iinfo(INDEX_DTYPE["source"]).max:
        raise AsrkitError(f"a set of more than {tally.source} sources", mend="prepare it as several sets")
    tally.samples[report.sample_rate] += piece.samples
    tally.longest = max(tally.longest, piece.samples / report.sample_rate)
    if entry.speaker is not None:
        tally.speakers.add(entry.speaker)
    if text is not None:
        tally.sentences.append(utterance_key(text))
        tally.alphabet.update(text.replace(" ", ""))


def _cut(
    utterance: str, path: str, entry: Utterance, text: str | None, piece: Piece, report: FileReport
) -> MonoCut | MultiCut:
    """Return lhotse's description of a piece of a file: one channel, or all of them to be averaged."""
    rate = report.sample_rate
    channels = list(range(report.channels))
    whole = piece.samples == report.samples
    recording = Recording(
        id=utterance if whole else f"{Path(path).stem}-{report.digest:016x}",
        sources=[AudioSource("file", channels, path)],
        sampling_rate=rate,
        num_samples=report.samples,
        duration=report.samples / rate,
    )
    channel = channels if entry.channel is None and report.channels > 1 else entry.channel or 0
    start, duration = piece.start / rate, piece.samples / rate
    known = (text, entry.speaker, entry.language) != (None, None, None)
    supervision = SupervisionSegment(
        id=utterance,
        recording_id=recording.id,
        start=0.0,
        duration=duration,
        channel=channel,
        text=text,
        speaker=entry.speaker,
        language=entry.language,
    )
    kind = MultiCut if isinstance(channel, list) else MonoCut
    return kind(
        id=utterance,
        start=start,
        duration=duration,
        channel=channel,
        supervisions=[supervision] if known else [],
        recording=recording,
    )


def _write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    """Write the rejects, a line each, tabs and line ends in names escaped."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write("id\tpath\treason\n")
        for reject in rejects:
            fields = (reject.id, reject.path, reject.reason)
            escaped = (value.translate(_ESCAPES) for value in fields)
            file.write("\t".join(escaped) + "\n")


_ESCAPES = {ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}
