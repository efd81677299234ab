"""Random numbers that are pure functions of what they are for.

A crop, a mask, a negative or a Gumbel draw depends on (seed, epoch, utterance, purpose) alone: not on the batch that the
utterance happens to sit in, nor on the order or the number of processes. Where an epoch has an utterance more than once (soft
random sampling), which of its draws it is counts as part of the utterance. There is no state to save. The generator is
SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators", OOPSLA 2014) in counter mode, written in wrapping
int64 arithmetic so that the same bits come out of a CPU and a GPU.

Shapes: N batch, K numbers wanted per utterance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """Return the 64-bit pattern of ``value`` as Python's signed integer."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


class Purpose(IntEnum):
    """What a number is drawn for; each purpose has a stream of its own."""

    CROP = 1
    SPEED = 2
    NOISE = 3
    TIME_MASK = 4
    CHANNEL_MASK = 5
    NEGATIVES = 6
    GUMBEL = 7
    SPEC_AUGMENT = 8
    CACHE = 9
    LAYER_DROP = 10
    INNER = 11


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own is arithmetic)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def utterance_key(utterance_id: str) -> int:
    """Return a stable signed 64-bit key of an utterance id."""
    return int.from_bytes(hashlib.blake2b(utterance_id.encode(), digest_size=8).digest(), "little", signed=True)


def utterance_keys(utterance_ids: Sequence[str]) -> Tensor:
    """Return the keys of several utterances, an int64 tensor of shape (N,)."""
    return torch.tensor([utterance_key(name) for name in utterance_ids], dtype=torch.int64)


def copy_keys(keys: Tensor, copies: Tensor) -> Tensor:
    """Return the keys of an epoch's draws of utterances with ``keys`` int64 (N,): its own for an utterance's first draw.

    ``copies`` int64 (N,) tells of each how often its utterance was drawn in the epoch before; every further draw is to
    all random numbers another utterance.
    """
    return torch.where(copies == 0, keys, _mix(keys ^ _mix(copies * _GAMMA)))


def stream_keys(keys: Tensor, *, seed: int, epoch: int, purpose: Purpose) -> Tensor:
    """Combine utterance keys (N,) with seed, epoch and purpose into the keys of independent streams, int64 (N,)."""
    state = _mix(keys + _GAMMA)
    for part in (seed, epoch, int(purpose)):
        state = _mix(state ^ _signed(part * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019))
    return state


def bits(keys: Tensor, count: int) -> Tensor:
    """Return ``count`` 64-bit words per stream: int64 of shape (N, K), uniform over all bit patterns."""
    counter = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64)
    return _mix(keys[:, None] + counter * _GAMMA)


def uniform(keys: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return ``count`` numbers per stream in the open interval (0, 1), shape (N, K)."""
    digits = 23 if dtype == torch.float32 else 52
    words = _shift_right(bits(keys, count), 64 - digits)
    return (words.to(dtype) + 0.5) * (0.5**digits)


def integers(keys: Tensor, count: int, upper: Tensor) -> Tensor:
    """Return ``count`` integers per stream in [0, upper), int64 (N, K); ``upper`` broadcasts to (N, K) and is at least 1.

    The bias of scaling 31 random bits is below upper / 2**31.
    """
    return _shift_right(_shift_right(bits(keys, count), 33) * upper, 31)


def layer_uniforms(seed: int, update: int, count: int) -> list[float]:
    """Return ``count`` numbers in (0, 1) for LayerDrop, a function of (seed, update) alone: the same on every rank."""
    key = torch.tensor([update], dtype=torch.int64)
    return uniform(stream_keys(key, seed=seed, epoch=0, purpose=Purpose.LAYER_DROP), count, torch.float64)[0].tolist()
