"""Accumulate: many micro-batches, one gradient."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.phase import Phase
from asrkit.core.step import Accumulate, Totals
from asrkit.core.term import Losses, Prepared, Ratio, Term
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError

CLOCK = Clock(seed=1, update=0, phase="all", phase_update=0, phase_updates=1)


class Alone:
    """An engine for one process, in double precision."""

    world_size = 1

    def autocast(self) -> AbstractContextManager[object]:
        return nullcontext()

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        pass


class Regression(Method):
    """Two terms with counts of their own; `unused` never has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.unused = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"all": [self.weight, self.unused]}

    def phases(self) -> Sequence[Phase]:
        return []

    def terms(self, stream: str) -> Sequence[str]:
        return ("square", "absolute")

    def prepare(self, stream: str, batch: Batch, clock: Clock) -> Prepared:
        assert not torch.is_grad_enabled()
        rows = float(len(batch.ids))
        return Prepared("draws", {"square": torch.tensor(rows), "absolute": torch.tensor(2 * rows)})

    def losses(self, stream: str, batch: Batch, draws: Any, clock: Clock) -> Losses:
        assert draws == "draws"
        error = (batch.waves.double() * self.weight - 1).sum(1)
        metrics = {"rows": Ratio(float(len(batch.ids)), 1.0)}
        return Losses({"square": Term((error**2).sum()), "absolute": Term(error.abs().sum(), 0.3)}, metrics)

    def validate(self, batch: Batch, clock: Clock) -> Mapping[str, Ratio]:
        return {}


def make(rows: Tensor) -> Batch:
    count, size = rows.shape
    ids = tuple(str(number) for number in range(count))
    return Batch(rows, torch.full((count,), size), (size,) * count, torch.arange(count), ids, 0)


def gradient(micro_batches: Sequence[Batch]) -> tuple[Tensor, dict[str, float], Regression]:
    method, totals = Regression(), Totals({})
    Accumulate().run(method, {"labelled": micro_batches}, CLOCK, Alone(), totals)
    assert method.weight.grad is not None
    figures = {name: float(above) / float(below) for name, (above, below) in totals.values.items()}
    return method.weight.grad, figures, method


@pytest.mark.parametrize("cuts", [[], [1], [2, 3], [1, 2, 3, 4, 5]])
def test_micro_batches_give_the_gradient_of_one_batch(cuts: list[int]) -> None:
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    edges = [0, *cuts, 6]
    parts = [make(rows[start:end]) for start, end in itertools.pairwise(edges)]
    found, figures, method = gradient(parts)
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    error = (rows.double() * weight - 1).sum(1)
    objective = (error**2).sum() / 6 + 0.3 * error.abs().sum() / 12
    torch.testing.assert_close(found, torch.autograd.grad(objective, weight)[0], rtol=1e-6, atol=0)
    assert figures["loss"] == pytest.approx(objective.item(), rel=1e-6)
    assert figures["square"] == pytest.approx((error**2).sum().item() / 6, rel=1e-6)
    assert figures["absolute"] == pytest.approx(error.abs().sum().item() / 12, rel=1e-6)
    assert method.unused.grad is None


def test_an_update_without_audio_leaves_no_gradient() -> None:
    method, totals = Regression(), Totals({})
    Accumulate().run(method, {"labelled": []}, CLOCK, Alone(), totals)
    assert method.weight.grad is None
    assert totals.values == {"loss": (0.0, 1.0)}


def test_the_loss_is_the_mean_over_updates() -> None:
    rows = torch.ones(2, 1)
    method, totals = Regression(), Totals({})
    for part in ([make(rows)], [make(rows[:1]), make(rows[1:])], []):
        Accumulate().run(method, {"labelled": part}, CLOCK, Alone(), totals)
    each = 0.3**2 + 0.3 * 0.3 / 2
    above, below = totals.values["loss"]
    assert float(above) / float(below) == pytest.approx(2 * each / 3)


def test_a_phase_has_no_less_than_no_updates() -> None:
    with pytest.raises(AsrkitError, match="-1"):
        Phase("all", -1, ("labelled",), {}, Accumulate())
