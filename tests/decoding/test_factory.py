"""Which decoder `auto` stands for, and which words it allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from asrkit.decoding import flashlight
from asrkit.decoding.config import BeamConfig
from asrkit.decoding.factory import DecoderChoice, make_decoder, resolve
from asrkit.decoding.prefix_beam import PrefixBeamDecoder
from asrkit.errors import AsrkitError
from asrkit.text.units import BLANK, Units
from tests.decoding.common import train

UNITS = Units((BLANK, "|", "A", "B"))
PHONES = Units((BLANK, "p", "q"), boundary=None, kind="phone", lexicon={"A": ("p",), "AB": ("p", "q")})


@pytest.fixture
def words(tmp_path: Path) -> Path:
    train(["A B", "AB A", "C"], 2, tmp_path / "words.arpa")
    return tmp_path / "words.arpa"


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    train(["A | B", "A B | A"], 2, tmp_path / "letters.arpa")
    return tmp_path / "letters.arpa"


@pytest.mark.parametrize("installed", [True, False])
def test_auto(words: Path, letters: Path, installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashlight, "available", lambda: installed)
    fast = "flashlight" if installed else "beam"
    assert resolve(DecoderChoice(), UNITS, 1).decoder == "greedy"
    assert resolve(DecoderChoice(), UNITS, 5).decoder == fast
    assert resolve(DecoderChoice(lm=letters), UNITS, 1) == DecoderChoice(fast, letters)
    # Without flashlight, the words are the same.
    found = resolve(DecoderChoice(lm=words), UNITS, 1)
    assert found == DecoderChoice(fast, words, None if installed else "lm")
    assert resolve(DecoderChoice(lm=words), PHONES, 1) == DecoderChoice("beam", words)
    assert resolve(DecoderChoice("beam", words), UNITS, 1) == DecoderChoice("beam", words)


def test_words_of_the_lexicon(words: Path) -> None:
    def lexicon(choice: DecoderChoice, units: Units) -> set[str] | None:
        decoder = make_decoder(choice, units, 50.0, BeamConfig())
        assert isinstance(decoder, PrefixBeamDecoder)
        return None if decoder.lexicon is None else set(decoder.lexicon)

    assert lexicon(DecoderChoice("beam", words), UNITS) is None
    assert lexicon(DecoderChoice("beam", words, "lm"), UNITS) == {"A", "AB", "B"}
    assert lexicon(DecoderChoice("beam", words), PHONES) == {"A", "AB"}
    assert lexicon(DecoderChoice("beam"), PHONES) == {"A", "AB"}


def test_a_lexicon_file(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("AB A B |\nA\nA(2) A A\nB B\nB B\n")
    decoder = make_decoder(DecoderChoice("beam", lexicon=str(path)), UNITS, 50.0, BeamConfig())
    assert isinstance(decoder, PrefixBeamDecoder)
    assert decoder.lexicon == {"AB": [(2, 3)], "A": [(2,), (2, 2)], "B": [(3,)]}


@pytest.mark.parametrize(
    ("text", "says"), [("A A Z", "'Z' is not among"), ("AZ", "not among the units"), ("\n", "holds no words")]
)
def test_a_lexicon_that_is_no_good(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text(text)
    with pytest.raises(AsrkitError, match=says) as told:
        make_decoder(DecoderChoice("beam", lexicon=str(path)), UNITS, 50.0, BeamConfig())
    assert str(path) in str(told.value)


def test_a_language_model_in_another_spelling_is_told(tmp_path: Path) -> None:
    train(["a b", "ab"], 2, tmp_path / "small.arpa")
    with pytest.raises(AsrkitError, match="mind upper and lower case"):
        make_decoder(DecoderChoice("beam", tmp_path / "small.arpa", "lm"), UNITS, 50.0, BeamConfig())
