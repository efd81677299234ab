"""The CTC head: dropout, one linear layer, CTC; by option at several depths, each conditioned on what was read before.

Self-conditioned CTC: behind chosen blocks the head, with its own weights, reads units off the states; their probabilities,
mapped back to channels, are added to what the next block gets, and CTC there takes a share of the loss.

Source: Nozaki and Komatsu, "Relaxing the conditional independence assumption of CTC-based ASR by conditioning on
intermediate predictions", Interspeech 2021; with a single block in the middle: Granite-speech (arXiv 2505.08699).

Shapes: N batch, T frames, C channels, V units (with blank), L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from asrkit.core.clock import Clock
from asrkit.core.term import Losses, Ratio, Term
from asrkit.data.batch import Batch
from asrkit.decoding.greedy import greedy, to_lists
from asrkit.errors import AsrkitError, nearest
from asrkit.heads.head import Pass, SupervisedHead
from asrkit.losses.ctc import ctc_loss, infeasible
from asrkit.nn.dropout import Dropout
from asrkit.nn.encoder import Encoded, Encoder
from asrkit.nn.linear import Linear
from asrkit.text.units import Units

NORMALISERS = ("utterances", "labels", "frames")
INTERMEDIATE = "intermediate_ctc"


@dataclass
class CTCHeadConfig:
    """Settings of the CTC head."""

    dropout: float = 0.0
    """Dropout on the encoder's output."""
    normalise: str = "utterances"
    """What the summed loss is divided by over an update: utterances, labels or frames."""
    zero_infinity: bool = True
    """Skip utterances whose transcript does not fit into their frames; off lets their loss be infinite."""
    intermediate: list[int] = field(default_factory=list)
    """Blocks, the first one being 1, behind which the head reads too and is heard by the next (self-conditioned CTC)."""
    intermediate_weight: float = 0.5
    """Share of the loss that the mean of CTC behind those blocks has; the rest is the last block's."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise AsrkitError(f"ctc.dropout is {self.dropout}", mend="0 or more, below 1")
        if self.normalise not in NORMALISERS:
            raise AsrkitError(f"ctc.normalise is '{self.normalise}'", mend=nearest(self.normalise, NORMALISERS))
        if self.intermediate != sorted(set(self.intermediate)) or min(self.intermediate, default=1) < 1:
            raise AsrkitError(f"ctc.intermediate is {self.intermediate}", mend="numbers of blocks from 1, in order")
        if not 0 < self.intermediate_weight < 1:
            raise AsrkitError(f"ctc.intermediate_weight is {self.intermediate_weight}", mend="between 0 and 1")
        if not self.intermediate and self.intermediate_weight != 0.5:
            raise AsrkitError(
                f"ctc.intermediate_weight is {self.intermediate_weight}, but ctc.intermediate names no block"
            )


@dataclass(frozen=True)
class CTCDraws:
    """Nothing random: what the loss's count is made of."""

    frames: tuple[int, ...]
    """Encoder frames per utterance."""


class CTCHead(SupervisedHead):
    """Scores of the units per frame, trained by CTC."""

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
        self.dropout = Dropout(config.dropout)
        self.project = Linear(dim, len(units))
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.feed_back: Linear | None = None
        self.terms = ("ctc",)
        if config.intermediate:
            self.feed_back = Linear(len(units), dim)
            # A pre-trained encoder begins as it was trained, without a fresh head's guesses in it.
            nn.init.zeros_(self.feed_back.weight)
            nn.init.zeros_(self.feed_back.bias)
            self.terms = ("ctc", INTERMEDIATE)

    def logits(self, states: Tensor) -> Tensor:
        """Return unnormalised scores (N, T, V) of encoder states (N, T, C)."""
        scores: Tensor = self.project(self.dropout(states))
        return scores

    def condition(self, encoder: Encoder, run: Pass) -> Encoded:
        """See `SupervisedHead.condition`. A block that LayerDrop leaves out is not read behind."""
        feed_back = self.feed_back
        if feed_back is None:
            return run(after_layer=None)
        read: list[Tensor] = []

        def behind(x: Tensor) -> Tensor:
            states = encoder.output(x)
            read.append(states)
            beliefs = self.logits(states).float().softmax(-1)
            return x + feed_back(beliefs.to(x.dtype)).to(x.dtype)

        encoded = run(after_layer=dict.fromkeys((number - 1 for number in self.config.intermediate), behind))
        return replace(encoded, intermediate=tuple(read))

    def draw(self, batch: Batch, frames: Sequence[int], clock: Clock) -> CTCDraws:
        """See `Head.draw`."""
        return CTCDraws(tuple(frames))

    def counts(self, batch: Batch, draws: CTCDraws) -> Mapping[str, Tensor]:
        """See `Head.counts`."""
        _, target_lengths, _ = _transcripts(batch)
        device = batch.waves.device
        if self.config.normalise == "labels":
            return dict.fromkeys(self.terms, target_lengths.sum().float())
        total = len(draws.frames) if self.config.normalise == "utterances" else sum(draws.frames)
        return dict.fromkeys(self.terms, torch.full((), float(total), device=device))

    def loss(self, encoded: Encoded, batch: Batch, draws: CTCDraws, clock: Clock) -> Losses:
        """See `Head.loss`. Metrics: `ctc_per_label`, and `infeasible`, the share of utterances without an alignment."""
        targets, target_lengths, host_target_lengths = _transcripts(batch)

        def ctc(states: Tensor) -> Tensor:
            return ctc_loss(
                self.logits(states),
                targets,
                encoded.host_lengths,
                host_target_lengths if host_target_lengths is not None else target_lengths,
                blank=self.blank,
                reduction="sum",
                zero_infinity=self.config.zero_infinity,
            )

        total = ctc(encoded.states)
        terms = {"ctc": Term(total)}
        if self.feed_back is not None:
            assert encoded.intermediate is not None, "the pass did not go through `condition`"
            sums = [ctc(states) for states in encoded.intermediate]
            mean = torch.stack(sums).mean() if sums else torch.zeros_like(total)
            # Where LayerDrop left out all that is read behind, the last one has the whole weight.
            share = self.config.intermediate_weight if sums else 0.0
            terms = {"ctc": Term(total, 1 - share), INTERMEDIATE: Term(mean, share)}
        without = infeasible(targets, encoded.lengths, target_lengths).sum()
        return Losses(
            terms,
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


def check_depth(config: CTCHeadConfig, key: str, encoder: Encoder) -> None:
    """Refuse to read behind blocks that do not exist, or behind the last one, where the head reads anyway.

    Raises:
        AsrkitError: naming the key.
    """
    beyond = [number for number in config.intermediate if number >= encoder.config.layers]
    if beyond:
        raise AsrkitError(
            f"{key}.intermediate is {config.intermediate}, but of encoder.layers = {encoder.config.layers} the last one "
            "has the head behind it anyway",
            mend=f"numbers below {encoder.config.layers}",
        )


def _transcripts(batch: Batch) -> tuple[Tensor, Tensor, tuple[int, ...] | None]:
    if batch.targets is None or batch.target_lengths is None:
        raise AsrkitError("the batch has no transcripts", where="CTC head", mend="give it a labelled set")
    return batch.targets, batch.target_lengths, batch.host_target_lengths
