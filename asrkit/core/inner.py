"""A Step that looks ahead: a few gradient steps on each stream, and the gradients at where they lead.

The problem is min over θ of (1/M) Σ_i l_i(φ_i(θ)), where φ_i(θ) is what K gradient steps on stream i reach from θ (Cui et
al., arXiv 2508.19990). To first order, the Jacobian of φ_i taken for the identity, its gradient is (1/M) Σ_i ∇l_i(φ_i): the
direction that is left for the optimiser. With K = 0 it is the mean of the streams' gradients at θ, as in ordinary mixed training.

Shapes: M streams, K inner steps; all gradients have their parameters' shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.step import Engine, Ready, Totals, reduce_gradients
from asrkit.core.term import Ratio
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError, nearest
from asrkit.randomness import Purpose, stream_keys

RULES = ("sgd", "normalised")


@dataclass
class InnerConfig:
    """The inner steps; which ones the paper takes is not known: all defaults are ours."""

    steps: int = 1
    """K, gradient steps on each source before its gradient is taken; 0 is ordinary mixed training."""
    rate: float = 0.02
    """Size of an inner step; that of the outer one is the schedule's learning rate."""
    rule: str = "sgd"
    """sgd: a step is rate times the gradient; normalised: rate is the step's length, whatever the gradient's is."""
    clip_norm: float = 0.0
    """sgd: largest norm of an inner gradient over all parameters; 0 switches clipping off."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise AsrkitError(f"inner.steps is {self.steps}", mend="0 or more")
        if self.rate <= 0 or self.clip_norm < 0:
            raise AsrkitError("inner.rate is more than 0, inner.clip_norm 0 or more")
        if self.rule not in RULES:
            raise AsrkitError(f"unknown inner.rule '{self.rule}'", mend=nearest(self.rule, RULES))
        if self.clip_norm and self.rule != "sgd":
            what = f"inner.clip_norm is {self.clip_norm:g}, but steps of inner.rule={self.rule} are as long as inner.rate says"
            raise AsrkitError(what, mend="inner.clip_norm=0, or inner.rule=sgd")


@dataclass(frozen=True)
class Inner:
    """K inner steps per stream, and the mean of the gradients behind them.

    Each of a stream's K + 1 gradients is taken on a share of its own of the stream's audio in the update, so that an update
    goes through as much audio as one of `Accumulate`. The inner steps are plain gradient descent on all parameters that
    learn in the phase: the optimiser's moments are neither used nor copied. Beside weights and gradients there is one copy of
    the weights and one accumulator of gradients. Ranks walk together: each inner gradient is reduced over all of them, the
    direction once.

    A batch norm's running statistics move with every pass.

    What `Method.prepare` fixes, it fixes at θ. LayerDrop leaves out the same layers throughout an update. Metrics:
    loss/STREAM, at the end of the inner steps; loss_before_inner, the mean over streams where these begin (on other audio
    of the same update).
    """

    config: InnerConfig

    def run(
        self,
        method: Method,
        micro_batches: Mapping[str, Sequence[Batch]],
        clock: Clock,
        engine: Engine,
        totals: Totals,
    ) -> None:
        """See `Step.run`."""
        steps = self.config.steps
        figures = [Totals({}) for _ in range(steps)]
        shares = share_out(micro_batches, steps + 1, clock, engine)
        # The first share is the outer gradient's: it has audio wherever there is any.
        outer, *inner = [
            Ready.make(method, share, clock, engine, each)
            for share, each in zip(shares, [totals, *figures], strict=True)
        ]
        learning = [parameter for parameter in method.parameters() if parameter.requires_grad]
        start = [parameter.detach().clone() for parameter in learning] if steps else []
        direction: dict[Tensor, Tensor] = {}
        for stream in micro_batches:
            own = Totals({})
            try:
                for ready, each in zip(inner, figures, strict=True):
                    ready.backward(stream, each)
                    reduce_gradients(method, engine)
                    self._descend(learning, engine)
                outer.backward(stream, own, weight=1 / len(micro_batches))
            finally:
                # Also where memory runs out half-way: the update is then begun again.
                _restore(learning, start)
            totals.add({name: Ratio(*pair) for name, pair in own.values.items()})
            above, _ = own.values.get("loss", (0.0, 0.0))
            totals.add({f"loss/{stream}": Ratio(above * len(micro_batches), 1 / engine.world_size)})
            if steps:
                _collect(learning, direction)
        for parameter, gradient in direction.items():
            parameter.grad = gradient
        reduce_gradients(method, engine)
        if steps:
            above, below = figures[0].values["loss"]
            totals.add({"loss_before_inner": Ratio(above / len(micro_batches), below)})

    @torch.no_grad()
    def _descend(self, learning: Sequence[nn.Parameter], engine: Engine) -> None:
        """Take an inner step along the gradients there are, and leave none behind."""
        moving = [parameter for parameter in learning if parameter.grad is not None]
        if not moving:
            return
        config = self.config
        gradients = [parameter.grad for parameter in moving if parameter.grad is not None]
        # Under fp16 gradients carry the loss scale. Nothing here asks the device for a value.
        scale = engine.scale(torch.ones((), dtype=torch.float64, device=gradients[0].device))
        factor = config.rate / scale
        if config.rule == "normalised" or config.clip_norm:
            norm = nn.utils.get_total_norm(gradients).double().clamp(min=torch.finfo(torch.float64).tiny)
            if config.rule == "normalised":
                factor = config.rate / norm
            else:
                factor = factor * (config.clip_norm * scale / norm).clamp(max=1.0)
        for parameter, gradient in zip(moving, gradients, strict=True):
            parameter.sub_(gradient.mul_(factor))
            parameter.grad = None


def share_out(
    micro_batches: Mapping[str, Sequence[Batch]], parts: int, clock: Clock, engine: Engine
) -> list[dict[str, Sequence[Batch]]]:
    """Divide each stream's utterances of an update into so many parts of about equal size, on all ranks together.

    Which part an utterance belongs to is a function of the seed, the update and the utterances of the update, not of
    the ranks that have them. With fewer utterances than parts, the last parts are empty. However unevenly a micro-batch falls
    into parts, no piece has more of its rows than an even share: what fits into memory once fits always.
    """
    if parts == 1:
        return [dict(micro_batches)]
    shares: list[dict[str, Sequence[Batch]]] = [{} for _ in range(parts)]
    orders = {
        stream: [
            stream_keys(batch.keys, seed=clock.seed, epoch=clock.update, purpose=Purpose.INNER).tolist()
            for batch in batches
        ]
        for stream, batches in micro_batches.items()
    }
    everyone = engine.gather(orders) if engine.world_size > 1 else [orders]
    for stream, batches in micro_batches.items():
        known = sorted(key for rank in everyone for batch in rank[stream] for key in batch)
        place = {key: number for number, key in enumerate(known)}
        chosen = [[place[key] % parts for key in keys] for keys in orders[stream]]
        limits = [-(-len(keys) // parts) for keys in orders[stream]]
        for part in range(parts):
            rows = [[row for row, its in enumerate(each) if its == part] for each in chosen]
            shares[part][stream] = [
                batch.rows(wanted[begin : begin + most])
                for batch, wanted, most in zip(batches, rows, limits, strict=True)
                for begin in range(0, len(wanted), most)
            ]
    return shares


@torch.no_grad()
def _restore(learning: Sequence[nn.Parameter], start: Sequence[Tensor]) -> None:
    # Without inner steps there is no copy, and nothing to take back.
    for parameter, value in zip(learning, start, strict=bool(start)):
        parameter.copy_(value)


def _collect(learning: Sequence[nn.Parameter], direction: dict[Tensor, Tensor]) -> None:
    """Add the gradients there are to ``direction``, and leave none behind."""
    for parameter in learning:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None and parameter in direction:
            direction[parameter].add_(gradient)
        elif gradient is not None:
            direction[parameter] = gradient
