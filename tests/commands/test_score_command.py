from __future__ import annotations

import json
from pathlib import Path

import pytest

from asrkit.cli import main
from asrkit.text.wer import write_transcripts

REFERENCES = {"a-1": "one two three", "a-2": "four five", "b-1": "six [bold] eight"}
HYPOTHESES = {"a-1": "one too three", "a-2": "four five", "b-1": "six [bold]"}


@pytest.fixture
def decoded(tmp_path: Path) -> Path:
    for name in ("dev", "test"):
        folder = tmp_path / "decode" / name / "greedy"
        write_transcripts(folder / "ref.trans.txt", REFERENCES)
        write_transcripts(folder / "hyp.trans.txt", HYPOTHESES if name == "dev" else REFERENCES)
    return tmp_path / "decode"


def test_everything_at_once_as_json(decoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--speakers", "--confusions", "3", "--bootstrap", "200", "--compare", str(decoded), "--json"]
    pra = tmp_path / "all.pra"
    assert main(["score", str(decoded), *options, "--alignments", str(pra)]) == 0
    dev, test = json.loads(capsys.readouterr().out)["sets"]
    assert [dev["set"], test["set"]] == ["dev/greedy", "test/greedy"]
    assert (dev["wer"], test["wer"]) == (2 / 8, 0)
    assert {name: row["wer"] for name, row in dev["speakers"].items()} == {"a": 1 / 5, "b": 1 / 3}
    assert dev["confusions"]["substituted"] == [["two", "too", 1]]
    assert dev["interval"]["low"] <= dev["wer"] <= dev["interval"]["high"]
    assert dev["comparison"]["p"] == dev["comparison"]["matched_pairs"]["p"] == 1.0
    assert [u["id"] for u in dev["worst"]] == ["a-1", "b-1"]
    assert pra.read_text().count("Scores:") == 6


def test_as_tables(decoded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(decoded / "dev" / "greedy" / f"{side}.trans.txt") for side in ("ref", "hyp")]
    better = str(decoded / "test" / "greedy" / "hyp.trans.txt")
    assert main(["score", *files, "--speakers", "--confusions", "2", "--bootstrap", "--compare", better]) == 0
    shown = capsys.readouterr().out
    for expected in ("25.00%", "33.33%", "two > too", "95% interval", "25.00% absolute lower", "MAPSSWE", "[bold]"):
        assert expected in shown


def test_a_speaker_map_decides_what_is_drawn(decoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speakers = tmp_path / "utt2spk"
    speakers.write_text("a-1 x\na-2 y\nb-1 z\n")
    folder = str(decoded / "dev" / "greedy")
    main(["score", folder, "--bootstrap", "50", "--json", "--speaker-map", str(speakers)])
    assert json.loads(capsys.readouterr().out)["sets"][0]["interval"]["groups"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{dev}/ref.trans.txt"], "1 files are not pairs"),
        (["{empty}"], "holds no ref.trans.txt"),
        (["{dev}", "--compare", "{dev}/hyp.trans.txt", "{dev}/hyp.trans.txt"], "2 files for 1 sets"),
        (["{dev}", "--bootstrap", "0"], "0 bootstrap draws"),
        (["{dev}/ref.trans.txt", "{empty}/none.txt"], "cannot be read"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, decoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"dev": decoded / "dev" / "greedy", "empty": tmp_path / "empty"}
    assert main(["score", *(argument.format(**places) for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
