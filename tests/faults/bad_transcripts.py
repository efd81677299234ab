"""Transcripts that are missing, empty, damaged or in another encoding, in LibriSpeech's layout and in tables."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from bad_audio import sound
from faults import Case, Random, flip

from asrkit.data import prepare as commands
from asrkit.data.index import SetIndex
from asrkit.data.prepare import PrepareConfig
from asrkit.text.units import Units

GOOD = 3
ONE = PrepareConfig(workers=1)

TEXTS = (
    "", " ", "\t", "\u3000", "\u200b\u200b", "...", "?!", "''", "|", "A|B", "HE\x00LLO", "\x1b[31mRED\x1b[0m", "BE\x07LL",
    "DEL\x7fETE",
    "A\x08B", "\x80\x9f", "HE\ufffdLLO", "\ufffe", "\uffff", "LONE \udc80", "\ud800", "\u202eDERAEHS", "A\u2028B", "FULL\ufeff",
    "A" * 20_000, "WORD " * 3000, "1234", "e\u0301" * 50, "\u0301", "𝕬", "👍🏽", "\u1100\u1161", "ß", "ﬁ", "ſ", "İ", "\xa0",
    "A\x0bB", "A\x85B",
)  # fmt: skip
"""Transcripts of one utterance."""

SURE = {
    "",
    " ",
    "\t",
    "\u3000",
    "\u200b\u200b",
    "...",
    "?!",
    "''",
    "|",
    "HE\x00LLO",
    "\x1b[31mRED\x1b[0m",
    "BE\x07LL",
    "HE\ufffdLLO",
}
SURE |= {"DEL\x7fETE", "A\x08B", "\x80\x9f", "\ufffe", "\uffff", "LONE \udc80", "\ud800", "\xa0"}
"""Those that nobody can have spoken, or whose damage shows."""


def _clean(folder: Path, good: set[str]) -> dict[str, str]:
    """Return the set's transcripts; assert that the good ones are as they were and all are fit to learn from."""
    index = SetIndex.open(folder / "train")
    texts = {str(record["id"]): str(record["supervisions"][0]["text"]) for record in index.records()}
    assert good <= set(texts), f"good utterances are lost: {sorted(good - set(texts))}"
    assert {texts[name] for name in good} == {"GOOD WORDS"}
    for text in texts.values():
        assert text
        assert text == " ".join(text.split())
        assert not {unicodedata.category(c) for c in text} & {"Cc", "Cs"}, f"a text that nobody speaks: {text!r}"
    for symbol in Units.load(folder / "units").symbols:
        assert symbol.isprintable() or unicodedata.category(symbol) in ("Cf", "Mn"), (
            f"a unit that nobody speaks: {symbol!r}"
        )
    return texts


def _cell(home: Path, text: str, suffix: str) -> None:
    """One utterance of a table with an odd transcript."""
    (home / "a.flac").write_bytes(sound("flac"))
    rows = [("bad", text), *((f"good-{number}", "good words") for number in range(GOOD))]
    if suffix == "jsonl":
        lines = [json.dumps({"id": name, "audio": "a.flac", "text": words}) for name, words in rows]
    else:
        plain = {9: " ", 10: " ", 13: " ", 0x2028: " "}
        lines = ["id\taudio\ttext", *(f"{name}\ta.flac\t{words.translate(plain)}" for name, words in rows)]
    (home / f"train.{suffix}").write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    commands.prepare_table([home / f"train.{suffix}"], home / "out", ONE)
    texts = _clean(home / "out", {f"good-{number}" for number in range(GOOD)})
    if text in SURE:
        assert "bad" not in texts, f"accepted as {texts['bad']!r}"
    _listed(home / "out/train", GOOD + 1 - len(texts))


def _listed(folder: Path, count: int) -> None:
    lines = (folder / "rejects.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(lines) >= count, f"{count} are left out, {len(lines)} are listed"
    assert all(line.rpartition("\t")[2] for line in lines), "a reject without a reason"


def _file(home: Path, kind: int, seed: int) -> None:
    """A damaged transcript file of one chapter beside a good chapter."""
    random = np.random.default_rng(seed)
    for chapter in (1, 2):
        folder = home / f"corpus/LibriSpeech/train/{chapter}/1"
        folder.mkdir(parents=True)
        for number in range(GOOD):
            (folder / f"{chapter}-1-{number}.flac").write_bytes(sound("flac", number))
        lines = [f"{chapter}-1-{number} good words" for number in range(GOOD)]
        (folder / f"{chapter}-1.trans.txt").write_text("\n".join(lines) + "\n")
    path = home / "corpus/LibriSpeech/train/2/1/2-1.trans.txt"
    good = path.read_bytes()
    content: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: good.decode().encode("utf-16"),
        lambda: good.decode().encode("utf-32"),
        lambda: good.replace(b"words", b"w\xf6rds"),
        lambda: flip(good, random, 3),
        lambda: good[: int(random.integers(len(good)))],
        lambda: good.replace(b"\n", b"\r"),
        lambda: good.replace(b" ", b""),
        lambda: good.replace(b"good words", b""),
        lambda: bytes(random.integers(0, 256, 500, dtype=np.uint8)),
        lambda: b"\x00" * 4096,
        lambda: good.replace(b"2-1-", b"3-1-"),
        lambda: good + good,
        lambda: b"x" * 1_000_000,
    ]
    if kind == len(content):
        path.unlink()
    elif kind == len(content) + 1:
        path.unlink()
        path.mkdir()
    elif kind == len(content) + 2:
        path.unlink()
        path.symlink_to(path.name)
    else:
        path.write_bytes(content[kind]())
    commands.prepare_librispeech(home / "corpus", home / "out", config=ONE)
    kept = [number for number in range(GOOD) if f"2-1-{number} good words".encode() in path_lines(path)]
    good_ids = {f"1-1-{number}" for number in range(GOOD)} | {f"2-1-{number}" for number in kept}
    texts = _clean(home / "out", good_ids)
    _listed(home / "out/train", 2 * GOOD - len(texts))


def path_lines(path: Path) -> list[bytes]:
    """Return the whole lines of a file that there may not be."""
    return path.read_bytes().split(b"\n") if path.is_file() else []


def cases(count: int, random: Random) -> Iterator[Case]:
    """Yield odd transcripts."""
    for number in range(count):
        seed = int(random.integers(1 << 30))
        if number % 3 < 2:
            text, suffix = TEXTS[number // 3 % len(TEXTS)], ("tsv", "jsonl")[number % 3]
            yield Case(f"{suffix} {text[:20]!r}", lambda home, t=text, s=suffix: _cell(home, t, s))
        else:
            kind = number // 3 % 17
            yield Case(f"file-{kind}", lambda home, k=kind, s=seed: _file(home, k, s))
