"""`asrkit lm train`: where text comes from, how it is spelt, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from asrkit import cli
from asrkit.decoding.arpa import read_arpa, read_vocabulary
from asrkit.decoding.ngram import MARKERS
from asrkit.text.units import Units
from tests.inference.fakes import UNITS, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("corpus"), train=12, dev=3)


def words(path: Path) -> set[str]:
    return set(read_vocabulary(path)) - MARKERS


def test_text_files_of_all_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts"
    (texts / "1" / "2").mkdir(parents=True)
    (texts / "1" / "2" / "1-2.trans.txt").write_text("1-2-0 one Two\n1-2-1\n")
    with gzip.open(texts / "more.txt.gz", "wt") as file:
        file.write("three\r\n\nfour,  five.\n")
    output = tmp_path / "lm.arpa"
    assert cli.main(["lm", "train", str(texts), "--output", str(output), "--order", "2"]) == 0
    assert "from 3 sentences, 5 words" in capsys.readouterr().out
    assert words(output) == {"one", "Two", "three", "four,", "five."}
    assert read_arpa(output).order == 2
    spelt = ["--case", "upper", "--punctuation", "strip", "--output", str(output)]
    assert cli.main(["lm", "train", str(texts), *spelt]) == 0
    assert words(output) == {"ONE", "TWO", "THREE", "FOUR", "FIVE"}


def test_transcripts_of_prepared_sets_and_units(data: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "units.arpa.gz", tmp_path / "exp" / "units"
    UNITS.save(folder)
    given = ["--data", str(data), "--sets", "train", "--output", str(output)]
    assert cli.main(["lm", "train", *given, "--units", str(folder.parent), "--order", "5"]) == 0
    assert words(output) <= set(UNITS.symbols)
    assert "|" in words(output)
    few = Units.characters(["ABO"])
    few.save(tmp_path / "few")
    assert cli.main(["lm", "train", *given, "--units", str(tmp_path / "few")]) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no text"),
        (["none.txt"], "none.txt: cannot be read"),
        (["--sets", "train"], "both --data and --sets"),
        (["--data", "DATA", "--sets", "dev"], "set for evaluation"),
        (["--data", "DATA", "--sets", "none"], "not a prepared set"),
        (["DATA/text.txt", "--order", "0"], "order 0"),
        (["DATA/empty.txt"], "no words"),
        (["DATA/latin.txt"], "not UTF-8"),
        (["DATA/audio"], "holds no"),
    ],
)
def test_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    (data / "text.txt").write_text("A B\n")
    (data / "empty.txt").write_text("\n")
    (data / "latin.txt").write_bytes(b"caf\xe9\n")
    (data / "audio").mkdir(exist_ok=True)
    given = [argument.replace("DATA", str(data)) for argument in arguments]
    assert cli.main(["lm", "train", *given, "--output", str(tmp_path / "lm.arpa")]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
    assert not (tmp_path / "lm.arpa").exists()
