from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from asrkit.data.audio import read
from asrkit.data.corpus import Reject, Utterance
from asrkit.data.index import SetIndex
from asrkit.data.inspect import inspect_file
from asrkit.data.prepare import PrepareConfig, Summary, prepare, prepare_librispeech
from asrkit.errors import AsrkitError
from asrkit.text.normalise import TextConfig
from asrkit.text.units import Units

ONE = PrepareConfig(workers=1)
KEEP = PrepareConfig(text=TextConfig(case="keep"), workers=1)


def write_audio(path: Path, seconds: float = 0.5, seed: int = 0, rate: int = 16000, channels: int = 1) -> np.ndarray:
    """Write noise that is exact in 16 bits and return it, (S, C)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(seed).integers(-3000, 3000, (round(seconds * rate), channels)) / 32768
    soundfile.write(path, wave, rate)
    return wave


def write_chapter(folder: Path, utterances: dict[str, str], seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(utterances):
        write_audio(folder / f"{name}.flac", seed=1000 * seed + number)
    name = f"{folder.parent.name}-{folder.name}.trans.txt"
    (folder / name).write_text("".join(f"{key} {text}\n" for key, text in utterances.items()), encoding="utf-8")


def rejects_of(folder: Path) -> dict[str, str]:
    with open(folder / "rejects.tsv", encoding="utf-8") as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    home = tmp_path / "corpus" / "LibriSpeech"
    write_chapter(home / "train-clean-100/11/1", {"11-1-0": "THE CAT'S HAT", "11-1-1": "A DOG"}, 1)
    write_chapter(home / "train-clean-100/12/1", {"12-1-0": "A CAT"}, 2)
    write_chapter(home / "dev-clean/21/1", {"21-1-0": "A HAT"}, 3)
    write_chapter(home / "test-clean/31/1", {"31-1-0": "THE COAT"}, 4)
    limited = home.parent / "librispeech_finetuning"
    write_chapter(limited / "1h/0/clean/11/1", {"11-1-0": "THE CAT'S HAT"}, 1)
    write_chapter(limited / "1h/1/other/11/1", {"11-1-1": "A DOG"}, 5)
    write_chapter(limited / "9h/clean/12/1", {"12-1-0": "A CAT"}, 2)
    return tmp_path / "corpus"


def test_librispeech_from_end_to_end(corpus: Path, tmp_path: Path) -> None:
    summary = prepare_librispeech(corpus, tmp_path / "out", config=KEEP)
    counts = {found.name: found.utterances for found in summary.sets}
    assert counts == {
        "train-clean-100": 3, "10min": 1, "1h": 2, "9h": 1, "10h": 3, "dev-clean": 1, "test-clean": 1
    }  # fmt: skip
    index = SetIndex.open(tmp_path / "out/train-clean-100")
    cuts = [index.read_cut(row) for row in range(3)]
    assert [cut.id for cut in cuts] == ["11-1-0", "11-1-1", "12-1-0"]
    assert [cut.supervisions[0].text for cut in cuts] == ["THE CAT'S HAT", "A DOG", "A CAT"]
    assert [cut.supervisions[0].speaker for cut in cuts] == ["11", "11", "12"]
    assert index.units.tolist() == [13, 5, 5]
    assert index.labelled
    assert SetIndex.open(tmp_path / "out/10h").info["sources"] == ["1h/0", "1h/1", "9h"]
    assert SetIndex.open(tmp_path / "out/10h").rows["source"].tolist() == [0, 1, 2]
    units = Units.load(tmp_path / "out/units")
    assert units.decode(units.encode("THE CAT'S HAT")) == "THE CAT'S HAT"
    assert set(units.symbols) - {"<blank>", "|"} == set("THECATSADOG'")


def test_the_folder_libri_speech_itself_is_taken_too(corpus: Path, tmp_path: Path) -> None:
    prepare_librispeech(corpus, tmp_path / "a", config=KEEP)
    prepare_librispeech(corpus / "LibriSpeech", tmp_path / "b", config=KEEP)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_running_again_and_other_numbers_of_processes_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    (corpus / "LibriSpeech/train-clean-100/11/1/11-1-1.flac").write_bytes(b"damaged")
    out = tmp_path / "out"
    prepare_librispeech(corpus, out, config=KEEP)
    first = contents(out)
    prepare_librispeech(corpus, out, config=KEEP)
    assert contents(out) == first
    prepare_librispeech(corpus, out, config=PrepareConfig(text=TextConfig(case="keep"), workers=2))
    assert contents(out) == first


def test_every_kind_of_bad_input_is_listed_and_the_rest_is_kept(corpus: Path, tmp_path: Path) -> None:
    chapter = corpus / "LibriSpeech/train-clean-100/13/1"
    texts = {f"13-1-{kind}": "A CAT" for kind in ("good", "short", "long", "silent", "nan", "junk", "none")}
    write_chapter(chapter, texts | {"13-1-empty": "", "13-1-dup": "A DOG"})
    write_audio(chapter / "13-1-short.flac", 0.05)
    write_audio(chapter / "13-1-long.flac", 36)
    soundfile.write(chapter / "13-1-silent.flac", np.zeros(16000), 16000)
    (chapter / "13-1-nan.flac").unlink()
    soundfile.write(chapter / "13-1-nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    data = (chapter / "13-1-good.flac").read_bytes()
    (chapter / "13-1-junk.flac").write_bytes(data[: len(data) // 2])
    (chapter / "13-1-none.flac").write_bytes(b"")
    write_audio(chapter / "13-1-untold.flac")
    write_audio(chapter / "13-1-dup.wav")
    with open(chapter / "13-1.trans.txt", "ab") as file:
        file.write(b"13-1-ghost NOBODY SAYS THIS\n13-1-good ANOTHER TEXT\n13-1-bytes \xff\xfe\n\n")
    write_chapter(corpus / "LibriSpeech/train-clean-100/14/1", {"14-1-0": "X"})
    (corpus / "LibriSpeech/train-clean-100/14/1/14-1.trans.txt").unlink()

    summary = prepare_librispeech(corpus, tmp_path / "out", config=KEEP)
    rejects = rejects_of(tmp_path / "out/train-clean-100")
    expected = {
        "13-1-short": "too short",
        "13-1-long": "too long",
        "13-1-silent": "digital silence",
        "13-1-nan": "audio with infinite",
        "13-1-junk": "unreadable audio",
        "13-1-none": "an empty file",
        "13-1-empty": "an empty transcript",
        "13-1-untold": "no transcript line",
        "13-1-dup": "no transcript line",
        "13-1-ghost": "a transcript line without an audio file",
        "13-1-good": "a second transcript line",
        "13-1.trans.txt": "a transcript line that is not UTF-8",
        "14-1-0": "no transcript line",
    }
    assert {name: reason for name, reason in rejects.items() if not reason.startswith(expected[name])} == {}
    assert rejects.keys() == expected.keys()
    found = {record["id"] for record in SetIndex.open(tmp_path / "out/train-clean-100").records()}
    assert found == {"11-1-0", "11-1-1", "12-1-0", "13-1-good", "13-1-dup"}
    assert summary.sets[0].rejected == len(expected)
    assert any("13 rejected" in warning for warning in summary.warnings)


def test_cuts_read_back_sample_for_sample(tmp_path: Path) -> None:
    mono = write_audio(tmp_path / "mono.flac", 3.0, rate=22050)
    stereo = write_audio(tmp_path / "stereo.flac", 2.0, channels=2)
    entries = [
        Utterance("whole", str(tmp_path / "mono.flac")),
        Utterance("part", str(tmp_path / "mono.flac"), 0.7013, 1.2347),
        Utterance("left", str(tmp_path / "stereo.flac"), channel=0),
        Utterance("right", str(tmp_path / "stereo.flac"), 1.0, channel=1),
        Utterance("both", str(tmp_path / "stereo.flac"), 0.5, 0.5),
    ]
    prepare({"train": entries}, tmp_path / "out", ONE)
    index = SetIndex.open(tmp_path / "out/train")
    start = round(0.7013 * 22050)
    expected = {
        "whole": mono[:, 0],
        "part": mono[start : start + round(1.2347 * 22050), 0],
        "left": stereo[:, 0],
        "right": stereo[16000:, 1],
        "both": stereo[8000:16000].mean(1),
    }
    assert len(index) == len(expected)
    for row, duration in enumerate(index.durations):
        cut = index.read_cut(row)
        wave = read(cut, cut.sampling_rate)
        np.testing.assert_allclose(wave, expected[cut.id], atol=1e-7)
        assert duration == np.float32(len(wave) / cut.sampling_rate)


def test_long_untranscribed_audio_is_cut_and_nothing_is_lost(tmp_path: Path) -> None:
    wave = write_audio(tmp_path / "long.flac", 23.456, rate=8000)
    config = PrepareConfig(max_seconds=5, workers=1, decode=False)
    summary = prepare(
        {"train": [Utterance("talk", str(tmp_path / "long.flac"), speaker="s")]}, tmp_path / "out", config
    )
    index = SetIndex.open(tmp_path / "out/train")
    cuts = [index.read_cut(row) for row in range(len(index))]
    joined = np.concatenate([read(cut, 8000) for cut in cuts])
    np.testing.assert_allclose(joined, wave[:, 0], atol=1e-7)
    assert max(index.durations) <= 5
    assert min(index.durations) >= 2.5
    assert [cut.supervisions[0].speaker for cut in cuts] == ["s"] * len(cuts)
    assert index.units.tolist() == [-1] * len(cuts)
    assert len({cut.id for cut in cuts}) == len(cuts)
    assert not index.labelled
    assert summary.sets[0].seconds == pytest.approx(23.456)
    assert not (tmp_path / "out/units").exists()


def test_a_set_with_transcripts_needs_them_for_all(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    write_audio(tmp_path / "b.wav", 40)
    entries = [Utterance("a", str(tmp_path / "a.wav"), text="hi"), Utterance("b", str(tmp_path / "b.wav"))]
    prepare({"train": entries}, tmp_path / "out", ONE)
    assert rejects_of(tmp_path / "out/train") == {"b": "no transcript"}


def test_the_first_usable_utterance_of_an_id_is_kept(tmp_path: Path) -> None:
    write_audio(tmp_path / "b.wav", 0.5)
    write_audio(tmp_path / "c.wav", 0.6)
    entries = [Utterance("u", str(tmp_path / f"{name}.wav")) for name in "abc"]
    prepare({"train": entries}, tmp_path / "out", ONE)
    index = SetIndex.open(tmp_path / "out/train")
    assert index.durations.tolist() == [0.5]
    reasons = (tmp_path / "out/train/rejects.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[2] for line in reasons] == ["no such file", "a second utterance of this id"]


@pytest.mark.parametrize("name", ["", "two words", "tab\there", "line\u2028end", "bad\udcff"])
def test_ids_that_text_files_cannot_hold(tmp_path: Path, name: str) -> None:
    write_audio(tmp_path / "a.wav")
    entries = [Utterance(name, str(tmp_path / "a.wav")), Utterance("ok", str(tmp_path / "a.wav"))]
    summary = prepare({"train": entries}, tmp_path / "out", ONE)
    assert summary.sets[0].utterances == summary.sets[0].rejected == 1
    assert len((tmp_path / "out/train/rejects.tsv").read_text().split("\n")) == 3


def test_unknown_characters_are_rejected_in_training_and_kept_in_evaluation(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    write_audio(tmp_path / "b.wav", seed=1)

    def entries(*texts: str) -> list[Utterance]:
        return [Utterance(f"u{i}", str(tmp_path / "a.wav"), text=text) for i, text in enumerate(texts)]

    sets = {"test": entries("abz", "ab"), "train": entries("ab ba", "aq")}
    free = prepare(sets, tmp_path / "free", ONE)
    assert {found.name: (found.utterances, found.unknown) for found in free.sets} == {"train": (2, 0), "test": (2, 1)}
    config = PrepareConfig(workers=1, alphabet="AB")
    summary = prepare(sets, tmp_path / "fixed", config)
    assert {found.name: (found.utterances, found.unknown) for found in summary.sets} == {
        "train": (1, 0),
        "test": (2, 1),
    }
    assert rejects_of(tmp_path / "fixed/train") == {"u1": "unknown characters in the transcript: Q"}
    assert any("characters that no training set has" in warning for warning in summary.warnings)
    assert Units.load(tmp_path / "fixed/units").symbols == Units.characters(["AB"]).symbols


def test_a_word_boundary_inside_a_transcript_is_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    entries = [Utterance(f"u{i}", str(tmp_path / "a.wav"), text=text) for i, text in enumerate(("a|b", "a b"))]
    prepare({"train": entries}, tmp_path / "out", PrepareConfig(text=TextConfig(punctuation="keep"), workers=1))
    assert list(rejects_of(tmp_path / "out/train")) == ["u0"]


def test_units_are_those_of_all_training_sets_whatever_the_order(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")

    def one(text: str) -> list[Utterance]:
        return [Utterance("u", str(tmp_path / "a.wav"), text=text)]

    for order in (("xy", "yz"), ("yz", "xy")):
        out = tmp_path / "".join(order)
        for text in order:
            prepare({f"train-{text}": one(text), f"test-{text}": one("q")}, out, ONE)
        assert set(Units.load(out / "units").symbols) - {"<blank>", "|"} == set("XYZ")


def test_nothing_usable_is_one_clear_error_and_the_rejects_are_there(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(AsrkitError, match="nothing usable: all 2 entries") as caught:
        prepare(
            {"train": [Utterance("a", str(tmp_path / "a.wav")), Reject("b", "there", "a reason")]},
            tmp_path / "out",
            ONE,
        )
    assert str(tmp_path / "out/train/rejects.tsv") in str(caught.value)
    assert rejects_of(tmp_path / "out/train") == {"a": "an empty file", "b": "a reason"}
    with pytest.raises(AsrkitError, match="not a prepared set"):
        SetIndex.open(tmp_path / "out/train")
    with pytest.raises(AsrkitError, match="nothing to prepare"):
        prepare({"train": []}, tmp_path / "out2", ONE)


def test_a_good_set_outlives_a_preparation_that_finds_nothing(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    sets = {"train": [Utterance("a", str(tmp_path / "a.wav"))]}
    prepare(sets, tmp_path / "out", ONE)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out/train").iterdir() if path.name != "rejects.tsv"}
    (tmp_path / "a.wav").unlink()
    with pytest.raises(AsrkitError, match="nothing usable"):
        prepare(sets, tmp_path / "out", ONE)
    assert rejects_of(tmp_path / "out/train") == {"a": "no such file"}
    (tmp_path / "out/train/rejects.tsv").unlink()
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/train").iterdir()} == before
    assert len(SetIndex.open(tmp_path / "out/train")) == 1


def test_files_of_file_managers_are_in_nobodys_way(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    sets = {"train": [Utterance("a", str(tmp_path / "a.wav"))]}
    prepare(sets, tmp_path / "out", ONE)
    (tmp_path / "out/train/.DS_Store").write_text("")
    assert prepare(sets, tmp_path / "out", ONE).sets[0].utterances == 1
    (tmp_path / "out/train/mine.txt").write_text("")
    with pytest.raises(AsrkitError, match=r"holds what asrkit did not write: mine\.txt"):
        prepare(sets, tmp_path / "out", ONE)


@pytest.mark.parametrize("name", ["/tmp/u", "../u", "a/../../u", ".."])
def test_an_id_leads_nowhere(tmp_path: Path, name: str) -> None:
    write_audio(tmp_path / "a.wav")
    with pytest.raises(AsrkitError, match="leads out of a folder"):
        prepare({"train": [Utterance(name, str(tmp_path / "a.wav"))]}, tmp_path / "out", ONE)


def test_one_empty_set_among_others_is_a_warning(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    sets = {"train": [Utterance("a", str(tmp_path / "a.wav"))], "other": [Reject("b", "there", "a reason")]}
    summary = prepare(sets, tmp_path / "out", ONE)
    assert any("other: nothing usable" in warning for warning in summary.warnings)
    assert len(SetIndex.open(tmp_path / "out/train")) == 1


def test_a_folder_that_is_not_ours_is_never_replaced(corpus: Path) -> None:
    before = contents(corpus)
    with pytest.raises(AsrkitError, match="holds what asrkit did not write"):
        prepare_librispeech(corpus, corpus / "LibriSpeech", config=KEEP)
    assert contents(corpus) == before


@pytest.mark.parametrize("name", ["", "..", "a/b", "units", ".hidden", "a b"])
def test_names_that_no_set_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(AsrkitError, match="cannot be called"):
        prepare({name: []}, tmp_path / "out", ONE)


def test_a_failure_half_way_leaves_the_earlier_set_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_audio(tmp_path / "a.wav")
    write_audio(tmp_path / "b.wav", seed=1)
    entries = [Utterance(name, str(tmp_path / f"{name}.wav"), text=name) for name in "ab"]
    prepare({"train": entries}, tmp_path / "out", ONE)
    before = contents(tmp_path / "out")
    calls: list[str] = []

    def interrupted(job, limits):
        calls.append(job.path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inspect_file(job, limits)

    monkeypatch.setattr("asrkit.data.checking.inspect_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare({"train": entries[::-1]}, tmp_path / "out", ONE)
    assert contents(tmp_path / "out") == before


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    (tmp_path / "file").write_text("")
    with pytest.raises(AsrkitError, match="cannot be written"):
        prepare({"train": [Utterance("a", str(tmp_path / "a.wav"))]}, tmp_path / "file", ONE)


@pytest.mark.parametrize("content", [None, "not a folder"])
def test_a_corpus_that_is_not_there(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "corpus").write_text(content)
    with pytest.raises(AsrkitError, match="no such folder"):
        prepare_librispeech(tmp_path / "corpus", tmp_path / "out")


def test_a_corpus_without_sets_and_a_wrong_limited_folder(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AsrkitError, match="no folder train"):
        prepare_librispeech(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(AsrkitError, match="neither 1h/ nor 9h/"):
        prepare_librispeech(corpus, tmp_path / "out", tmp_path / "empty")
    with pytest.raises(AsrkitError, match="no such folder"):
        prepare_librispeech(corpus, tmp_path / "out", tmp_path / "nowhere")


def test_only_the_published_sets_are_called_librispeech(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    prepare_librispeech(corpus, tmp_path / "a", config=KEEP)
    assert SetIndex.open(tmp_path / "a/test-clean").info["corpus"] == "corpus"
    monkeypatch.setattr(
        "asrkit.data.librispeech.UTTERANCES", {"train-clean-100": 3, "dev-clean": 1, "test-clean": 1, "test-other": 9}
    )
    prepare_librispeech(corpus, tmp_path / "b", config=KEEP)
    assert SetIndex.open(tmp_path / "b/test-clean").info["corpus"] == "librispeech"


def show(summary: Summary) -> str:
    screen = io.StringIO()
    summary.show(Console(file=screen, width=120))
    return screen.getvalue()


def test_the_screen_tells_what_was_found(corpus: Path, tmp_path: Path) -> None:
    (corpus / "LibriSpeech/train-clean-100/11/1/11-1-1.flac").write_bytes(b"")
    screen = io.StringIO()
    summary = prepare_librispeech(corpus, tmp_path / "out", config=KEEP, console=Console(file=screen, width=120))
    assert "train-clean-100" in screen.getvalue()
    row = next(line for line in show(summary).splitlines() if "train-clean-100 " in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["train-clean-100", "2", "0.00", "2", "1", "2"]
    assert "1 x an empty file" in show(summary)


def test_set_json_describes_the_set(corpus: Path, tmp_path: Path) -> None:
    prepare_librispeech(corpus, tmp_path / "out", config=KEEP, corpus="mine")
    info = json.loads((tmp_path / "out/train-clean-100/set.json").read_text())
    assert info == {
        "name": "train-clean-100",
        "corpus": "mine",
        "labelled": True,
        "utterances": 3,
        "seconds": 1.5,
        "speakers": 2,
        "rejected": 0,
        "longest": 0.5,
        "sentences": 3,
        "alphabet": "'ACDEGHOST",
        "unknown": 0,
        "sources": ["train-clean-100"],
    }


@pytest.mark.parametrize(
    "wrong",
    [{"min_seconds": 0.0}, {"min_seconds": 40.0}, {"max_seconds": 1e9}, {"workers": -1}, {"alphabet": " "},
     {"min_sample_rate": 0}, {"max_seconds": float("nan")}],
)  # fmt: skip
def test_impossible_settings_name_the_key(wrong: dict) -> None:
    with pytest.raises(AsrkitError, match="|".join([*wrong, "min_seconds"])):
        PrepareConfig(**wrong)


@pytest.mark.filterwarnings("error")
def test_samples_beyond_all_measure_are_rejected(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(16_000, 1e30, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(AsrkitError, match="samples beyond all measure"):
        prepare({"train": [Utterance("a", str(tmp_path / "a.wav"))]}, tmp_path / "out", ONE)
