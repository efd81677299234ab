from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from asrkit.data.audio import read
from asrkit.data.index import SetIndex
from asrkit.data.prepare import (
    PrepareConfig,
    prepare_audio,
    prepare_kaldi,
    prepare_lhotse,
    prepare_table,
)
from asrkit.errors import AsrkitError

ONE = PrepareConfig(workers=1)


def write_audio(path: Path, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(seed).integers(-3000, 3000, round(seconds * 16000)) / 32768
    soundfile.write(path, wave, 16000)
    return wave


def rejects_of(folder: Path) -> dict[str, str]:
    with open(folder / "rejects.tsv", encoding="utf-8") as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


def cuts_of(folder: Path) -> dict[str, MonoCut]:
    index = SetIndex.open(folder)
    return {cut.id: cut for cut in map(index.read_cut, range(len(index)))}


ROWS = [
    {"audio": "a.wav", "text": "grüß dich", "id": "one", "speaker": "eva", "start": "", "duration": ""},
    {"audio": "a.wav", "text": "du, ja", "id": "two", "speaker": "ole", "start": "0.25", "duration": "0.5"},
    {"audio": "sub/b.wav", "text": 'say "no"', "id": "", "speaker": "", "start": "", "duration": ""},
]


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".jsonl":
        lines = [json.dumps({key: value for key, value in row.items() if value}) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".tsv":
        lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_tables_of_all_kinds_say_the_same(tmp_path: Path, suffix: str) -> None:
    wave = write_audio(tmp_path / "a.wav")
    write_audio(tmp_path / "sub/b.wav", seed=1)
    write_table(tmp_path / f"mine.{suffix}", ROWS)
    prepare_table([tmp_path / f"mine.{suffix}"], tmp_path / "out", ONE)
    cuts = cuts_of(tmp_path / "out/mine")
    assert {name: cut.supervisions[0].text for name, cut in cuts.items()} == {
        "one": "GRÜSS DICH", "two": "DU JA", "sub-b": "SAY NO"
    }  # fmt: skip
    assert {name: cut.supervisions[0].speaker for name, cut in cuts.items()} == {
        "one": "eva", "two": "ole", "sub-b": None
    }  # fmt: skip
    np.testing.assert_allclose(read(cuts["two"], 16000), wave[4000:12000], atol=1e-7)


def test_a_set_column_and_names_on_the_command_line(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    (tmp_path / "t.csv").write_text("audio,set,id\na.wav,train,x\na.wav,dev,y\na.wav,,z\na.wav,un/usable,w\n")
    prepare_table([f"rest={tmp_path}/t.csv"], tmp_path / "out", ONE)
    found = {name: list(cuts_of(tmp_path / "out" / name)) for name in ("train", "dev", "rest")}
    assert found == {"train": ["x"], "dev": ["y"], "rest": ["z"]}
    assert not SetIndex.open(tmp_path / "out/train").labelled
    assert "un/usable" in rejects_of(tmp_path / "out/rest")["t.csv:5"]


def test_ids_are_made_up_without_collisions(tmp_path: Path) -> None:
    for name in ("x/a.wav", "x-a.wav", "x-a.flac", "b c.wav"):
        write_audio(tmp_path / name)
    rows = ["x/a.wav,", "x-a.wav,", "x-a.flac,", "b c.wav,", "b c.wav,0.5", "b c.wav,0.5"]
    (tmp_path / "t.csv").write_text("audio,start\n" + "\n".join(rows) + "\n")
    prepare_table([tmp_path / "t.csv"], tmp_path / "out", ONE)
    assert list(cuts_of(tmp_path / "out/t")) == [
        "x-a", "x-a.wav", "x-a.flac", "b_c", "b_c-0000500", "b_c.wav-0000500"
    ]  # fmt: skip


def test_bad_rows_are_listed(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    rows = [
        b"a.wav,fine,ok,,", b"a.wav,,empty,,", b",x,,,", b"a.wav,x,u1,soon,", b"a.wav,x,u2,nan,", b"gone.wav,x,u3,,",
        b"a.wav,x,u4,0,1,9", b"a.wav,x,u5,,0", b"a.wav,x,ok,,", b"\xff.wav,x,u6,,", b"a\x00.wav,x,u7,,", b"..,x,u8,,",
        b"a.wav,\xc4pfel,u9,,",
    ]  # fmt: skip
    (tmp_path / "t.csv").write_bytes(b"audio,text,id,start,duration\n" + b"\n".join(rows) + b"\n")
    summary = prepare_table([tmp_path / "t.csv"], tmp_path / "out", ONE)
    assert list(cuts_of(tmp_path / "out/t")) == ["ok"]
    assert summary.sets[0].rejected == len(rows) - 1
    rejects = rejects_of(tmp_path / "out/t")
    assert rejects["empty"] == "an empty transcript"
    assert rejects["t.csv:4"] == "no audio"
    assert rejects["t.csv:5"] == "start is 'soon', not a number"
    assert rejects["u3"] == "no such file"
    assert rejects["t.csv:8"] == "a row of 6 cells under 5 columns"
    assert rejects["u5"].startswith("bad duration")
    assert rejects["ok"] == "a second utterance of this id"
    assert rejects["u6"] == "a name that is not UTF-8"
    assert rejects["u8"] == "not a plain file"
    assert rejects["u9"] == "a transcript that is not UTF-8: it holds the byte 0xC4"


def test_bad_lines_of_json_are_listed(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    lines = [
        '{"audio": "a.wav", "id": 7, "text": "hi"}', "[1]", "{", '{"audio": ["a.wav"]}', '{"audio": true}', "\u2028",
        '{"audio": "a.wav", "text": {"a": 1}}', '{"audio": "a.wav", "channel": 0.5, "text": "x"}', "[" * 100_000, '"x"',
        '{"audio": "a.wav", "id": "no text"}', '{"audio": "a.wav", "id": "\\ud800", "text": "x"}', "1e999", "null",
    ]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    summary = prepare_table([tmp_path / "t.jsonl"], tmp_path / "out", ONE)
    assert list(cuts_of(tmp_path / "out/t")) == ["7"]
    # The line separator alone is a blank line.
    assert summary.sets[0].rejected == len(lines) - 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.csv", "path,text\na.wav,x\n", "no column 'audio' .*path, text"),
        ("t.csv", "", "no column 'audio'"),
        ("t.csv", "\0", "not UTF-8"),
        ("t.csv", "audio,text\na.wav,x\n".encode("utf-16").decode("latin-1"), "not UTF-8"),
        ("t.csv", "audio;text\na.wav;x\n", "separate columns by commas"),
        ("t.txt", "audio\na.wav\n", "not a table"),
        ("t.csv", "audio\n", "nothing to prepare"),
        ("t.jsonl", "\n\n", "nothing to prepare"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(AsrkitError, match=expected):
        prepare_table([tmp_path / name], tmp_path / "out", ONE)


def test_inputs_that_are_not_there_or_collide(tmp_path: Path) -> None:
    for folder in ("x/data", "y/data"):
        write_audio(tmp_path / folder / "a.wav")
    for run in (prepare_table, prepare_kaldi, prepare_audio, prepare_lhotse):
        with pytest.raises(AsrkitError, match="no such file or folder"):
            run([tmp_path / "gone"], tmp_path / "out", ONE)
        with pytest.raises(AsrkitError, match="no input was given"):
            run([], tmp_path / "out", ONE)
        with pytest.raises(AsrkitError, match="two inputs"):
            run([tmp_path / "x/data", tmp_path / "y/data"], tmp_path / "out", ONE)


@pytest.fixture
def kaldi(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    write_audio(tmp_path / "a.wav", 3.0)
    write_audio(folder / "b.wav", 1.0, seed=1)
    (folder / "wav.scp").write_text(f"ra {tmp_path}/a.wav\nrb b.wav\nrc sph2pipe -f wav x.sph |\nrd\n")
    (folder / "segments").write_text("ra-1 ra 0.5 1.25\nra-2 ra 1.25 -1\nrb-1 rb 0 1.004\nrc-1 rc 0 1\nrx-1 rx 0 1\n")
    (folder / "text").write_text("ra-1 one\nra-2 two words\nrb-1 three\nrc-1 four\nrz-1 five\nrx-1 six\n")
    (folder / "utt2spk").write_text("ra-1 ann\nra-2 ann\nrb-1 bob\n")
    return folder


def test_kaldi_folders(kaldi: Path, tmp_path: Path) -> None:
    prepare_kaldi([kaldi], tmp_path / "out", ONE)
    cuts = cuts_of(tmp_path / "out/train")
    assert {name: (cut.start, cut.duration) for name, cut in cuts.items()} == {
        "ra-1": (0.5, 0.75), "ra-2": (1.25, 1.75), "rb-1": (0.0, 1.0)
    }  # fmt: skip
    assert {name: cut.supervisions[0].text for name, cut in cuts.items()} == {
        "ra-1": "ONE", "ra-2": "TWO WORDS", "rb-1": "THREE"
    }  # fmt: skip
    assert [cut.supervisions[0].speaker for cut in cuts.values()] == ["ann", "ann", "bob"]
    rejects = rejects_of(tmp_path / "out/train")
    assert rejects.keys() == {"rc-1", "rx-1", "rz-1"}
    assert "command" in rejects["rc-1"]


def test_channels_of_kaldi_segments(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    both = np.random.default_rng(0).uniform(-0.5, 0.5, (16_000, 2))
    soundfile.write(folder / "call.wav", both, 16_000, subtype="FLOAT")
    (folder / "wav.scp").write_text("call call.wav\n")
    (folder / "segments").write_text("a call 0 1 0\nb call 0 1 1\nc call 0 1\nd call 0 1 2\ne call 0 1 left\n")
    prepare_kaldi([folder], tmp_path / "out", ONE)
    index = SetIndex.open(tmp_path / "out/train")
    waves = [read(index.read_cut(row), 16_000) for row in range(3)]
    assert [record["id"] for record in index.records()] == ["a", "b", "c"]
    for wave, expected in zip(waves, (both[:, 0], both[:, 1], both.mean(1)), strict=True):
        np.testing.assert_allclose(wave, expected, atol=1e-6)
    assert rejects_of(tmp_path / "out/train").keys() == {"d", "e"}


def test_links_stay_and_paths_lead_where_the_system_leads(tmp_path: Path) -> None:
    (tmp_path / "far/mine").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train").symlink_to(tmp_path / "far/mine")
    write_audio(tmp_path / "far/clips/a.wav", 1.0)
    (tmp_path / "link").symlink_to(tmp_path / "far/mine")
    (tmp_path / "train.tsv").write_text(f"audio\ttext\n{tmp_path}/link/../clips/a.wav\tone\n")
    for _ in range(2):
        prepare_table([tmp_path / "train.tsv"], tmp_path / "out", ONE)
        assert (tmp_path / "out/train").is_symlink()
        assert len(SetIndex.open(tmp_path / "far/mine")) == 1
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["clips", "mine"]


def test_kaldi_folders_without_segments_or_text(kaldi: Path, tmp_path: Path) -> None:
    (kaldi / "segments").unlink()
    (kaldi / "text").unlink()
    prepare_kaldi([f"mine={kaldi}"], tmp_path / "out", ONE)
    assert {name: cut.duration for name, cut in cuts_of(tmp_path / "out/mine").items()} == {"ra": 3.0, "rb": 1.0}
    assert rejects_of(tmp_path / "out/mine").keys() == {"rc", "rd"}
    assert not SetIndex.open(tmp_path / "out/mine").labelled


def test_bad_lines_of_kaldi_folders(kaldi: Path, tmp_path: Path) -> None:
    with open(kaldi / "segments", "ab") as file:
        file.write(b"s1 ra\ns2 ra x 1\ns3 ra 2 1\ns4 ra nan 1\nra-1 ra 0 1\n\xff\xff ra 0 1\n")
    with open(kaldi / "text", "ab") as file:
        file.write("".join(f"s{i} word\n" for i in range(1, 5)).encode())
    prepare_kaldi([kaldi], tmp_path / "out", ONE)
    rejects = rejects_of(tmp_path / "out/train")
    assert {"s1", "s2", "s3", "s4", "ra-1", "segments"} <= rejects.keys()
    assert cuts_of(tmp_path / "out/train").keys() == {"ra-1", "ra-2", "rb-1"}
    (kaldi / "wav.scp").unlink()
    with pytest.raises(AsrkitError, match=r"no wav\.scp"):
        prepare_kaldi([kaldi], tmp_path / "out", ONE)


def test_folders_of_recordings(tmp_path: Path) -> None:
    home = tmp_path / "talks"
    for name in ("one.wav", "deep/er/two.FLAC", "three.ogg", "with space.mp3"):
        soundfile.write(tmp_path / "x.wav", np.zeros(1), 16000)
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        wave = np.random.default_rng(0).normal(0, 0.1, 16000)
        soundfile.write(home / name, wave, 16000)
    for name in ("video.mp4", "notes.txt", ".hidden.wav", "bad.wav"):
        (home / name).write_bytes(b"nothing")
    (home / "loop").symlink_to(home)
    prepare_audio([home], tmp_path / "out", ONE)
    assert sorted(cuts_of(tmp_path / "out/talks")) == ["deep-er-two", "one", "three", "with_space"]
    assert rejects_of(tmp_path / "out/talks").keys() == {"video", "bad"}


def test_a_single_recording(tmp_path: Path) -> None:
    write_audio(tmp_path / "interview.part1.flac", 80)
    prepare_audio([tmp_path / "interview.part1.flac"], tmp_path / "out", ONE)
    cuts = cuts_of(tmp_path / "out/interview")
    assert len(cuts) == 3
    assert all(name.startswith("interview.part1-") for name in cuts)


def make_cut(name: str, path: Path, start: float, seconds: float, texts: list[str | None]) -> MonoCut:
    recording = Recording.from_file(path, recording_id=f"rec-{name}")
    step = seconds / max(len(texts), 1)
    supervisions = [
        SupervisionSegment(f"{name}-{i}", recording.id, i * step, step, 0, text, speaker="s")
        for i, text in enumerate(texts)
    ]
    return MonoCut(name, start, seconds, 0, supervisions, recording=recording)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_lhotse_manifests(tmp_path: Path, suffix: str) -> None:
    wave = write_audio(tmp_path / "a.wav", 3.0)
    cuts = [
        make_cut("x", tmp_path / "a.wav", 0.5, 1.0, ["one"]),
        make_cut("y", tmp_path / "a.wav", 1.0, 2.0, ["two", "three"]),
    ]
    manifest = tmp_path / f"mine.{suffix}"
    CutSet.from_cuts(cuts).to_file(manifest)
    prepare_lhotse([manifest], tmp_path / "out", ONE)
    found = cuts_of(tmp_path / "out/mine")
    assert {name: cut.supervisions[0].text for name, cut in found.items()} == {
        "x": "ONE", "y-0": "TWO", "y-1": "THREE"
    }  # fmt: skip
    np.testing.assert_allclose(read(found["x"], 16000), wave[8000:24000], atol=1e-7)
    np.testing.assert_allclose(read(found["y-1"], 16000), wave[32000:], atol=1e-7)


def test_what_lhotse_holds_besides_plain_audio_is_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 3.0)
    plain = make_cut("plain", tmp_path / "a.wav", 0.0, 1.0, [])
    records = [
        plain.to_dict(),
        plain.perturb_speed(1.1).to_dict(),
        plain.pad(2.0).to_dict(),
        {"type": "MonoCut", "id": "none", "start": 0.0, "duration": 1.0, "channel": 0},
        {"type": "MonoCut"}, {"id": "n", "start": "x", "duration": 1, "channel": 0}, [], 7, None, {},
    ]  # fmt: skip
    lines = [json.dumps(record).encode() for record in records]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join([*lines, b"{", b"\xff", b""]))
    summary = prepare_lhotse([tmp_path / "t.jsonl"], tmp_path / "out", ONE)
    assert list(cuts_of(tmp_path / "out/t")) == ["plain"]
    assert summary.sets[0].rejected == len(records) - 1 + 2


def test_a_gzip_cut_short_keeps_what_came_before(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 3.0)
    lines = [json.dumps(make_cut(f"c{i}", tmp_path / "a.wav", 0.0, 1.0, []).to_dict()) for i in range(2000)]
    data = gzip.compress("\n".join(lines).encode())
    (tmp_path / "t.jsonl.gz").write_bytes(data[: len(data) * 3 // 4])
    summary = prepare_lhotse([tmp_path / "t.jsonl.gz"], tmp_path / "out", ONE)
    assert 0 < summary.sets[0].utterances < 2000
    assert any("cannot be read" in reason for reason in rejects_of(tmp_path / "out/t").values())
