"""The CTC head: dropout, one linear layer, CTC.

Shapes: N batch, T frames, C channels, V units (with blank), L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asrkit.core.clock import Clock
from asrkit.core.term import Losses, Ratio, Term
from asrkit.data.batch import Batch
from asrkit.decoding.greedy import greedy, to_lists
from asrkit.errors import AsrkitError, nearest
from asrkit.heads.head import SupervisedHead
from asrkit.losses.ctc import ctc_loss, infeasible
from asrkit.nn.encoder import Encoded
from asrkit.text.units import Units

NORMALISERS = ("utterances", "labels", "frames")


@dataclass
class CTCHeadConfig:
    """Settings of the CTC head."""

    dropout: float = 0.0
    """Dropout on the encoder's output."""
    normalise: str = "utterances"
    """What the summed loss is divided by over an update: utterances, labels or frames."""
    zero_infinity: bool = True
    """Skip utterances whose transcript does not fit into their frames; off lets their loss be infinite."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise AsrkitError(f"ctc.dropout is {self.dropout}", mend="0 or more, below 1")
        if self.normalise not in NORMALISERS:
            raise AsrkitError(f"ctc.normalise is '{self.normalise}'", mend=nearest(self.normalise, NORMALISERS))


@dataclass(frozen=True)
class CTCDraws:
    """Nothing random: what the loss's count is made of."""

    frames: tuple[int, ...]
    """Encoder frames per utterance."""


class CTCHead(SupervisedHead):
    """Scores of the units per frame, trained by CTC."""

    terms = ("ctc",)

    def __init__(self, config: CTCHeadConfig, dim: int, units: Units) -> None:
        """Make the head.

        Args:
            config: its settings.
            dim: the encoder's channels C.
            units: the output symbols, of which there are V, and the blank's place among them.
        """
        super().__init__()
        self.config = config
        self.blank = units.blank
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(dim, len(units))
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def logits(self, states: Tensor) -> Tensor:
        """Return unnormalised scores (N, T, V) of encoder states (N, T, C)."""
        scores: Tensor = self.project(self.dropout(states))
        return scores

    def draw(self, batch: Batch, frames: Sequence[int], clock: Clock) -> CTCDraws:
        """See `Head.draw`."""
        return CTCDraws(tuple(frames))

    def counts(self, batch: Batch, draws: CTCDraws) -> Mapping[str, Tensor]:
        """See `Head.counts`."""
        _, target_lengths, _ = _transcripts(batch)
        device = batch.waves.device
        if self.config.normalise == "labels":
            return {"ctc": target_lengths.sum().float()}
        total = len(draws.frames) if self.config.normalise == "utterances" else sum(draws.frames)
        return {"ctc": torch.full((), float(total), device=device)}

    def loss(self, encoded: Encoded, batch: Batch, draws: CTCDraws, clock: Clock) -> Losses:
        """See `Head.loss`. Metrics: `ctc_per_label`, and `infeasible`, the share of utterances without an alignment."""
        targets, target_lengths, host_target_lengths = _transcripts(batch)
        total = ctc_loss(
            self.logits(encoded.states),
            targets,
            encoded.host_lengths,
            host_target_lengths if host_target_lengths is not None else target_lengths,
            blank=self.blank,
            reduction="sum",
            zero_infinity=self.config.zero_infinity,
        )
        without = infeasible(targets, encoded.lengths, target_lengths).sum()
        return Losses(
            {"ctc": Term(total)},
            {
                "ctc_per_label": Ratio(total.detach(), target_lengths.sum()),
                "infeasible": Ratio(without, float(len(encoded.host_lengths))),
            },
        )

    def hypotheses(self, encoded: Encoded) -> list[list[int]]:
        """Return each utterance's greedily decoded unit indices; one copy to the host."""
        return to_lists(*greedy(self.logits(encoded.states), encoded.lengths, self.blank))

    def log_probs(self, encoded: Encoded) -> Tensor:
        """Return natural log-probabilities of the units, float32 (N, T, V)."""
        return self.logits(encoded.states).float().log_softmax(-1)


def _transcripts(batch: Batch) -> tuple[Tensor, Tensor, tuple[int, ...] | None]:
    if batch.targets is None or batch.target_lengths is None:
        raise AsrkitError("the batch has no transcripts", where="CTC head", mend="give it a labelled set")
    return batch.targets, batch.target_lengths, batch.host_target_lengths
