"""The contrastive loss of wav2vec 2.0 among the masked frames of an utterance.

Source: Baevski et al., "wav2vec 2.0", NeurIPS 2020, equation 3. Where the authors compare each masked frame with its
own list of negative vectors, one matrix product per utterance here compares each with all the others. How often
a frame was drawn as a negative enters as the logarithm of its weight: the same sum, without a tensor of K vectors per
frame, and with a backward pass that adds in a fixed order.

Shapes: N batch, M masked frames (padded), D dimensions, K negatives per frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from asrkit.randomness import Purpose, integers, stream_keys


@dataclass(frozen=True)
class Contrast:
    """The contrastive loss of a micro-batch."""

    loss: Tensor
    """Each masked frame's loss, float32 (N, M), zero where not valid."""
    correct: Tensor
    """Whether a masked frame's own target is the most similar, bool (N, M); never where no negative is left."""


def draw_negatives(keys: Tensor, counts: Tensor, most: int, negatives: int, *, seed: int, epoch: int) -> Tensor:
    """Draw for each masked frame K others of the same utterance, with replacement.

    Args:
        keys: utterance keys, int64 of shape (N,).
        counts: masked frames per utterance, int64 of shape (N,).
        most: M.
        negatives: K.
        seed: the run's seed.
        epoch: the stream's epoch.

    Returns:
        Places among the utterance's masked frames, int64 (N, M, K), never the frame's own; without meaning where an
        utterance has fewer than two masked frames, and behind its count. The m-th frame's are the same for every M.
    """
    streams = stream_keys(keys, seed=seed, epoch=epoch, purpose=Purpose.NEGATIVES)
    others = (counts - 1).clamp(min=1)[:, None]
    drawn = integers(streams, most * negatives, others).view(-1, most, negatives)
    own = torch.arange(most, device=keys.device)[:, None]
    return (drawn + (drawn >= own)).clamp(max=max(most - 1, 0))


def negative_weights(negatives: Tensor, counts: Tensor, codes: Tensor | None = None) -> Tensor:
    """Return how often each masked frame serves another as a negative, float32 (N, M, M).

    Args:
        negatives: the result of `draw_negatives`, (N, M, K).
        counts: masked frames per utterance, (N,).
        codes: a label of each frame's quantised vector, int64 (N, M). A negative with the frame's own label is its
            target over again, and does not count. None: nothing is known of equal targets.
    """
    size = negatives.shape[1]
    drawn = torch.zeros(*negatives.shape[:2], size, dtype=torch.int32, device=negatives.device)
    # Integers: their sum does not depend on the order in which a GPU adds.
    drawn.scatter_add_(2, negatives, torch.ones_like(negatives, dtype=torch.int32))
    place = torch.arange(size, device=negatives.device)
    real = (place < counts[:, None])[:, None, :] & (place[:, None] != place)
    if codes is not None:
        real = real & (codes[:, :, None] != codes[:, None, :])
    return (drawn * real).float()


def contrastive_loss(
    predictions: Tensor, targets: Tensor, weights: Tensor, valid: Tensor, temperature: float = 0.1
) -> Contrast:
    """Return -log of the own target's share in the softmax over cosine similarities to it and to the negatives.

    Args:
        predictions: the encoder's view of the masked frames, of shape (N, M, D).
        targets: their (quantised) vectors, of shape (N, M, D).
        weights: how often each frame is a negative of another, float32 (N, M, M), see `negative_weights`.
        valid: masked frames, bool (N, M).
        temperature: by which similarities are divided.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        similarity = _unit(predictions) @ _unit(targets).transpose(1, 2) / temperature
        own = similarity.diagonal(dim1=1, dim2=2)
        itself = torch.eye(similarity.shape[1], device=weights.device)
        loss = (similarity + (weights + itself).log()).logsumexp(-1) - own
        against = similarity.detach().masked_fill(weights == 0, float("-inf"))
        correct = (own > against.amax(-1)) & (weights > 0).any(-1) & valid
        return Contrast(torch.where(valid, loss, 0.0), correct)


def _unit(vectors: Tensor) -> Tensor:
    precision = torch.promote_types(vectors.dtype, torch.float32)
    return functional.normalize(vectors.to(precision), dim=-1, eps=1e-8)
