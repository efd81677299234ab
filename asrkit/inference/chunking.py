"""Long recordings as windows, whose frames are stitched to one sequence.

Where there is a pause in the second half of a window, it ends there, and silence is left out: models that were trained
on closely cut utterances fail on long silence. Where there is no pause, neighbouring windows overlap: of the frames they
share each gives up the half at its edge, where it has not heard enough of what comes before or after. Windows begin at
whole frames, so that where an encoder hears no farther than the overlap, the stitched frames equal those of the whole
recording.

Shapes: S samples, T frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from asrkit.errors import AsrkitError

CHUNK_SECONDS = 30.0
"""About the longest utterance that models are trained on."""
CONTEXT_SECONDS = 3.0
"""What windows hear beyond what they contribute, unless chunks are short."""
_CONTEXT_SHARE = 1 / 8
_PAUSE_SECONDS = 0.2
_EDGE_SECONDS = 0.08
_PAUSE_DECIBELS, _SILENCE_DECIBELS = 20.0, 35.0
"""How far a pause lies below the window's mean level, and a silence, in which not even a far speaker is heard."""

_Frames = TypeVar("_Frames", bound=np.ndarray)


@dataclass(frozen=True)
class Window:
    """A stretch of a recording."""

    wave: np.ndarray
    """Audio, float32 (S,)."""
    first: int
    """The first of the window's frames that is kept."""
    end: int | None
    """The frame behind the last that is kept; None keeps all to the end."""
    place: int
    """Which of the recording's frames the first that is kept is."""
    pause: bool = False
    """Whether it ends in a pause, so that no word goes on in the next window."""

    def keep(self, frames: _Frames) -> _Frames:
        """Return what of the window's frames (T, …) goes into the recording's."""
        return frames[self.first : self.end]  # type: ignore[return-value]


@dataclass(frozen=True)
class _Pause:
    first: int
    """The frame where it can be cut; of a silence the first."""
    silence: float | None = None
    """The energy that a longer silence stays below."""


@dataclass(frozen=True)
class Chunking:
    """How recordings are divided."""

    frame_samples: int
    """Samples from one encoder frame to the next."""
    chunk: int
    """Frames of the longest window."""
    context: int
    """Frames at each edge that belong to a neighbour; none at a recording's own ends."""
    edge: int
    """The same at an edge within a pause."""
    pause: int
    """Frames that a pause has at least."""

    @classmethod
    def of(cls, frame_samples: int, sample_rate: int, chunk_seconds: float, context_seconds: float | None) -> Chunking:
        """Return the chunking in frames; a context of None is chosen to suit the chunks.

        Raises:
            AsrkitError: if the contexts leave nothing of half a chunk.
        """
        rate = sample_rate / frame_samples
        if context_seconds is None:
            context_seconds = min(CONTEXT_SECONDS, _CONTEXT_SHARE * chunk_seconds)
        # The last frames of a window lack samples behind its end: without any context they would be lost.
        edge = max(2, round(_EDGE_SECONDS * rate))
        chunk, context = round(chunk_seconds * rate), max(edge, round(context_seconds * rate))
        chunking = cls(frame_samples, chunk, context, edge, max(2, round(_PAUSE_SECONDS * rate)))
        if chunking.chunk < 4 * chunking.context:
            what = f"chunks of {chunk_seconds:g} s with {context_seconds:g} s of context on both sides"
            raise AsrkitError(what, mend=f"chunks of {4 * chunking.context / rate:g} s or more")
        return chunking

    def windows(self, blocks: Iterable[np.ndarray]) -> Iterator[Window]:
        """Divide a recording that comes in blocks (any sizes); one no longer than a chunk is one window."""
        step, size = self.frame_samples, self.chunk * self.frame_samples
        waiting = np.zeros(0, np.float32)
        at = first = 0
        silence: float | None = None
        for block in blocks:
            waiting = np.concatenate([waiting, block])
            while True:
                if silence is not None:
                    quiet, ended = self._leading_silence(waiting, silence)
                    waiting, at = waiting[quiet * step :], at + quiet
                    silence = None if ended else silence
                # Only what follows shows that a window is not the last.
                if silence is not None or len(waiting) <= size:
                    break
                pause = self._find_pause(waiting[:size], first)
                if pause is not None and pause.silence is not None:
                    cut = taken = pause.first + self.edge
                    yield Window(waiting[: cut * step].copy(), first, None, at + first, pause=True)
                    first, silence = 0, pause.silence
                else:
                    context = self.context if pause is None else self.edge
                    cut = self.chunk - context if pause is None else pause.first
                    yield Window(waiting[: (cut + context) * step].copy(), first, cut, at + first, pause is not None)
                    taken, first = cut - context, context
                waiting, at = waiting[taken * step :], at + taken
        if len(waiting) and silence is None:
            yield Window(waiting, first, None, at + first)

    def _find_pause(self, wave: np.ndarray, first: int) -> _Pause | None:
        """Return the quietest pause in a window's second half."""
        energy = frame_energy(wave, self.frame_samples)
        sums = np.concatenate([[0.0], energy.cumsum()])
        half = self.pause // 2
        places = np.arange(self.chunk // 2, self.chunk - max(half, self.edge) + 1)
        quiet = (sums[places + half] - sums[places - half]) / (2 * half)
        best = int(places[quiet.argmin()])
        if quiet.min() > energy.mean() * 10 ** (-_PAUSE_DECIBELS / 10):
            return None
        silence = silence_level(energy)
        begin = best
        while begin > first and energy[begin - 1] <= silence:
            begin -= 1
        end = best
        while end < self.chunk and energy[end] <= silence:
            end += 1
        # What two windows hear around their common border is not worth being left out.
        return _Pause(best) if end - begin <= 2 * self.edge else _Pause(begin, silence)

    def _leading_silence(self, wave: np.ndarray, level: float) -> tuple[int, bool]:
        """Return how many frames at the beginning can be left out, and whether the silence has ended."""
        loud = np.flatnonzero(
            frame_energy(wave[: len(wave) // self.frame_samples * self.frame_samples], self.frame_samples) > level
        )
        quiet = int(loud[0]) if len(loud) else len(wave) // self.frame_samples
        return max(0, quiet - self.edge), len(loud) > 0


def trim_silence(wave: np.ndarray, frame_samples: int, keep: int) -> tuple[np.ndarray, int]:
    """Return a wave (S,) without the silence at its ends but ``keep`` frames, and how many samples went before it."""
    whole = wave[: len(wave) // frame_samples * frame_samples]
    energy = frame_energy(whole, frame_samples)
    loud = np.flatnonzero(energy > silence_level(energy)) if len(energy) else energy
    if len(loud) == 0:
        return wave[:0], 0
    begin = max(0, int(loud[0]) - keep) * frame_samples
    return wave[begin : (int(loud[-1]) + 1 + keep) * frame_samples], begin


def frame_energy(wave: np.ndarray, frame_samples: int) -> np.ndarray:
    """Return the mean square of each frame's samples, float64 (T,), for a wave of T whole frames."""
    return np.square(wave.reshape(-1, frame_samples)).mean(axis=1, dtype=np.float64)


def silence_level(energy: np.ndarray) -> float:
    """Return the energy that is silence beside frames of ``energy`` (T,)."""
    return float(energy.mean()) * 10 ** (-_SILENCE_DECIBELS / 10)
