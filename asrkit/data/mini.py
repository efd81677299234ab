"""A synthetic corpus in exactly LibriSpeech's layout, spoken by espeak-ng, for trying a whole recipe in minutes.

``synthesise`` writes::

    OUT/mini.json                                    the configuration
    OUT/LibriSpeech/{README.TXT,SPEAKERS.TXT}
    OUT/LibriSpeech/{train-clean-100,dev-clean,test-clean}/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac … and .trans.txt
    OUT/librispeech_finetuning/{1h/0 … 1h/5,9h}/clean/SPEAKER/CHAPTER/…   a labelled share of train-clean-100

Every speaker is an espeak-ng accent and variant with a vocal tract, pitch, tempo and channel of its own. The sets share
no speaker, no variant and no sentence; the labelled folds share no speaker either. Audio is a pure function of the
configuration, for one version of espeak-ng and numpy on one machine.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import soundfile

from asrkit.data import mini_text
from asrkit.data.batch import SAMPLE_RATE
from asrkit.data.mini_voice import ACCENTS, Reader, Voice, draw_voice, natural_variants
from asrkit.errors import AsrkitError
from asrkit.processes import cores

FOLDS = 6
_CHAPTER = 8  # utterances in a chapter


@dataclass
class MiniConfig:
    """The scale and the spread of the synthetic corpus."""

    seed: int = 1
    """Everything random follows from it."""
    train_minutes: float = 70.0
    """Speech in train-clean-100, labelled and unlabelled together."""
    dev_minutes: float = 3.0
    """Speech in dev-clean."""
    test_minutes: float = 5.5
    """Speech in test-clean."""
    fold_minutes: float = 1.7
    """Labelled speech in each of the six folds 1h/0 to 1h/5; the first stands for Libri-light's 10 minutes."""
    nine_hour_minutes: float = 12.0
    """Labelled speech in 9h; with the six folds it stands for Libri-light's 10 hours."""
    train_speakers: int = 96
    """Speakers of train-clean-100."""
    dev_speakers: int = 12
    """Speakers of dev-clean."""
    test_speakers: int = 20
    """Speakers of test-clean."""
    fold_speakers: int = 6
    """Speakers of train-clean-100 in each labelled fold."""
    nine_hour_speakers: int = 36
    """Speakers of train-clean-100 in 9h, others than in the folds."""
    min_seconds: float = 2.0
    """Shortest utterance."""
    max_seconds: float = 5.0
    """Longest utterance."""
    slowest: float = 12.0
    """Tempo of the slowest speaker, in characters per second."""
    fastest: float = 17.0
    """Tempo of the fastest speaker."""
    lowest_snr: float = 20.0
    """Ratio of speech to background noise of the noisiest speaker, in dB."""
    highest_snr: float = 40.0
    """The same of the cleanest speaker."""
    accents: list[str] = field(default_factory=lambda: list(ACCENTS))
    """espeak-ng's languages that speakers are dealt from."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise AsrkitError(f"must lie in [0, 2**31), not {self.seed}", where="seed")
        for name in ("train", "dev", "test", "fold", "nine_hour"):
            for key in (f"{name}_minutes", f"{name}_speakers"):
                if not 0 < getattr(self, key) < 1e5:
                    raise AsrkitError(f"must lie between 0 and 100000, not {getattr(self, key)}", where=key)
        if FOLDS * self.fold_speakers + self.nine_hour_speakers > self.train_speakers:
            raise AsrkitError(
                f"is below {FOLDS} fold_speakers + nine_hour_speakers, and the folds share no speaker",
                where="train_speakers",
            )
        spoken = self.train_minutes / self.train_speakers
        if self.fold_minutes / self.fold_speakers > spoken:
            raise AsrkitError("asks for more speech than its speakers have", where="fold_minutes")
        if self.nine_hour_minutes / self.nine_hour_speakers > spoken:
            raise AsrkitError("asks for more speech than its speakers have", where="nine_hour_minutes")
        if not 0 < self.min_seconds < self.max_seconds:
            raise AsrkitError("must lie between 0 and max_seconds", where="min_seconds")
        if not 5 <= self.slowest <= self.fastest <= 25:
            raise AsrkitError("and fastest must satisfy 5 <= slowest <= fastest <= 25", where="slowest")
        if not self.lowest_snr <= self.highest_snr:
            raise AsrkitError("is below lowest_snr", where="highest_snr")
        if not self.accents:
            raise AsrkitError("is empty", where="accents", mend=f"choose from {', '.join(ACCENTS)}")


@dataclass(frozen=True)
class _Task:
    """All that one speaker says."""

    subset: str
    speaker: int
    first_chapter: int
    voice: Voice
    candidates: tuple[str, ...]
    seconds: float
    labelled: str | None  # folder below librispeech_finetuning
    labelled_seconds: float


@dataclass(frozen=True)
class _Spoken:
    seconds: float
    utterances: int
    labelled_seconds: float


def synthesise(
    config: MiniConfig,
    output_dir: Path,
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the corpus into ``output_dir``, the folder of LibriSpeech/ and librispeech_finetuning/, and return it.

    ``workers`` processes share the work (default: one per CPU); their number does not change the result.
    ``on_progress`` is told (speakers done, speakers in all). The folder appears when it is complete; one that already
    holds the corpus of the same configuration is left as it is. Raises AsrkitError when the folder holds anything else,
    when ``espeakng-loader`` is missing, and when the configuration asks for what grammar or voices cannot give.
    """
    output_dir = Path(output_dir).absolute()
    settings = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    marker = output_dir / "mini.json"
    if marker.is_file() and _made_by(marker, config):
        return output_dir
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise AsrkitError("is there already and is not this corpus", where=output_dir, mend="name another folder")
    tasks = _plan(config)
    partial_dir = output_dir.with_name(f".{output_dir.name}.{os.getpid()}.partial")
    shutil.rmtree(partial_dir, ignore_errors=True)
    try:
        partial_dir.mkdir(parents=True)
        spoken: list[_Spoken] = []
        speak = partial(_speak, config=config, root=partial_dir)
        for result in _perform(tasks, speak, min(workers or cores(), len(tasks))):
            spoken.append(result)
            if on_progress is not None:
                on_progress(len(spoken), len(tasks))
        (partial_dir / "LibriSpeech" / "SPEAKERS.TXT").write_text(_speakers_txt(tasks, spoken), encoding="utf-8")
        (partial_dir / "LibriSpeech" / "README.TXT").write_text(_readme_txt(config, tasks, spoken), encoding="utf-8")
        (partial_dir / "mini.json").write_text(settings, encoding="utf-8")
        os.replace(partial_dir, output_dir)
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)
    return output_dir


def _made_by(marker: Path, config: MiniConfig) -> bool:
    """Whether a corpus was made by a configuration; what its note lacks was added later, with a default that changes nothing."""
    try:
        noted = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(noted, dict) and {**dataclasses.asdict(MiniConfig()), **noted} == dataclasses.asdict(config)


def _plan(config: MiniConfig) -> list[_Task]:
    """Deal voices, sentences and labelled folds to the speakers."""
    generator = np.random.default_rng(config.seed)
    sizes = {
        "train-clean-100": (config.train_speakers, config.train_minutes),
        "dev-clean": (config.dev_speakers, config.dev_minutes),
        "test-clean": (config.test_speakers, config.test_minutes),
    }
    everyone = sum(speakers for speakers, _ in sizes.values())
    sexes = natural_variants()
    names = [list(sexes)[i] for i in generator.permutation(len(sexes))]
    numbers = generator.permutation(np.arange(100, max(9000, 100 + everyone)))[:everyone].tolist()
    folds = list(chain.from_iterable([f"1h/{k}/clean"] * config.fold_speakers for k in range(FOLDS)))
    folds += ["9h/clean"] * config.nine_hour_speakers
    shares = dict.fromkeys(folds, config.fold_minutes * 60 / config.fold_speakers)
    shares["9h/clean"] = config.nine_hour_minutes * 60 / config.nine_hour_speakers
    sentences = mini_text.sentences(generator)
    tasks: list[_Task] = []
    dealt, chapter = 0, 100_000
    for subset, (speakers, minutes) in sizes.items():
        # Each set has variants of its own, in proportion to its speakers: nobody in the test set has been heard before.
        share = max(1, round(len(names) * speakers / everyone))
        own, dealt = names[dealt : dealt + share] or names[-1:], dealt + share
        seconds = minutes * 60 / speakers
        for i in range(speakers):
            variant = own[i % len(own)]
            # Going round the variants a second time, a variant speaks with another accent.
            accent = config.accents[(i + i // len(own)) % len(config.accents)]
            labelled = folds[i] if subset == "train-clean-100" and i < len(folds) else None
            tasks.append(
                _Task(
                    subset=subset,
                    speaker=numbers[len(tasks)],
                    first_chapter=chapter,
                    voice=draw_voice(
                        generator,
                        accent,
                        variant,
                        sexes[variant],
                        (config.slowest, config.fastest),
                        (config.lowest_snr, config.highest_snr),
                    ),
                    candidates=tuple(islice(sentences, int(seconds / config.min_seconds) + 4)),
                    seconds=seconds,
                    labelled=labelled,
                    labelled_seconds=shares[labelled] if labelled else 0.0,
                )
            )
            chapter += len(tasks[-1].candidates) // _CHAPTER + 1
    return tasks


def _perform(tasks: Sequence[_Task], work: Callable[[_Task], _Spoken], workers: int) -> Iterator[_Spoken]:
    if workers == 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, tasks)


def _speak(task: _Task, *, config: MiniConfig, root: Path) -> _Spoken:
    """Write one speaker's recordings and transcripts."""
    generator = np.random.default_rng([config.seed, task.speaker])
    seconds = labelled = 0.0
    count = 0
    with Reader(task.voice, seed=task.speaker) as reader:
        for text in task.candidates:
            wave = reader.record(text, generator)
            length = len(wave) / SAMPLE_RATE
            if not config.min_seconds <= length <= config.max_seconds:
                continue
            if count and seconds + length / 2 > task.seconds:
                break
            chapter = task.first_chapter + count // _CHAPTER
            name = f"{task.speaker}-{chapter}-{count % _CHAPTER:04d}"
            book = Path(str(task.speaker)) / str(chapter)
            folder = root / "LibriSpeech" / task.subset / book
            _transcribe(folder / f"{task.speaker}-{chapter}.trans.txt", name, text)
            soundfile.write(folder / f"{name}.flac", wave, SAMPLE_RATE, subtype="PCM_16")
            # Exactly the first utterances are labelled: once the share is full, none follows.
            if (
                task.labelled is not None
                and labelled == seconds
                and (not count or labelled + length / 2 <= task.labelled_seconds)
            ):
                limited = root / "librispeech_finetuning" / task.labelled / book
                _transcribe(limited / f"{task.speaker}-{chapter}.trans.txt", name, text)
                _link(folder / f"{name}.flac", limited / f"{name}.flac")
                labelled += length
            seconds += length
            count += 1
        else:
            raise AsrkitError(
                f"{task.voice.accent}+{task.voice.variant} says too few sentences within min_seconds and max_seconds",
                mend="widen the limits or change the tempo",
            )
    return _Spoken(seconds, count, labelled)


def _transcribe(file: Path, name: str, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as transcript:
        transcript.write(f"{name} {text}\n")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _speakers_txt(tasks: Sequence[_Task], spoken: Sequence[_Spoken]) -> str:
    lines = ["; Synthetic speakers (espeak-ng), in the format of LibriSpeech's SPEAKERS.TXT.", ";"]
    lines.append(";ID  |SEX| SUBSET           |MINUTES| NAME")
    for task, said in sorted(zip(tasks, spoken, strict=True), key=lambda pair: pair[0].speaker):
        name = f"espeak-ng {task.voice.accent}+{task.voice.variant}"
        lines.append(f"{task.speaker:<4} | {task.voice.sex} | {task.subset:<16} | {said.seconds / 60:<5.2f} | {name}")
    return "\n".join(lines) + "\n"


def _readme_txt(config: MiniConfig, tasks: Sequence[_Task], spoken: Sequence[_Spoken]) -> str:
    types = len(mini_text.vocabulary())
    lines = [
        "SYNTHETIC SPEECH. This is not LibriSpeech: nobody said any of it.",
        "",
        "The recordings were made by the speech synthesiser espeak-ng, through the command `asrkit prepare mini`,",
        "in the layout of LibriSpeech and of Libri-light's limited training sets, so that a recipe can be tried in",
        "minutes. Error rates on it say nothing about real speech and must not be compared with LibriSpeech's.",
        "",
        f"Seed {config.seed}, {types} word types, {len(set(config.accents))} accents, 16 kHz mono.",
        "No speaker, voice variant or sentence is shared by two of the three sets.",
        "",
        "set                utterances  speakers  minutes",
    ]
    for subset in dict.fromkeys(task.subset for task in tasks):
        own = [said for task, said in zip(tasks, spoken, strict=True) if task.subset == subset]
        minutes = sum(said.seconds for said in own) / 60
        lines.append(f"{subset:<18} {sum(said.utterances for said in own):>10} {len(own):>9} {minutes:>8.1f}")
    lines += [
        "",
        "labelled part of train-clean-100, in librispeech_finetuning/",
        "folder             speakers  minutes",
    ]
    for fold in dict.fromkeys(task.labelled for task in tasks if task.labelled):
        own = [said for task, said in zip(tasks, spoken, strict=True) if task.labelled == fold]
        lines.append(f"{fold:<18} {len(own):>8} {sum(said.labelled_seconds for said in own) / 60:>8.1f}")
    return "\n".join(lines) + "\n"
