from __future__ import annotations

import dataclasses
import re
import string
import sys
from collections import Counter
from itertools import chain, islice, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from asrkit.data import espeak, mini_text, mini_voice
from asrkit.data.mini import MiniConfig, synthesise
from asrkit.errors import AsrkitError

loader = pytest.importorskip("espeakng_loader")

SMALL = MiniConfig(
    seed=3,
    train_minutes=1.6,
    dev_minutes=0.2,
    test_minutes=0.2,
    fold_minutes=0.06,
    nine_hour_minutes=0.2,
    train_speakers=9,
    dev_speakers=2,
    test_speakers=2,
    fold_speakers=1,
    nine_hour_speakers=2,
)
TEXTS = ("the last train leaves on monday", "please paint the yellow window", "expect heavy snow in quebec")


def draw(count: int, seed: int = 0) -> list[str]:
    return list(islice(mini_text.sentences(np.random.default_rng(seed)), count))


def expand(form: str) -> set[str]:
    """Every sentence of a form, by brute force."""
    parts = [
        set(chain.from_iterable(expand(other) for other in mini_text.GRAMMAR[part]))
        if part in mini_text.GRAMMAR
        else {part}
        for part in form.split()
    ]
    return {" ".join(words) for words in product(*parts)}


# The grammar


def test_the_vocabulary_is_small_and_uses_the_whole_alphabet() -> None:
    words = mini_text.vocabulary()
    assert 50 <= len(words) <= 80
    assert set("".join(words)) == set(string.ascii_uppercase)


def test_sentences_are_those_of_the_grammar() -> None:
    everything = expand("sentence")
    assert len(everything) == mini_text.ways("sentence")
    drawn = draw(2000)
    assert set(drawn) <= {sentence for sentence in everything if mini_text.accepts(sentence)}
    assert len(set(drawn)) == len(drawn)
    assert {word for sentence in drawn for word in sentence.split()} == set(mini_text.vocabulary())


def test_sentences_follow_from_the_seed() -> None:
    assert draw(200, seed=5) == draw(200, seed=5)
    assert draw(200, seed=5) != draw(200, seed=6)


def test_no_sentence_repeats_a_content_word() -> None:
    assert not mini_text.accepts("THE TRAIN FROM BOSTON TO BOSTON LEAVES AT SIX")
    assert mini_text.accepts("WASH THE RED DOOR AND PAINT THE LAMP")


def test_every_word_is_frequent_enough_to_be_learnt() -> None:
    counts = Counter(word for sentence in draw(1000) for word in sentence.split())
    assert min(counts.values()) > 0.002 * counts.total()


def test_two_words_of_history_predict_the_next() -> None:
    """Held-out perplexity falls to a fraction when the history is known: the structure an n-gram model can use."""
    train, held_out = draw(2000)[:1600], draw(2000)[1600:]

    def perplexity(order: int) -> float:
        def grams(texts: list[str]) -> Counter[tuple[str, ...]]:
            padded = [[*["<s>"] * (order - 1), *text.split()] for text in texts]
            return Counter(tuple(words[i : i + order]) for words in padded for i in range(len(words) - order + 1))

        seen, size = grams(train), len(mini_text.vocabulary())
        histories: Counter[tuple[str, ...]] = Counter()
        for gram, count in seen.items():
            histories[gram[:-1]] += count
        asked = grams(held_out)
        bits = sum(-n * np.log2((seen[g] + 0.1) / (histories[g[:-1]] + 0.1 * size)) for g, n in asked.items())
        return float(2 ** (bits / asked.total()))

    assert perplexity(3) < 0.2 * perplexity(1)


def test_an_exhausted_grammar_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_text, "GRAMMAR", {"sentence": ("GOOD day",), "day": ("MORNING", "EVENING")})
    mini_text._thresholds.cache_clear()
    stream = mini_text.sentences(np.random.default_rng(0))
    assert {next(stream), next(stream)} == {"GOOD MORNING", "GOOD EVENING"}
    with pytest.raises(AsrkitError, match="fewer minutes"):
        next(stream)
    mini_text._thresholds.cache_clear()


# The synthesiser


@pytest.mark.parametrize("variant", ["f3", "m5", "caleb", "Alicia"])
def test_a_voice_does_not_depend_on_what_others_said_before(variant: str) -> None:
    """f3 and Alicia breathe, caleb is a Klatt voice: these draw random numbers."""

    def say() -> list[bytes]:
        with espeak.Synthesiser("en", variant, seed=4) as speech:
            return [speech.speak(text).tobytes() for text in TEXTS]

    alone = say()
    for other in ("m5", "Alicia", "Reed"):
        with espeak.Synthesiser("en-us", other) as speech:
            speech.speak("good morning", rate=200)
    assert say() == alone


@pytest.mark.parametrize("accent", mini_voice.ACCENTS)
def test_no_two_words_sound_the_same(accent: str) -> None:
    with espeak.Synthesiser(accent, "m1") as speech:
        sounds = [speech.phonemes(word.lower()) for word in mini_text.vocabulary()]
    assert len(set(sounds)) == len(sounds)
    assert all(sounds)


def test_tempo_and_pitch_do_what_they_say() -> None:
    with espeak.Synthesiser("en-us", "m1") as speech:
        lengths = [len(speech.speak(TEXTS[0], rate=rate)) for rate in (120, 160, 220)]
        assert lengths == sorted(lengths, reverse=True)

        def period(pitch: float) -> int:
            wave = speech.speak("ah", pitch=pitch, pitch_range=0).astype(float)[2000:8000]
            echo = np.correlate(wave, wave, "full")[len(wave) - 1 :]
            return int(np.argmax(echo[60:400])) + 60

        assert period(80) < 0.8 * period(20)


def test_a_missing_package_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(AsrkitError, match=r'pip install "asrkit\[mini\]"'):
        synthesise(SMALL, tmp_path / "out", workers=1)
    assert not any(tmp_path.iterdir())


def test_unknown_voices_and_a_second_open_voice_are_refused() -> None:
    with pytest.raises(AsrkitError, match="accent 'xx-nowhere'"):
        espeak.Synthesiser("xx-nowhere", "f1")
    with pytest.raises(AsrkitError, match=r"variant 'Alica'.*'Alicia'"):
        espeak.Synthesiser("en", "Alica")
    with espeak.Synthesiser("en", "f1"), pytest.raises(AsrkitError, match="one voice at a time"):
        espeak.Synthesiser("en", "f2")


def test_espeak_reads_its_data_from_a_long_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    (deep / "espeak-ng-data").symlink_to(loader.get_data_path())
    with espeak.Synthesiser("en", "f3") as speech:
        usual = speech.speak(TEXTS[0])
    places = {"get_data_path": lambda: str(deep / "espeak-ng-data"), "get_library_path": loader.get_library_path}
    monkeypatch.setitem(sys.modules, "espeakng_loader", SimpleNamespace(**places))
    with espeak.Synthesiser("en", "f3") as speech:
        assert np.array_equal(speech.speak(TEXTS[0]), usual)


# The voices


def voice(**changes: object) -> mini_voice.Voice:
    drawn = mini_voice.draw_voice(np.random.default_rng(0), "en-us", "m1", "M", (13.0, 13.0))
    return dataclasses.replace(drawn, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("tract", [0.92, 1.0, 1.08])
def test_a_longer_vocal_tract_lowers_and_stretches(tract: float) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(22050) / 22050)
    wave = mini_voice._through_channel(tone, voice(tract=tract, tilt=0.0, bump_db=0.0), 22050)
    assert len(wave) == pytest.approx(16000 * tract, abs=1)
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    assert np.argmax(spectrum) * 16000 / len(wave) == pytest.approx(1000 / tract, abs=1.5)
    assert np.std(wave[2000:-2000]) == pytest.approx(np.std(tone), rel=0.01)


@pytest.mark.parametrize(("tilt", "hertz", "gain"), [(2.0, 4000, 4.0), (-2.0, 4000, -4.0), (2.0, 250, -4.0)])
def test_the_channel_tilts_the_spectrum_around_1_khz(tilt: float, hertz: int, gain: float) -> None:
    tone = np.sin(2 * np.pi * hertz * np.arange(22050) / 22050)
    wave = mini_voice._through_channel(tone, voice(tract=1.0, tilt=tilt, bump_db=0.0), 22050)
    assert 20 * np.log10(np.std(wave[2000:-2000]) / np.std(tone)) == pytest.approx(gain, abs=0.1)


@pytest.mark.parametrize("variant", ["m1", "Marco", "f5", "robert", "klatt3"])
def test_every_variant_keeps_to_the_tempo_asked_for(variant: str) -> None:
    with mini_voice.Reader(voice(variant=variant, rate=14.0), seed=1) as reader:
        waves = [reader.record(text, np.random.default_rng(i)) for i, text in enumerate(draw(12))]
    # 0.3 s of silence lie around an utterance on average.
    spoken = sum(len(wave) for wave in waves) / 16000 - 0.3 * len(waves)
    assert sum(len(text) for text in draw(12)) / spoken == pytest.approx(14.0, rel=0.12)


def test_noise_lies_as_far_below_the_speech_as_the_voice_says() -> None:
    clean, noisy = (voice(snr_db=snr, level_db=-25.0) for snr in (200.0, 20.0))
    waves = []
    for kind in (clean, noisy):
        with mini_voice.Reader(kind, seed=1) as reader:
            waves.append(reader.record("PLEASE PAINT THE DOOR", np.random.default_rng(2)).astype(float))
    noise = waves[1] - waves[0]
    # The speech level is taken before the silence is put round it.
    speech = waves[0][np.flatnonzero(np.abs(waves[0]) > 1e-6)]
    assert 10 * np.log10(np.mean(speech**2) / np.mean(noise**2)) == pytest.approx(20, abs=0.7)


# The corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesise(SMALL, tmp_path_factory.mktemp("mini") / "corpus", workers=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def transcripts(folder: Path) -> dict[str, str]:
    lines = [line for file in sorted(folder.rglob("*.trans.txt")) for line in file.read_text().splitlines()]
    found = dict(line.split(" ", 1) for line in lines)
    assert len(found) == len(lines)
    return found


SETS = ("train-clean-100", "dev-clean", "test-clean")


def test_the_tree_is_librispeechs(corpus: Path) -> None:
    folders = "|".join([rf"LibriSpeech/{name}" for name in SETS])
    limited = r"librispeech_finetuning/(?:1h/[0-5]|9h)/clean"
    file = re.compile(rf"(?:{folders}|{limited})/(\d+)/(\d+)/(?:\1-\2-\d{{4}}\.flac|\1-\2\.trans\.txt)")
    others = {name for name in contents(corpus) if not file.fullmatch(name)}
    assert others == {"mini.json", "LibriSpeech/README.TXT", "LibriSpeech/SPEAKERS.TXT"}
    assert {folder.name for folder in (corpus / "LibriSpeech").iterdir() if folder.is_dir()} == set(SETS)
    assert {folder.name for folder in (corpus / "librispeech_finetuning" / "1h").iterdir()} == set("012345")
    for transcript in corpus.rglob("*.trans.txt"):
        names = [line.split(" ", 1)[0] for line in transcript.read_text().splitlines()]
        assert names == [recording.stem for recording in sorted(transcript.parent.glob("*.flac"))]
        assert all(re.fullmatch("[A-Z]+( [A-Z]+)*", text) for text in transcripts(transcript.parent).values())


def test_every_recording_is_audible_unclipped_and_of_the_length_asked_for(corpus: Path) -> None:
    totals: Counter[str] = Counter()
    for recording in (corpus / "LibriSpeech").rglob("*.flac"):
        info = soundfile.info(recording)
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16000, 1, "FLAC", "PCM_16")
        assert SMALL.min_seconds <= info.duration <= SMALL.max_seconds
        wave = soundfile.read(recording)[0]
        assert np.abs(wave).max() < 0.96
        assert np.sqrt(np.mean(wave**2)) > 0.01
        totals[recording.parents[2].name] += info.duration / 60
    # A speaker stops as near to the share as whole utterances allow.
    slack = SMALL.max_seconds / 2 / 60
    assert totals["train-clean-100"] == pytest.approx(SMALL.train_minutes, abs=slack * SMALL.train_speakers)
    assert totals["dev-clean"] == pytest.approx(SMALL.dev_minutes, abs=slack * SMALL.dev_speakers)
    assert totals["test-clean"] == pytest.approx(SMALL.test_minutes, abs=slack * SMALL.test_speakers)


def test_the_sets_share_no_speaker_no_variant_and_no_sentence(corpus: Path) -> None:
    rows = [
        line.split("|") for line in (corpus / "LibriSpeech/SPEAKERS.TXT").read_text().splitlines() if line[0] != ";"
    ]
    listed = {row[0].strip(): (row[2].strip(), row[4].strip().split("+")[1]) for row in rows}
    seen: list[tuple[set[str], set[str], set[str]]] = []
    for name in SETS:
        texts = transcripts(corpus / "LibriSpeech" / name)
        assert len(set(texts.values())) == len(texts)
        speakers = {folder.name for folder in (corpus / "LibriSpeech" / name).iterdir()}
        assert speakers == {speaker for speaker, (subset, _) in listed.items() if subset == name}
        seen.append((speakers, {listed[speaker][1] for speaker in speakers}, set(texts.values())))
    for shared in zip(*seen, strict=True):
        assert len(set().union(*shared)) == sum(map(len, shared))


def test_the_labelled_folds_are_disjoint_parts_of_the_training_set(corpus: Path) -> None:
    train = contents(corpus / "LibriSpeech" / "train-clean-100")
    texts = transcripts(corpus / "LibriSpeech" / "train-clean-100")
    speakers: Counter[str] = Counter()
    for fold in [*(corpus / "librispeech_finetuning" / "1h").iterdir(), corpus / "librispeech_finetuning" / "9h"]:
        inside = contents(fold / "clean")
        recordings = {name: data for name, data in inside.items() if name.endswith(".flac")}
        assert recordings
        assert recordings.items() <= train.items()
        assert {Path(name).stem for name in recordings} == set(transcripts(fold))
        assert transcripts(fold).items() <= texts.items()
        speakers.update(folder.name for folder in (fold / "clean").iterdir())
    assert set(speakers.values()) == {1}
    assert len(speakers) == 6 * SMALL.fold_speakers + SMALL.nine_hour_speakers
    assert len(list(corpus.rglob("librispeech_finetuning/**/*.flac"))) < len(texts)


def test_the_readme_says_that_the_speech_is_synthetic(corpus: Path) -> None:
    readme = (corpus / "LibriSpeech" / "README.TXT").read_text()
    assert readme.startswith("SYNTHETIC SPEECH")
    assert "espeak-ng" in readme
    counts = re.findall(r"^(\S+-\S+)\s+(\d+)\s+(\d+)\s+\d", readme, re.MULTILINE)
    assert {name: int(count) for name, count, _ in counts} == {
        name: len(transcripts(corpus / "LibriSpeech" / name)) for name in SETS
    }


def test_the_corpus_is_a_function_of_its_configuration(corpus: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    again = synthesise(SMALL, tmp_path / "again", workers=1, on_progress=lambda done, of: told.append((done, of)))
    assert contents(again) == contents(corpus)
    assert told == [(done, 13) for done in range(1, 14)]
    other = synthesise(dataclasses.replace(SMALL, seed=4), tmp_path / "other", workers=1)
    assert not set(contents(other).values()) & {data for name, data in contents(corpus).items() if "flac" in name}


def test_speakers_differ_from_each_other_more_than_from_themselves(corpus: Path) -> None:
    """Average log spectra of the two halves of every speaker's recordings: one's own are the closer."""
    halves: list[list[np.ndarray]] = [[], []]
    for speaker in sorted((corpus / "LibriSpeech" / "train-clean-100").iterdir()):
        for half in (0, 1):
            waves = [soundfile.read(file)[0] for file in sorted(speaker.rglob("*.flac"))[half::2]]
            frames = np.lib.stride_tricks.sliding_window_view(np.concatenate(waves), 512)[::256] * np.hanning(512)
            power = np.abs(np.fft.rfft(frames)) ** 2
            bands = np.log(power[:, 4:256].reshape(len(power), 36, 7).mean((0, 2)))
            halves[half].append(bands - bands.mean())
    distance = np.linalg.norm(np.array(halves[0])[:, None] - np.array(halves[1])[None], axis=-1)
    own = np.diag(distance)
    others = distance[~np.eye(len(distance), dtype=bool)]
    assert own.mean() < 0.5 * others.mean()


def test_a_finished_corpus_is_left_alone_and_another_is_not_overwritten(corpus: Path, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in corpus.rglob("*")}
    assert synthesise(SMALL, corpus) == corpus
    with pytest.raises(AsrkitError, match="another folder"):
        synthesise(dataclasses.replace(SMALL, seed=9), corpus)
    assert {file: file.stat().st_mtime_ns for file in corpus.rglob("*")} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AsrkitError, match="another folder"):
        synthesise(SMALL, tmp_path / "file")


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(AsrkitError, match="tempo"):
        synthesise(dataclasses.replace(SMALL, min_seconds=60.0, max_seconds=61.0), tmp_path / "out", workers=1)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("seed", {"seed": -1}),
        ("dev_minutes", {"dev_minutes": 0}),
        ("test_minutes", {"test_minutes": float("nan")}),
        ("train_minutes", {"train_minutes": float("inf")}),
        ("test_speakers", {"test_speakers": -2}),
        ("train_speakers", {"train_speakers": 71}),
        ("fold_minutes", {"fold_minutes": 30.0}),
        ("nine_hour_minutes", {"nine_hour_minutes": 60.0}),
        ("min_seconds", {"min_seconds": 5.0}),
        ("slowest", {"slowest": 18.0}),
        ("accents", {"accents": []}),
    ],
)
def test_impossible_configurations_are_refused_by_name(key: str, changes: dict[str, object]) -> None:
    with pytest.raises(AsrkitError, match=rf"^{key}: "):
        MiniConfig(**changes)  # type: ignore[arg-type]
