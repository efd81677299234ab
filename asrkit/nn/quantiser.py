"""Product quantiser with Gumbel-softmax and a straight-through gradient.

Sources: Baevski et al., "wav2vec 2.0", NeurIPS 2020, section 2; Jang et al., "Categorical reparameterization with
Gumbel-softmax", ICLR 2017.

Shapes: N batch, M frames, F features, G groups, E entries per group, D dimensions of a quantised vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from asrkit.randomness import Purpose, stream_keys, uniform


@dataclass(frozen=True)
class Quantised:
    """What the quantiser makes of frames."""

    vectors: Tensor
    """Codebook entries of the chosen codes, groups concatenated, float32 (N, M, D)."""
    codes: Tensor
    """Chosen entry per group, int64 (N, M, G)."""
    usage: Tensor
    """Sum over valid frames of the entries' probabilities (softmax without noise), float32 (G, E), with gradient."""
    hard_usage: Tensor
    """How many valid frames have each entry as their best one (without noise), float32 (G, E)."""
    count: Tensor
    """Valid frames, a scalar."""


class GumbelQuantiser(nn.Module):
    """Chooses one entry of each of G codebooks per frame. Everything is computed in float32."""

    def __init__(self, features: int, groups: int, entries: int, dim: int) -> None:
        """Make the quantiser: ``groups`` divides ``dim``, the dimensions D of a quantised vector."""
        super().__init__()
        self.groups = groups
        self.entries = entries
        self.project = nn.Linear(features, groups * entries)
        self.codebook = nn.Parameter(torch.rand(groups, entries, dim // groups))
        nn.init.normal_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(
        self, features: Tensor, valid: Tensor, *, noise: Tensor | None = None, temperature: float = 1.0
    ) -> Quantised:
        """Quantise frames.

        Args:
            features: of shape (N, M, F).
            valid: the frames that count in the usage, bool (N, M).
            noise: standard Gumbel noise (N, M, G, E), see `gumbel_noise`. With it the choice is a sample, and the
                gradient is that of the softmax at ``temperature``; without it the best entry is taken, and no gradient
                reaches the features through the vectors.
            temperature: of the softmax whose gradient is used.
        """
        with torch.autocast(features.device.type, enabled=False):
            logits = self.project(features.float()).unflatten(-1, (self.groups, self.entries))
            probabilities = logits.softmax(-1)
            best = logits.argmax(-1)
            codes = best if noise is None else (logits + noise).argmax(-1)
            vectors = self._look_up(codes)
            if noise is not None and torch.is_grad_enabled():
                soft = ((logits + noise) / temperature).softmax(-1)
                # A matrix product per group, whose value cancels exactly; its gradient stays.
                mixture = torch.einsum("nmge,ged->nmgd", soft, self.codebook.detach())
                vectors = vectors + (mixture - mixture.detach())
            weight = valid[..., None, None].float()
            # One-hot by comparison and not by a scatter, whose sums would be made in no fixed order on a GPU.
            chosen = best[..., None] == torch.arange(self.entries, device=best.device)
            return Quantised(
                vectors=vectors.flatten(2),
                codes=codes,
                usage=(probabilities * weight).sum((0, 1)),
                hard_usage=(chosen * weight).sum((0, 1)),
                count=valid.sum(),
            )

    def _look_up(self, codes: Tensor) -> Tensor:
        """Return the codebook entries (N, M, G, D/G) of codes (N, M, G)."""
        offsets = torch.arange(self.groups, device=codes.device) * self.entries
        return functional.embedding(codes + offsets, self.codebook.flatten(0, 1))


def gumbel_noise(keys: Tensor, frames: int, groups: int, entries: int, *, seed: int, epoch: int) -> Tensor:
    """Return standard Gumbel noise, float32 (N, M, G, E); a row's m-th frame has the same noise for every M.

    Args:
        keys: utterance keys, int64 of shape (N,).
        frames: M.
        groups: G.
        entries: E.
        seed: the run's seed.
        epoch: the stream's epoch.
    """
    streams = stream_keys(keys, seed=seed, epoch=epoch, purpose=Purpose.GUMBEL)
    draws = uniform(streams, frames * groups * entries)
    return draws.log_().neg_().log_().neg_().view(-1, frames, groups, entries)


def perplexity(usage: Tensor, count: Tensor) -> Tensor:
    """Return the summed perplexities of the groups' mean distributions, from G (one entry each) to G * E (all alike).

    Args:
        usage: sums over frames of distributions over entries, (G, E).
        count: frames summed over; the result for none is G.
    """
    mean = usage / count.clamp(min=1)
    entropy = -(mean * (mean + 1e-7).log()).sum(-1)
    return entropy.exp().sum()


def diversity(quantised: Quantised) -> Tensor:
    """Return the share of the G * E entries that the mean distribution leaves unused: 0 if all are used alike.

    It is that of a micro-batch, as in fairseq: a rank without audio in an update could not take part in a mean over ranks.
    """
    usage = quantised.usage
    return 1.0 - perplexity(usage, quantised.count) / usage.numel()
