"""Pseudo-labels: what a teacher hears in unlabelled speech, how sure it is, how it looks beside real transcripts, and a cache.

Confidence and hard greedy labels are those of Zhu et al. 2022 (CASTLE, arXiv 2206.09783); the cache follows the idea of
Likhomanenko et al. 2021 (slimIPL, arXiv 2010.11524).

Shapes: N batch, T frames, V units (with blank), L labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from asrkit.core.term import Ratio
from asrkit.data.batch import Batch
from asrkit.data.collate import pad_targets
from asrkit.decoding.greedy import greedy, to_lists
from asrkit.nn.lengths import inside
from asrkit.randomness import Purpose, stream_keys, uniform

LOOP_NGRAM = 4
"""Units in the runs whose repetition tells a loop."""
LOOP_LENGTH = 16
"""Shorter labels are never called loops."""


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
            self.fresh.update(zip(ids, labels, strict=True))

    def take(self, made: Iterable[Mapping[str, PseudoLabel]]) -> None:
        """Let an update's labels (of every rank) in; the oldest leave when there is no room."""
        union = {name: label for one in made for name, label in one.items()}
        # Sorted: which rank made a label must not matter.
        for name in sorted(union):
            self.entries.pop(name, None)
            self.entries[name] = union[name]
        while len(self.entries) > self.size:
            del self.entries[next(iter(self.entries))]
        self.fresh = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the entries, oldest first."""
        return {
            "ids": list(self.entries),
            "units": [list(label.units) for label in self.entries.values()],
            "confidences": [label.confidence for label in self.entries.values()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        rows = zip(state["ids"], state["units"], state["confidences"], strict=True)
        self.entries = {name: PseudoLabel(tuple(units), sure) for name, units, sure in rows}
