"""What an update does to parameters: who moves, who decays, what is clipped, what is skipped."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.phase import Phase
from asrkit.core.schedule import Schedule, ScheduleConfig
from asrkit.core.step import Accumulate
from asrkit.core.term import Losses, Prepared, Ratio
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine
from asrkit.training.optimiser import Optimiser, OptimiserConfig

ENGINE = TrainingEngine(torch.device("cpu"), "fp32", Ranks())


class Two(Method):
    """Two layers in groups of their own, without a loss: the tests write gradients by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.low, self.high = nn.Linear(3, 3), nn.Linear(3, 3)

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"low": list(self.low.parameters()), "high": list(self.high.parameters())}

    def phases(self) -> Sequence[Phase]:
        return []

    def terms(self, stream: str) -> Sequence[str]:
        return ()

    def prepare(self, stream: str, batch: Batch, clock: Clock) -> Prepared:
        raise AssertionError("an optimiser asks for no batch and no loss")

    def losses(self, stream: str, batch: Batch, draws: Any, clock: Clock) -> Losses:
        raise AssertionError("an optimiser asks for no batch and no loss")

    def validate(self, batch: Batch, clock: Clock) -> Mapping[str, Ratio]:
        raise AssertionError("an optimiser asks for no batch and no loss")


def phase(*groups: str, moments: str = "", rate: float = 0.1) -> Phase:
    schedule = Schedule(ScheduleConfig(rate, "constant", warmup=0.0), 10)
    return Phase("all", 10, (), dict.fromkeys(groups, schedule), Accumulate(), moments)


def give_gradients(method: Method, size: float = 1.0, seed: int = 0) -> None:
    random = torch.Generator().manual_seed(seed)
    for parameter in method.parameters():
        if parameter.requires_grad:
            parameter.grad = size * torch.randn(parameter.shape, generator=random)


def weights(method: Method) -> dict[str, torch.Tensor]:
    return copy.deepcopy(method.state_dict())


def moved(before: Mapping[str, torch.Tensor], method: Method) -> set[str]:
    return {name.split(".")[0] for name, value in method.state_dict().items() if not torch.equal(value, before[name])}


def test_a_group_outside_the_phase_neither_learns_nor_decays() -> None:
    method = Two()
    optimiser = Optimiser(method, OptimiserConfig(weight_decay=0.5))
    optimiser.enter(phase("low", "high"))
    give_gradients(method)
    optimiser.update(phase("low", "high"), 0, ENGINE)
    optimiser.enter(phase("high"))
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in method.low.parameters())
    before = weights(method)
    for update in range(3):
        give_gradients(method, seed=update)
        norms, taken = optimiser.update(phase("high"), update, ENGINE)
        assert taken
        assert list(norms) == ["high"]
    assert moved(before, method) == {"high"}


def test_a_parameter_without_gradient_is_left_alone() -> None:
    method = Two()
    optimiser = Optimiser(method, OptimiserConfig(weight_decay=0.5))
    optimiser.enter(phase("low", "high"))
    before = weights(method)
    norms, _ = optimiser.update(phase("low", "high"), 0, ENGINE)
    assert norms == {"low": 0.0, "high": 0.0}
    assert moved(before, method) == set()


def test_an_update_is_torchs_adamw_with_the_groups_own_rates_and_limits() -> None:
    method, twin = Two(), Two()
    config = OptimiserConfig(clip_norm=1.0, group_clip_norm={"high": 0.0}, group_rate_scale={"high": 3.0})
    optimiser = Optimiser(method, config)
    optimiser.enter(phase("low", "high"))
    plain = torch.optim.AdamW(
        [{"params": twin.low.parameters(), "lr": 0.1}, {"params": twin.high.parameters(), "lr": 0.3}],
        betas=(0.9, 0.98),
        eps=1e-6,
        weight_decay=0.01,
    )
    for update in range(4):
        give_gradients(method, 5.0, update)
        give_gradients(twin, 5.0, update)
        expected = {
            name: torch.cat([p.grad.flatten() for p in group if p.grad is not None]).norm().item()
            for name, group in twin.groups().items()
        }
        norms, _ = optimiser.update(phase("low", "high"), update, ENGINE)
        assert norms == pytest.approx(expected, rel=1e-5)
        nn.utils.clip_grad_norm_(twin.low.parameters(), 1.0)
        plain.step()
    for name, value in method.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(value: float) -> None:
    method = Two()
    optimiser = Optimiser(method, OptimiserConfig())
    optimiser.enter(phase("low", "high"))
    give_gradients(method)
    optimiser.update(phase("low", "high"), 0, ENGINE)
    before, moments = weights(method), copy.deepcopy(optimiser.state_dict())
    give_gradients(method)
    assert method.low.weight.grad is not None
    method.low.weight.grad[0, 0] = value
    _, taken = optimiser.update(phase("low", "high"), 1, ENGINE)
    assert not taken
    assert moved(before, method) == set()
    assert all(
        torch.equal(moment, optimiser.state_dict()[name][key])
        for name in moments
        for key, moment in moments[name].items()
    )


def updates(optimiser: Optimiser, method: Method, moments: str, seeds: Sequence[int]) -> None:
    stretch = phase("low", "high", moments=moments)
    optimiser.enter(stretch)
    for seed in seeds:
        give_gradients(method, 100.0 if moments else 1.0, seed)
        optimiser.update(stretch, 0, ENGINE)


def test_moments_live_across_phases_of_the_same_set() -> None:
    whole, parts = Two(), Two()
    updates(Optimiser(whole, OptimiserConfig()), whole, "", [1, 2, 3, 4])
    optimiser = Optimiser(parts, OptimiserConfig())
    updates(optimiser, parts, "", [1, 2])
    updates(optimiser, parts, "", [3, 4])
    assert_equal(weights(whole), weights(parts))


def test_sets_of_moments_know_nothing_of_each_other_also_when_restored() -> None:
    """What the other set did in between leaves a set's moments as they were."""
    method, other = Two(), Two()
    optimiser, alone = Optimiser(method, OptimiserConfig()), Optimiser(other, OptimiserConfig())
    updates(alone, other, "", [1, 2, 3])
    updates(optimiser, method, "", [1, 2])
    updates(optimiser, method, "far", [7, 8])
    restored = Optimiser(method, OptimiserConfig())
    restored.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    assert_equal(optimiser.state_dict(), restored.state_dict())
    updates(restored, method, "", [3])
    found, expected = restored.state_dict(), alone.state_dict()
    for name, moments in expected.items():
        assert {key for key in found[name] if "/" in key} == {f"far/{key}" for key in moments}
        assert float(found[name]["far/step"]) == 2
        assert_equal({key: found[name][key] for key in moments}, moments)


def assert_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, Mapping):
            assert_equal(value, other[name])
        else:
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("changes", [{"group_clip_norm": {"lwo": 1.0}}, {"group_rate_scale": {"lwo": 1.0}}])
def test_an_unknown_group_is_named(changes: dict[str, Any]) -> None:
    with pytest.raises(AsrkitError, match=r"'lwo'.*did you mean 'low'"):
        Optimiser(Two(), OptimiserConfig(**changes))
