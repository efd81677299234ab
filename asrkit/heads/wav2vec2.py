"""The wav2vec 2.0 head: masked frames are told apart by their quantised features.

Source: Baevski et al., "wav2vec 2.0", NeurIPS 2020, section 3.2, with the loss weights of the authors' released recipe.

Shapes: N batch, T frames, M masked frames (padded), C channels, F features, G groups, E entries, K negatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asrkit.core.clock import Clock
from asrkit.core.term import Losses, Ratio, Term
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.heads.head import Advice, SelfSupervisedHead
from asrkit.losses.contrastive import contrastive_loss, draw_negatives, negative_weights
from asrkit.nn.dropout import Dropout
from asrkit.nn.encoder import Encoded
from asrkit.nn.lengths import inside
from asrkit.nn.linear import Linear
from asrkit.nn.masking import MaskConfig, SpanMask, draw_mask, pack, take
from asrkit.nn.quantiser import GumbelQuantiser, Quantised, diversity, gumbel_noise, perplexity


@dataclass
class Wav2Vec2HeadConfig:
    """Settings of the wav2vec 2.0 head; the defaults are BASE's."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    """What of the encoder's input is masked."""
    final_dim: int = 256
    """Dimensions in which predictions and targets are compared."""
    quantise_targets: bool = True
    """Quantise the targets; off compares with the projected features themselves, without the diversity term."""
    groups: int = 2
    """Codebooks; they divide final_dim."""
    entries: int = 320
    """Entries per codebook."""
    negatives: int = 100
    """Other masked frames of the utterance that each masked frame is compared with."""
    temperature: float = 0.1
    """By which cosine similarities are divided."""
    diversity_weight: float = 0.1
    """Weight of the diversity term."""
    feature_penalty_weight: float = 10.0
    """Weight of the mean square of the frontend's output."""
    gumbel_start: float = 2.0
    """Temperature of the Gumbel-softmax at the first update."""
    gumbel_end: float = 0.5
    """Its least temperature."""
    gumbel_decay: float = 0.999995
    """Factor of the temperature per update."""
    features_dropout: float = 0.1
    """Dropout on the features that the targets are made of."""

    def __post_init__(self) -> None:
        for key in ("final_dim", "groups", "entries", "negatives"):
            if getattr(self, key) < 1:
                raise AsrkitError(f"wav2vec2.{key} is {getattr(self, key)}", mend="1 or more")
        if self.final_dim % self.groups:
            raise AsrkitError(f"wav2vec2.groups {self.groups} does not divide wav2vec2.final_dim {self.final_dim}")
        for key in ("temperature", "gumbel_start", "gumbel_end"):
            if getattr(self, key) <= 0:
                raise AsrkitError(f"wav2vec2.{key} is {getattr(self, key)}", mend="more than 0")
        if not 0 < self.gumbel_decay <= 1:
            raise AsrkitError(f"wav2vec2.gumbel_decay is {self.gumbel_decay}", mend="more than 0, at most 1")
        for key in ("diversity_weight", "feature_penalty_weight"):
            if getattr(self, key) < 0:
                raise AsrkitError(f"wav2vec2.{key} is {getattr(self, key)}", mend="0 or more")
        if not 0 <= self.features_dropout < 1:
            raise AsrkitError(f"wav2vec2.features_dropout is {self.features_dropout}", mend="0 or more, below 1")
        if self.mask.time_probability == 0:
            raise AsrkitError(
                "wav2vec2.mask.time_probability is 0: there would be nothing to predict", mend="e.g. 0.65"
            )
        if self.entries**self.groups > 2**62:
            raise AsrkitError(
                f"wav2vec2.entries {self.entries} to the power of wav2vec2.groups {self.groups} is beyond 2**62"
            )


@dataclass(frozen=True)
class Wav2Vec2Draws:
    """What is random in the loss on a micro-batch."""

    mask: SpanMask
    """For the encoder; the masked frames are the ones to be told apart."""
    masked: Tensor
    """Masked frames per utterance, int64 of shape (N,)."""
    negatives: Tensor
    """Places among the utterance's masked frames, int64 of shape (N, M, K)."""
    noise: Tensor | None
    """Gumbel noise (N, M, G, E); None where the best codebook entry is wanted: in evaluation, or without quantiser."""


class Wav2Vec2Head(SelfSupervisedHead):
    """Contrastive loss between encoder states and quantised features of masked frames."""

    objective = "contrastive"
    advice = Advice(
        "the quantiser has collapsed onto a few codes and the contrastive task has become trivial or impossible",
        "lower {rate}, lengthen its warm-up, raise {section}.diversity_weight, or use larger batches",
    )

    def __init__(self, config: Wav2Vec2HeadConfig, dim: int, feature_dim: int) -> None:
        """Make the head.

        Args:
            config: its settings.
            dim: the encoder's channels C.
            feature_dim: the frontend's features F.
        """
        super().__init__()
        self.config = config
        self.dim = dim
        self.dropout = Dropout(config.features_dropout)
        self.quantiser = (
            GumbelQuantiser(feature_dim, config.groups, config.entries, config.final_dim)
            if config.quantise_targets
            else None
        )
        self.project_targets = Linear(config.final_dim if self.quantiser else feature_dim, config.final_dim)
        self.project_states = Linear(dim, config.final_dim)
        self.codebooks = config.groups if self.quantiser else 0
        quantised = ("diversity",) if self.quantiser else ()
        self.terms = ("contrastive", *quantised, "feature_penalty")

    def gumbel_temperature(self, clock: Clock) -> float:
        """Return the temperature of the Gumbel-softmax at an update."""
        return max(self.config.gumbel_start * self.config.gumbel_decay**clock.update, self.config.gumbel_end)

    def draw(self, batch: Batch, frames: Sequence[int], clock: Clock) -> Wav2Vec2Draws:
        """See `Head.draw`."""
        config, keys = self.config, batch.keys
        mask = draw_mask(config.mask, keys, frames, self.dim, seed=clock.seed, epoch=batch.epoch)
        assert mask.time is not None
        masked = mask.time.sum(1)
        negatives = draw_negatives(keys, masked, mask.most, config.negatives, seed=clock.seed, epoch=batch.epoch)
        noise = None
        if self.quantiser is not None and self.training:
            noise = gumbel_noise(keys, mask.most, config.groups, config.entries, seed=clock.seed, epoch=batch.epoch)
        return Wav2Vec2Draws(mask, masked, negatives, noise)

    def counts(self, batch: Batch, draws: Wav2Vec2Draws) -> Mapping[str, Tensor]:
        """See `Head.counts`: the masked frames, for every term."""
        return dict.fromkeys(self.terms, draws.masked.sum().float())

    def loss(self, encoded: Encoded, batch: Batch, draws: Wav2Vec2Draws, clock: Clock) -> Losses:
        """See `Head.loss`.

        The contrastive term is a sum over masked frames; diversity and feature penalty are values times masked
        frames, as in the authors' code. The penalty's value is each utterance's own, so that it does not depend on the
        batch.

        Metrics: accuracy, code_perplexity, prob_perplexity, mask_share, gumbel_temperature.
        """
        config = self.config
        assert draws.mask.time is not None
        places, valid = pack(draws.mask.time, draws.mask.most)
        states = self.project_states(take(encoded.states, places))
        features = self.dropout(take(encoded.features, places))
        total = valid.sum().float()
        terms: dict[str, Term] = {}
        metrics: dict[str, Ratio] = {}
        labels = None
        if self.quantiser is not None:
            quantised = self.quantiser(features, valid, noise=draws.noise, temperature=self.gumbel_temperature(clock))
            features = quantised.vectors
            labels = _labels(quantised, config.entries)
            value = diversity(quantised)
            terms["diversity"] = Term(value * total, config.diversity_weight)
            for name, usage in (("code_perplexity", quantised.hard_usage), ("prob_perplexity", quantised.usage)):
                metrics[name] = Ratio(perplexity(usage.detach(), quantised.count) * total, total)
        weights = negative_weights(draws.negatives, draws.masked, labels)
        contrast = contrastive_loss(states, self.project_targets(features), weights, valid, config.temperature)
        terms["contrastive"] = Term(contrast.loss.sum())
        penalty = _mean_square(encoded.extracted, encoded.lengths)
        terms["feature_penalty"] = Term((penalty * draws.masked).sum(), config.feature_penalty_weight)
        metrics["accuracy"] = Ratio(contrast.correct.sum(), total)
        metrics["mask_share"] = Ratio(total, float(sum(encoded.host_lengths)))
        metrics["gumbel_temperature"] = Ratio(self.gumbel_temperature(clock), 1.0)
        return Losses({name: terms[name] for name in self.terms}, metrics)


def _labels(quantised: Quantised, entries: int) -> Tensor:
    """Return one label per frame, (N, M), for its codes of all groups."""
    codes = quantised.codes
    powers = entries ** torch.arange(codes.shape[-1], device=codes.device)
    return (codes * powers).sum(-1)


def _mean_square(features: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean square over the valid frames of each row, float32 (N,), of features (N, T, F)."""
    squares = features.float().square().mean(-1)
    valid = inside(lengths, squares.shape[1])
    return torch.where(valid, squares, 0.0).sum(1) / lengths.clamp(min=1)
