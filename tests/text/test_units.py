from __future__ import annotations

import json
import pickle
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asrkit.errors import AsrkitError
from asrkit.text.units import BLANK, Units, UnknownSymbols, read_lexicon

PROPERTY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = ["THE CAT SAT", "ON THE MAT", "DON'T SIT THERE", "THE HAT IS THERE", "A CAT IN A HAT"]
LEXICON = "CAT  K AE T\nCAT K AA T\nTHE DH AH\nTHE(2)\tDH IY\n\n;;; a comment\nA AH\n"


@pytest.fixture
def lexicon(tmp_path: Path) -> Path:
    path = tmp_path / "source.txt"
    path.write_text(LEXICON, encoding="utf-8")
    return path


def built(kind: str, lexicon: Path) -> Units:
    if kind == "bpe":
        return Units.train_bpe(TEXTS, 30)
    return Units.phones(lexicon) if kind == "phone" else Units.characters(TEXTS)


def test_comments_of_a_lexicon_are_no_phones(tmp_path: Path) -> None:
    path = tmp_path / "cmudict.dict"
    path.write_text("aalborg AO1 L B AO0 R G # place, danish\n# HH AE1 SH\nhash HH AE1 SH\n")
    assert read_lexicon(path) == {
        "aalborg": ("AO1", "L", "B", "AO0", "R", "G"),
        "#": ("HH", "AE1", "SH"),
        "hash": ("HH", "AE1", "SH"),
    }


def test_characters_are_sorted_behind_blank_and_boundary() -> None:
    units = Units.characters(["BA \u00c9", "A'|"])
    assert units.symbols == (BLANK, "|", "'", "A", "B", "\u00c9")
    assert units == Units.characters("\u00c9'AB")
    assert len(units) == 6
    assert units.encode("  AB\tA ") == [3, 4, 1, 3]
    assert units.decode([1, 0, 3, 3, 0, 1, 1, 4, 1]) == "AA B"


def test_unknown_characters_are_listed_once_in_order() -> None:
    units = Units.characters("AB ")
    with pytest.raises(UnknownSymbols) as caught:
        units.encode("CAB \u00e9 C |")
    assert caught.value.symbols == ("C", "\u00e9", "|")
    assert str(caught.value) == "characters not among the units: 'C', '\u00e9' (U+00E9), '|'"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.symbols, str(again)) == (caught.value.symbols, str(caught.value))


def test_foreign_orders() -> None:
    """The dictionary of a fine-tuned fairseq model, and torchaudio's, whose blank is a hyphen."""
    fairseq = Units(("<s>", "<pad>", "</s>", "<unk>", "|", "E", "T"), blank=0)
    assert fairseq.decode([0, 5, 1, 4, 2, 6, 3]) == "E T"
    assert fairseq.encode("TE E") == [6, 5, 4, 5]
    torchaudio = Units(("|", "E", "-", "T"), blank=2)
    assert torchaudio.decode([*torchaudio.encode("TE ET"), 2]) == "TE ET"
    with pytest.raises(UnknownSymbols):
        torchaudio.encode("T-E")


def test_without_a_boundary_a_space_is_unknown() -> None:
    units = Units((BLANK, "\u6771", "\u4eac"), boundary=None)
    assert units.decode(units.encode("\u6771\u4eac")) == "\u6771\u4eac"
    with pytest.raises(UnknownSymbols):
        units.encode("\u6771 \u4eac")


@PROPERTY
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1), order=st.randoms())
def test_decoding_undoes_encoding_in_any_order_of_symbols(texts: list[str], order: Random) -> None:
    texts = [text.replace("|", "") for text in [*texts, "a"]]
    symbols = list(Units.characters(texts).symbols)
    order.shuffle(symbols)
    units = Units(tuple(symbols), blank=symbols.index(BLANK))
    for text in texts:
        assert units.decode(units.encode(text)) == " ".join(text.split())
        assert units.blank not in units.encode(text)


@PROPERTY
@given(
    words=st.lists(st.sampled_from([word for text in TEXTS for word in text.split()]) | st.text("THECAS", min_size=1))
)
def test_pieces_spell_what_they_encode(words: list[str]) -> None:
    text = " ".join(words)
    assert BPE.decode(BPE.encode(text)) == text
    assert BPE.blank not in BPE.encode(text)


BPE = Units.train_bpe(TEXTS, 30)


@PROPERTY
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text("THE \u2581Z\u00e9<>|", max_size=12)
)
def test_pieces_refuse_what_they_cannot_spell(text: str) -> None:
    known = set("".join(TEXTS))
    strange = {c for word in text.split() for c in word if c not in known}
    if strange:
        with pytest.raises(UnknownSymbols) as caught:
            BPE.encode(text)
        assert strange & set(caught.value.symbols)
    else:
        assert BPE.decode(BPE.encode(text)) == " ".join(text.split())


def test_bpe_has_the_size_asked_for_and_is_a_function_of_the_texts() -> None:
    assert len(BPE) == 31
    assert BPE.symbols[0] == BLANK
    assert Units.train_bpe(iter(TEXTS), 30) == BPE
    assert len(BPE.encode("THE CAT")) < len("THE CAT")


@pytest.mark.parametrize(("size", "limit"), [(3, "at least"), (10_000, "at most")])
def test_bpe_of_an_impossible_size(size: int, limit: str) -> None:
    with pytest.raises(
        AsrkitError, match=rf"no {size} BPE pieces can be learnt from 5 transcripts \({limit} (\d+)\)"
    ) as caught:
        Units.train_bpe(TEXTS, size)
    possible = int(str(caught.value).split()[-1].rstrip(")"))
    assert len(Units.train_bpe(TEXTS, possible)) == possible + 1


@pytest.mark.parametrize("build", [Units.characters, lambda texts: Units.train_bpe(texts, 30)])
def test_no_characters_at_all(build: object) -> None:
    for texts in ([], [" ", "\t"]):
        with pytest.raises(AsrkitError, match="no characters"):
            build(texts)  # type: ignore[operator]


def test_phones(lexicon: Path) -> None:
    units = Units.phones(lexicon)
    assert units.symbols == (BLANK, "AE", "AH", "DH", "K", "T")
    assert units.decode(units.encode("THE CAT")) == "DH AH K AE T"
    with pytest.raises(UnknownSymbols, match="words not in the lexicon: 'DOG', 'OF'"):
        units.encode("DOG OF THE DOG")


def test_references_are_what_decoding_would_write(lexicon: Path) -> None:
    phones = Units.phones(lexicon)
    assert phones.reference("THE CAT") == phones.decode(phones.encode("THE CAT"))
    assert phones.reference(" THE  DOG CAT") == "DH AH DOG K AE T"
    for units in (Units.characters(TEXTS), BPE):
        assert units.reference("THE DOG") == "THE DOG"


def test_what_is_unknown_is_told_once_with_a_count_of_the_rest(lexicon: Path) -> None:
    phones = Units.phones(lexicon)
    assert phones.unknown(["THE CAT", ""]) is None
    found = phones.unknown(["THE DOG", "IN DOG OF CAT", *(f"W{n}" for n in range(9))])
    assert found is not None
    assert found.symbols[:3] == ("DOG", "IN", "OF")
    assert str(found).startswith("words not in the lexicon: 'DOG', 'IN', 'OF', 'W0', ")
    assert str(found).endswith("'W6', … (2 more)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CAT K\nDOG\n", r"source\.txt:2: word 'DOG' has no phones"),
        ("\n;;;\n", r"source\.txt: holds no pronunciations"),
    ],
)
def test_malformed_lexicons(lexicon: Path, text: str, message: str) -> None:
    lexicon.write_text(text)
    with pytest.raises(AsrkitError, match=message):
        Units.phones(lexicon)


@pytest.mark.parametrize("kind", ["char", "bpe", "phone"])
def test_saved_units_are_the_same(kind: str, lexicon: Path, tmp_path: Path) -> None:
    units = built(kind, lexicon)
    units.save(tmp_path / "units")
    loaded = Units.load(tmp_path / "units")
    for other in (loaded, pickle.loads(pickle.dumps(units))):
        assert other == units
        assert other.encode("THE CAT") == units.encode("THE CAT")
    assert not list((tmp_path / "units").glob(".*"))


@pytest.mark.parametrize("kind", ["char", "bpe", "phone"])
def test_damaged_folders(kind: str, lexicon: Path, tmp_path: Path) -> None:
    folder = tmp_path / "units"
    for name in ("units.json", "units.model", "lexicon.txt"):
        built(kind, lexicon).save(folder)
        if (folder / name).exists():
            (folder / name).unlink()
            with pytest.raises(AsrkitError, match=f"{name}: cannot be read"):
                Units.load(folder)
            (folder / name).write_bytes(b"\xff\xfe nothing")
            with pytest.raises(AsrkitError):
                Units.load(folder).encode("THE CAT")


@pytest.mark.parametrize(
    "change",
    [
        {"blank": 99},
        {"blank": -1},
        {"blank": "x"},
        {"symbols": ["a", "a", "|"]},
        {"symbols": "abc"},
        {"symbols": []},
        {"symbols": [1, 2]},
        {"boundary": "#"},
        {"boundary": 3},
        {"kind": "word"},
        {"kind": ["char"]},
    ],
)
def test_impossible_units(change: dict[str, object], tmp_path: Path) -> None:
    Units.characters("ab").save(tmp_path)
    path = tmp_path / "units.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(AsrkitError, match=r"units\.json: "):
        Units.load(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@PROPERTY
@given(
    stored=st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(["char", "bpe", "phone"]) | JSON,
            "blank": st.integers(-1, 3) | JSON,
            "boundary": st.sampled_from(["|", None]) | JSON,
            "symbols": st.lists(st.text(max_size=1) | JSON, max_size=4) | JSON,
        },
    )
    | JSON
)
def test_any_json_is_units_or_a_complaint(stored: object, tmp_path: Path) -> None:
    (tmp_path / "units.json").write_text(json.dumps(stored), encoding="utf-8")
    said = None
    try:
        units = Units.load(tmp_path)
        assert len(set(units.symbols)) == len(units)
    except AsrkitError as error:
        said = str(error)
    assert said is None or ("units." in said or "lexicon" in said)
