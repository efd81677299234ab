"""Phones and BPE from config to results: what is trained on, what the model is chosen by, what decoding writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import STILL, checkpoint, rows, sentence, settings, train

from asrkit import cli
from asrkit.text.units import Units
from asrkit.text.wer import read_transcripts

WORDS = {
    f"{part}-{seed}": sentence(seed)
    for part, seeds in (("train", range(14)), ("dev", range(100, 104)))
    for seed in seeds
}
NOT_HEARD, NOT_SAID = WORDS["train-0"].split()[0], WORDS["dev-100"].split()[0]
"""Words that the lexicon lacks: of a training utterance, and of a dev utterance."""
SOUNDS = {"A": "aa", "B": "b", "C": "k", "D": "dh"}
CALM = {"updates": 60, "freeze_updates": 0, "mask": {"time_probability": 0.0, "channel_probability": 0.0}}


def run(exp_dir: Path, speech: Path, units: dict[str, Any], *overrides: str) -> int:
    whole = settings("finetune", speech, encoder=STILL, finetune=CALM, optimiser={"clip_norm": 5.0}, units=units)
    return train(exp_dir, whole, "training.validate_every=20", "data.labelled.speed_factors=[]", *overrides)


def decode(exp_dir: Path, speech: Path, *flags: str) -> int:
    common = ["--model", str(exp_dir), "--data", str(speech), "--sets", "dev", "--precision", "fp32", "--device", "cpu"]
    return cli.main(["decode", *common, "--jobs", "1", *flags])


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def validated(exp_dir: Path, rate: str) -> dict[int, float]:
    return {row["step"]: row[f"dev/{rate}"] for row in rows(exp_dir) if f"dev/{rate}" in row}


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phones") / "lexicon.txt"
    words = {word for text in WORDS.values() for word in text.split()} - {NOT_HEARD, NOT_SAID}
    path.write_text("".join(f"{word} {' '.join(SOUNDS[letter] for letter in word)}\n" for word in sorted(words)))
    return path


@pytest.fixture(scope="module")
def phones(lexicon: Path, speech: Path) -> Path:
    assert run(lexicon.parent / "exp", speech, {"kind": "phone", "lexicon": str(lexicon)}) == 0
    return lexicon.parent / "exp"


def test_words_without_phones_are_named_once_at_the_start(phones: Path) -> None:
    said = (phones / "train.log").read_text(encoding="utf-8")
    without = sum(NOT_HEARD in text.split() for name, text in WORDS.items() if name.startswith("train"))
    assert f"train: {14 - without} of 14 utterances used" in said
    assert (
        f"{without} without a transcript that the units can express (words not in the lexicon: '{NOT_HEARD}')" in said
    )
    assert f"dev: words not in the lexicon: '{NOT_SAID}'; the model cannot write them" in said
    assert said.count("not in the lexicon") == 2


def test_the_model_is_chosen_by_its_phone_error_rate(phones: Path) -> None:
    found = validated(phones, "per")
    assert sorted(found) == [20, 40, 60]
    assert not validated(phones, "wer")
    assert not validated(phones, "cer")
    best = checkpoint(phones, "best")["update"]
    assert found[best] == min(found.values()) < 0.9
    assert "per 0." in (phones / "train.log").read_text(encoding="utf-8")


def test_greedy_decoding_writes_phones(phones: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert decode(phones, speech) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "errors in phones" in shown
    assert f"words not in the lexicon: '{NOT_SAID}'; each counts as a phone that is never right" in shown
    folder = phones / "decode" / "dev" / "greedy"
    references, hypotheses = (read_transcripts(folder / f"{side}.trans.txt") for side in ("ref", "hyp"))
    for name, text in references.items():
        expected = [word if word == NOT_SAID else [SOUNDS[letter] for letter in word] for word in WORDS[name].split()]
        assert text == " ".join(part if isinstance(part, str) else " ".join(part) for part in expected)
    assert {phone for text in hypotheses.values() for phone in text.split()} <= set(SOUNDS.values())
    found = results(folder)
    assert found["corpus"].endswith(", phones")
    assert found["words"] == sum(len(text.split()) for text in references.values())
    assert found["wer"] == pytest.approx(min(validated(phones, "per").values()))
    assert decode(phones, speech, "--nbest", "1", "--decoder", "greedy") == 0
    assert {**results(folder), "seconds": 0} == {**found, "seconds": 0}


def test_a_search_through_the_lexicon_writes_words(phones: Path, speech: Path, lexicon: Path, capsys) -> None:
    assert decode(phones, speech, "--decoder", "beam", "--beam", "10") == 0
    assert "phones" not in capsys.readouterr().out
    folder = phones / "decode" / "dev" / "beam"
    assert read_transcripts(folder / "ref.trans.txt") == {k: text for k, text in WORDS.items() if k.startswith("dev")}
    words = {line.split()[0] for line in lexicon.read_text().splitlines()}
    written = {word for text in read_transcripts(folder / "hyp.trans.txt").values() for word in text.split()}
    assert written
    assert written <= words
    assert not results(folder)["corpus"].endswith("phones")


def test_pseudo_labels_are_judged_in_phones_too(speech: Path, lexicon: Path, tmp_path: Path) -> None:
    whole = settings("wav2vec_s", speech, units={"kind": "phone", "lexicon": str(lexicon)})
    assert train(tmp_path / "exp", whole) == 0
    logged = set().union(*rows(tmp_path / "exp"))
    assert {"dev/per", "dev/pseudo_per", "pseudo_per"} <= logged
    assert not {"dev/cer", "dev/pseudo_cer", "pseudo_cer"} & logged


def test_a_lexicon_of_another_spelling_is_told_with_its_first_words(
    speech: Path, lexicon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lower.txt").write_text(lexicon.read_text().lower())
    assert run(tmp_path / "exp", speech, {"kind": "phone", "lexicon": str(tmp_path / "lower.txt")}) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"no usable utterance: 14 without .* \(words not in the lexicon: '\w+', .* … \(\d+ more\)\)", said)


def test_bpe(speech: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "exp", speech, {"kind": "bpe", "size": 9}, "finetune.updates=160") == 0
    units = Units.load(tmp_path / "exp" / "units")
    assert len(units) == 10
    words, letters = (validated(tmp_path / "exp", rate) for rate in ("wer", "cer"))
    best = checkpoint(tmp_path / "exp", "best")["update"]
    assert words[best] == min(words.values())
    assert letters[best] < 0.9
    for flags, name in (((), "greedy"), (("--decoder", "beam", "--beam", "10"), "beam")):
        assert decode(tmp_path / "exp", speech, *flags) == 0
        folder = tmp_path / "exp" / "decode" / "dev" / name
        references, hypotheses = (read_transcripts(folder / f"{side}.trans.txt") for side in ("ref", "hyp"))
        assert references == {key: text for key, text in WORDS.items() if key.startswith("dev")}
        assert 1 < len(set("".join(hypotheses.values()).replace(" ", ""))) <= 4
    greedy = results(tmp_path / "exp" / "decode" / "dev" / "greedy")
    assert (greedy["wer"], greedy["cer"]) == pytest.approx((words[best], letters[best]))
