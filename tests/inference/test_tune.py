"""Tuning: it lowers the error of the set it searches on, is a function of its seed, and is applied where it holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asrkit.decoding.config import BeamConfig
from asrkit.decoding.factory import DecoderChoice
from asrkit.errors import AsrkitError
from asrkit.inference.decode import DecodeOptions, SetDecoder
from asrkit.inference.tune import RANGES, settings
from tests.inference.fakes import Mishearing, write_data, write_lm


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("corpus"), dev=20, test=18)


@pytest.fixture(scope="module")
def lm(data: Path) -> Path:
    return write_lm(data.parent / "lm", 2)


def decoder(folder: Path, data: Path, lm: Path, update: int = 100, **options) -> SetDecoder:
    chosen = DecodeOptions(**{"choice": DecoderChoice("beam", lm, "lm"), "beam": 12, "jobs": 1, **options})
    return SetDecoder(Mishearing(folder, update=update), data, chosen)


def test_tuned_on_dev_and_applied_to_test(data: Path, lm: Path, tmp_path: Path) -> None:
    tuned = decoder(tmp_path, data, lm, tune_on="dev", trials=8).tune()
    stored = json.loads((tmp_path / "decode" / "tuning" / "beam-nouns.json").read_text())
    assert len(stored["trials"]) == 9
    errors = [trial["word_errors"] for trial in stored["trials"]]
    chosen = stored["trials"][errors.index(min(errors))]
    assert (chosen["lm_weight"], chosen["word_score"]) == (tuned.lm_weight, tuned.word_score)
    assert tuned.wer == chosen["wer"] < stored["trials"][0]["wer"]

    later = decoder(tmp_path, data, lm)
    result, _ = later.decode("test")
    assert (result.tuned_on, result.lm_weight, result.word_score) == ("dev", tuned.lm_weight, tuned.word_score)
    result, _ = later.decode("dev")
    assert result.wer == pytest.approx(tuned.wer, abs=1e-6)

    given, _ = decoder(tmp_path, data, lm, lm_weight=0.5).decode("test")
    assert (given.tuned_on, given.lm_weight) == (None, 0.5)


def test_other_conditions_do_not_get_the_weights(data: Path, lm: Path, tmp_path: Path) -> None:
    decoder(tmp_path, data, lm, tune_on="dev", trials=2).tune()
    other = write_lm(tmp_path, 1)
    open_vocabulary = DecoderChoice("beam", lm)
    for different in (
        decoder(tmp_path, data, other),
        decoder(tmp_path, data, lm, update=200),
        decoder(tmp_path, data, lm, choice=open_vocabulary, beam=3),
    ):
        result, _ = different.decode("test")
        assert result.tuned_on is None
        assert result.lm_weight == BeamConfig.lm_weight


def test_a_search_is_a_function_of_its_seed(data: Path, lm: Path, tmp_path: Path) -> None:
    found = []
    for n, (seed, jobs) in enumerate([(1, 1), (1, 2), (2, 1)]):
        with decoder(tmp_path / str(n), data, lm, tune_on="dev", trials=3, seed=seed, jobs=jobs) as tuner:
            found.append(tuner.tune())
    assert found[0].trials == found[1].trials != found[2].trials


def test_settings_lie_in_the_ranges() -> None:
    base = BeamConfig()
    for search, trials, expected in (("random", 10, 10), ("grid", 10, 9), ("grid", 16, 16), ("grid", 1, 1)):
        tried = settings(base, ("lm_weight", "word_score"), trials, search, seed=1)
        assert tried[0] == base
        assert len(tried) == expected + 1
        assert len(set(tried)) == len(tried)
        for name, (low, high) in RANGES.items():
            assert all(low <= getattr(config, name) <= high for config in tried)
    only = settings(base, ("lm_weight",), 5, "grid", seed=1)
    assert [config.lm_weight for config in only[1:]] == [0.0, 1.25, 2.5, 3.75, 5.0]
    assert {config.word_score for config in only} == {base.word_score}
    with pytest.raises(AsrkitError, match="no weights"):
        settings(base, (), 5, "grid", seed=1)
    with pytest.raises(AsrkitError, match="0 trials"):
        settings(base, ("lm_weight",), 0, "random", seed=1)


def test_a_damaged_file_is_told(data: Path, lm: Path, tmp_path: Path) -> None:
    path = tmp_path / "decode" / "tuning" / "beam-nouns.json"
    path.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"conditions": {}}'):
        path.write_text(text)
        with pytest.raises(AsrkitError, match="not what tuning wrote"):
            decoder(tmp_path, data, lm).decode("test")
