from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrkit.data.corpus import Utterance
from asrkit.data.overlap import Fingerprint, overlap_warnings
from asrkit.data.prepare import PrepareConfig, prepare
from asrkit.errors import AsrkitError

ONE = PrepareConfig(workers=1)


def fingerprint(speakers: str = "", recordings: tuple[int, ...] = (), sentences: tuple[int, ...] = (), corpus="c"):
    return Fingerprint(
        corpus, frozenset(speakers), np.array(sorted(recordings), np.uint64), np.array(sentences, np.int64)
    )


def test_disjoint_sets_say_nothing() -> None:
    sets = {
        "train": fingerprint("ab", (1, 2), (1, 2)),
        "dev": fingerprint("cd", (3, 4), (3, 4)),
        "test": fingerprint("e", (5,), (5,)),
    }
    assert overlap_warnings(sets, sets) == []


def test_what_is_shared_is_counted() -> None:
    sets = {"train": fingerprint("ab", (1, 2, 3), (7, 8)), "dev-x": fingerprint("bc", (2, 3, 4), (7, 9, 7, 9, 9))}
    assert overlap_warnings(sets, sets) == [
        "dev-x and train share 1 speaker, such as b",
        "dev-x and train share 2 recordings",
        "40.0% of dev-x's utterances have a sentence that is also in train",
    ]


@pytest.mark.parametrize(("first", "second"), list(itertools.product(["train", "10h", "dev-a", "test-a"], repeat=2)))
def test_which_pairs_are_compared(first: str, second: str) -> None:
    kinds = {name.split("-")[0].replace("10h", "train") for name in (first, second)}
    second = second if second != first else f"{second}2"
    same = fingerprint("a")
    found = overlap_warnings({first: same, second: same}, [first])
    assert len(found) == (len(kinds) == 2)
    assert overlap_warnings({first: same, second: same}, []) == []


def test_speakers_of_different_corpora_are_different_people() -> None:
    sets = {"train": fingerprint("a", corpus="x"), "test": fingerprint("a", corpus="y")}
    assert overlap_warnings(sets, sets) == []


def test_copies_are_found_across_runs_and_names(tmp_path: Path) -> None:
    waves = np.random.default_rng(0).normal(0, 0.1, (3, 8000))
    for name, wave in zip("abc", waves, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000)
    (tmp_path / "copy.wav").write_bytes((tmp_path / "a.wav").read_bytes())

    def entries(*names: str) -> list[Utterance]:
        return [Utterance(name, str(tmp_path / f"{name}.wav"), text=f"say {name}", speaker=name) for name in names]

    assert prepare({"train": entries("a", "b")}, tmp_path / "out", ONE).warnings == []
    # "c", "o", "p" and "y" are characters that the training set lacks, which is another warning.
    summary = prepare({"test": entries("copy", "c")}, tmp_path / "out", ONE)
    assert [line for line in summary.warnings if "share" in line] == ["test and train share 1 recording"]
    (tmp_path / "out/train/fingerprint.npz").write_bytes(b"damaged")
    summary = prepare({"test": entries("copy", "c")}, tmp_path / "out", ONE)
    assert any("cannot be compared" in line for line in summary.warnings)


def test_a_fingerprint_comes_back(tmp_path: Path) -> None:
    first = fingerprint("äb", (2**63, 1), (-5, 5))
    first.save(tmp_path)
    second = Fingerprint.load(tmp_path)
    assert (first.corpus, first.speakers) == (second.corpus, second.speakers)
    assert first.recordings.tolist() == second.recordings.tolist()
    assert first.sentences.tolist() == second.sentences.tolist()
    (tmp_path / "fingerprint.npz").unlink()
    with pytest.raises(AsrkitError, match="damaged set"):
        Fingerprint.load(tmp_path)
