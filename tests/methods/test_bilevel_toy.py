"""Penalty-based descent on a bilevel problem whose solution is known.

Lower level, strongly convex in (θ, η): g = ½ (θ - a)ᵀ H (θ - a) + ½ |η - C θ|², with minimum 0 at θ* = a, η* = C a. Upper
level: f = ½ |B θ - φ|² + ½ |θ - c|² + ½ |φ|². Its least value over φ at θ* is the bilevel solution. As γ grows, the point that the
updates settle in comes as near to it as 1/γ, and the lower level's value as 1/γ² (Shen and Chen 2023, arXiv 2302.05185).
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import make_batch
from torch import Tensor, nn

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.step import Totals
from asrkit.core.term import Losses, Term
from asrkit.methods.bl_just import BLJust, BLJustConfig
from asrkit.methods.diagnosis import joint_step
from asrkit.methods.joint import FinalConfig, StageConfig
from asrkit.methods.penalty import PenaltyConfig
from asrkit.nn.encoder import Encoded
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine

ENGINE = TrainingEngine(torch.device("cpu"), "fp32", Ranks())
A, C_UPPER = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([-1.0, 1.0, 3.0]).double()
H = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.5, 0.2], [0.0, 0.2, 1.0]]).double()
C = torch.tensor([[0.4, 0.2, -0.4], [0.0, 0.4, 0.6]]).double()
B = torch.tensor([[0.5, 0.0, 1.0], [1.0, -1.0, 0.0]]).double()


class Point(nn.Module):
    """θ in the place of an encoder; each way that a self-supervised head can read it carries it whole."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(layers=0, layer_drop=0.0)
        self.theta = nn.Parameter(torch.zeros(3).double())

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"encoder": [self.theta]}

    def frames(self, samples: int) -> int:
        return 1

    def forward(self, *_: Any, **__: Any) -> Encoded:
        one, valid = torch.ones(1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
        x = self.theta
        return Encoded(features=x, extracted=x, states=x, lengths=one, host_lengths=(1,), frame_mask=valid)


class Upper(nn.Module):
    terms = ("ctc",)

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.zeros(2).double())

    def condition(self, encoder: Any, run: Any) -> Encoded:
        return run(after_layer=None)

    def loss(self, encoded: Encoded, *_: Any) -> Losses:
        theta = encoded.states
        value = (B @ theta - self.phi).square().sum() + (theta - C_UPPER).square().sum() + self.phi.square().sum()
        return Losses({"ctc": Term(0.5 * value)})


class Lower(nn.Module):
    """Reads θ - a through the states once and through the features once, so that both ways have to be right."""

    terms = ("own", "shared")

    def __init__(self) -> None:
        super().__init__()
        self.eta = nn.Parameter(torch.zeros(2).double())

    def loss(self, encoded: Encoded, *_: Any) -> Losses:
        away = 0.5 * (encoded.states - A) @ H @ (encoded.features - A)
        shared = 0.5 * (self.eta - C @ encoded.extracted).square().sum()
        return Losses({"own": Term(away), "shared": Term(shared)})

    def value(self, theta: Tensor) -> float:
        x = Encoded(theta, theta, theta, theta, (1,), theta)
        return sum(float(term.sum.detach()) for term in self.loss(x).terms.values())


class Toy(BLJust):
    """BL-JUST itself, with points in the place of encoder and heads."""

    def __init__(self, config: BLJustConfig) -> None:
        Method.__init__(self)
        self.config = self.joint_config = config
        self.encoder, self.ctc, self.ssl = Point(), Upper(), Lower()  # type: ignore[assignment]
        self.updates_per_epoch = {}
        self._apart = False

    def prepare(self, stream: str, batch: Any, clock: Clock) -> Any:
        draws = SimpleNamespace(mask=None, spec_mask=None, head=None)
        return SimpleNamespace(draws=draws, counts=dict.fromkeys(self.terms(stream), torch.ones(())))


def settle(gamma: float, measured: bool = False, updates: int = 150) -> Toy:
    """Descend with steps for θ that shrink as 1/γ."""
    config = BLJustConfig(
        outer_epochs=1,
        exploration=StageConfig(),
        joint=StageConfig(updates=updates),
        finetune=FinalConfig(),
        gamma=PenaltyConfig(name="constant", start=gamma),
        diagnose_every=int(measured),
    )
    toy = Toy(config)
    (phase, *_) = toy.phases()
    step = joint_step(config.diagnose_every)
    rates = {toy.encoder.theta: 0.25 / gamma, toy.ctc.phi: 0.4, toy.ssl.eta: 0.4}
    batch = make_batch([1])
    for update in range(updates):
        clock = Clock(1, update, phase.name, update, updates)
        step.run(toy, {"labelled": [batch], "unlabelled": [batch]}, clock, ENGINE, Totals({}))
        with torch.no_grad():
            for parameter, rate in rates.items():
                parameter -= rate * parameter.grad
                parameter.grad = None
    return toy


@pytest.mark.parametrize("measured", [False, True])
def test_the_penalised_solution_nears_the_bilevel_one(measured: bool) -> None:
    gammas = [8.0, 16.0, 32.0, 64.0]
    errors, gaps, uppers, own = [], [], [], []
    for gamma in gammas:
        toy = settle(gamma, measured)
        theta = toy.encoder.theta.detach()
        errors.append(float((theta - A).norm()))
        gaps.append(toy.ssl.value(theta))
        uppers.append(float((toy.ctc.phi.detach() - B @ A / 2).norm()))
        own.append(float((toy.ssl.eta.detach() - C @ A).norm()))
    for figures, least, most in ((errors, 1.7, 2.1), (uppers, 1.7, 2.1), (own, 1.7, 2.1), (gaps, 3.0, 4.4)):
        ratios = [one / other for one, other in itertools.pairwise(figures)]
        assert all(least < ratio < most for ratio in ratios), ratios
        # The nearer the limit, the nearer to 2 and 4.
        assert abs(ratios[-1] - round(ratios[-1])) < abs(ratios[0] - round(ratios[-1]))
    assert errors[-1] < 0.1


def test_it_settles_where_the_penalised_problem_has_its_minimum() -> None:
    gamma = 4.0
    toy = settle(gamma)
    # ∇f + γ ∇g = 0 with φ and η at their own minima, as one linear system for θ.
    upper = 0.5 * B.T @ B + torch.eye(3).double()
    wanted = torch.linalg.solve(upper + gamma * H, C_UPPER + gamma * H @ A)
    torch.testing.assert_close(toy.encoder.theta.detach(), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(toy.ssl.eta.detach(), C @ wanted, rtol=1e-9, atol=1e-9)
