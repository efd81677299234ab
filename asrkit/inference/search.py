"""Decoding scored sets in several processes, with any number of settings."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from asrkit.decoding.config import BeamConfig
from asrkit.decoding.factory import DecoderChoice, make_decoder, reweighted
from asrkit.decoding.hypothesis import Decoder, Hypothesis
from asrkit.errors import AsrkitError
from asrkit.inference.scores import ScoredSet, load_scored
from asrkit.processes import cores, fork_server
from asrkit.text.units import Units
from asrkit.text.wer import ErrorCounts, count_errors

T = TypeVar("T")
R = TypeVar("R")
_CHUNK = 16
"""Utterances per task."""
_MEMORY_SHARES = {("flashlight", False): 1.5, ("flashlight", True): 5.0, ("beam", False): 10.0, ("beam", True): 35.0}
"""Memory of an n-gram in a process, times the size of its file, by decoder and whether it is compressed."""


@dataclass(frozen=True)
class Setup:
    """Everything that a process needs to decode."""

    choice: DecoderChoice
    units: Units
    frame_rate: float

    def decoder(self) -> Decoder:
        """Make the decoder, with default weights; raises as `make_decoder`."""
        return make_decoder(self.choice, self.units, self.frame_rate, BeamConfig())


_decoder: Decoder | None = None
"""This process' own; set when a pool starts the process."""


def default_jobs(choice: DecoderChoice) -> int:
    """Return how many processes to search in: one per core, as far as their language models fit into the memory."""
    if choice.lm is None:
        return cores()
    kind = "".join(choice.lm.suffixes[-2:])
    share = _MEMORY_SHARES.get((choice.decoder, kind.endswith(".gz")), 1.0) if ".arpa" in kind else 0.0
    needed = share * choice.lm.stat().st_size
    return max(1, min(cores(), int(free_memory() // max(1.0, needed))))


def free_memory() -> float:
    """Return the bytes of memory that programs can still have; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return math.inf


class Searcher:
    """Decodes scored sets, one after the other. Its processes, each with a language model of its own, last until `close`."""

    def __init__(self, setup: Setup, jobs: int) -> None:
        """Make the decoder once here, so that mistakes are told before any process starts.

        Args:
            setup: the decoder.
            jobs: processes; 1 decodes in this one.

        Raises:
            AsrkitError: as `make_decoder`.
        """
        self.setup = setup
        self.jobs = jobs
        self.decoder = setup.decoder()
        """The decoder, with default weights."""
        self._pool: ProcessPoolExecutor | None = None

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def hypotheses(self, scored: ScoredSet, config: BeamConfig, *, timed: bool = False) -> Iterator[list[Hypothesis]]:
        """Return every utterance's readings, best first, in the scored set's order, with word times if wanted."""
        places = range(len(scored))
        tasks = [(config, timed, places[i : i + _CHUNK]) for i in range(0, len(places), _CHUNK)]
        for chunk in self._map(_read, scored, tasks):
            yield from chunk

    def errors(self, scored: ScoredSet, configs: Sequence[BeamConfig]) -> Iterator[ErrorCounts]:
        """Return the whole set's errors with each of the settings."""
        return self._map(_errors, scored, configs)

    def _map(
        self, function: Callable[[Decoder, ScoredSet, T], R], scored: ScoredSet, tasks: Iterable[T]
    ) -> Iterator[R]:
        if self.jobs == 1 or len(scored) <= _CHUNK:
            for task in tasks:
                yield function(self.decoder, scored, task)
            return
        path = scored.save()
        try:
            yield from self._processes().map(_run, ((function, path, task) for task in tasks))
        except BrokenProcessPool:
            raise AsrkitError(
                "a decoding process was killed, perhaps for want of memory", mend="fewer --jobs"
            ) from None

    def _processes(self) -> ProcessPoolExecutor:
        if self._pool is None:
            initial, context = (self.setup,), fork_server(__name__)
            self._pool = ProcessPoolExecutor(self.jobs, mp_context=context, initializer=_start, initargs=initial)
        return self._pool


def _start(setup: Setup) -> None:
    global _decoder
    # Ctrl-C, which the terminal sends to all, is the first process' to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _decoder = setup.decoder()


def _run(call: tuple[Callable[[Decoder, ScoredSet, T], R], Path, T]) -> R:
    assert _decoder is not None
    function, path, task = call
    return function(_decoder, load_scored(path), task)


def _read(whole: Decoder, scored: ScoredSet, task: tuple[BeamConfig, bool, range]) -> list[list[Hypothesis]]:
    config, timed, places = task
    decoder = reweighted(whole, config)
    find = decoder.decode if timed else decoder.search
    return [find(scored[place]) for place in places]


def _errors(whole: Decoder, scored: ScoredSet, config: BeamConfig) -> ErrorCounts:
    decoder = reweighted(whole, config)
    return count_errors(scored.references, [decoder.search(scored[place])[0].text for place in range(len(scored))])
