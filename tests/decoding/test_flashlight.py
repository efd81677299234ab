"""flashlight's decoder and the built-in one are the same function, where both are wide enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from asrkit.decoding.arpa import read_arpa
from asrkit.decoding.config import BeamConfig
from asrkit.decoding.factory import DecoderChoice, make_decoder, resolve
from asrkit.decoding.flashlight import FlashlightDecoder
from asrkit.decoding.hypothesis import Hypothesis
from asrkit.decoding.lexicon import spell
from asrkit.decoding.prefix_beam import PrefixBeamDecoder
from asrkit.errors import AsrkitError
from asrkit.text.units import BLANK, Units
from tests.decoding.common import random_scores, train, unlimited

pytest.importorskip(
    "flashlight.lib.text.decoder.kenlm", reason='flashlight-text is missing: pip install "asrkit[decode]"'
)

UNITS = Units((BLANK, "|", "A", "B", "C"))
IMPORTED = Units(("<s>", "A", "B", "<pad>", "C", "|", "<unk>"), blank=3)
SENTENCES = ["A B", "AB A", "B B A", "A", "AB AB B", "C CAB", "CAB A A", "B C"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    train(SENTENCES, 3, path)
    return path


def as_dict(hypotheses: list[Hypothesis], tolerance_below: float) -> dict[str, Hypothesis]:
    best = hypotheses[0].score
    return {h.text: h for h in hypotheses if h.score > best - tolerance_below}


@pytest.mark.parametrize("units", [UNITS, IMPORTED], ids=["asrkit", "imported"])
@pytest.mark.parametrize("seed", range(6))
def test_words_with_a_lexicon(lm: Path, units: Units, seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = unlimited(float(rng.uniform(0, 3)), float(rng.uniform(-2, 2)))
    # Narrower than unlimited: flashlight sorts its whole beam. Wide enough for every hypothesis that matters here.
    wide = BeamConfig(
        beam=20_000, nbest=1000, threshold=200.0, lm_weight=config.lm_weight, word_score=config.word_score
    )
    lexicon, _ = spell(["A", "AB", "B", "CAB", "BB", "C"], units)
    scores = random_scores(rng, 7, len(units))
    found = FlashlightDecoder(units, 50.0, wide, lm=lm, lexicon=lexicon).search(scores)
    model = read_arpa(lm)
    exact = PrefixBeamDecoder(units, 50.0, config, model=model, lexicon=lexicon).search(scores)
    expected = as_dict(exact, 6.0)
    near = as_dict(found, 6.0)
    assert len(expected) > 3
    assert near.keys() == expected.keys()
    for text, hypothesis in near.items():
        assert hypothesis.score == pytest.approx(expected[text].score, abs=1e-3)
        assert hypothesis.lm == pytest.approx(expected[text].lm, abs=1e-4)
        assert hypothesis.acoustic == pytest.approx(expected[text].acoustic, abs=1e-3)
        assert (hypothesis.units, hypothesis.spans) == (expected[text].units, expected[text].spans)


@pytest.mark.parametrize("seed", range(4))
def test_units_without_a_model(seed: int) -> None:
    scores = random_scores(np.random.default_rng(seed), 6, len(UNITS))
    wide = BeamConfig(beam=100_000, nbest=20, threshold=200.0)
    found = FlashlightDecoder(UNITS, 50.0, wide).search(scores)
    exact = {h.text: h for h in PrefixBeamDecoder(UNITS, 50.0, unlimited()).search(scores)}
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(exact[hypothesis.text].score, abs=1e-3)
        assert UNITS.decode(hypothesis.units) == hypothesis.text
    assert [h.text for h in found] == list(exact)[: len(found)]


def test_a_model_of_letters(tmp_path: Path) -> None:
    path = tmp_path / "letters.arpa"
    train(["A | B", "A B | A", "B B | A B", "A A | C", "C A B"], 3, path)
    rng = np.random.default_rng(0)
    config = BeamConfig(beam=500, lm_weight=1.0)
    choice = DecoderChoice("flashlight", path)
    fast, plain = (make_decoder(DecoderChoice(name, path), UNITS, 50.0, config) for name in ("flashlight", "beam"))
    assert isinstance(plain, PrefixBeamDecoder)
    assert plain.unit_level
    assert resolve(DecoderChoice("auto", path), UNITS, 1) == choice
    agree = 0
    for _ in range(20):
        scores = random_scores(rng, 8, len(UNITS), sharpness=3.0)
        agree += fast.search(scores)[0].text == plain.search(scores)[0].text
    # They part where a boundary at the end, which no text shows, is charged for by one of them.
    assert agree >= 18


def test_other_weights_share_the_model(lm: Path) -> None:
    lexicon, _ = spell(["A", "AB", "B"], UNITS)
    scores = random_scores(np.random.default_rng(1), 8, len(UNITS))
    first = FlashlightDecoder(UNITS, 50.0, BeamConfig(lm_weight=0.0), lm=lm, lexicon=lexicon)
    other = BeamConfig(lm_weight=3.0, word_score=1.0)
    second = first.reweighted(other)
    assert second.search(scores) == FlashlightDecoder(UNITS, 50.0, other, lm=lm, lexicon=lexicon).search(scores)
    assert first.config.lm_weight == 0.0


def test_ties_do_not_depend_on_memory() -> None:
    """Coarse scores tie all the time; what is kept of them must not depend on where it lies."""
    units = Units((BLANK, "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    rng = np.random.default_rng(1)
    logits = np.round(3 * rng.standard_normal((150, len(units))), 0)
    scores = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
    found, kept = set(), []
    for number in range(6):
        kept.append(bytearray(1000 * number))
        (best,) = FlashlightDecoder(units, 50.0, BeamConfig(beam=30)).search(scores)
        found.add((best.text, round(best.score, 4)))
    assert len(found) == 1


def test_silence_is_empty(lm: Path) -> None:
    lexicon, _ = spell(["A", "AB", "B"], UNITS)
    for decoder in (
        FlashlightDecoder(UNITS, 50.0, BeamConfig(), lm=lm, lexicon=lexicon),
        FlashlightDecoder(UNITS, 50.0, BeamConfig()),
    ):
        blank = np.full((5, len(UNITS)), -30.0, dtype=np.float32)
        blank[:, 0] = 0.0
        for scores in (blank, blank[:0]):
            (found,) = decoder.decode(scores)
            assert (found.text, found.units, found.words) == ("", (), ())


def test_what_flashlight_cannot_do_is_told(lm: Path, tmp_path: Path) -> None:
    pieces = Units.train_bpe(["AB ABA", "ABA AB B", "B A"], 6)
    with pytest.raises(AsrkitError, match="word boundary"):
        make_decoder(DecoderChoice("flashlight", lm), pieces, 50.0, BeamConfig())
    with pytest.raises(AsrkitError, match="word score"):
        make_decoder(DecoderChoice("flashlight"), UNITS, 50.0, BeamConfig(word_score=1.0))
    assert resolve(DecoderChoice("auto", lm), pieces, 1) == DecoderChoice("beam", lm)
    damaged = tmp_path / "damaged.arpa"
    damaged.write_text(lm.read_text().replace("ngram 2=", "ngram 2=9"))
    with pytest.raises(AsrkitError, match="KenLM cannot read"):
        make_decoder(DecoderChoice("flashlight", damaged), UNITS, 50.0, BeamConfig())
    binary = tmp_path / "lm.bin"
    binary.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    with pytest.raises(AsrkitError, match="does not tell its words"):
        make_decoder(DecoderChoice("flashlight", binary), UNITS, 50.0, BeamConfig())
