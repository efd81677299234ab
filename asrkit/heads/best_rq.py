"""The BEST-RQ head: masked frames are told by labels that a frozen random quantiser gives the speech itself.

Log-mel energies of the audio under an encoder frame are projected by a random matrix, and the nearest entry of a random
codebook, by cosine, is the frame's label; neither is ever trained. With several codebooks, each has a projection of its own
and the cross-entropies are averaged.

Source: Chiu et al. 2022, "Self-supervised learning with random-projection quantizer for speech recognition" (arXiv
2202.01855), section 3. asrkit's own are: the mask embedding in place of noise in the speech, and how much is masked.

Shapes: N batch, S samples, T frames, M masked frames (padded), C channels, K mel frames, B mel bins, P mel frames under a
frame of the encoder, G codebooks, E entries of each, D dimensions of an entry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkit.core.clock import Clock
from asrkit.core.term import Losses, Ratio, Term
from asrkit.data.batch import SAMPLE_RATE, Batch
from asrkit.errors import AsrkitError
from asrkit.heads.head import Advice, SelfSupervisedHead
from asrkit.nn.encoder import Encoded, Encoder
from asrkit.nn.linear import Linear
from asrkit.nn.logmel import LogMel, LogMelConfig
from asrkit.nn.masking import MaskConfig, SpanMask, draw_mask, pack, take
from asrkit.nn.quantiser import perplexity

_HOP = SAMPLE_RATE // 100


@dataclass
class BestRQHeadConfig:
    """Settings of the BEST-RQ head."""

    mask: MaskConfig = field(default_factory=lambda: MaskConfig(time_probability=0.5))
    """What of the encoder's input is masked."""
    codebooks: int = 1
    """Codebooks, each with its projection and its prediction."""
    entries: int = 8192
    """Entries of a codebook: the labels there are."""
    code_dim: int = 16
    """Dimensions of an entry."""
    bins: int = 80
    """Mel bins of what is labelled."""

    def __post_init__(self) -> None:
        for key, least in (("codebooks", 1), ("entries", 2), ("code_dim", 1), ("bins", 1)):
            if getattr(self, key) < least:
                raise AsrkitError(f"best_rq.{key} is {getattr(self, key)}", mend=f"{least} or more")
        if self.mask.time_probability == 0:
            raise AsrkitError("best_rq.mask.time_probability is 0: there would be nothing to predict", mend="e.g. 0.5")


@dataclass(frozen=True)
class BestRQDraws:
    """What is fixed before the loss on a micro-batch."""

    mask: SpanMask
    """For the encoder; the masked frames are the ones to be predicted."""
    masked: Tensor
    """Masked frames per utterance, int64 of shape (N,)."""
    places: Tensor
    """Where they are, int64 of shape (N, M); rows with fewer end in frames that are not masked."""
    valid: Tensor
    """Which of the places are masked, bool of shape (N, M)."""
    labels: Tensor
    """Of the frames there, int64 of shape (N, M, G)."""


class RandomQuantiser(nn.Module):
    """Labels of speech by random projections and random codebooks: buffers, which the checkpoint keeps and nothing trains."""

    projection: Tensor
    codes: Tensor

    def __init__(self, config: BestRQHeadConfig, stride: int) -> None:
        """Draw projections and codebooks.

        Args:
            config: their number and sizes.
            stride: samples from one encoder frame to the next.
        """
        super().__init__()
        hop = _nearest_divisor(stride, _HOP)
        self.stack = stride // hop
        """P."""
        self.mel = LogMel(LogMelConfig(bins=config.bins, hop_ms=1000 * hop / SAMPLE_RATE))
        width = self.stack * config.bins
        # Xavier, as in section 3.1 of the paper; the entries lie on the sphere, so that the nearest one is the largest product.
        bound = math.sqrt(6 / (width + config.code_dim))
        projection = torch.empty(config.codebooks, width, config.code_dim).uniform_(-bound, bound)
        self.register_buffer("projection", projection)
        self.register_buffer(
            "codes", F.normalize(torch.randn(config.codebooks, config.entries, config.code_dim), dim=-1)
        )

    @torch.no_grad()
    def forward(self, waves: Tensor, wave_lengths: Tensor, places: Tensor, frames: int) -> Tensor:
        """Label frames.

        Args:
            waves: audio in [-1, 1], of shape (N, S), zero behind each utterance's end.
            wave_lengths: samples per utterance, int64 of shape (N,).
            places: the frames whose labels are wanted, int64 of shape (N, M).
            frames: T.

        Returns:
            Labels, int64 of shape (N, M, G).
        """
        with torch.autocast(waves.device.type, enabled=False):
            mel = self.mel
            lengths = torch.where(
                wave_lengths >= mel.width, torch.div(wave_lengths - mel.width, mel.hop, rounding_mode="floor") + 1, 0
            )
            # Normalised per utterance and bin, as the paper asks: else a few codes would take everything.
            energies = mel(waves, lengths)
            energies = F.pad(energies, (0, 0, 0, max(0, frames * self.stack - energies.size(1))))
            stacked = energies[:, : frames * self.stack].reshape(energies.size(0), frames, -1)
            chosen = take(stacked, places)
            # A codebook at a time: only one of the tables of products (N, M, E) is held at once.
            labels = [
                (chosen @ projection.to(chosen.dtype) @ codes.to(chosen.dtype).t()).argmax(-1)
                for projection, codes in zip(self.projection, self.codes, strict=True)
            ]
            return torch.stack(labels, dim=-1)


class BestRQHead(SelfSupervisedHead):
    """Cross-entropy of masked frames' labels."""

    terms = ("cross_entropy",)
    objective = "cross_entropy"
    advice = Advice(
        "nearly all masked frames have the same label, which no training can change: the random codes do not tell this speech "
        "apart",
        "see that the recordings are speech and not silence; another seed draws other codes, {section}.codebooks=4 more of them",
    )

    def __init__(self, config: BestRQHeadConfig, encoder: Encoder) -> None:
        """Make the head; of the encoder it wants to know the frame rate and the channels C."""
        super().__init__()
        self.config = config
        self.dim = encoder.dim
        self.codebooks = config.codebooks
        self.quantiser = RandomQuantiser(config, round(SAMPLE_RATE / encoder.frame_rate))
        self.project = Linear(encoder.dim, config.codebooks * config.entries)

    def draw(self, batch: Batch, frames: Sequence[int], clock: Clock) -> BestRQDraws:
        """See `Head.draw`: masks, and the labels, which depend on the speech and on no weight."""
        mask = draw_mask(self.config.mask, batch.keys, frames, self.dim, seed=clock.seed, epoch=batch.epoch)
        assert mask.time is not None
        places, valid = pack(mask.time, mask.most)
        labels = self.quantiser(batch.waves, batch.wave_lengths, places, mask.time.size(1))
        return BestRQDraws(mask, mask.time.sum(1), places, valid, labels)

    def counts(self, batch: Batch, draws: BestRQDraws) -> Mapping[str, Tensor]:
        """See `Head.counts`: the masked frames."""
        return {"cross_entropy": draws.masked.sum().float()}

    def loss(self, encoded: Encoded, batch: Batch, draws: BestRQDraws, clock: Clock) -> Losses:
        """See `Head.loss`: a sum over masked frames of the mean over codebooks.

        Metrics: accuracy, code_perplexity (of a micro-batch's labels, summed over codebooks), code_share (of the
        entries that are the label of some masked frame in the micro-batch), mask_share.
        """
        config = self.config
        scores = self.project(take(encoded.states, draws.places)).unflatten(-1, (config.codebooks, config.entries))
        with torch.autocast(scores.device.type, enabled=False):
            scores = scores.float()
            losses = F.cross_entropy(scores.flatten(0, 2), draws.labels.flatten(), reduction="none").view_as(
                draws.labels
            )
        weight = draws.valid[..., None].float()
        total = draws.valid.sum().float()
        correct = (scores.detach().argmax(-1) == draws.labels) * weight
        usage = self._usage(draws.labels, draws.valid)
        return Losses(
            {"cross_entropy": Term((losses * weight).sum() / config.codebooks)},
            {
                "accuracy": Ratio(correct.sum() / config.codebooks, total),
                "code_perplexity": Ratio(perplexity(usage, total) * total, total),
                "code_share": Ratio((usage > 0).float().mean() * total, total),
                "mask_share": Ratio(total, float(sum(encoded.host_lengths))),
            },
        )

    def _usage(self, labels: Tensor, valid: Tensor) -> Tensor:
        """Return how many valid frames have each label, float32 (G, E), of labels (N, M, G) and valid (N, M)."""
        ones = valid.flatten().float().expand(self.config.codebooks, -1)
        counts = ones.new_zeros(self.config.codebooks, self.config.entries)
        # Whole numbers: their sums are exact in any order.
        return counts.scatter_add_(1, labels.flatten(0, 1).t(), ones)


def _nearest_divisor(number: int, wanted: int) -> int:
    """Return the divisor of a number that is nearest to another."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wanted))
