"""Lists of utterances with bad lines among good ones, and prepared sets whose files are damaged."""

from __future__ import annotations

import functools
import io
import json
import logging
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bad_audio import sound
from faults import Case, Lines, Random, cut_off, flip, one_line

from asrkit.data import prepare as commands
from asrkit.data.batch import Batch
from asrkit.data.config import DataConfig, StreamConfig
from asrkit.data.index import INDEX_DTYPE, SetIndex
from asrkit.data.prepare import PrepareConfig
from asrkit.data.stream import Stream
from asrkit.errors import AsrkitError

GOOD = 4
ONE = PrepareConfig(workers=1)

WILD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 10**30, -0.5, 1e308, float("nan"), float("inf"), "", " ", "x", "nan", "1e999", "-3", [],
    [1], {}, {"a": 1}, "a\tb", "a\nb", "\x00", "\ufeff", "../..", "x" * 5000, "\udc80",
)  # fmt: skip
"""Values that hardly any field is meant to have."""


def _audio(home: Path) -> None:
    for number in range(GOOD):
        (home / f"{number}.flac").write_bytes(sound("flac", number))


def _check(home: Path, run: Callable[[], Any], good: set[str]) -> None:
    """Prepare, and find all good utterances in the set, with their own words."""
    run()
    index = SetIndex.open(home / "out/train")
    texts = {str(record["id"]): record["supervisions"][0]["text"] for record in index.records()}
    assert good <= set(texts), f"good utterances are lost: {sorted(good - set(texts))}"
    for name in good:
        assert texts[name] == f"GOOD {name[-1]}".replace(name[-1], "ABCD"[int(name[-1])]), (
            f"another text: {texts[name]}"
        )
    assert (index.durations > 0.09).all()
    assert (index.durations < 36).all()
    for name, text in texts.items():
        assert name.split() == [name]
        assert text.strip()
        assert text.isprintable(), f"a text that nobody speaks: {text!r}"


def _refused(run: Callable[[], Any]) -> None:
    """Run what must end in one line, or in sets and lists of rejects."""
    try:
        run()
    except AsrkitError as error:
        one_line(str(error))


# Tables


def _good_rows(home: Path) -> list[dict[str, Any]]:
    return [{"id": f"good-{n}", "audio": str(home / f"{n}.flac"), "text": f"good {'abcd'[n]}"} for n in range(GOOD)]


COLUMNS = ("audio", "text", "id", "speaker", "language", "start", "duration", "channel", "set")


def _table(home: Path, suffix: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    _audio(home)
    rows = _good_rows(home)
    lines = [_spell(row, suffix) for row in rows]
    for _ in range(int(random.integers(1, 4))):
        place = int(random.integers(len(lines) + 1))
        lines.insert(place, _bad_line(rows[int(random.integers(GOOD))], suffix, random))
    header = (
        []
        if suffix == "jsonl"
        else [("," if suffix == "csv" else "\t").join(("id", "audio", "text", *COLUMNS[3:8])).encode()]
    )
    path = home / f"train.{suffix}"
    ends = b"\r\n" if random.random() < 0.2 else b"\n"
    mark = b"\xef\xbb\xbf" if random.random() < 0.2 else b""
    path.write_bytes(mark + ends.join([*header, *lines]) + (ends if random.random() < 0.8 else b""))
    _check(home, lambda: commands.prepare_table([path], home / "out", ONE), {f"good-{n}" for n in range(GOOD)})


def _spell(row: dict[str, Any], suffix: str) -> bytes:
    if suffix == "jsonl":
        return json.dumps(row).encode()
    cells = [str(row.get(name, "")) for name in ("id", "audio", "text", *COLUMNS[3:8])]
    return ("," if suffix == "csv" else "\t").join(cells).encode(errors="surrogateescape")


def _bad_line(good: dict[str, Any], suffix: str, random: Random) -> bytes:
    """Return a line that is damaged, or says what cannot be."""
    kind = int(random.integers(8))
    wild = WILD[int(random.integers(len(WILD)))]
    column = COLUMNS[int(random.integers(8))]
    row = {**good, "id": f"bad-{int(random.integers(1 << 30))}", column: wild}
    if kind == 0:
        return bytes(random.integers(0, 256, 40, dtype=np.uint8)).replace(b"\n", b"").replace(b"\r", b"")
    if kind == 1:
        # Half a line, without an end to what it opened.
        return _spell({**good, "id": "half", "text": '"half'}, suffix)[: -int(random.integers(1, 3))]
    if kind == 2:
        return flip(_spell({**good, "id": "turned", "text": "turned"}, suffix), random, 2).translate(None, b"\r\n")
    if kind == 3:
        return _spell({**good, "id": "more"}, suffix) + (b',"more' if suffix == "jsonl" else b"\tmore,more" * 3)
    if kind == 4:
        return _spell({**good, "id": "latin", "text": "x"}, suffix).replace(b"x", "é".encode("latin-1"))
    if kind == 5:
        extra = {"start": -1, "duration": -2.5} if random.random() < 0.5 else {"start": 1e9, "duration": "nan"}
        return _spell({**good, "id": "times", **extra}, suffix)
    if suffix != "jsonl":
        row = {name: str(value).translate({9: "", 10: "", 13: "", 44: ""}) for name, value in row.items()}
        return _spell(row, suffix)
    return json.dumps(row).encode() if kind == 6 else json.dumps([row, wild][kind % 2]).encode()


def _twice(home: Path, suffix: str) -> None:
    """The second utterance of an id is listed, the first is kept."""
    _audio(home)
    rows = _good_rows(home)
    lines = [_spell(row, suffix) for row in [*rows, {**rows[0], "audio": rows[1]["audio"], "text": "other"}]]
    header = (
        b""
        if suffix == "jsonl"
        else ("," if suffix == "csv" else "\t").join(("id", "audio", "text", *COLUMNS[3:8])).encode() + b"\n"
    )
    (home / f"train.{suffix}").write_bytes(header + b"\n".join(lines))
    _check(
        home,
        lambda: commands.prepare_table([home / f"train.{suffix}"], home / "out", ONE),
        {f"good-{n}" for n in range(GOOD)},
    )


def _whole_file(home: Path, suffix: str, seed: int) -> None:
    """A file that is no table at all."""
    random = np.random.default_rng(seed)
    _audio(home)
    content = [
        b"",
        b"\n\n\n",
        b"\xff\xfe" + "id,audio,text\nx,y,z\n".encode("utf-16-le"),
        b"\x1f\x8b\x08" + bytes(random.integers(0, 256, 200, dtype=np.uint8)),
        b"id,path,words\na,b,c\n",
        b"audio\taudio\naudio\taudio\n",
        b"{" * 100_000,
        b"[" * 100_000 + b"\n",
        b"\x00" * 5000,
        b'"' * 1001,
        b"audio\n" + b"x" * 300_000,
        bytes(random.integers(0, 256, 3000, dtype=np.uint8)),
    ][int(random.integers(12))]
    (home / f"train.{suffix}").write_bytes(content)
    _refused(lambda: commands.prepare_table([home / f"train.{suffix}"], home / "out", ONE))


# Kaldi folders and lhotse manifests


def _kaldi(home: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    _audio(home)
    files = {
        "wav.scp": [f"good-{n} {home}/{n}.flac".encode() for n in range(GOOD)],
        "text": [f"good-{n} good {'abcd'[n]}".encode() for n in range(GOOD)],
        "utt2spk": [f"good-{n} s{n}".encode() for n in range(GOOD)],
    }
    bad = [
        b"",
        b" ",
        b"x",
        b"good-0 other thing",
        b"\xff\xfe",
        b"y sox a.wav |",
        b"z /absent.wav",
        b"\x00 \x00",
        b"  good-9  ",
        b"w " + b"x" * 9000,
    ]
    for name, lines in files.items():
        for _ in range(int(random.integers(3))):
            # Behind the good lines: of two lines of an id the first counts.
            lines.append(bad[int(random.integers(len(bad)))])
        (home / name).write_bytes(b"\n".join(lines) + b"\n")
    if random.random() < 0.2:
        (home / "utt2lang").mkdir()
    _check(
        home, lambda: commands.prepare_kaldi([f"train={home}"], home / "out", ONE), {f"good-{n}" for n in range(GOOD)}
    )


def _cut(home: Path, number: int) -> dict[str, Any]:
    name, samples = f"good-{number}", 8000 + 400 * number
    source = {"type": "file", "channels": [0], "source": str(home / f"{number}.flac")}
    times = {"sampling_rate": 16000, "num_samples": samples, "duration": samples / 16000}
    recording = {"id": name, "sources": [source], **times}
    text = {
        "id": name,
        "recording_id": name,
        "start": 0.0,
        "duration": samples / 16000,
        "text": f"good {'abcd'[number]}",
    }
    return {
        "id": name,
        "start": 0.0,
        "duration": samples / 16000,
        "channel": 0,
        "supervisions": [text],
        "recording": recording,
        "type": "MonoCut",
    }


def _lhotse(home: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    _audio(home)
    records = [_cut(home, number) for number in range(GOOD)]
    lines = [json.dumps(record).encode() for record in records]
    for number in range(int(random.integers(1, 4))):
        bad = _cut(home, int(random.integers(GOOD)))
        bad["id"] = f"bad-{number}"
        if random.random() < 0.3:
            lines.insert(int(random.integers(len(lines))), cut_off(json.dumps(bad).encode(), random))
            continue
        part = [bad, bad["recording"], bad["recording"]["sources"][0], bad["supervisions"][0]][int(random.integers(4))]
        part[sorted(part)[int(random.integers(len(part)))]] = WILD[int(random.integers(len(WILD)))]
        lines.append(json.dumps(bad).encode())
    (home / "train.jsonl").write_bytes(b"\n".join(lines))
    _check(
        home,
        lambda: commands.prepare_lhotse([home / "train.jsonl"], home / "out", ONE),
        {f"good-{n}" for n in range(GOOD)},
    )


# Prepared sets


@functools.cache
def prepared() -> Path:
    """Return a good prepared folder with the set `train`."""
    home = Path(tempfile.mkdtemp(prefix="asrkit-faults-"))
    _audio(home)
    lines = ["id\taudio\ttext", *("\t".join(row.values()) for row in _good_rows(home))]
    (home / "train.tsv").write_text("\n".join(lines))
    commands.prepare_table([home / "train.tsv"], home / "data", ONE)
    return home / "data"


def epoch(data: Path) -> tuple[dict[str, Batch], Stream]:
    """Return the batches of one utterance each that a first epoch gives, and the stream."""
    config = StreamConfig(sets=["train"], seconds_per_update=1.0)
    stream = Stream(config, DataConfig(dir=str(data), batch_seconds=1.0, workers=0), None, seed=1)
    batches = [batch for _ in range(stream.updates_per_epoch) for batch in next(stream)]
    return {name: batch.rows([row]) for batch in batches for row, name in enumerate(batch.ids)}, stream


@functools.cache
def _expected() -> dict[str, Batch]:
    return epoch(prepared())[0]


class Thief:
    """Leaves a file behind when a careless reader unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def _damaged_set(home: Path, number: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    shutil.copytree(prepared(), home / "data")
    folder = home / "data/train"
    name, kind = ("cuts.jsonl", "index.npy", "set.json")[number % 3], number // 3 % 7
    path = folder / name
    data = path.read_bytes()
    if kind == 0:
        path.write_bytes(cut_off(data, random))
    elif kind == 1 and name != "cuts.jsonl":
        path.write_bytes(flip(data, random, int(random.integers(1, 6))))
    elif kind == 1:
        # A line less, so that all that follow lie elsewhere.
        lines = data.splitlines(keepends=True)
        del lines[int(random.integers(GOOD))]
        path.write_bytes(b"".join(lines))
    elif kind == 2:
        path.write_bytes(b"")
    elif kind == 3:
        path.unlink()
        path.mkdir()
    elif kind == 4 and name == "index.npy":
        buffer = io.BytesIO()
        np.save(buffer, np.array([Thief(home / "stolen")], dtype=object), allow_pickle=True)
        path.write_bytes([buffer.getvalue(), pickle.dumps(Thief(home / "stolen"))][int(random.integers(2))])
    elif kind == 5 and name == "index.npy":
        rows = np.load(path)
        column = INDEX_DTYPE.names[int(random.integers(5))]
        wild = [-1, 0, 1 << 14] if column != "duration" else [float("nan"), -1.0, float("inf"), 1e30, 0.0, 1e-9]
        rows[column][int(random.integers(len(rows)))] = wild[int(random.integers(len(wild)))]
        np.save(path, rows)
    elif kind == 6 and name == "set.json":
        wild = WILD[int(random.integers(len(WILD)))]
        path.write_text(json.dumps(wild))
    else:
        start = int(random.integers(len(data)))
        path.write_bytes(data[:start] + bytes(random.integers(0, 256, 30, dtype=np.uint8)) + data[start + 30 :])
    try:
        with Lines(logging.getLogger("asrkit.data")) as lines:
            found, stream = epoch(home / "data")
    except AsrkitError as error:
        one_line(str(error))
    else:
        assert len(found) + stream.skipped >= GOOD - (kind == 5), "an utterance is neither used nor counted"
        for line in lines.found:
            one_line(line)
        for utterance, batch in found.items():
            assert utterance in _expected(), f"an utterance that was never there: {utterance}"
            assert np.array_equal(batch.waves, _expected()[utterance].waves), f"other samples of {utterance}"
            assert batch.texts in (None, _expected()[utterance].texts), f"other words of {utterance}"
    assert not (home / "stolen").exists(), "code from a file was run"


def cases(count: int, random: Random) -> Iterator[Case]:
    """Yield bad lists and damaged sets."""
    for number in range(count):
        seed = int(random.integers(1 << 30))
        suffix = ("csv", "tsv", "jsonl")[number % 3]
        kinds: tuple[tuple[str, Callable[[Path], None]], ...] = (
            (f"row-{suffix}", lambda home, s=suffix, seed=seed: _table(home, s, seed)),
            ("set", lambda home, n=number // 4, seed=seed: _damaged_set(home, n, seed)),
            (f"file-{suffix}", lambda home, s=suffix, seed=seed: _whole_file(home, s, seed)),
            ("lhotse", lambda home, seed=seed: _lhotse(home, seed)),
            ("kaldi", lambda home, seed=seed: _kaldi(home, seed)),
            (f"row-{suffix}", lambda home, s=suffix, seed=seed: _table(home, s, seed)),
            ("set", lambda home, n=number // 4, seed=seed: _damaged_set(home, n, seed)),
            (f"twice-{suffix}", lambda home, s=suffix: _twice(home, s)),
        )
        yield Case(*kinds[number % len(kinds)])
