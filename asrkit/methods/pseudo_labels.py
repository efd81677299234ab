"""Pseudo-labels: what a teacher hears in unlabelled speech, how sure it is, how it looks beside real transcripts, and a cache.

Confidence and hard greedy labels are those of Zhu et al. 2022 (CASTLE, arXiv 2206.09783); the cache follows the idea of
Likhomanenko et al. 2021 (slimIPL, arXiv 2010.11524).

Shapes: N batch, T frames, V units (with blank), L labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asrkit.core.term import Ratio
from asrkit.data.batch import Batch
from asrkit.data.collate import pad_targets
from asrkit.decoding.greedy import greedy, to_lists
from asrkit.errors import AsrkitError, nearest
from asrkit.nn.lengths import inside
from asrkit.randomness import Purpose, stream_keys, uniform

LOOP_NGRAM = 4
"""Units in the runs whose repetition tells a loop."""
LOOP_LENGTH = 16
"""Shorter labels are never called loops."""


TEACHERS = ("self", "ema")
COUNTS = ("all", "kept")


@dataclass
class PseudoLabelConfig:
    """How unlabelled speech is labelled, and how much those labels weigh."""

    teacher: str = "self"
    """`self`: the model of the moment; `ema`: its moving average. Both without masks and dropout. (self: CASTLE, which reads
    labels off a second head that learns from transcripts alone; here the one head learns from both)"""
    ema_decay: float = 0.999
    """Share of the old average in the new one, per update. (ours)"""
    confidence: float = 0.8
    """Labels less sure than this are not learnt from: exp of the mean log-probability of non-blank frames. (CASTLE)"""
    weight: float = 1.0
    """Weight of the loss on pseudo-labels; each of the two losses is divided by its own count first. (CASTLE: 1 with both divided
    by the labelled count; unlabelled over labelled speech per update comes to the same here)"""
    ramp_updates: int = 0
    """Updates over which the weight rises from 0. (ours)"""
    count: str = "all"
    """What ctc.normalise counts for the loss on pseudo-labels: `all` labels of an update, or those `kept`. (ours)"""
    cache: int = 0
    """Utterances whose labels are remembered and used again, as in slimIPL; 0 labels everything anew. (ours)"""
    cache_renewal: float = 0.1
    """Probability with which a remembered utterance is labelled anew. (slimIPL)"""

    def __post_init__(self) -> None:
        if self.teacher not in TEACHERS:
            raise AsrkitError(f"pseudo.teacher is '{self.teacher}'", mend=nearest(self.teacher, TEACHERS))
        if self.count not in COUNTS:
            raise AsrkitError(f"pseudo.count is '{self.count}'", mend=nearest(self.count, COUNTS))
        for key in ("ema_decay", "confidence", "cache_renewal"):
            if not 0 <= getattr(self, key) <= 1:
                raise AsrkitError(f"pseudo.{key} is {getattr(self, key)}", mend="0 to 1")
        for key in ("weight", "ramp_updates", "cache"):
            if getattr(self, key) < 0:
                raise AsrkitError(f"pseudo.{key} is {getattr(self, key)}", mend="0 or more")


@dataclass(frozen=True)
class PseudoLabel:
    """What the teacher heard in one utterance."""

    units: tuple[int, ...]
    """Unit indices: the best path's, repeats merged, blanks dropped."""
    confidence: float
    """exp of the mean log-probability of the frames whose best unit is not the blank; 0 where there is none."""

    def passes(self, threshold: float) -> bool:
        """Whether to learn from it: an empty label teaches nothing but silence."""
        return bool(self.units) and self.confidence >= threshold


def read_off(log_probs: Tensor, lengths: Tensor, blank: int) -> list[PseudoLabel]:
    """Return the hard greedy labels of a batch; two copies to the host.

    Args:
        log_probs: natural log-probabilities of the units, float32 (N, T, V).
        lengths: frames per utterance, int64 (N,).
        blank: index of the blank unit.
    """
    values, best = log_probs.max(-1)
    spoken = inside(lengths, best.shape[1]) & (best != blank)
    count = spoken.sum(1)
    mean = (values.double() * spoken).sum(1) / count.clamp(min=1)
    confidence = torch.where(count > 0, mean.exp(), 0.0).tolist()
    sequences = to_lists(*greedy(log_probs, lengths, blank))
    return [PseudoLabel(tuple(units), sure) for units, sure in zip(sequences, confidence, strict=True)]


def labelled_with(batch: Batch, labels: Sequence[PseudoLabel]) -> Batch:
    """Return the batch with the labels (at least one) in the place of transcripts."""
    targets, lengths = pad_targets([label.units for label in labels])
    device = batch.waves.device
    return replace(
        batch,
        targets=targets.to(device),
        target_lengths=lengths.to(device),
        host_target_lengths=tuple(len(label.units) for label in labels),
    )


def loops(units: Sequence[int]) -> bool:
    """Whether a sequence goes round in circles: of its runs of `LOOP_NGRAM` units more than half are repetitions."""
    runs = [tuple(units[start : start + LOOP_NGRAM]) for start in range(len(units) - LOOP_NGRAM + 1)]
    return len(units) >= LOOP_LENGTH and 2 * len(set(runs)) < len(runs)


def speech_figures(prefix: str, sequences: Iterable[Sequence[int]], seconds: float) -> dict[str, Ratio]:
    """Return units per second of audio and the share of sequences that loop, named after ``prefix``."""
    listed = list(sequences)
    return {
        f"{prefix}_units_per_second": Ratio(float(sum(map(len, listed))), seconds),
        f"{prefix}_looping": Ratio(float(sum(map(loops, listed))), float(len(listed))),
    }


def label_figures(labels: Sequence[PseudoLabel], threshold: float) -> dict[str, Ratio]:
    """Return how many labels pass, how sure the teacher is on average, and how many labels are empty."""
    count = float(len(labels))
    return {
        "pseudo_kept": Ratio(float(sum(label.passes(threshold) for label in labels)), count),
        "pseudo_confidence": Ratio(sum(label.confidence for label in labels), count),
        "pseudo_empty": Ratio(float(sum(not label.units for label in labels)), count),
    }


class LabelCache:
    """The newest labels of at most ``size`` utterances; an utterance that comes again may be given its old label.

    slimIPL caches batches, audio and all, and draws training batches from there; here the order of the audio stays the
    epoch plan's, and only the labels are old. What the teacher makes in an update enters when the update is done, on all
    ranks alike.
    """

    def __init__(self, size: int, renewal: float) -> None:
        """Make an empty cache.

        Args:
            size: utterances; 0 remembers nothing.
            renewal: probability with which a cached utterance is labelled anew.
        """
        self.size = size
        self.renewal = renewal
        self.entries: dict[str, PseudoLabel] = {}
        self.fresh: dict[str, PseudoLabel] = {}

    def find(self, batch: Batch, seed: int) -> dict[int, PseudoLabel]:
        """Return the labels to be used again, by row of the batch; a function of seed, epoch and utterance."""
        if not self.size:
            return {}
        draws = uniform(stream_keys(batch.keys, seed=seed, epoch=batch.epoch, purpose=Purpose.CACHE), 1)[:, 0].tolist()
        known = {row: self.entries[name] for row, name in enumerate(batch.ids) if name in self.entries}
        return {row: label for row, label in known.items() if draws[row] >= self.renewal}

    def note(self, ids: Sequence[str], labels: Sequence[PseudoLabel]) -> None:
        """Keep what the teacher made until the update is done."""
        if self.size:
            for name, label in zip(ids, labels, strict=True):
                self.fresh[name] = max(label, self.fresh.get(name, label), key=_sureness)

    def take(self, made: Iterable[Mapping[str, PseudoLabel]]) -> None:
        """Let an update's labels (of every rank) in; the oldest leave when there is no room."""
        union: dict[str, PseudoLabel] = {}
        # The surest of an utterance that an epoch has twice, and sorted: which rank made a label must not matter.
        for one in made:
            union |= {name: max(label, union.get(name, label), key=_sureness) for name, label in one.items()}
        for name in sorted(union):
            self.entries.pop(name, None)
            self.entries[name] = union[name]
        while len(self.entries) > self.size:
            del self.entries[next(iter(self.entries))]
        self.fresh = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the entries, oldest first, in few pieces: a checkpoint looks at every number that is not in a tensor."""
        labels = self.entries.values()
        return {
            "ids": "\n".join(self.entries),
            "units": torch.from_numpy(np.fromiter(chain.from_iterable(label.units for label in labels), np.int32)),
            "lengths": torch.tensor([len(label.units) for label in labels], dtype=torch.int32),
            "confidences": torch.tensor([label.confidence for label in labels], dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        units, ends = state["units"].tolist(), state["lengths"].cumsum(0).tolist()
        parts = (tuple(units[start:end]) for start, end in zip([0, *ends], ends, strict=False))
        ids = state["ids"].split("\n") if state["ids"] else []
        rows = zip(ids, parts, state["confidences"].tolist(), strict=True)
        self.entries = {name: PseudoLabel(label, sure) for name, label, sure in rows}


def _sureness(label: PseudoLabel) -> tuple[float, tuple[int, ...]]:
    return (label.confidence, label.units)


MOST_EMPTY = 0.5
"""Share of empty labels from which one speaks of a collapse to blanks."""
LEAST_LENGTH = 0.33
"""Units per second of the labels learnt from, beside those of real transcripts, below which one does too."""
MOST_LOOPING = 0.25
"""Share of looping labels above that of real transcripts from which one speaks of a collapse to loops."""
LEAST_KEPT = 0.02
"""Share of labels that pass the filter below which there is next to nothing to learn from."""
UNKEPT_ROWS = 3
"""Rows of the log in a row with as few until that is said."""


def collapse(metrics: Mapping[str, float]) -> str | None:
    """Return what has become of the pseudo-labels if they are fit for nothing, else None. (Thresholds: ours.)"""
    if metrics.get("pseudo_empty", 0.0) > MOST_EMPTY:
        return f"{metrics['pseudo_empty']:.0%} of the pseudo-labels are empty: they are collapsing to blanks"
    if metrics.get("pseudo_length_ratio", 1.0) < LEAST_LENGTH:
        ratio = metrics["pseudo_length_ratio"]
        return f"pseudo-labels have {ratio:.2f} times the units per second of real transcripts: they are collapsing to blanks"
    if metrics.get("pseudo_looping", 0.0) - metrics.get("labelled_looping", 0.0) > MOST_LOOPING:
        return f"{metrics['pseudo_looping']:.0%} of the pseudo-labels repeat themselves: they are collapsing to loops"
    return None
