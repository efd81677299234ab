"""The built-in beam search, at unlimited width, equals trying every path."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.decoding.lexicon import spell
from asrkit.decoding.ngram import NGram, sentence_log10
from asrkit.decoding.prefix_beam import PrefixBeamDecoder
from asrkit.text.units import BLANK, Units
from tests.decoding.common import every_text, random_scores, train, unlimited

CHARACTERS = Units((BLANK, "|", "A", "B"))
IMPORTED = Units(("A", "<pad>", "|", "<unk>"), blank=1)
PHONES = Units((BLANK, "a", "b"), boundary=None, kind="phone", lexicon={"X": ("a",), "Y": ("a", "b"), "Z": ("b",)})
NO_SPACES = Units((BLANK, "A", "B"), boundary=None)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> NGram:
    sentences = ["A B", "AB A", "B B A", "A", "AB AB B", "X Y", "Y X X Z", "Z"]
    return train(sentences, 3, tmp_path_factory.mktemp("lm") / "words.arpa")


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> NGram:
    return train(["A | B", "A B | A", "B B | A B", "A A"], 3, tmp_path_factory.mktemp("lm") / "letters.arpa")


def assert_equal(found: list, expected: dict[str, float], tolerance: float = 1e-4) -> None:
    assert {h.text: h.score for h in found} == pytest.approx(expected, abs=tolerance)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


@pytest.mark.parametrize("units", [CHARACTERS, IMPORTED, NO_SPACES], ids=["characters", "imported", "no spaces"])
@pytest.mark.parametrize("frames", [0, 1, 2, 5])
def test_equals_every_path(units: Units, frames: int) -> None:
    scores = random_scores(np.random.default_rng(frames), frames, len(units))
    found = PrefixBeamDecoder(units, 50.0, unlimited()).search(scores)
    assert_equal(found, every_text(scores, units))
    assert np.logaddexp.reduce([h.acoustic for h in found]) == pytest.approx(0.0, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 4), st.floats(-3, 3))
def test_equals_every_path_with_a_word_model(words: NGram, seed: int, weight: float, insertion: float) -> None:
    """Some texts hold words that the model does not know: those count as its unknown word."""
    scores = random_scores(np.random.default_rng(seed), 5, len(CHARACTERS))
    found = PrefixBeamDecoder(CHARACTERS, 50.0, unlimited(weight, insertion), model=words).search(scores)
    expected = {
        text: acoustic + weight * sentence_log10(words, text.split()) + insertion * len(text.split())
        for text, acoustic in every_text(scores, CHARACTERS).items()
    }
    assert_equal(found, expected)
    for hypothesis in found:
        assert hypothesis.lm == pytest.approx(sentence_log10(words, hypothesis.text.split()), abs=1e-6)
        total = hypothesis.acoustic + weight * hypothesis.lm + insertion * len(hypothesis.text.split())
        assert hypothesis.score == pytest.approx(total, abs=1e-6)


def test_equals_every_path_with_a_letter_model(letters: NGram) -> None:
    scores = random_scores(np.random.default_rng(3), 5, len(CHARACTERS))
    decoder = PrefixBeamDecoder(CHARACTERS, 50.0, unlimited(1.5), model=letters, unit_level=True)
    expected = {
        text: acoustic + 1.5 * sentence_log10(letters, list(text.replace(" ", "|")))
        for text, acoustic in every_text(scores, CHARACTERS).items()
    }
    assert_equal(decoder.search(scores), expected)


def test_a_lexicon_leaves_its_words_alone(words: NGram) -> None:
    lexicon, missing = spell(["A", "AB", "ABA", "C"], CHARACTERS)
    assert missing == 1
    scores = random_scores(np.random.default_rng(4), 6, len(CHARACTERS))
    decoder = PrefixBeamDecoder(CHARACTERS, 50.0, unlimited(2.0, 0.5), model=words, lexicon=lexicon)
    expected = {
        text: acoustic + 2.0 * sentence_log10(words, text.split()) + 0.5 * len(text.split())
        for text, acoustic in every_text(scores, CHARACTERS).items()
        if set(text.split()) <= set(lexicon)
    }
    assert_equal(decoder.search(scores), expected)


def phone_readings(sequence: tuple[int, ...]) -> set[str]:
    """All ways to divide phones into words."""
    assert PHONES.lexicon is not None
    texts = {""} if not sequence else set()
    for word, phones in PHONES.lexicon.items():
        spelt = tuple(PHONES.index[phone] for phone in phones)
        if sequence[: len(spelt)] == spelt:
            texts |= {f"{word} {rest}".strip() for rest in phone_readings(sequence[len(spelt) :])}
    return texts


def test_phones_are_read_in_every_way_that_the_lexicon_allows(words: NGram) -> None:
    assert PHONES.lexicon is not None
    scores = random_scores(np.random.default_rng(5), 5, len(PHONES))
    lexicon, _ = spell(PHONES.lexicon, PHONES)
    found = PrefixBeamDecoder(PHONES, 50.0, unlimited(1.0, 0.3), model=words, lexicon=lexicon).search(scores)
    expected = {
        text: acoustic + sentence_log10(words, text.split()) + 0.3 * len(text.split())
        for text, acoustic in every_text(scores, PHONES, phone_readings).items()
    }
    assert_equal(found, expected)
    for hypothesis in found:
        spelt = [tuple(hypothesis.units[a:b]) for a, b in hypothesis.spans]
        assert spelt == [lexicon[word][0] for word in hypothesis.text.split()]


@pytest.fixture(scope="module")
def pieces() -> Units:
    return Units.train_bpe(["AB ABA", "ABA AB B", "B A"], 6)


@pytest.mark.parametrize("closed", [False, True])
def test_pieces(pieces: Units, words: NGram, closed: bool) -> None:
    scores = random_scores(np.random.default_rng(6), 4, len(pieces))
    every = every_text(scores, pieces)
    lexicon = spell(["AB", "ABA", "B"], pieces)[0] if closed else None
    found = PrefixBeamDecoder(pieces, 50.0, unlimited(1.0), model=words, lexicon=lexicon).search(scores)
    if lexicon is None:
        assert_equal(found, {t: a + sentence_log10(words, t.split()) for t, a in every.items()})
        return
    # Only the spelling that sentencepiece itself gives to a word counts.
    spelt = {t: tuple(unit for word in t.split() for unit in lexicon[word][0]) for t in every if known(t, lexicon)}
    exact: dict[str, float] = {}
    for path in itertools.product(range(len(pieces)), repeat=len(scores)):
        collapsed = tuple(unit for unit, _ in itertools.groupby(path) if unit != pieces.blank)
        text = pieces.decode(collapsed)
        if spelt.get(text) == collapsed:
            score = float(sum(scores[frame, unit] for frame, unit in enumerate(path)))
            exact[text] = float(np.logaddexp(exact.get(text, -np.inf), score))
    assert len(exact) > 2
    assert_equal(found, {t: a + sentence_log10(words, t.split()) for t, a in exact.items()})


def known(text: str, lexicon: dict) -> bool:
    return set(text.split()) <= set(lexicon)


def test_a_narrow_beam_still_finds_the_best_of_sharp_scores(words: NGram, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    for _ in range(10):
        scores = random_scores(rng, 6, len(CHARACTERS), sharpness=4.0)
        wide = PrefixBeamDecoder(CHARACTERS, 50.0, unlimited(0.5), model=words)
        narrow = wide.reweighted(type(wide.config)(beam=16, lm_weight=0.5))
        assert narrow.search(scores)[0].text == wide.search(scores)[0].text
        assert len(narrow.search(scores)) == 1


def test_a_word_that_cannot_end_is_left_out() -> None:
    scores = np.full((3, 4), -20.0, dtype=np.float32)
    for frame, unit in enumerate((2, 1, 3)):
        scores[frame, unit] = -1e-6
    lexicon, _ = spell(["A", "BA"], CHARACTERS)
    config = type(unlimited())(beam=1, lm_weight=0.0)
    (found,) = PrefixBeamDecoder(CHARACTERS, 50.0, config, lexicon=lexicon).search(scores)
    assert (found.text, found.units, found.spans) == ("A", (2,), ((0, 1),))
