"""Tables of weights: which tensors of another toolkit one of asrkit's is made of, and how, in both directions.

A toolkit is a `Names`: what it calls the parts of a wav2vec 2.0 encoder. `encoder_rows` makes of it the table for one
encoder's shape, and the same table brings weights in and takes them out.

Shapes: C channels, H heads, D = C / H, K kernel, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asrkit.errors import AsrkitError
from asrkit.nn.config import EncoderConfig


@dataclass(frozen=True)
class Change:
    """How one of our tensors is made of theirs, and they of it again."""

    take: Callable[[Sequence[Tensor]], Tensor]
    give: Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Row:
    """One of our tensors."""

    ours: str
    theirs: tuple[str, ...]
    change: Change
    optional: bool = False
    """Whether they may lack it."""
    stand_in: Tensor | None = None
    """What an absent one means; None leaves it out."""


@dataclass(frozen=True)
class Filler:
    """A tensor that they must have and that has no effect."""

    theirs: str
    value: Tensor


@dataclass(frozen=True)
class Names:
    """What a toolkit calls the parts of an encoder; `{}` is the number of a layer.

    Names of modules stand for their `weight` and `bias`.
    """

    convolution: str
    group_norm: str
    layer_norm: str
    feature_norm: str
    projection: str
    mask: str
    positions: str
    stacked_positions: str
    norm_before: str
    norm_after: str
    transformer: Mapping[str, str]
    """Of a block: our module's name to theirs; `attention.qkv` has three, separated by spaces."""
    conformer: Mapping[str, str]
    magnitude: str = "weight_g"
    direction: str = "weight_v"
    optional_projection: bool = False
    """Whether the projection is absent where the features are as wide as the blocks."""
    paired_rotary: bool = False
    """Whether rotary positions turn neighbouring channels; ours turn i with i + D / 2."""


def single(take: Callable[[Tensor], Tensor], give: Callable[[Tensor], Tensor]) -> Change:
    """Return a change of one tensor into one."""
    return Change(lambda tensors: take(tensors[0]), lambda tensor: (give(tensor),))


SAME = single(lambda tensor: tensor, lambda tensor: tensor)
STACK = Change(lambda tensors: torch.cat(list(tensors)), lambda tensor: tensor.chunk(3))
"""Queries, keys and values: theirs are three maps."""
POINTWISE = single(lambda tensor: tensor.squeeze(2), lambda tensor: tensor.unsqueeze(2))
"""A linear map (O, I) that is a convolution (O, I, 1) with them."""
MAGNITUDE = single(lambda tensor: tensor.flatten(), lambda tensor: tensor.view(1, 1, -1))
"""The norm of each tap: (K,), with them (1, 1, K)."""
SINUSOIDS = single(
    lambda tensor: torch.cat([tensor[:, 0::2], tensor[:, 1::2]], dim=1),
    lambda tensor: torch.stack(tensor.chunk(2, dim=1), dim=2).flatten(1),
)
"""A map of sinusoids: ours come as all sines and then all cosines, theirs by turns."""


def paired_stack(heads: int) -> Change:
    """Return `STACK` for rotary positions on neighbouring channels: queries and keys change places within each head."""

    def apart(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

    def together(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    def give(tensor: Tensor) -> Sequence[Tensor]:
        query, key, value = tensor.chunk(3)
        return together(query), together(key), value

    return Change(lambda tensors: torch.cat([apart(tensors[0]), apart(tensors[1]), tensors[2]]), give)


def codebook(groups: int) -> Change:
    """Return the change of codebooks (G, E, D), with them (1, G · E, D)."""
    return single(
        lambda tensor: tensor.squeeze(0).unflatten(0, (groups, -1)), lambda tensor: tensor.flatten(0, 1)[None]
    )


def module(ours: str, theirs: str, change: Change = SAME, bias: bool = True) -> list[Row]:
    """Return the rows of a module's weight and bias; the change is the weight's."""
    rows = [Row(f"{ours}.weight", (f"{theirs}.weight",), change)]
    return [*rows, Row(f"{ours}.bias", (f"{theirs}.bias",), SAME)] if bias else rows


def encoder_rows(names: Names, config: EncoderConfig) -> tuple[list[Row], list[Filler]]:
    """Return the table of an encoder of this shape, our names without `encoder.`."""
    rows, fillers = _frontend(names, config)
    features, width = config.waveform.layers[-1][0], config.dim
    rows += module("feature_norm", names.feature_norm)
    stand_ins: tuple[Tensor | None, Tensor | None] = (None, None)
    if names.optional_projection and features == width:
        stand_ins = (torch.eye(width), torch.zeros(width))
    for part, stand_in in zip(("weight", "bias"), stand_ins, strict=True):
        theirs = (f"{names.projection}.{part}",)
        rows.append(Row(f"projection.{part}", theirs, SAME, stand_in is not None, stand_in))
    rows.append(Row("mask_embedding", (names.mask,), SAME, optional=True))
    rows += _positions(names, config)
    place = config.outer_norm if config.blocks == "conformer" else "after" if config.pre_norm else "before"
    if place != "none":
        rows += module("norm", names.norm_after if place == "after" else names.norm_before)
    blocks = names.conformer if config.blocks == "conformer" else names.transformer
    for number in range(config.layers):
        for kind, name in blocks.items():
            rows += _block_part(names, config, f"blocks.{number}.{kind}", name.format(number), kind)
        if config.blocks == "conformer":
            counter = blocks["convolution.depthwise_norm"].format(number)
            fillers.append(Filler(f"{counter}.num_batches_tracked", torch.zeros((), dtype=torch.int64)))
    return rows, fillers


def _frontend(names: Names, config: EncoderConfig) -> tuple[list[Row], list[Filler]]:
    rows: list[Row] = []
    fillers: list[Filler] = []
    waveform = config.waveform
    for number, (channels, _, _) in enumerate(waveform.layers):
        theirs = names.convolution.format(number)
        grouped = waveform.norm == "group" and number == 0
        rows += module(f"frontend.layers.{number}.conv", theirs, bias=waveform.bias and not grouped)
        if waveform.bias and grouped:
            # Normalisation over time takes a bias away again, so that ours has none.
            fillers.append(Filler(f"{theirs}.bias", torch.zeros(channels)))
        if grouped:
            rows += module("frontend.layers.0.norm", names.group_norm.format(0))
        elif waveform.norm == "layer":
            rows += module(f"frontend.layers.{number}.norm", names.layer_norm.format(number))
    return rows, fillers


def _positions(names: Names, config: EncoderConfig) -> list[Row]:
    if config.positions != "conv":
        return []
    if config.conv_position_layers == 1:
        return [
            Row("positions.direction", (f"{names.positions}.{names.direction}",), SAME),
            Row("positions.magnitude", (f"{names.positions}.{names.magnitude}",), MAGNITUDE),
            Row("positions.bias", (f"{names.positions}.bias",), SAME),
        ]
    rows = []
    for number in range(config.conv_position_layers):
        rows += module(f"positions.layers.{number}", names.stacked_positions.format(number))
    return rows


def _block_part(names: Names, config: EncoderConfig, ours: str, theirs: str, kind: str) -> list[Row]:
    """Return the rows of one part of a block."""
    if kind == "attention.qkv":
        rotary = names.paired_rotary and config.positions == "rotary"
        change = paired_stack(config.heads) if rotary else STACK
        parts = theirs.split()
        return [Row(f"{ours}.{leaf}", tuple(f"{part}.{leaf}" for part in parts), change) for leaf in ("weight", "bias")]
    if kind.startswith(("attention.position", "attention.content")):
        if config.positions != "relative":
            return []
        if kind == "attention.position":
            return module(ours, theirs, SINUSOIDS, bias=False)
        return [Row(ours, (theirs,), SAME)]
    if kind in ("convolution.gate", "convolution.output"):
        return module(ours, theirs, POINTWISE, bias=config.conv_bias)
    if kind == "convolution.depthwise":
        return module(ours, theirs, bias=config.conv_bias)
    if kind == "convolution.depthwise_norm":
        rows = module(ours, theirs)
        rows.append(Row(f"{ours}.running_mean", (f"{theirs}.running_mean",), SAME))
        return [*rows, Row(f"{ours}.running_variance", (f"{theirs}.running_var",), SAME)]
    return module(ours, theirs)


def prefixed(rows: Iterable[Row], ours: str = "", theirs: str = "") -> list[Row]:
    """Return rows with prefixes in front of the names."""
    return [
        Row(ours + row.ours, tuple(theirs + name for name in row.theirs), row.change, row.optional, row.stand_in)
        for row in rows
    ]


def take(rows: Iterable[Row], state: Mapping[str, Tensor], where: object) -> tuple[dict[str, Tensor], list[str]]:
    """Return our weights made of theirs, and the names of theirs that were not needed.

    Raises:
        AsrkitError: naming the first weight that is missing, or that cannot be what it should.
    """
    weights: dict[str, Tensor] = {}
    used: set[str] = set()
    for row in rows:
        lacking = [name for name in row.theirs if name not in state]
        if lacking and row.optional:
            if row.stand_in is not None:
                weights[row.ours] = row.stand_in
            continue
        if lacking:
            few = ", ".join(sorted(state)[:3])
            raise AsrkitError(f"expected a weight '{lacking[0]}', found {len(state)} others ({few}, …)", where=where)
        used.update(row.theirs)
        try:
            weights[row.ours] = row.change.take([state[name].detach().float() for name in row.theirs]).clone()
        except (RuntimeError, IndexError):
            shapes = ", ".join(str(tuple(state[name].shape)) for name in row.theirs)
            raise AsrkitError(f"'{row.theirs[0]}' has an unexpected shape: {shapes}", where=where) from None
    return weights, sorted(set(state) - used)


def give(rows: Iterable[Row], fillers: Iterable[Filler], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return their weights made of ours."""
    state = {filler.theirs: filler.value.clone() for filler in fillers}
    for row in rows:
        parts = row.change.give(weights[row.ours].detach().cpu().float())
        state.update({name: part.clone().contiguous() for name, part in zip(row.theirs, parts, strict=True)})
    return state
