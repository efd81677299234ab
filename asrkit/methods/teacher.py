"""The teacher: the student itself in evaluation mode, or an exponential moving average of it.

Source: Manohar et al. 2021 (Kaizen, arXiv 2106.07759) and Higuchi et al. 2021 (momentum pseudo-labelling, arXiv
2106.08922) for the average, which is kept in float32 whatever the precision of training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode for a while; each part then returns to the mode it was in."""
    parts = [part for module in modules for part in module.modules()]
    modes = [part.training for part in parts]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


class MovingAverage:
    """Frozen copies of modules that follow them. Not a module itself: its weights are not the method's to train or save."""

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        """Copy the modules, which `begin` will give their values.

        Args:
            modules: by name.
            decay: share of the old average in the new one.
        """
        self.decay = decay
        self.begun = False
        """Whether there is an average yet."""
        # Copied at once: modules that a distributed run has divided among its processes could not be.
        self.copies = {
            name: copy.deepcopy(module).float().eval().requires_grad_(False) for name, module in modules.items()
        }

    def begin(self, modules: Mapping[str, nn.Module]) -> None:
        """Take over the modules' weights as they are, where they are."""
        self.begun = True
        for name, kept in self.copies.items():
            kept.to(next(modules[name].parameters()).device)
        self._move(modules, 1.0)

    def follow(self, modules: Mapping[str, nn.Module]) -> None:
        """Move towards the modules' weights; buffers (running statistics) are copied."""
        self._move(modules, 1.0 - self.decay)

    @torch.no_grad()
    def _move(self, modules: Mapping[str, nn.Module], share: float) -> None:
        for name, kept in self.copies.items():
            averages: list[Tensor] = list(kept.parameters())
            current = [parameter.detach().float() for parameter in modules[name].parameters()]
            torch._foreach_lerp_(averages, current, share)
            for mine, its in zip(kept.buffers(), modules[name].buffers(), strict=True):
                mine.copy_(its)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the averages."""
        return {name: dict(kept.state_dict()) for name, kept in self.copies.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take back what `state_dict` gave."""
        for name, kept in self.copies.items():
            kept.load_state_dict(dict(state[name]))
