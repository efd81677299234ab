"""Torch's default generators, which dropout and initial weights draw from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the CPU's generator and of a GPU's, if the device is one."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Take back what `generator_states` gave, as far as the device has such generators."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Leave the generators behind as they were before."""
    states = generator_states(device)
    try:
        yield
    finally:
        set_generator_states(states, device)


def seed_generators(seeds: Iterable[int]) -> None:
    """Seed the generators from several numbers (the run's seed, the rank)."""
    combined = 0
    for number in seeds:
        combined = (combined * 1_000_003 + number + 1) % (1 << 63)
    torch.manual_seed(combined)
