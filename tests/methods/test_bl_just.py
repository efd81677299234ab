"""BL-JUST's gradient rule, against gradients that are taken separately in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CLOCK, STILL, VARIANTS, make_batch, make_method
from joint_updates import (
    ENGINE,
    at_gamma,
    double_batch,
    everything_double,
    is_theta,
    joint_gradients,
    level_gradients,
    make_joint,
)
from torch import Tensor

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.step import Accumulate, Step, Totals
from asrkit.methods.diagnosis import Diagnose
from asrkit.methods.joint import JOINT, JointMethod
from asrkit.training.optimiser import Optimiser, OptimiserConfig

STEPS = {"plain": Accumulate(), "measured": Diagnose(1)}
HEADS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "wav2vec2": ({}, {"ssl.quantiser.project.weight"}),
    "best_rq, conditioned": (
        VARIANTS["bl_just, best_rq, conditioned"][1],
        {"ssl.project.weight", "ctc.feed_back.weight"},
    ),
}
"""What changes in the section, and parameters of the heads that must learn."""
MICRO = {"labelled": [double_batch([1, 2]), double_batch([3])], "unlabelled": [double_batch([4]), double_batch([5, 6])]}


def norm(gradients: dict[str, Tensor]) -> float:
    return float(torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt())


def theta(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: gradient for name, gradient in gradients.items() if is_theta(name)}


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 1.0, 2.5])
def test_the_gradient_rule(gamma: float, step: str, heads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    everything_double(monkeypatch)
    section, own = HEADS[heads]
    method = at_gamma(gamma, **section)
    if method.ctc.feed_back is not None:
        torch.nn.init.normal_(method.ctc.feed_back.weight)
    found, _ = joint_gradients(method, STEPS[step], MICRO)
    supervised = level_gradients(method, "labelled", MICRO["labelled"])
    unsupervised = level_gradients(method, "unlabelled", MICRO["unlabelled"])
    wanted = dict(supervised)
    for name, gradient in unsupervised.items():
        factor = gamma if is_theta(name) else 1.0
        if factor:
            wanted[name] = wanted[name] + factor * gradient if name in wanted else factor * gradient
    assert sorted(found) == sorted(wanted)
    assert {*own, "ctc.project.weight", "encoder.mask_embedding"} <= set(found)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12 * norm(wanted), msg=name)


@pytest.mark.parametrize("part", ["states", "features", "extracted"])
def test_every_way_to_theta_carries_a_gradient(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the rule above would not notice that one of them is left unscaled."""
    everything_double(monkeypatch)
    method = at_gamma(1.0)
    whole = norm(theta(level_gradients(method, "unlabelled", MICRO["unlabelled"])))
    alone = theta(level_gradients(method, "unlabelled", MICRO["unlabelled"], only=part))
    assert norm(alone) > 1e-4 * whole
    assert ("encoder.mask_embedding" in alone) == (part == "states")
    assert any(name.startswith("encoder.frontend.") for name in alone)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_what_is_measured(gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    everything_double(monkeypatch)
    method = at_gamma(gamma)
    _, totals = joint_gradients(method, Diagnose(1), MICRO)
    one = theta(level_gradients(method, "labelled", MICRO["labelled"]))
    other = theta(level_gradients(method, "unlabelled", MICRO["unlabelled"]))
    product = sum(float((one[name] * other[name]).sum()) for name in set(one) & set(other))
    figures = {name: float(above) / float(below) for name, (above, below) in totals.values.items()}
    assert figures["grad_norm_sup"] == pytest.approx(norm(one), rel=1e-9)
    assert figures["grad_norm_unsup"] == pytest.approx(norm(other), rel=1e-9)
    assert figures["grad_cosine"] == pytest.approx(product / (norm(one) * norm(other)), rel=1e-7)
    assert abs(figures["grad_cosine"]) < 1
    assert figures["gamma"] == gamma


def test_measured_updates_are_told_by_the_count_of_joint_updates() -> None:
    method = make_method("bl_just", encoder=STILL)
    assert isinstance(method, JointMethod)
    batches = {"labelled": [make_batch([1])], "unlabelled": [make_batch([2])]}
    measured = []
    update = 0
    for phase in method.phases():
        assert isinstance(phase.length, int)
        for number in range(phase.length):
            if phase.name == JOINT:
                totals = Totals({})
                Diagnose(2).run(method.train(), batches, Clock(1, update, JOINT, number, 3), ENGINE, totals)
                measured.append("grad_cosine" in totals.values)
            update += 1
    assert measured == [True, False] * 3


def test_weighted_sum_moves_theta_as_bl_just_does_at_that_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    everything_double(monkeypatch)
    weight = 0.37
    control, method = make_joint("weighted_sum", weight=weight), at_gamma(weight)
    control.load_state_dict(method.state_dict())
    for step in STEPS.values():
        found, totals = joint_gradients(control, step, MICRO)
        wanted, others = joint_gradients(method, step, MICRO)
        assert sorted(found) == sorted(wanted)
        for name, gradient in wanted.items():
            factor = weight if name.startswith("ssl.") else 1.0
            torch.testing.assert_close(found[name], factor * gradient, rtol=1e-9, atol=1e-12 * norm(wanted), msg=name)
        # The figures speak of the losses, whatever they are multiplied with.
        for name in {"gamma", "contrastive", "grad_norm_unsup", "grad_norm_sup", "grad_cosine"} & set(totals.values):
            mine, its = ([float(part) for part in one.values[name]] for one in (totals, others))
            assert mine[0] / mine[1] == pytest.approx(its[0] / its[1], rel=1e-9), name


def test_the_frontends_gradient_is_scaled_in_both_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    everything_double(monkeypatch)
    whole, _ = joint_gradients(at_gamma(0.5), Accumulate(), MICRO)
    scaled, _ = joint_gradients(at_gamma(0.5, frontend_gradient_scale=0.1), Accumulate(), MICRO)
    for name, gradient in whole.items():
        factor = 0.1 if name.startswith("encoder.frontend.") else 1.0
        torch.testing.assert_close(scaled[name], factor * gradient, rtol=1e-9, atol=1e-12 * norm(whole), msg=name)


UNMASKED = {"time_probability": 0.0, "channel_probability": 0.0}
DROPPING = {**STILL, "layer_drop": 0.3}


def learn(method: Method, step: Step, phase: int, batches: dict[str, Any], updates: int) -> dict[str, Tensor]:
    """Return the weights after some updates with decay and clipping."""
    optimiser = Optimiser(method, OptimiserConfig(weight_decay=0.1, clip_norm=1.0))
    stretch = method.phases()[phase]
    optimiser.enter(stretch)
    for update in range(updates):
        clock = Clock(3, update, stretch.name, update, updates)
        step.run(method.train(), batches, clock, ENGINE, Totals({}))
        optimiser.update(stretch, update, ENGINE)
    return {name: value.clone() for name, value in method.state_dict().items()}


@pytest.mark.parametrize("mask", [{}, UNMASKED], ids=["masked", "unmasked"])
@pytest.mark.parametrize("step", STEPS)
def test_without_penalty_it_is_supervised_training(step: str, mask: dict[str, float]) -> None:
    """To the last bit on θ and φ, also where a parameter (the mask embedding, a dropped layer) has no gradient."""
    shared = {"mask": mask, "ctc": {"normalise": "labels"}}
    section = {**shared, "gamma": {"name": "constant"}, "exploration": {"updates": 0, "passes": 0.0}}
    schedule = {"learning_rate": 1e-2, "name": "constant", "warmup": 0.0}
    joint = make_method("bl_just", encoder=DROPPING, bl_just={**section, "joint": {"schedule": schedule}})
    alone = make_method("finetune", encoder=DROPPING, finetune={**shared, "freeze_updates": 0, "schedule": schedule})
    start = {name: value.clone() for name, value in joint.state_dict().items()}
    alone.load_state_dict({name: value for name, value in start.items() if not name.startswith("ssl.")})
    labelled, unlabelled = [make_batch([1, 2]), make_batch([3])], [make_batch([4, 5])]
    after = learn(joint, STEPS[step], 0, {"labelled": labelled, "unlabelled": unlabelled}, 4)
    wanted = learn(alone, Accumulate(), 1, {"labelled": labelled}, 4)
    for name, value in wanted.items():
        assert torch.equal(after[name], value), name
    assert torch.equal(after["encoder.mask_embedding"], start["encoder.mask_embedding"]) == (mask == UNMASKED)
    own = [name for name in start if name.startswith("ssl.")]
    assert all(not torch.equal(after[name], start[name]) for name in own)


def test_validation_tells_both_losses_under_masks_that_stay() -> None:
    method = make_method("bl_just", encoder=STILL).eval()

    def figures(clock: Clock) -> dict[str, float]:
        with torch.inference_mode():
            found = method.validate(make_batch([1, 2, 3], epoch=0), clock)
        return {name: float(ratio.numerator) / float(ratio.denominator) for name, ratio in found.items()}

    first = figures(CLOCK)
    assert {"loss", "ctc", "wer", "cer", "contrastive", "diversity", "feature_penalty", "accuracy"} <= set(first)
    assert first["loss"] == first["ctc"]
    assert figures(Clock(99, CLOCK.update, JOINT, 1, 5)) == first
    assert figures(Clock(1, CLOCK.update, "exploration", 0, 1)) == first
