"""Whatever the input, `prepare` ends in prepared sets and listed rejects, or in an AsrkitError of one line."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asrkit.data import prepare as commands
from asrkit.data.audio import read
from asrkit.data.corpus import Reject, Utterance
from asrkit.data.index import SetIndex
from asrkit.data.prepare import PrepareConfig, Summary, prepare
from asrkit.errors import AsrkitError

ONE = PrepareConfig(workers=1, max_seconds=1.0)
SLOW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@functools.cache
def sounds() -> dict[str, bytes]:
    """Contents of good and bad audio files."""
    import io

    noise = np.random.default_rng(0).normal(0, 0.1, 40_000)
    made: dict[str, bytes] = {"empty": b"", "junk": b"junk" * 100}
    for name, wave, form, subtype in (
        ("good", noise[:8000], "WAV", "PCM_16"),
        ("flac", noise[:8000], "FLAC", "PCM_16"),
        ("short", noise[:100], "WAV", "PCM_16"),
        ("long", noise, "FLAC", "PCM_16"),
        ("silent", np.zeros(8000), "WAV", "PCM_16"),
        ("nan", np.full(8000, np.nan), "WAV", "FLOAT"),
        ("stereo", noise[:16000].reshape(-1, 2), "WAV", "FLOAT"),
    ):
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, 16000, format=form, subtype=subtype)
        made[name] = buffer.getvalue()
    made["cut"] = made["flac"][: len(made["flac"]) // 2]
    return made


def run_safely(run: Callable[[], Summary], out: Path) -> Summary | None:
    """Run, check what holds of every outcome, and return the summary."""
    try:
        summary = run()
    except AsrkitError as error:
        if "\n" in str(error):
            pytest.fail(f"more than one line: {error}")
        return None
    for found in summary.sets:
        lines = (out / found.name / "rejects.tsv").read_text(encoding="utf-8").split("\n")
        assert len(lines) == found.rejected + 2
        assert all(line.count("\t") == 2 and line.rsplit("\t", 1)[1] for line in lines[:-1])
        if not found.utterances:
            continue
        index = SetIndex.open(out / found.name)
        assert len(index) == found.utterances
        records = list(index.records())
        assert len({record["id"] for record in records}) == len(records)
        for row, record in enumerate(records):
            wave = read(index.read_cut(row), 16000)
            assert np.isfinite(wave).all()
            assert len(wave) == pytest.approx(record["duration"] * 16000, abs=1)
            assert 0.1 <= index.durations[row] <= 1.0
            assert (index.units[row] > 0) == index.labelled
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} <= {".lock"}
    return summary


anything = st.text(max_size=6) | st.sampled_from(["a", "b", "a b", "", ".", "..", "/", "x\ty", "x\ny", "\udc80", "é"])
number = st.floats() | st.sampled_from([0.0, 0.1, 0.25, -1.0, 1e18])
audio_names = st.sampled_from([*sorted(sounds()), "missing", "folder", "a\0b"])


@SLOW
@given(
    entries=st.lists(
        st.builds(
            Utterance,
            id=anything,
            path=audio_names,
            start=number,
            duration=st.none() | number,
            text=st.none() | anything,
            speaker=st.none() | anything,
            language=st.none() | anything,
            channel=st.none() | st.integers(-1, 2),
            source=anything,
        )
        | st.builds(Reject, id=anything, path=anything, reason=st.just("a reason")),
        max_size=12,
    ),
    name=st.sampled_from(["train", "dev", "test-x"]),
    alphabet=st.none() | st.just("AB"),
)
def test_any_utterances(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Utterance | Reject], name: str, alphabet: str | None
) -> None:
    home = tmp_path_factory.mktemp("any")
    (home / "folder").mkdir()
    for sound, content in sounds().items():
        (home / sound).write_bytes(content)
    placed = [
        entry if isinstance(entry, Reject) else Utterance(**{**_fields(entry), "path": f"{home}/{entry.path}"})
        for entry in entries
    ]
    config = PrepareConfig(workers=1, max_seconds=1.0, alphabet=alphabet)
    summary = run_safely(lambda: prepare({name: placed}, home / "out", config), home / "out")
    if summary is not None and not any(isinstance(e, Utterance) and e.path.endswith("long") for e in placed):
        # Nothing is lost: an entry is either usable or listed.
        assert summary.sets[0].utterances + summary.sets[0].rejected == len(placed)


def _fields(entry: Utterance) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in Utterance.__dataclass_fields__}


files = st.dictionaries(
    st.sampled_from(["1-2-0", "1-2-1", "1-2-2", "x"]), st.sampled_from(sorted(sounds())), max_size=4
)
transcript = st.lists(
    st.binary(max_size=12) | st.sampled_from([b"1-2-0 HI", b"1-2-1 A B", b"1-2-1", b"1-2-0 ", b"\xef\xbb\xbf1-2-2 C"]),
    max_size=5,
).map(b"\n".join)


@SLOW
@given(
    chapters=st.lists(
        st.tuples(
            st.sampled_from(["train-a/1/2", "train-a/1", "dev-a/1/2", "dev-a", "test-a/1/2/3", "other/1/2"]),
            files,
            st.none() | transcript,
            st.sampled_from([".flac", ".wav", ".txt", ".FLAC"]),
        ),
        max_size=4,
    ),
    stray=st.sampled_from(["", "LibriSpeech/train-b", "librispeech_finetuning", "librispeech_finetuning/1h"]),
)
def test_any_tree(tmp_path_factory: pytest.TempPathFactory, chapters: list, stray: str) -> None:
    home = tmp_path_factory.mktemp("tree")
    for place, contents, lines, suffix in chapters:
        folder = home / "corpus/LibriSpeech" / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, sound in contents.items():
            (folder / f"{name}{suffix}").write_bytes(sounds()[sound])
        if lines is not None:
            (folder / "1-2.trans.txt").write_bytes(lines)
    if stray:
        # A file where a folder should be.
        (home / "corpus" / stray).parent.mkdir(parents=True, exist_ok=True)
        if not (home / "corpus" / stray).exists():
            (home / "corpus" / stray).write_bytes(b"stray")
    run_safely(lambda: commands.prepare_librispeech(home / "corpus", home / "out", config=ONE), home / "out")


cell = anything | number.map(str) | audio_names | st.sampled_from(["good", "long", "flac"])
value = st.recursive(st.none() | st.booleans() | number | st.integers() | cell, st.lists, max_leaves=4)
column = st.sampled_from(["audio", "text", "id", "speaker", "start", "duration", "channel", "set", "more"])


def try_file(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes, run: Callable[..., Summary]) -> None:
    home = tmp_path_factory.mktemp("file")
    for sound, data in sounds().items():
        (home / sound).write_bytes(data)
    (home / "folder").mkdir()
    (home / name).parent.mkdir(exist_ok=True)
    (home / name).write_bytes(content)
    given_path = home / name if "/" not in name else (home / name).parent
    run_safely(lambda: run([given_path], home / "out", ONE), home / "out")


@SLOW
@given(
    header=st.lists(column, min_size=1, max_size=5, unique=True),
    rows=st.lists(st.lists(cell, max_size=6), max_size=6),
    suffix=st.sampled_from([".csv", ".tsv"]),
    tail=st.binary(max_size=20),
)
def test_any_table(tmp_path_factory: pytest.TempPathFactory, header, rows, suffix: str, tail: bytes) -> None:
    mark = "," if suffix == ".csv" else "\t"
    lines = [mark.join(header), *(mark.join(row) for row in rows)]
    content = "\n".join(lines).encode(errors="surrogatepass") + b"\n" + tail
    try_file(tmp_path_factory, f"table{suffix}", content, commands.prepare_table)


@SLOW
@given(rows=st.lists(st.dictionaries(column, value, max_size=6) | value, max_size=6), tail=st.binary(max_size=20))
def test_any_objects(tmp_path_factory: pytest.TempPathFactory, rows: list, tail: bytes) -> None:
    content = "\n".join(json.dumps(row) for row in rows).encode() + b"\n" + tail
    try_file(tmp_path_factory, "table.jsonl", content, commands.prepare_table)


@SLOW
@given(content=st.binary(max_size=200), suffix=st.sampled_from(["csv", "tsv", "jsonl"]))
def test_any_bytes_as_table(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    try_file(tmp_path_factory, f"table.{suffix}", content, commands.prepare_table)


@SLOW
@given(
    data=st.fixed_dictionaries(
        {"wav.scp": st.just(None)},
        optional={name: st.just(None) for name in ("segments", "text", "utt2spk", "utt2lang")},
    ),
    draw=st.data(),
)
def test_any_kaldi_folder(tmp_path_factory: pytest.TempPathFactory, data: dict, draw: st.DataObject) -> None:
    home = tmp_path_factory.mktemp("kaldi")
    for sound, content in sounds().items():
        (home / sound).write_bytes(content)
    word = (
        st.sampled_from(["r1", "r2", "u1", "u2", "0", "0.1", "0.4", "-1", "good", "long", "|", "nan", "\xa0"])
        | anything
    )
    for name in data:
        lines = draw.draw(st.lists(st.lists(word, max_size=5).map(" ".join), max_size=5))
        if name == "wav.scp":
            lines = [f"r1 {home}/good", f"r2 {home}/long", *lines]
        tail = draw.draw(st.binary(max_size=10))
        (home / name).write_bytes("\n".join(lines).encode(errors="surrogatepass") + b"\n" + tail)
    run_safely(lambda: commands.prepare_kaldi([f"train={home}"], home / "out", ONE), home / "out")


@SLOW
@given(
    edits=st.lists(st.tuples(st.sampled_from(["id", "start", "duration", "channel", "supervisions", "recording",
                                              "type", "custom", "sources", "sampling_rate", "num_samples", "text",
                                              "speaker", "channels", "source"]), value), max_size=4),
    tail=st.binary(max_size=20),
)  # fmt: skip
def test_any_lhotse_manifest(tmp_path_factory: pytest.TempPathFactory, edits: list, tail: bytes) -> None:
    home = tmp_path_factory.mktemp("lhotse")
    (home / "good").write_bytes(sounds()["good"])

    def cut(name: str) -> dict[str, Any]:
        source = {"type": "file", "channels": [0], "source": str(home / "good")}
        recording = {"id": "r", "sources": [source], "sampling_rate": 16000, "num_samples": 8000, "duration": 0.5}
        supervision = {"id": f"{name}-s", "recording_id": "r", "start": 0.0, "duration": 0.5, "text": "HI"}
        base = {"id": name, "start": 0.0, "duration": 0.5, "channel": 0, "supervisions": [supervision]}
        return base | {"recording": recording, "type": "MonoCut"}

    records = [cut("good"), *(cut(f"c{i}") for i in range(len(edits)))]
    for record, (key, new) in zip(records[1:], edits, strict=True):
        target = next(
            part
            for part in (record, record["recording"], record["recording"]["sources"][0], record["supervisions"][0])
            if key in part or part is record["supervisions"][0]
        )
        target[key] = new
    content = "\n".join(json.dumps(record) for record in records).encode() + b"\n" + tail
    (home / "cuts.jsonl").write_bytes(content)
    summary = run_safely(lambda: commands.prepare_lhotse([home / "cuts.jsonl"], home / "out", ONE), home / "out")
    assert summary is not None
    assert summary.sets[0].utterances >= 1
