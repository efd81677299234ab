"""Decoding prepared sets: what is written, that the number of processes is no matter, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from asrkit import cli
from asrkit.config import from_dict
from asrkit.data.collate import Example, collate
from asrkit.decoding import flashlight
from asrkit.decoding.factory import DecoderChoice
from asrkit.decoding.greedy import GreedyDecoder
from asrkit.errors import AsrkitError
from asrkit.inference import recogniser, search
from asrkit.inference.decode import DecodeOptions, SetDecoder
from asrkit.text.wer import read_transcripts
from asrkit.training.config import schema
from asrkit.training.experiment import build_method
from tests.inference.fakes import UNITS, Mishearing, write_data, write_lm

WITH_FLASHLIGHT = pytest.param(
    "flashlight", marks=pytest.mark.skipif(not flashlight.available(), reason="flashlight-text is not installed")
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("corpus"), dev=12, test=20)


@pytest.fixture(scope="module")
def lm(data: Path) -> Path:
    return write_lm(data.parent / "lm", 3)


def decode(folder: Path, data: Path, **options) -> dict:
    with SetDecoder(Mishearing(folder), data, DecodeOptions(**{"jobs": 1, **options})) as decoder:
        decoder.decode("test")
    return json.loads((folder / "decode" / "test" / decoder.conditions.label / "results.json").read_text())


def test_greedy_is_the_default(data: Path, tmp_path: Path) -> None:
    result = decode(tmp_path, data)
    assert (result["decoder"], result["lm"], result["beam"], result["tuned_on"]) == ("greedy", None, None, None)
    assert 0.1 < result["wer"] < 0.9
    assert result["utterances"] == 20
    folder = tmp_path / "decode" / "test" / "greedy"
    assert sorted(path.name for path in folder.iterdir()) == ["hyp.trans.txt", "ref.trans.txt", "results.json"]
    assert read_transcripts(folder / "hyp.trans.txt").keys() == read_transcripts(folder / "ref.trans.txt").keys()


@pytest.mark.parametrize("name", ["beam", WITH_FLASHLIGHT])
def test_a_language_model_helps(data: Path, lm: Path, tmp_path: Path, name: str) -> None:
    greedy = decode(tmp_path, data)
    result = decode(tmp_path, data, choice=DecoderChoice(name, lm), nbest=4, lm_weight=1.5, beam=25)
    assert result["wer"] < 0.7 * greedy["wer"]
    assert (result["decoder"], result["lm"], result["lm_weight"], result["word_score"]) == (
        name,
        "nouns.arpa",
        1.5,
        0.0,
    )
    folder = tmp_path / "decode" / "test" / f"{name}-nouns"
    hypotheses = read_transcripts(folder / "hyp.trans.txt")
    rows = [json.loads(line) for line in (folder / "nbest.jsonl").read_text().splitlines()]
    assert {row["id"]: row["hypotheses"][0]["text"] for row in rows} == hypotheses
    for row in rows:
        scores = [reading["score"] for reading in row["hypotheses"]]
        assert 1 <= len(scores) <= 4
        assert scores == sorted(scores, reverse=True)
        for reading in row["hypotheses"]:
            assert [word["text"] for word in reading["words"]] == reading["text"].split()
            count = len(reading["words"])
            assert reading["score"] == pytest.approx(reading["acoustic"] + 1.5 * reading["lm"] + 0.0 * count, abs=1e-3)


@pytest.mark.skipif(not flashlight.available(), reason="flashlight-text is not installed")
def test_both_routes_agree_on_a_set(data: Path, lm: Path, tmp_path: Path) -> None:
    found = []
    for name in ("beam", "flashlight"):
        choice = DecoderChoice(name, lm, lexicon="lm")
        decode(tmp_path, data, choice=choice, lm_weight=1.0, word_score=0.5, beam=500)
        found.append(read_transcripts(tmp_path / "decode" / "test" / f"{name}-nouns" / "hyp.trans.txt"))
    assert found[0] == found[1]


def test_processes_change_nothing(data: Path, lm: Path, tmp_path: Path) -> None:
    written = []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        decode(folder, data, choice=DecoderChoice("beam", lm, "lm"), nbest=3, jobs=jobs, beam=20)
        files = sorted((folder / "decode" / "test" / "beam-nouns").glob("*.*[tl]"))
        written.append([path.read_text() for path in files])
    assert len(written[0]) == 3
    assert written[0] == written[1]


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_language_model_serves_all_sets(
    data: Path, lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setattr(search, "_CHUNK", 5)
    options = {"choice": DecoderChoice("beam", lm, "lm"), "beam": 12, "trials": 2, "jobs": jobs}
    alone = []
    for name in ("dev", "test"):
        with SetDecoder(Mishearing(tmp_path / name), data, DecodeOptions(**options)) as decoder:
            alone.append(decoder.decode(name)[1])
    made: list[object] = []
    make = search.make_decoder
    monkeypatch.setattr(search, "make_decoder", lambda *rest: made.append(rest) or make(*rest))
    with SetDecoder(Mishearing(tmp_path / "all"), data, DecodeOptions(**options)) as decoder:
        together = [decoder.decode(name)[1] for name in ("dev", "test")]
        processes = decoder.searcher._pool
        assert (processes is not None) == (jobs == 2)
    assert together == alone
    assert len(made) == 1


def test_a_weight_that_is_given_leaves_the_others_tuned(data: Path, lm: Path, tmp_path: Path) -> None:
    common = {"choice": DecoderChoice("beam", lm, "lm"), "beam": 12}
    with SetDecoder(Mishearing(tmp_path), data, DecodeOptions(jobs=1, tune_on="dev", trials=5, **common)) as decoder:
        tuned = decoder.tune()
    assert tuned.word_score not in (0.0, 0.25)
    result = decode(tmp_path, data, **common)
    assert (result["lm_weight"], result["word_score"], result["tuned_on"]) == (tuned.lm_weight, tuned.word_score, "dev")
    result = decode(tmp_path, data, **common, lm_weight=0.25)
    assert (result["lm_weight"], result["word_score"], result["tuned_on"]) == (0.25, tuned.word_score, None)


def test_letters_that_the_model_has_not_are_told(data: Path, tmp_path: Path) -> None:
    file = io.StringIO()
    decoder = SetDecoder(Mishearing(tmp_path), data, DecodeOptions(jobs=1), Console(file=file, width=300))
    for texts, says in (
        (["THE CAT"], ""),
        (["the cat"], "it writes upper case: asrkit prepare … --case upper"),
        (["THE CAT 7"], "the model cannot write them"),
    ):
        decoder._warn_of_letters("dev", texts)
        said = file.getvalue()
        assert (says in said) if says else not said
        file.seek(0)
        file.truncate()


def test_words_outside_the_lexicon_are_never_written(data: Path, tmp_path: Path) -> None:
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("THE\nCAT C A T |\nGOAT\nA A\nBIRD\n")
    decode(tmp_path, data, choice=DecoderChoice("beam", lexicon=str(lexicon)), beam=20)
    hypotheses = read_transcripts(tmp_path / "decode" / "test" / "beam" / "hyp.trans.txt")
    assert {word for text in hypotheses.values() for word in text.split()} <= {"THE", "CAT", "GOAT", "A", "BIRD"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tune_on": "test-clean", "choice": ("beam", True)}, "never tuned on a test set"),
        ({"tune_on": "dev", "lm_weight": 1.0, "choice": ("beam", True)}, "either given or tuned"),
        ({"tune_on": "dev"}, "no weights"),
        ({"lm_weight": 1.0}, "no weights"),
        ({"rescore_weight": 1.0}, "without a model"),
        ({"nbest": 0}, "--nbest 0"),
        ({"beam": 0, "choice": ("beam", True)}, "a beam of 0"),
        ({"choice": ("greedy", True)}, "no language model"),
        ({"choice": ("fast", True)}, "did you mean|known"),
        ({"jobs": -1}, "--jobs -1"),
    ],
)
def test_options_that_make_no_sense(data: Path, lm: Path, tmp_path: Path, options: dict, says: str) -> None:
    name, with_lm = options.get("choice", ("auto", False))
    with pytest.raises(AsrkitError, match=says):
        decode(tmp_path, data, **{**options, "choice": DecoderChoice(name, lm if with_lm else None)})
    assert not (tmp_path / "decode").exists()


def test_a_missing_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(AsrkitError, match="no such language model"):
        DecoderChoice("beam", tmp_path / "none.arpa")


def test_the_command(data: Path, lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(recogniser, "load", lambda folder, **_: Mishearing(folder))
    common = ["decode", "--model", str(tmp_path), "--data", str(data), "--jobs", "1"]
    lm_flags = ["--decoder", "beam", "--lm", str(lm), "--lexicon", "lm", "--beam", "10"]
    assert cli.main([*common, "--sets", "dev", "test", *lm_flags, "--tune-on", "dev", "--trials", "3"]) == 0
    shown = capsys.readouterr().out
    assert "untuned" in shown
    assert "test: finetune, beam-nouns" in shown
    for name in ("dev", "test"):
        result = json.loads((tmp_path / "decode" / name / "beam-nouns" / "results.json").read_text())
        assert (result["tuned_on"], result["beam"], result["lexicon"]) == ("dev", 10, "lm")
    for flags, says in (
        ([], "nothing to decode"),
        (["--tune-on", "test", *lm_flags], "never tuned on a test set"),
        (["--sets", "none"], "not a prepared set"),
    ):
        assert cli.main([*common, *flags]) == 2
        assert says in capsys.readouterr().err


def test_unit_scores_are_those_of_the_hypotheses_whatever_the_batch() -> None:
    encoder = {"frontend": "logmel", "layers": 1, "dim": 16, "ffn_dim": 16, "heads": 2, "positions": "rotary"}
    shape = {**encoder, "blocks": "conformer", "conv_kernel": 5, "logmel": {"bins": 16, "channels": 4}}
    torch.manual_seed(0)
    method = build_method(from_dict(schema("finetune"), {"method": "finetune", "encoder": shape}), UNITS).eval()
    rng = np.random.default_rng(0)
    waves = [rng.standard_normal(samples).astype(np.float32) for samples in (16_000, 7_000, 11_000)]
    batch = collate([Example(str(n), wave) for n, wave in enumerate(waves)], epoch=0)
    with torch.inference_mode():
        scores, frames = method.log_probs(batch)
        hypotheses = method.hypotheses(batch)
        alone = [method.log_probs(collate([Example("x", wave)], epoch=0))[0][0] for wave in waves]
    torch.testing.assert_close(scores.logsumexp(-1), torch.zeros(scores.shape[:2]), atol=1e-5, rtol=0)
    for row, count in enumerate(frames):
        torch.testing.assert_close(scores[row, :count], alone[row], atol=1e-4, rtol=1e-4)
        (greedy,) = GreedyDecoder(UNITS, 25.0).search(scores[row, :count].numpy())
        assert list(greedy.units) == hypotheses[row]


def test_as_many_processes_as_their_language_models_have_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "cores", lambda: 8)
    monkeypatch.setattr(search, "free_memory", lambda: 100_000.0)
    for name in ("lm.arpa", "lm.arpa.gz", "lm.bin"):
        (tmp_path / name).write_bytes(b"x" * 10_000)

    def jobs(decoder: str, name: str | None) -> int:
        return search.default_jobs(DecoderChoice(decoder, tmp_path / name if name else None))

    assert jobs("flashlight", None) == jobs("flashlight", "lm.bin") == 8, "processes share KenLM's binaries"
    assert (jobs("flashlight", "lm.arpa"), jobs("flashlight", "lm.arpa.gz")) == (6, 2)
    assert (jobs("beam", "lm.arpa"), jobs("beam", "lm.arpa.gz")) == (1, 1)
