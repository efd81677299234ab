"""Joint updates in double precision, and the two levels' gradients taken separately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from helpers import STILL, WAVEFORM, make_batch, make_method, merged
from torch import Tensor

from asrkit.core.clock import Clock
from asrkit.core.step import Step, Totals
from asrkit.data.batch import Batch
from asrkit.methods.common import encode, encoder_frames
from asrkit.methods.joint import JOINT, JointMethod
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine

ENGINE = TrainingEngine(torch.device("cpu"), "fp32", Ranks())
AT_ONCE = Clock(seed=3, update=0, phase=JOINT, phase_update=0, phase_updates=6)
"""The first joint update of a run without exploration."""
WAVES = merged(WAVEFORM, STILL)
HEAD = {"features_dropout": 0.0, "feature_penalty_weight": 10.0, "diversity_weight": 0.1}


def make_joint(method: str = "bl_just", **section: Any) -> JointMethod:
    """Return a method on waves with nothing random but draws, in double precision, in training mode."""
    base: dict[str, Any] = {"ssl": {"wav2vec2": HEAD}, "frontend_gradient_scale": 1.0}
    if method == "bl_just":
        base |= {"exploration": {"updates": 0, "passes": 0.0}, "outer_epochs": 1, "joint": {"updates": 6}}
    made = make_method(method, encoder=WAVES, **{method: merged(base, section)})
    assert isinstance(made, JointMethod)
    return made.double().train()


def at_gamma(gamma: float, **section: Any) -> JointMethod:
    return make_joint(gamma={"name": "constant", "start": gamma}, **section)


def double_batch(seeds: Sequence[int]) -> Batch:
    batch = make_batch(seeds)
    return replace(batch, waves=batch.waves.double())


def everything_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn the casts to float32 that guard half precision into casts to double."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def joint_gradients(
    method: JointMethod, step: Step, micro_batches: Mapping[str, Sequence[Batch]], clock: Clock = AT_ONCE
) -> tuple[dict[str, Tensor], Totals]:
    """Return what a step leaves in `.grad`, by parameter name, and its figures."""
    totals = Totals({})
    method.zero_grad(set_to_none=True)
    step.run(method, micro_batches, clock, ENGINE, totals)
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}, totals


def level_gradients(
    method: JointMethod,
    stream: str,
    batches: Sequence[Batch],
    clock: Clock = AT_ONCE,
    only: str = "",
) -> dict[str, Tensor]:
    """Return the gradient of one level alone, by autograd on its definition.

    Args:
        method: in training mode.
        stream: which level.
        batches: its micro-batches.
        clock: where the run stands.
        only: of the self-supervised loss, the one part of `Encoded` through which gradients may pass; empty is all.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for batch in batches:
        if stream == "labelled":
            ready = method.prepare(stream, batch, clock)
            run = partial(encode, method.encoder, batch, ready.draws.mask, clock, 1.0)
            encoded = method.ctc.condition(method.encoder, run)
            losses, count = method.ctc.loss(encoded, batch, ready.draws.head, clock), ready.counts
        else:
            draws = method.ssl.draw(batch, encoder_frames(method.encoder, batch), clock)
            encoded = encode(method.encoder, batch, draws.mask, clock, 1.0)
            stopped = {name for name in ("states", "features", "extracted") if only and name != only}
            encoded = replace(encoded, **{name: getattr(encoded, name).detach() for name in stopped})
            losses, count = method.ssl.loss(encoded, batch, draws, clock), method.ssl.counts(batch, draws)
        for name, term in losses.terms.items():
            sums[name] = sums.get(name, torch.zeros(())) + term.weight * term.sum
            counts[name] = counts.get(name, torch.zeros(())) + count[name]
    loss = sum(sums[name] / counts[name] for name in sums)
    names, parameters = zip(*method.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def is_theta(name: str) -> bool:
    return name.startswith("encoder.")
