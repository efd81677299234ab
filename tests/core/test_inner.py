"""Inner: the first-order direction is what its definition says, and all that it touches on the way is put back."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_step import CLOCK, Alone, make
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from asrkit.core.clock import Clock
from asrkit.core.inner import Inner, InnerConfig, share_out
from asrkit.core.method import Method
from asrkit.core.phase import Phase
from asrkit.core.step import Accumulate, Step, Totals
from asrkit.core.term import Losses, Prepared, Ratio, Term
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError


class Curved(Method):
    """A loss that is no quadratic, in two parameters; `idle` has no gradient, `frozen` must not move."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(size, dtype=torch.float64, generator=random))
        self.offset = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.idle = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.tensor(1.5, dtype=torch.float64), requires_grad=False)
        self.seen: list[tuple[str, list[str]]] = []
        self.fails_at = 0

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        return {"all": list(self.parameters())}

    def phases(self) -> Sequence[Phase]:
        return []

    def terms(self, stream: str) -> Sequence[str]:
        return ("curve", "size")

    def prepare(self, stream: str, batch: Batch, clock: Clock) -> Prepared:
        rows = torch.tensor(float(len(batch.ids)))
        return Prepared(None, {"curve": rows, "size": 2 * rows})

    def losses(self, stream: str, batch: Batch, draws: Any, clock: Clock) -> Losses:
        self.seen.append((stream, list(batch.ids)))
        if len(self.seen) == self.fails_at:
            raise RuntimeError("can't allocate memory")
        return Losses(terms_of(batch.waves, self.weight, self.offset, self.frozen))

    def validate(self, batch: Batch, clock: Clock) -> Mapping[str, Ratio]:
        return {}


def terms_of(waves: Tensor, weight: Tensor, offset: Tensor, frozen: Tensor) -> dict[str, Term]:
    inner = waves.double() @ weight + offset
    return {"curve": Term((frozen * inner).cosh().sum()), "size": Term(inner.square().sum(), 0.3)}


def sources(count: int, rows: int = 7) -> dict[str, list[Batch]]:
    """Streams of other data each, in two micro-batches."""
    random = torch.Generator().manual_seed(count)
    found = {}
    for number in range(count):
        waves = 0.3 * torch.randn(rows, 4, generator=random) + 0.1 * number
        whole = make(waves)
        found[f"s{number}"] = [whole.rows(range(3)), whole.rows(range(3, rows))]
    return found


def direction(step: Step, streams: Mapping[str, Sequence[Batch]]) -> tuple[dict[str, Tensor], dict[str, float], Curved]:
    method, totals = Curved(), Totals({})
    before = {name: value.clone() for name, value in method.state_dict().items()}
    step.run(method, streams, CLOCK, Alone(), totals)
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), "weights are as they were, to the last bit"
    figures = {name: float(above) / float(below) for name, (above, below) in totals.values.items()}
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}, figures, method


def objective(batches: Sequence[Batch], weight: Tensor, offset: Tensor) -> Tensor:
    waves = torch.cat([batch.waves for batch in batches])
    terms = terms_of(waves, weight, offset, torch.tensor(1.5, dtype=torch.float64))
    return terms["curve"].sum / len(waves) + 0.3 * terms["size"].sum / (2 * len(waves))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_the_direction_is_the_definitions(count: int, steps: int) -> None:
    streams, rate = sources(count), 0.05
    found, figures, _ = direction(Inner(InnerConfig(steps=steps, rate=rate)), streams)
    shares = share_out(streams, steps + 1, CLOCK, Alone())
    start = Curved()
    sums = [torch.zeros_like(start.weight), torch.zeros_like(start.offset)]
    ends, starts = [], []
    for name in streams:
        phi = [start.weight.detach().clone(), start.offset.detach().clone()]
        for number, share in enumerate([*shares[1:], shares[0]]):
            at = [value.clone().requires_grad_() for value in phi]
            loss = objective(share[name], *at)
            gradients = torch.autograd.grad(loss, at)
            (starts if number == 0 else []).append(loss.item())
            if number == steps:
                ends.append(loss.item())
                sums = [total + gradient / count for total, gradient in zip(sums, gradients, strict=True)]
            else:
                phi = [value - rate * gradient for value, gradient in zip(phi, gradients, strict=True)]
    assert sorted(found) == ["offset", "weight"], "what never has a gradient gets none, nor what is frozen"
    torch.testing.assert_close(found["weight"], sums[0], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found["offset"], sums[1], rtol=1e-12, atol=1e-15)
    assert figures["loss"] == pytest.approx(sum(ends) / count, rel=1e-12)
    for name, end in zip(streams, ends, strict=True):
        assert figures[f"loss/{name}"] == pytest.approx(end, rel=1e-12)
    assert ("loss_before_inner" in figures) == (steps > 0)
    if steps:
        assert figures["loss_before_inner"] == pytest.approx(sum(starts) / count, rel=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_on_quadratics_it_is_the_closed_form(steps: int) -> None:
    """l_i = ½ (θ - c_i)ᵀ H_i (θ - c_i) has ∇l_i(φ_i) = H_i (1 - a H_i)^K (θ - c_i)."""
    rate, identity = 0.2, torch.eye(3, dtype=torch.float64)
    random = torch.Generator().manual_seed(1)
    roots = {f"s{n}": torch.randn(3, 3, dtype=torch.float64, generator=random) for n in range(3)}
    curvatures = {name: root @ root.T / 3 + 0.1 * identity for name, root in roots.items()}
    centres = {name: torch.randn(3, dtype=torch.float64, generator=random) for name in roots}

    class Quadratics(Curved):
        def losses(self, stream: str, batch: Batch, draws: Any, clock: Clock) -> Losses:
            away = self.weight - centres[stream]
            rows = float(len(batch.ids))
            return Losses({"curve": Term(0.5 * rows * away @ curvatures[stream] @ away), "size": Term(0 * self.offset)})

    method = Quadratics(3)
    batches = {name: [make(torch.zeros(4, 2))] for name in roots}
    Inner(InnerConfig(steps=steps, rate=rate)).run(method, batches, CLOCK, Alone(), Totals({}))
    theta = method.weight.detach()
    wanted = torch.zeros(3, dtype=torch.float64)
    for name, curvature in curvatures.items():
        shrink = torch.linalg.matrix_power(identity - rate * curvature, steps)
        wanted += curvature @ shrink @ (theta - centres[name]) / 3
    torch.testing.assert_close(method.weight.grad, wanted, rtol=1e-12, atol=1e-14)


def test_without_inner_steps_it_is_ordinary_mixed_training() -> None:
    streams = sources(4)
    found, figures, method = direction(Inner(InnerConfig(steps=0)), streams)
    plain, sums, other = direction(Accumulate(), streams)
    for name, gradient in plain.items():
        assert torch.equal(found[name], gradient / 4), name
    assert method.seen == other.seen
    assert figures["loss"] == pytest.approx(sums["loss"] / 4, rel=1e-12)


def test_every_utterance_is_used_once() -> None:
    streams = sources(2)
    _, _, method = direction(Inner(InnerConfig(steps=2)), streams)
    for name in streams:
        used = [one for stream, ids in method.seen if stream == name for one in ids]
        assert sorted(used) == [str(number) for number in range(7)]


@pytest.mark.parametrize("config", [{"rule": "normalised", "rate": 0.3}, {"clip_norm": 0.05}, {"clip_norm": 1e6}])
def test_how_long_a_step_is(config: dict[str, Any]) -> None:
    streams = sources(1)
    moved: list[Tensor] = []

    class Watched(Curved):
        def losses(self, *arguments: Any) -> Losses:
            moved.append(torch.cat([self.weight.detach().clone(), self.offset.detach()[None]]))
            return super().losses(*arguments)

    inner = InnerConfig(**{"steps": 1, "rate": 0.05, **config})
    Inner(inner).run(Watched(), {"s0": streams["s0"][:1]}, CLOCK, Alone(), Totals({}))
    length = float((moved[1] - moved[0]).norm())
    method = Curved()
    share = share_out({"s0": streams["s0"][:1]}, 2, CLOCK, Alone())[1]["s0"]
    at = [method.weight.detach().requires_grad_(), method.offset.detach().requires_grad_()]
    norm = float(torch.cat([g.flatten() for g in torch.autograd.grad(objective(share, *at), at)]).norm())
    wanted = {"normalised": 0.3}.get(inner.rule, 0.05 * (min(norm, inner.clip_norm) if inner.clip_norm else norm))
    assert length == pytest.approx(wanted, rel=1e-9)


def test_the_loss_scale_of_fp16_does_not_lengthen_the_steps() -> None:
    class Scaled(Alone):
        def scale(self, loss: Tensor) -> Tensor:
            return 1024 * loss

    for config in ({}, {"clip_norm": 0.05}, {"rule": "normalised"}):
        step, gradients = Inner(InnerConfig(steps=2, rate=0.05, **config)), []
        for engine in (Alone(), Scaled()):
            method = Curved()
            step.run(method, sources(2), CLOCK, engine, Totals({}))
            gradients.append(method.weight.grad)
        torch.testing.assert_close(gradients[1], 1024 * gradients[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("fails_at", [1, 3, 5, 8])
def test_weights_come_back_when_a_pass_fails(fails_at: int) -> None:
    method = Curved()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.fails_at = fails_at
    with pytest.raises(RuntimeError, match="allocate"):
        Inner(InnerConfig(steps=2, rate=0.1)).run(method, sources(2), CLOCK, Alone(), Totals({}))
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_single_utterance_is_the_outer_gradients() -> None:
    streams = {name: [batches[0].rows([0])] for name, batches in sources(2).items()}
    found, figures, _ = direction(Inner(InnerConfig(steps=2)), streams)
    plain, _, _ = direction(Accumulate(), streams)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, plain[name] / 2, rtol=1e-12, atol=0)
    assert figures["loss"] > 0


class Live(TorchDispatchMode):
    """Counts how many tensors of a size or above have memory of their own at once."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.most = size, 0
        self.storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() >= 8 * self.size:
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = weakref.ref(storage)
        self.storages = {place: one for place, one in self.storages.items() if one() is not None}
        self.most = max(self.most, len(self.storages))
        return out


def test_it_takes_one_copy_of_the_weights_and_one_accumulator() -> None:
    class Big(Curved):
        def losses(self, stream: str, batch: Batch, draws: Any, clock: Clock) -> Losses:
            return Losses(
                {"curve": Term((self.weight * batch.waves.mean()).cosh().sum()), "size": Term(self.offset**2)}
            )

    most = {}
    for name, step in (("plain", Accumulate()), ("inner", Inner(InnerConfig(steps=3)))):
        method = Big(50_000)
        with Live(50_000) as live:
            with torch.no_grad():
                method.weight.add_(0)  # so that the weights themselves are counted
            step.run(method, sources(3), CLOCK, Alone(), Totals({}))
        most[name] = live.most
    assert 0 < most["inner"] <= most["plain"] + 2


class Rank(Alone):
    """One of several ranks, which knows what the others have to say."""

    def __init__(self, everyone: list[Any]) -> None:
        self.everyone = everyone
        self.world_size = len(everyone)

    def gather(self, thing: Any) -> list[Any]:
        assert thing in self.everyone
        return self.everyone


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_shares_are_even_and_the_same_at_any_number_of_ranks(rows: int, parts: int, world: int, update: int) -> None:
    clock = Clock(1, update, "all", 0, 1)
    whole = make(torch.zeros(rows, 2))
    alone = share_out({"a": [whole]}, parts, clock, Alone())
    chosen = [sorted(name for batch in share["a"] for name in batch.ids) for share in alone]
    assert sorted(name for part in chosen for name in part) == sorted(whole.ids)
    assert all(len(batch.ids) <= -(-rows // parts) for share in alone for batch in share["a"])
    sizes = [len(part) for part in chosen]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    pieces = [[whole.rows(range(rank, rows, world))] if rank < rows else [] for rank in range(world)]
    told: list[Any] = []

    class Listening(Alone):
        world_size = 2

        def gather(self, thing: Any) -> list[Any]:
            told.append(thing)
            return [thing]

    for piece in pieces:
        share_out({"a": piece}, max(parts, 2), clock, Listening())
    together: list[list[str]] = [[] for _ in range(parts)]
    for piece in pieces:
        for part, share in enumerate(share_out({"a": piece}, parts, clock, Rank(told) if world > 1 else Alone())):
            together[part] += [name for batch in share["a"] for name in batch.ids]
    assert [sorted(part) for part in together] == chosen


def test_shares_differ_from_update_to_update() -> None:
    batch = make(torch.zeros(12, 2))
    first = [tuple(share_out({"a": [batch]}, 3, Clock(1, u, "all", 0, 1), Alone())[0]["a"][0].ids) for u in range(6)]
    assert len(set(first)) > 3


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": -1}, "inner.steps"),
        ({"rate": 0.0}, "inner.rate"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"rule": "adam"}, "inner.rule"),
        ({"rule": "normalised", "clip_norm": 1.0}, "inner.clip_norm"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(AsrkitError, match=says):
        InnerConfig(**values)
