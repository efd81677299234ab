"""LibriSpeech's layout (Panayotov et al., "LibriSpeech: an ASR corpus based on public domain audio books", 2015).

``LibriSpeech/SET/SPEAKER/CHAPTER/`` holds ``SPEAKER-CHAPTER-NUMBER.flac`` files and one ``SPEAKER-CHAPTER.trans.txt``
with a line ``ID TEXT`` each. The label-limited folds (Kahn et al., "Libri-light: a benchmark for ASR with limited or
no supervision", ICASSP 2020, section 3.2) are ``librispeech_finetuning/{1h/0..5,9h}/{clean,other}/SPEAKER/CHAPTER/``
with the same files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from asrkit.data.corpus import AUDIO_SUFFIXES, Reject, Utterance, lines_of, walk
from asrkit.errors import AsrkitError

UTTERANCES = {
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}
"""How many utterances the published sets have."""

_PREFIXES = ("train", "dev", "test")


def scan(corpus_dir: Path, limited_dir: Path | None = None) -> dict[str, Iterator[Utterance | Reject]]:
    """Return the sets found below ``corpus_dir``, each an iterator over its utterances and rejects.

    ``corpus_dir`` holds ``LibriSpeech/``, and optionally ``librispeech_finetuning/``, or is ``LibriSpeech/`` itself.
    ``limited_dir`` is the folder of the label-limited folds, wherever it is; they become the sets ``10min`` (the
    first fold of 1h), ``1h``, ``9h`` and ``10h`` (1h and 9h). Raises AsrkitError when no set is there.
    """
    if not corpus_dir.is_dir():
        mend = "--corpus-dir is the folder that holds LibriSpeech/"
        raise AsrkitError("no such folder", where=corpus_dir, mend=mend)
    home = corpus_dir / "LibriSpeech" if (corpus_dir / "LibriSpeech").is_dir() else corpus_dir
    folders = sorted(p for p in home.iterdir() if p.is_dir() and p.name.split("-")[0] in _PREFIXES)
    if not folders:
        mend = "--corpus-dir is the folder that holds LibriSpeech/train-clean-100 and so on"
        raise AsrkitError("no folder train-*, dev-* or test-* in here", where=home, mend=mend)
    sets = {folder.name: _scan_folders([(folder.name, folder)]) for folder in folders}
    limited = limited_dir or home.parent / "librispeech_finetuning"
    if limited.is_dir():
        sets |= _limited(limited)
    elif limited_dir is not None:
        raise AsrkitError("no such folder", where=limited_dir, mend="--limited-dir is librispeech_finetuning/")
    return sets


def _limited(folder: Path) -> dict[str, Iterator[Utterance | Reject]]:
    """Return the label-limited sets that are complete in ``folder``."""
    hour = [(f"1h/{p.name}", p) for p in sorted(folder.glob("1h/*")) if p.is_dir()]
    rest = [("9h", folder / "9h")] if (folder / "9h").is_dir() else []
    parts = {"10min": [part for part in hour if part[0] == "1h/0"], "1h": hour, "9h": rest}
    if hour and rest:
        parts["10h"] = hour + rest
    found = {name: _scan_folders(folders) for name, folders in parts.items() if folders}
    if not found:
        raise AsrkitError("neither 1h/ nor 9h/ in here", where=folder, mend="--limited-dir is librispeech_finetuning/")
    return found


def _scan_folders(folders: list[tuple[str, Path]]) -> Iterator[Utterance | Reject]:
    for source, top in folders:
        for folder, files, problem in walk(top):
            if problem:
                yield Reject(folder.name, str(folder), problem)
            yield from _scan_chapter(folder, files, source)


def _scan_chapter(folder: Path, files: list[str], source: str) -> Iterator[Utterance | Reject]:
    """Pair a chapter's audio files with the lines of its transcript files."""
    texts: dict[str, tuple[str, str]] = {}
    for name in files:
        if name.endswith(".trans.txt"):
            yield from _read_transcripts(folder / name, texts)
    for name in files:
        path = folder / name
        if path.suffix.lower() not in AUDIO_SUFFIXES:
            continue
        text = texts.pop(path.stem, None)
        if text is None:
            yield Reject(path.stem, str(path), "no transcript line of this id")
        else:
            yield Utterance(path.stem, str(path), text=text[0], speaker=folder.parent.name, source=source)
    for utterance, (_, where) in texts.items():
        yield Reject(utterance, where, "a transcript line without an audio file")


def _read_transcripts(path: Path, texts: dict[str, tuple[str, str]]) -> Iterator[Reject]:
    """Add the lines of one transcript file to ``texts``, id to (text, where), and yield what is wrong with it."""
    try:
        for number, line in lines_of(path):
            where = f"{path}:{number}"
            if line is None:
                yield Reject(path.name, where, "a transcript line that is not UTF-8")
                continue
            name, *rest = line.split(maxsplit=1)
            if name in texts:
                yield Reject(name, where, "a second transcript line of this id; the first is used")
            else:
                texts[name] = ("".join(rest), where)
    except AsrkitError as error:
        yield Reject(path.name, str(path), str(error))


def corpus_name(corpus_dir: Path, counts: Mapping[str, int]) -> str:
    """Return "librispeech" when every set has as many utterances as the published one, otherwise the folder's name.

    Other corpora come in this layout, with sets of the same names: a result on theirs is not a result on
    LibriSpeech's.
    """
    known = {name: count for name, count in counts.items() if name in UTTERANCES}
    if known and all(UTTERANCES[name] == count for name, count in known.items()):
        return "librispeech"
    folder = corpus_dir.resolve()
    return (folder.parent if folder.name == "LibriSpeech" else folder).name or "unnamed"
