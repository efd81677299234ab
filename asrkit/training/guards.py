"""Whether an update may be taken: nothing that is not finite reaches the weights, and whoever looks for the cause finds it.

An update whose loss or gradient is not finite is skipped. Its utterances and their figures go to EXP/skipped/step_N.json; after
``max_skipped_updates`` of them in a row the run stops, and the last good checkpoint stays. Under fp16 a gradient that overflows
is a matter of the loss scale, which is lowered, until the scale has reached ``min_loss_scale``: from then on it counts.

An update whose gradient is far larger than usual is taken, but told, with the same figures in EXP/spikes/step_N.json. Far means
more than ``spike_deviations`` robust standard deviations (1.4826 times the median absolute deviation) above the median of the
logarithm of the norm over the last 128 updates of the phase, and thrice the median norm at least: neither a spike nor a slow
drift moves these as it would move a mean and a variance.

Shapes: N batch, S samples.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.step import Totals
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.files import write_text
from asrkit.training.config import TrainingConfig
from asrkit.training.engine import TrainingEngine
from asrkit.training.sharding import local_part

log = logging.getLogger("asrkit.training")

_HISTORY = 128
_ENOUGH = 32
_MOST_NAMES = 20


class NumericalGuard:
    """Judges every update of a run. Its state is the same on all ranks."""

    def __init__(self, method: Method, engine: TrainingEngine, config: TrainingConfig, exp_dir: Path) -> None:
        self.method = method
        self.engine = engine
        self.config = config
        self.exp_dir = exp_dir
        self.in_a_row = 0
        self.seen = {"skipped_updates": 0, "gradient_spikes": 0}
        self.phase = ""
        self.history: deque[float] = deque(maxlen=_HISTORY)

    def allows(
        self, clock: Clock, micro_batches: Mapping[str, Sequence[Batch]], totals: Totals, norms: Mapping[str, float]
    ) -> bool:
        """Return whether an update may be taken; all ranks agree.

        Args:
            clock: where the run stands.
            micro_batches: this rank's share of the update.
            totals: this rank's figures of this update alone.
            norms: gradient norm per group before clipping, the same on all ranks.

        Raises:
            AsrkitError: after too many that may not, one behind the other.
        """
        # With inner steps, the loss at the weights they began with: what they make of it shows in the gradient.
        above, _ = totals.values.get("loss_before_inner", totals.values["loss"])
        bad_loss = self.engine.ranks.any(not math.isfinite(float(above)))
        bad_gradient = not all(math.isfinite(norm) for norm in norms.values())
        if not bad_loss and not bad_gradient:
            self.in_a_row = 0
            self._watch(clock, micro_batches, totals, norms)
            return True
        self.seen["skipped_updates"] += 1
        scaler = self.engine.scaler
        if not bad_loss and scaler.is_enabled() and scaler.get_scale() > self.config.min_loss_scale:
            return False
        self.in_a_row += 1
        what = "the loss" if bad_loss else "the gradient"
        path = self._store("skipped", f"{what} is not finite", clock, micro_batches, totals, norms)
        log.warning("update %d: %s is not finite; skipped, see %s", clock.update, what, path)
        if self.in_a_row >= self.config.max_skipped_updates:
            raise AsrkitError(
                f"{self.in_a_row} updates in a row had a loss or gradient that is not finite",
                where=path,
                mend="lower the learning rate or set optimiser.clip_norm; the last good checkpoint is kept",
            )
        return False

    def figures(self) -> dict[str, int]:
        """Return what happened since the last call, for the log: only what did happen."""
        found = {name: count for name, count in self.seen.items() if count}
        self.seen = dict.fromkeys(self.seen, 0)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what a restart needs."""
        return {"in_a_row": self.in_a_row, "seen": self.seen, "phase": self.phase, "history": list(self.history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.in_a_row, self.seen, self.phase = state["in_a_row"], dict(state["seen"]), state["phase"]
        self.history = deque(state["history"], maxlen=_HISTORY)

    def _watch(
        self, clock: Clock, micro_batches: Mapping[str, Sequence[Batch]], totals: Totals, norms: Mapping[str, float]
    ) -> None:
        if clock.phase != self.phase:
            self.phase = clock.phase
            self.history.clear()
        norm = math.hypot(*norms.values())
        if norm <= 0:
            return
        usual = threshold(self.history, self.config.spike_deviations)
        if norm > usual:
            self.seen["gradient_spikes"] += 1
            reason = f"the gradient norm is {norm:.4g}, usual are less than {usual:.4g}"
            path = self._store("spikes", reason, clock, micro_batches, totals, norms)
            what = "update %d: the gradient norm is %.3g where less than %.3g is usual, see %s"
            log.warning(what, clock.update, norm, usual, path)
        self.history.append(math.log(norm))

    def _store(
        self,
        folder: str,
        reason: str,
        clock: Clock,
        micro_batches: Mapping[str, Sequence[Batch]],
        totals: Totals,
        norms: Mapping[str, float],
    ) -> Path:
        """Write what all ranks know of the update into a file that is named after it."""
        own = {
            "figures": {name: [float(part) for part in pair] for name, pair in totals.values.items()},
            "batches": {name: [_describe(batch) for batch in batches] for name, batches in micro_batches.items()},
        }
        # Of sharded gradients each rank sees its part.
        odd = [
            name
            for name, p in self.method.named_parameters()
            if p.grad is not None and not local_part(p.grad).isfinite().all()
        ]
        ranks = self.engine.ranks.gather(own)
        seen = {name for names in self.engine.ranks.gather(odd) for name in names}
        path = self.exp_dir / folder / f"step_{clock.update + 1}.json"
        if self.engine.ranks.is_first:
            content = {
                "step": clock.update + 1,
                "phase": clock.phase,
                "reason": reason,
                "gradient_norm": norms,
                "parameters_without_a_finite_gradient": sorted(seen)[:_MOST_NAMES],
                "loss_scale": self.engine.scaler.get_scale(),
                "ranks": ranks,
            }
            try:
                write_text(path, json.dumps(_tellable(content), indent=1, ensure_ascii=False) + "\n")
            except AsrkitError as error:  # a full disk must not end the run here
                log.warning("%s", error)
        return path


def threshold(history: Sequence[float] | deque[float], deviations: float) -> float:
    """Return the norm above which an update is a spike, given logarithms of earlier norms; infinity if they are few.

    Args:
        history: natural logarithms.
        deviations: robust standard deviations; 0 or less calls nothing a spike.
    """
    if len(history) < _ENOUGH or deviations <= 0:
        return math.inf
    median = statistics.median(history)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in history)
    return math.exp(median + max(deviations * deviation, math.log(3.0)))


def _describe(batch: Batch) -> dict[str, Any]:
    """Return a micro-batch's ids, and what of its audio and targets can be at fault, a number per utterance."""
    waves = batch.waves.float()
    lengths = batch.wave_lengths.clamp(min=1)
    return {
        "epoch": batch.epoch,
        "ids": list(batch.ids),
        "samples": list(batch.host_lengths),
        "labels": list(batch.host_target_lengths or ()),
        "peak": waves.abs().amax(1).tolist(),
        "root_mean_square": (waves.square().sum(1) / lengths).sqrt().tolist(),
        "finite": waves.isfinite().all(1).tolist(),
    }


def _tellable(value: Any) -> Any:
    """Return the value with numbers that JSON has no word for as strings."""
    if isinstance(value, Mapping):
        return {name: _tellable(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tellable(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
