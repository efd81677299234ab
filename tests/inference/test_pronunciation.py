"""Lexicons by espeak-ng."""

from __future__ import annotations

from pathlib import Path

import pytest

from asrkit import cli
from asrkit.data.espeak import Synthesiser
from asrkit.data.index import SetIndex, record_text
from asrkit.inference.pronunciation import pronounce
from asrkit.text.units import Units, read_lexicon

pytest.importorskip("espeakng_loader")


def test_phones_spell_the_phonemes() -> None:
    """Phones are espeak-ng's own segments: together they are its transcription, stress apart."""
    words = ["goat", "thirty", "twenty-two", "o'clock", "behind", "journalist", "fire"]
    with Synthesiser("en-us", "m1") as speech:
        for word in words:
            whole = "".join(sound for sound in speech.phonemes(word) if sound not in "\u02c8\u02cc")
            assert "".join(speech.phones(word)) == whole
    assert pronounce(["goat"], "en-us") == {"goat": ("\u0261", "o\u028a", "t")}


def test_how_a_word_is_written_is_no_matter() -> None:
    """Capitals are words too, and numbers and whole clauses leave nothing out."""
    found = pronounce(
        ["US", "us", "GOAT", "Goat", "goat", "...", "42", "forty two", "one, two; three", "one two three"], "en-us"
    )
    assert found["US"] == found["us"] == ("\u028c", "s")
    assert found["GOAT"] == found["Goat"] == found["goat"]
    assert found["..."] == ()
    assert found["42"] == found["forty two"]
    assert found["one, two; three"] == found["one two three"]
    assert list(found) == sorted(found)
    assert pronounce(["Auto"], "de") == {"Auto": ("a\u028a", "t", "o\u02d0")}


def test_the_command(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("THE GOAT\nthe ...\n", encoding="utf-8")
    output = tmp_path / "lexicon.txt"
    assert cli.main(["lexicon", str(text), "--output", str(output)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 words in 5 phones; left out, for want of a sound: ..." in said
    assert read_lexicon(output) == pronounce(["THE", "GOAT", "the"], "en-us")
    assert Units.phones(output).encode("the GOAT") == Units.phones(output).encode("THE GOAT")
    assert cli.main(["lexicon", "--data", str(speech), "--sets", "train", "dev", "--output", str(output)]) == 0
    spoken = {word for name in ("train", "dev") for word in _words(speech / name)}
    assert read_lexicon(output).keys() == spoken


def _words(folder: Path) -> set[str]:
    return {word for record in SetIndex.open(folder).records() for word in (record_text(record) or "").split()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no words to pronounce"),
        (["--sets", "dev"], "need both --data and --sets"),
        (["empty.txt"], "no words to pronounce"),
        (["dots.txt"], "pronounces none of the 1 words"),
        (["none.txt"], "cannot be read"),
        (["text.txt", "--voice", "xx"], "no accent 'xx'"),
    ],
)
def test_mistakes_are_told(arguments: list[str], says: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("empty", "\n"), ("dots", "..."), ("text", "GOAT")):
        (tmp_path / f"{name}.txt").write_text(text)
    assert cli.main(["lexicon", *arguments, "--output", "lexicon.txt"]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "lexicon.txt").exists()
