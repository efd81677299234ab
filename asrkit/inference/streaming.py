"""Results while speech comes in, with an encoder that hears whole utterances.

The audio since the last pause is recognised again and again as it grows. Words that two results in a row agree on, and
that are over for a while, stay as they are from then on (the local agreement of Liu et al. 2020, "Low-latency
sequence-to-sequence speech recognition and translation by partial hypothesis selection"). A pause makes all of them
final and the audio starts anew; speech without a pause is divided in its widest gap.

Shapes: S samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from asrkit.decoding.timestamps import Word
from asrkit.errors import AsrkitError
from asrkit.inference.chunking import trim_silence
from asrkit.inference.transcribe import longest_heard

if TYPE_CHECKING:
    from asrkit.inference.recogniser import Recogniser

PAUSE = 0.5
"""Seconds without a word that make what came before final."""
MARGIN = 0.8
"""Seconds that a word must be over before it may stay: what follows may still change it."""
_EDGE = 0.08
LONGEST = 20.0
"""Seconds of speech that are recognised at once."""


@dataclass(frozen=True)
class Update:
    """What is known of the words since the last pause."""

    text: str
    """All of them."""
    stable: str
    """Those at the beginning that no later update changes."""
    start: float
    """Where the first word begins, in seconds from the stream's beginning; where there is none, the end of the audio."""
    end: float
    """Where the last one ends."""
    final: bool
    """Whether the text is complete: the next update is of other words."""
    words: tuple[Word, ...]
    """The words in time."""


class Streamer:
    """Turns audio that arrives in pieces of any size into updates, which depend on the audio alone."""

    def __init__(
        self,
        recognise: Callable[[np.ndarray], tuple[Word, ...]],
        sample_rate: int,
        *,
        interval: float = 0.5,
        pause: float = PAUSE,
        margin: float = MARGIN,
        longest: float = LONGEST,
    ) -> None:
        """Make a streamer.

        Args:
            recognise: returns the words of a wave (S,), timed from its beginning.
            sample_rate: in Hz.
            interval: seconds of audio from one recognition to the next.
            pause: see `PAUSE`.
            margin: see `MARGIN`.
            longest: see `LONGEST`.

        Raises:
            AsrkitError: if the interval is not between 0 and the longest stretch.
        """
        if not 0 < interval < longest:
            raise AsrkitError(f"an interval of {interval:g} s", mend=f"between 0 and {longest:g}")
        self._recognise = recognise
        self._rate = sample_rate
        self._step = max(1, round(interval * sample_rate))
        self._pause, self._margin, self._longest = pause, margin, longest
        self._window = np.zeros(0, np.float32)
        self._begin = 0
        self._waiting = np.zeros(0, np.float32)
        self._words: tuple[Word, ...] = ()
        self._stable = 0

    @classmethod
    def of(cls, recogniser: Recogniser, *, interval: float = 0.5) -> Streamer:
        """Return a streamer over a recogniser."""
        rate, step = recogniser.sample_rate, recogniser.frame_samples
        longest = min(LONGEST, longest_heard(recogniser))

        def recognise(wave: np.ndarray) -> tuple[Word, ...]:
            # The pause that ends an utterance would otherwise be part of it: see `chunking`.
            speech, before = trim_silence(wave, step, keep=max(2, round(_EDGE * rate / step)))
            words = recogniser.transcript(speech, rate).words if len(speech) else ()
            return tuple(moved(word, before / rate) for word in words)

        return cls(recognise, rate, interval=interval, longest=longest)

    def push(self, samples: np.ndarray) -> Iterator[Update]:
        """Take audio (S,) and yield what it brings."""
        self._waiting = np.concatenate([self._waiting, samples])
        while len(self._waiting) >= self._step:
            self._window = np.concatenate([self._window, self._waiting[: self._step]])
            self._waiting = self._waiting[self._step :]
            yield from self._advance()

    def finish(self) -> Iterator[Update]:
        """Yield what is left when the stream has ended."""
        self._window = np.concatenate([self._window, self._waiting])
        self._waiting = self._waiting[:0]
        if len(self._window):
            self._listen()
            if self._words:
                yield self._final(len(self._words), self._end)

    @property
    def _end(self) -> float:
        """Where the audio so far ends, in seconds."""
        return (self._begin + len(self._window)) / self._rate

    def _advance(self) -> Iterator[Update]:
        before = self._words
        self._listen()
        if not self._words:
            # Silence: enough is kept for a word that begins softly.
            self._cut(max(self._begin / self._rate, self._end - self._pause))
            if before:
                yield self._update(final=False)
        elif self._end - self._words[-1].end >= self._pause:
            yield self._final(len(self._words), self._end - self._pause / 2)
        elif len(self._window) >= self._longest * self._rate:
            yield self._final(*self._widest_gap())
        else:
            self._agree(before)
            if self._words != before:
                yield self._update(final=False)

    def _listen(self) -> None:
        """Recognise the window; words that are stable stay as they are."""
        offset = self._begin / self._rate
        heard = [moved(word, offset) for word in (self._recognise(self._window) if len(self._window) else ())]
        kept = self._words[: self._stable]
        until = kept[-1].end if kept else -1.0
        self._words = kept + tuple(word for word in heard if (word.start + word.end) / 2 > until and word.end > until)

    def _agree(self, before: tuple[Word, ...]) -> None:
        """Let words stay that were the same twice and are over for a while."""
        while self._stable < min(len(before), len(self._words)):
            word = self._words[self._stable]
            if word.text != before[self._stable].text or word.end > self._end - self._margin:
                break
            self._stable += 1

    def _widest_gap(self) -> tuple[int, float]:
        """Return how many words to make final in a stretch without a pause, and where to divide the audio."""
        words = self._words
        middle = self._begin / self._rate + self._longest / 2
        gaps = [(b.start - a.end, n) for n, (a, b) in enumerate(itertools.pairwise(words), 1) if b.start >= middle]
        if not gaps:
            return len(words), self._end
        _, count = max(gaps)
        return count, (words[count - 1].end + words[count].start) / 2

    def _final(self, count: int, cut: float) -> Update:
        """Make the first words final and forget the audio before ``cut`` seconds; of the rest what is stable stays so."""
        rest, stable = self._words[count:], max(0, self._stable - count)
        self._words, self._stable = self._words[:count], count
        update = self._update(final=True)
        self._words, self._stable = rest, stable
        self._cut(max(cut, self._begin / self._rate))
        return update

    def _cut(self, seconds: float) -> None:
        drop = min(len(self._window), round(seconds * self._rate) - self._begin)
        self._window, self._begin = self._window[drop:], self._begin + drop

    def _update(self, *, final: bool) -> Update:
        words = self._words
        stable = " ".join(word.text for word in words[: self._stable])
        text = " ".join(word.text for word in words)
        start, end = (words[0].start, words[-1].end) if words else (self._end, self._end)
        return Update(text, stable, start, end, final, words)


def moved(word: Word, seconds: float) -> Word:
    """Return a word that is so much later."""
    return replace(word, start=round(word.start + seconds, 3), end=round(word.end + seconds, 3))
