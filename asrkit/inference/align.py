"""When the words and characters of a known text are spoken: forced alignment of CTC scores.

Shapes: S samples, T frames, V units (with blank), L units of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from asrkit.data.collate import Example, collate
from asrkit.data.index import SetIndex
from asrkit.data.stream import evaluation_batches
from asrkit.decoding.hypothesis import word_spans
from asrkit.decoding.timestamps import Word, align
from asrkit.errors import AsrkitError
from asrkit.inference.chunking import Chunking
from asrkit.inference.recogniser import Recogniser
from asrkit.inference.transcribe import longest_heard
from asrkit.text.normalise import TextConfig, normalise
from asrkit.text.units import Units

_RULED_OUT = -1e4


@dataclass(frozen=True)
class Alignment:
    """A text in time."""

    id: str
    """The utterance's id, or the recording's name."""
    text: str
    """Words separated by single spaces."""
    duration: float
    """Seconds of audio."""
    score: float
    """Mean over frames of the path's natural log-probability; far below 0 where text and audio do not belong together."""
    words: tuple[Word, ...]
    """The words."""
    characters: tuple[Word, ...]
    """The units that spell them (characters, pieces or phones), boundaries left out."""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it; times are seconds."""
        return asdict(self)


def align_text(
    log_probs: np.ndarray, text: str, units: Units, *, name: str, seconds_per_frame: float, duration: float
) -> Alignment:
    """Align a text with unit scores (T, V).

    Raises:
        AsrkitError: as `align`, or if there are no units for what the text holds.
    """
    words, targets = text.split(), []
    try:
        targets = units.encode(text)
        spans, scores = align(log_probs, targets, units.blank)
    except AsrkitError as error:
        raise AsrkitError(str(error), where=name) from None

    def timed(spelt: str, begin: int, end: int) -> Word:
        peaks = [
            float(log_probs[a:b, unit].max()) for unit, (a, b) in zip(targets[begin:end], spans[begin:end], strict=True)
        ]
        start, stop = (
            min(float(frame) * seconds_per_frame, duration) for frame in (spans[begin, 0], spans[end - 1, 1])
        )
        return Word.of(spelt, start, stop, peaks)

    places = _word_places(units, words, targets)
    return Alignment(
        id=name,
        text=" ".join(words),
        duration=round(duration, 3),
        score=round(float(scores.mean()), 4) if len(scores) else 0.0,
        words=tuple(timed(word, *place) for word, place in zip(words, places, strict=True)),
        characters=tuple(
            timed(units.symbols[unit], n, n + 1)
            for n, unit in enumerate(targets)
            if units.symbols[unit] != units.boundary
        ),
    )


def _word_places(units: Units, words: list[str], targets: list[int]) -> list[tuple[int, int]]:
    """Return the half-open range of each word's units."""
    if units.kind != "phone":
        return list(word_spans(units, targets))
    ends = np.cumsum([0, *(len(units.encode(word)) for word in words)]).tolist()
    return list(pairwise(ends))


def fit_text(text: str, units: Units) -> str:
    """Return a text in the case that the units are in, without punctuation."""
    known = units.lexicon or [symbol for n, symbol in enumerate(units.symbols) if n not in units.silent]
    letters = "".join(known)
    has_case = letters.upper() != letters.lower()
    case = "upper" if letters == letters.upper() else "lower" if letters == letters.lower() else "keep"
    case = case if has_case else "keep"
    return normalise(text, TextConfig(case=case))


def stitched_log_probs(recogniser: Recogniser, blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
    """Return a recording's log-probabilities (T, V), long ones recognised window by window, and its samples."""
    samples = 0

    def count() -> Iterator[np.ndarray]:
        nonlocal samples
        for block in blocks:
            samples += len(block)
            yield block

    chunking = Chunking.of(recogniser.frame_samples, recogniser.sample_rate, longest_heard(recogniser), None)
    parts: list[np.ndarray] = []
    frames = 0
    for window in chunking.windows(count()):
        # Silence that no window heard is certain to be blank.
        parts.append(blank_frames(window.place - frames, recogniser.units))
        (log_probs,) = recogniser.log_probs(collate([Example("window", window.wave)], epoch=0))
        parts.append(window.keep(log_probs))
        frames = window.place + len(parts[-1])
    return np.concatenate(parts), samples


def blank_frames(count: int, units: Units) -> np.ndarray:
    """Return log-probabilities (T, V) of frames that are blank."""
    frames = np.full((max(0, count), len(units)), _RULED_OUT, np.float32)
    frames[:, units.blank] = 0.0
    return frames


def align_recording(
    recogniser: Recogniser, blocks: Iterable[np.ndarray], text: str, name: str
) -> tuple[Alignment, np.ndarray]:
    """Align one recording with its text; also return its log-probabilities (T, V).

    Raises:
        AsrkitError: as `align_text`, or if the recording cannot be read.
    """
    log_probs, samples = stitched_log_probs(recogniser, blocks)
    rate = recogniser.sample_rate
    step = recogniser.frame_samples / rate
    spelt = fit_text(text, recogniser.units)
    found = align_text(log_probs, spelt, recogniser.units, name=name, seconds_per_frame=step, duration=samples / rate)
    return found, log_probs


def align_set(
    recogniser: Recogniser, data_dir: Path, name: str, failed: Callable[[AsrkitError], None]
) -> Iterator[tuple[Alignment, np.ndarray, np.ndarray]]:
    """Yield each utterance of a prepared set aligned with its transcript, its wave (S,) and its log-probabilities (T, V).

    Utterances come sorted by length. Of one that cannot be read or aligned, ``failed`` is told why.

    Raises:
        AsrkitError: if the set is missing or has no transcripts.
    """
    folder = data_dir / name
    if not SetIndex.open(folder).labelled:
        raise AsrkitError("the set has no transcripts to align", where=folder, mend="use asrkit transcribe")
    rate = recogniser.sample_rate
    step = recogniser.frame_samples / rate
    data = recogniser.experiment.config.data
    for batch in evaluation_batches([folder], None, data, unreadable=lambda problem: failed(AsrkitError(problem))):
        waves = batch.waves.cpu().numpy()
        for row, log_probs in enumerate(recogniser.log_probs(batch)):
            samples, text = batch.host_lengths[row], (batch.texts or ())[row]
            try:
                found = align_text(
                    log_probs,
                    text,
                    recogniser.units,
                    name=batch.ids[row],
                    seconds_per_frame=step,
                    duration=samples / rate,
                )
            except AsrkitError as error:
                failed(error)
                continue
            yield found, waves[row, :samples], log_probs
