"""AdamW over named parameter groups: rates, clipping, and a state kept by parameter name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.core.method import Method
from asrkit.core.phase import Phase
from asrkit.errors import AsrkitError, nearest
from asrkit.training.engine import TrainingEngine
from asrkit.training.sharding import whole_norm


@dataclass
class OptimiserConfig:
    """AdamW. The learning rate belongs to the method's schedule."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    """Decay rates of the two moments."""
    epsilon: float = 1e-6
    """Added to the denominator."""
    weight_decay: float = 0.01
    """Decoupled decay, on every parameter, as in wav2vec 2.0."""
    clip_norm: float = 0.0
    """Largest gradient norm per parameter group; 0 switches clipping off."""
    group_clip_norm: dict[str, float] = field(default_factory=dict)
    """Other limits for some groups: {encoder: 25.0, ctc: 1.0}."""
    group_rate_scale: dict[str, float] = field(default_factory=dict)
    """Factors on the scheduled learning rate of some groups: {ctc: 5.0}."""

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise AsrkitError(f"optimiser.betas is {self.betas}", mend="two numbers in [0, 1)")
        if self.epsilon <= 0:
            raise AsrkitError(f"optimiser.epsilon is {self.epsilon}", mend="more than 0")
        if min(self.weight_decay, self.clip_norm, *self.group_clip_norm.values(), *self.group_rate_scale.values()) < 0:
            raise AsrkitError("optimiser: weight_decay, clip norms and rate scales are 0 or more")


def _all_finite(norms: Mapping[str, float]) -> bool:
    return all(math.isfinite(norm) for norm in norms.values())


class Optimiser:
    """One AdamW for all of a method's groups; a phase decides which of them move."""

    def __init__(self, method: Method, config: OptimiserConfig) -> None:
        self.config = config
        self.groups = {name: list(parameters) for name, parameters in method.groups().items()}
        for name in (*config.group_clip_norm, *config.group_rate_scale):
            if name not in self.groups:
                raise AsrkitError(f"optimiser: no parameter group '{name}'", mend=nearest(name, self.groups))
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in method.named_parameters()}
        members = [parameter for group in self.groups.values() for parameter in group]
        if len(set(members)) != len(members) or set(members) != set(self.names):
            raise ValueError("a method's groups must hold each of its parameters once")
        self.adamw = torch.optim.AdamW(
            [{"params": parameters, "name": name} for name, parameters in self.groups.items()],
            lr=0.0,
            betas=(config.betas[0], config.betas[1]),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.moments = ""
        """The set of moments that AdamW has; the others rest."""
        self.resting: dict[str, dict[Tensor, dict[str, Any]]] = {}
        """AdamW's state of the other sets, by their names."""

    def enter(self, phase: Phase) -> None:
        """Let the phase's groups learn, by its own set of moments, and freeze the others."""
        for name in phase.schedules:
            if name not in self.groups:
                raise ValueError(f"phase '{phase.name}' names an unknown parameter group '{name}'")
        self._use(phase.moments)
        for name, parameters in self.groups.items():
            for parameter in parameters:
                parameter.requires_grad_(name in phase.schedules)
                parameter.grad = None

    def update(
        self,
        phase: Phase,
        phase_update: int,
        engine: TrainingEngine,
        allow: Callable[[Mapping[str, float]], bool] = _all_finite,
    ) -> tuple[dict[str, float], bool]:
        """Clip per group and step.

        Args:
            phase: says which groups move, and how fast.
            phase_update: updates done in it.
            engine: has the loss scale.
            allow: is given the norms and says whether the step is to be taken; it sees the gradients as they are.

        Returns:
            The gradient norm of each moving group before clipping, and whether the step was taken; if not, nothing changed.
        """
        # An update without audio on any rank leaves no gradient, and then the scaler has nothing to look at.
        moved = any(parameter.grad is not None for parameter in self.names)
        if moved:
            engine.scaler.unscale_(self.adamw)
        norms: dict[str, Tensor] = {}
        for group in self.adamw.param_groups:
            name = group["name"]
            if name not in phase.schedules:
                continue
            scale = self.config.group_rate_scale.get(name, 1.0)
            group["lr"] = phase.schedules[name].rate(phase_update) * scale
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            norms[name] = whole_norm(gradients) if gradients else torch.zeros((), device=engine.device)
        values = dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))
        taken = allow(values)
        if taken:
            for group in self.adamw.param_groups:
                limit = self.config.group_clip_norm.get(group["name"], self.config.clip_norm)
                if limit > 0 and values.get(group["name"], 0.0) > 0:
                    nn.utils.clip_grads_with_norm_(group["params"], limit, norms[group["name"]])
        if moved and engine.scaler.is_enabled():
            if taken:
                engine.scaler.step(self.adamw)
            engine.lower_or_raise_scale()
        elif moved and taken:
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return values, taken

    def rates(self) -> dict[str, float]:
        """Return the learning rates in force, by group."""
        return {group["name"]: float(group["lr"]) for group in self.adamw.param_groups}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the moments by parameter name: it survives a change in the order of parameters.

        A named set's are told apart by its name: ``exploration/exp_avg``.
        """
        whole: dict[str, dict[str, Any]] = {}
        for moments, state in {**self.resting, self.moments: self.adamw.state}.items():
            for parameter, own in state.items():
                named = {f"{moments}/{key}" if moments else key: value for key, value in own.items()}
                whole.setdefault(self.names[parameter], {}).update(named)
        return whole

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take back what `state_dict` gave."""
        self.moments, self.resting = "", {}
        self.adamw.state.clear()
        for parameter, name in self.names.items():
            for named, value in state.get(name, {}).items():
                moments, _, key = named.rpartition("/")
                own = self.resting.setdefault(moments, {}).setdefault(parameter, {})
                own[key] = value.to(parameter.device) if isinstance(value, Tensor) else value
        self.adamw.state.update(self.resting.pop("", {}))

    def _use(self, moments: str) -> None:
        if moments != self.moments:
            self.resting[self.moments] = dict(self.adamw.state)
            self.adamw.state.clear()
            self.adamw.state.update(self.resting.pop(moments, {}))
            self.moments = moments
