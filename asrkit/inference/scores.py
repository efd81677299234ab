"""A prepared set's unit scores, computed once and searched many times.

Shapes: T frames, V units (with blank).
"""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from asrkit.data.index import SetIndex
from asrkit.data.stream import evaluation_batches
from asrkit.errors import AsrkitError
from asrkit.inference.recogniser import Recogniser


@dataclass
class ScoredSet:
    """Log-probabilities of all utterances in one file, mapped into memory: cheap to hand to other processes."""

    path: Path
    """Raw float32, the utterances' frames one after the other, longest utterances first."""
    ids: tuple[str, ...]
    """Utterance ids."""
    references: tuple[str, ...]
    """Their transcripts."""
    offsets: np.ndarray
    """First frame of each utterance in the file, and at the end the number of frames, int64 (len + 1,)."""
    units: int
    """V."""
    audio_seconds: float
    """Audio in the set."""
    seconds: float
    """Wall time that scoring took."""
    _frames: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> np.ndarray:
        """Return an utterance's log-probabilities (T, V)."""
        if self._frames is None:
            shape = (int(self.offsets[-1]), self.units)
            empty = shape[0] == 0
            self._frames = np.zeros(shape, np.float32) if empty else np.memmap(self.path, np.float32, "r", shape=shape)
        return self._frames[self.offsets[place] : self.offsets[place + 1]]

    def save(self) -> Path:
        """Write everything but the scores beside them, for `load_scored` in another process; return the file."""
        path = self.path.with_suffix(".pickle")
        path.write_bytes(pickle.dumps(self))
        return path

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_frames": None}


@lru_cache(maxsize=1)
def load_scored(path: Path) -> ScoredSet:
    """Return what `ScoredSet.save` of this run wrote; the last one asked for is remembered."""
    loaded: ScoredSet = pickle.loads(path.read_bytes())
    return loaded


def labelled_set(folder: Path) -> SetIndex:
    """Open a prepared set that has transcripts.

    Raises:
        AsrkitError: if the set is missing or has no transcripts.
    """
    index = SetIndex.open(folder)
    if not index.labelled:
        raise AsrkitError("the set has no transcripts to score against", where=folder, mend="use asrkit transcribe")
    return index


def score_set(recogniser: Recogniser, folder: Path, path: Path) -> ScoredSet:
    """Run the encoder over a prepared set and write its scores to ``path``.

    Raises:
        AsrkitError: if the set is missing or has no transcripts.
    """
    labelled_set(folder)
    ids: list[str] = []
    references: list[str] = []
    lengths = [0]
    began, audio = time.perf_counter(), 0.0
    with open(path, "wb") as file:
        for batch in evaluation_batches([folder], None, recogniser.experiment.config.data, 0, 1):
            audio += batch.seconds
            ids.extend(batch.ids)
            references.extend(batch.texts or ())
            for scores in recogniser.log_probs(batch):
                lengths.append(len(scores))
                file.write(np.ascontiguousarray(scores, dtype=np.float32).tobytes())
    seconds = time.perf_counter() - began
    return ScoredSet(path, tuple(ids), tuple(references), np.cumsum(lengths), len(recogniser.units), audio, seconds)
