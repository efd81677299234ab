"""The training loop: fetch, step, clip, optimise, schedule, after_update, then log, validate and checkpoint.

It knows phases, streams and Steps; it knows no method by name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.phase import Phase
from asrkit.core.step import Totals
from asrkit.core.term import Ratio
from asrkit.data.batch import Batch
from asrkit.data.stream import Stream
from asrkit.errors import AsrkitError
from asrkit.training import watch as watching
from asrkit.training.checkpoint import Checkpoints, fetch_shares, update_of
from asrkit.training.config import TrainingConfig
from asrkit.training.engine import TrainingEngine
from asrkit.training.generators import generator_states, set_generator_states
from asrkit.training.guards import NumericalGuard
from asrkit.training.log import MetricLog, ProgressView, dev_text
from asrkit.training.memory import MemoryGuard, out_of_memory
from asrkit.training.optimiser import Optimiser
from asrkit.training.saving import CheckpointWriter
from asrkit.training.sharding import Weights
from asrkit.training.signals import StopRequest

log = logging.getLogger("asrkit.training")


class Trainer:
    """One run of one method."""

    def __init__(
        self,
        method: Method,
        streams: Mapping[str, Stream],
        dev_batches: Sequence[Batch],
        *,
        optimiser: Optimiser,
        weights: Weights,
        checkpoints: Checkpoints,
        engine: TrainingEngine,
        config: TrainingConfig,
        exp_dir: Path,
        seed: int,
        view: ProgressView,
    ) -> None:
        self.method = method
        self.streams = streams
        self.dev_batches = dev_batches
        self.optimiser = optimiser
        self.engine = engine
        self.config = config
        self.seed = seed
        self.view = view
        self.exp_dir = exp_dir
        self.weights = weights
        self.checkpoints = checkpoints
        self.writer = CheckpointWriter(checkpoints, engine.ranks, 60 * config.disk_patience_minutes)
        self.update = 0
        self.phase_index = 0
        self.phase_update = 0
        self.seconds = 0.0
        self.validation_due = False
        self.best: float | None = None
        self.saved_at = time.monotonic()
        self.memory = MemoryGuard()
        self.running = [value for name, value in method.named_buffers() if "running_" in name]
        """Running statistics, of which each rank sees its own micro-batches' alone."""
        self.guard = NumericalGuard(method, engine, config, exp_dir)
        self.metrics: MetricLog | None = None
        self.rows = ""
        self.totals = Totals({})
        self.window = {"updates": 0, "seconds": 0.0, "audio": 0.0, "wait": 0.0, "halved": 0, "skipped": 0}
        self.skipped = 0

    def run(self) -> None:
        """Train to the end of the last phase.

        Raises:
            Interrupted: after a signal, once the state is saved.
            AsrkitError: if the method calls its run unhealthy, memory runs out, nothing but non-finite updates comes, or the
                last checkpoint cannot be written.
        """
        if self.engine.ranks.is_first:
            self.metrics = MetricLog(self.exp_dir, self.update, self.rows)
        phases = self.method.phases()
        try:
            with StopRequest(self.engine.ranks) as stop, self.writer:
                for index in range(self.phase_index, len(phases)):
                    if index != self.phase_index:
                        self.phase_index, self.phase_update = index, 0
                    if phases[index].length:
                        final = not any(phase.length for phase in phases[index + 1 :])
                        self._run_phase(phases[index], stop, final)
        finally:
            self.view.stop()
            for stream in self.streams.values():
                stream.close()
            if self.metrics is not None:
                self.metrics.close()

    def _run_phase(self, phase: Phase, stop: StopRequest, final: bool) -> None:
        self.view.start(phase.name, self.phase_update, phase.length)
        if self.validation_due:
            self._settle(phase, stop, final)
        if self.phase_update >= phase.length:
            return
        self.enter(phase)
        sources = {name: iter(self.streams[name]) for name in phase.streams}
        while self.phase_update < phase.length:
            clock = self.step(phase, sources)
            self.view.advance(self.phase_update)
            ended = self.phase_update == phase.length
            milestone = ended and (phase.milestone or final)
            self.validation_due = milestone or self.update % self.config.validate_every == 0
            if ended or self.update % self.config.log_every == 0:
                self._log(phase, clock)
            self._settle(phase, stop, final)

    def enter(self, phase: Phase) -> None:
        """Let a phase's groups learn."""
        with self.weights.divided():
            self.optimiser.enter(phase)

    def step(self, phase: Phase, sources: Mapping[str, Iterator[list[Batch]]]) -> Clock:
        """Do one update; return the clock that it went by."""
        began = time.perf_counter()
        watching.watch.note("reading data", self.update, phase.name)
        micro_batches = {name: next(source) for name, source in sources.items()}
        waited = time.perf_counter() - began
        clock = Clock(self.seed, self.update, phase.name, self.phase_update, phase.length)
        watching.watch.note("computing an update")
        self.method.train()
        totals = self.memory.run(phase.step, self.method, micro_batches, clock, self.engine)
        allow = partial(self.guard.allows, clock, micro_batches, totals)
        with self.weights.divided():
            norms, taken = self.optimiser.update(phase, self.phase_update, self.engine, allow)
        self.engine.ranks.average(self.running)
        for name in phase.streams:
            self.streams[name].consumed()
        self.method.after_update(clock, self.engine)
        self.update += 1
        self.phase_update += 1
        self._account(began, waited, micro_batches)
        if taken:
            self.totals.add({name: Ratio(*pair) for name, pair in totals.values.items()})
            self.totals.add({f"grad_norm/{name}": Ratio(value, 1.0) for name, value in norms.items()})
        return clock

    def _settle(self, phase: Phase, stop: StopRequest, final: bool) -> None:
        """Validate and save as the update count asks; stop if a signal came, be it in the middle of validation."""
        ended = self.phase_update >= phase.length
        milestone = ended and (phase.milestone or final)
        improved = self.validation_due and self._validate(phase, stop)
        stopping, overdue, behind = self.engine.ranks.votes(stop.flag, self._overdue(), self.writer.behind)
        # What could not be written is tried again with every row of the log.
        again = behind and self.update % self.config.log_every == 0
        regular = overdue or self.update % self.config.checkpoint_every == 0
        if improved or milestone or stopping or again or regular:
            self.save(best=improved, finished=final and ended and not self.validation_due)
        if stopping and not (final and ended and not self.validation_due):
            raise stop.interruption()

    def _overdue(self) -> bool:
        """Whether the last checkpoint was long ago by the first rank's clock."""
        patience = 60 * self.config.checkpoint_minutes
        return self.engine.ranks.is_first and 0 < patience <= time.monotonic() - self.saved_at

    def _account(self, began: float, waited: float, micro: Mapping[str, Sequence[Batch]]) -> None:
        elapsed = time.perf_counter() - began
        self.seconds += elapsed
        self.window["updates"] += 1
        self.window["seconds"] += elapsed
        self.window["wait"] += waited
        self.window["halved"] += self.memory.halved
        self.memory.halved = 0
        skipped = sum(stream.skipped for stream in self.streams.values())
        self.window["skipped"] += skipped - self.skipped
        self.skipped = skipped
        for batches in micro.values():
            self.window["audio"] += sum(batch.seconds for batch in batches)

    def _log(self, phase: Phase, clock: Clock) -> None:
        figures = self._summed(self.totals.values)
        figures |= self.method.derived(figures)
        windows = self.engine.ranks.gather(self.window)
        audio, halved, skipped = (sum(window[name] for window in windows) for name in ("audio", "halved", "skipped"))
        seconds = max(self.window["seconds"], 1e-9)
        rates = {name: rate for name, rate in self.optimiser.rates().items() if name in phase.schedules}
        row: dict[str, Any] = {
            "step": self.update,
            "epoch": max(self.streams[name].epoch for name in phase.streams),
            "phase": phase.name,
            "phase_step": self.phase_update,
            "phase_steps": phase.length,
            **figures,
            **self.guard.figures(),
            **({"halved_updates": halved} if halved else {}),
            **({"skipped_utterances": skipped} if skipped else {}),
            "learning_rate": max(rates.values()),
            **{f"learning_rate/{name}": rate for name, rate in rates.items()},
            "grad_norm": max(
                (value for name, value in figures.items() if name.startswith("grad_norm/")), default=float("nan")
            ),
            "audio_seconds_per_second": audio / seconds,
            # Of the rank that waits longest: the others wait for it as they exchange gradients.
            "data_wait_share": max(window["wait"] / max(window["seconds"], 1e-9) for window in windows),
            "seconds": self.seconds,
            "seconds_left": (phase.length - self.phase_update) * seconds / max(self.window["updates"], 1),
        }
        self.totals = Totals({})
        self.window = dict.fromkeys(self.window, 0)
        if self.metrics is not None:
            self.metrics.write(row)
            self.view.show(row)
        reason = self.method.health(row, clock)
        if reason is not None:
            self.save(best=False, finished=False)
            raise AsrkitError(f"stopped at step {self.update}: {reason}", where=self.exp_dir)

    def _summed(self, values: Mapping[str, tuple[Tensor | float, Tensor | float]]) -> dict[str, float]:
        """Return each figure's ratio of sums over all ranks; a rank may lack a name."""
        local = {name: (float(numerator), float(denominator)) for name, (numerator, denominator) in values.items()}
        sums: dict[str, list[float]] = {}
        for other in self.engine.ranks.gather(local):
            for name, (numerator, denominator) in other.items():
                pair = sums.setdefault(name, [0.0, 0.0])
                pair[0] += numerator
                pair[1] += denominator
        return {name: pair[0] / pair[1] if pair[1] else float("nan") for name, pair in sums.items()}

    def _validate(self, phase: Phase, stop: StopRequest) -> bool:
        """Measure the dev sets; return whether this is the best so far. A signal leaves the validation due."""
        ranks = self.engine.ranks
        if not ranks.any(bool(self.dev_batches)):
            self.validation_due = False
            return False
        began = time.perf_counter()
        clock = Clock(self.seed, self.update, phase.name, self.phase_update, phase.length)
        self.method.eval()
        totals = Totals({})
        unfinished, problem = False, ""
        try:
            with torch.inference_mode(), self.engine.autocast():
                for batch in self.dev_batches:
                    watching.watch.note("validating", self.update, phase.name)
                    unfinished = stop.flag
                    if unfinished:
                        break
                    totals.add(self.method.validate(batch.to(self.engine.device), clock))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            problem = str(error).strip().splitlines()[0]
        self._give_up(problem)
        self.seconds += time.perf_counter() - began
        if ranks.any(unfinished):
            return False
        self.validation_due = False
        figures = self._summed(totals.values)
        value = self.method.selection_value(figures)
        improved = value == value and (self.best is None or value <= self.best)
        if self.metrics is not None:
            self.metrics.write(
                {
                    "step": self.update,
                    "epoch": max(self.streams[stream].epoch for stream in phase.streams),
                    "phase": phase.name,
                    "phase_step": self.phase_update,
                    "phase_steps": phase.length,
                    **{f"dev/{figure}": value for figure, value in figures.items()},
                    "seconds": self.seconds,
                }
            )
        log.info("step %d, dev: %s%s", self.update, dev_text(figures), "  (best so far)" if improved else "")
        if improved:
            self.best = value
        return improved

    def _give_up(self, problem: str) -> None:
        """Save and end the run if a rank has no memory for validation, which is then still due."""
        found = next(filter(None, self.engine.ranks.gather(problem)), None)
        if found is None:
            return
        self.save(best=False, finished=False)
        mend = "lower data.batch_seconds: the run goes on with it"
        raise AsrkitError(f"out of memory, validation at step {self.update}: {found}", where=self.exp_dir, mend=mend)

    def save(self, best: bool, finished: bool) -> None:
        """Hand everything that the run is made of to the writer of checkpoints."""
        watching.watch.note("saving", self.update)
        self.saved_at = time.monotonic()
        own = {
            "generators": generator_states(self.engine.device),
            "totals": {
                name: [part.cpu() if isinstance(part, Tensor) else part for part in pair]
                for name, pair in self.totals.values.items()
            },
            "window": dict(self.window),
        }
        ranks = self.engine.ranks.gather(own)
        if not self.engine.ranks.is_first and not self.weights.sharded:
            return
        with self.weights.divided():
            state = {
                "model": self.method.state_dict(),
                "extra": self.method.extra_state(),
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.engine.scaler.state_dict(),
                "streams": {name: stream.state_dict() for name, stream in self.streams.items()},
                "ranks": ranks,
                "update": self.update,
                "phase_index": self.phase_index,
                "phase_update": self.phase_update,
                "validation_due": self.validation_due,
                "seconds": self.seconds,
                "best": self.best,
                "guard": self.guard.state_dict(),
                "finished": finished,
                "rows": self.metrics.unwritten() if self.metrics is not None else "",
            }
            self.writer.submit(self.update, state, best=best)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what a checkpoint holds; with the number of processes that wrote it, the run goes on to the bit.

        Raises:
            AsrkitError: if the checkpoint is of another model.
        """
        state = fetch_shares(dict(state), self.weights.room)
        fit = self.weights.fit
        with self.weights.divided():
            load_weights(self.method, {name: fit(name, value) for name, value in state["model"].items()}, self.exp_dir)
            moments = {
                name: {key: fit(name, value) for key, value in values.items()}
                for name, values in state["optimiser"].items()
            }
            self.optimiser.load_state_dict(moments)
        self.method.load_extra_state(state["extra"])
        if state["scaler"]:  # none where the run had no fp16 so far
            self.engine.scaler.load_state_dict(state["scaler"])
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"][name])
        self.update, self.phase_index, self.phase_update = state["update"], state["phase_index"], state["phase_update"]
        self.validation_due, self.seconds, self.rows = state["validation_due"], state["seconds"], state["rows"]
        self.guard.load_state_dict(state["guard"])
        # Without its file (the newest was damaged, say) the best so far is not to be had any more.
        best = self.checkpoints.named("best")
        known = self.engine.ranks.gather(best is not None and update_of(best) <= self.update)[0]
        self.best = state["best"] if known else None
        rank, written_by = self.engine.ranks.rank, state["ranks"]
        if rank < len(written_by):  # a rank that is new since the checkpoint keeps its seeded generators
            set_generator_states(written_by[rank]["generators"], self.engine.device)
        if len(written_by) == self.engine.world_size:
            written_by = [written_by[rank]]
        elif rank > 0:
            written_by = []
        for one in written_by:
            self.totals.add({name: Ratio(*pair) for name, pair in one["totals"].items()})
            for name, value in one["window"].items():
                self.window[name] += value
        log.info("resumed from step %d", self.update)


def load_weights(method: Method, weights: Mapping[str, Tensor], where: object) -> None:
    """Load a checkpoint's weights into a method.

    Raises:
        AsrkitError: if they are those of another model than the config describes.
    """
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split("\n")[1:2]).strip()
        raise AsrkitError(f"the checkpoint and config.yaml describe different models: {detail}", where=where) from None
