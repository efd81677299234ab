"""Whole training steps of one model in asrkit and other toolkits: options, contenders, figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import neighbours
import numpy as np
import torch
from flops import Work, peak, update_operations
from harness import against, compare, memory_ratio, ratio, report
from neighbours import Neighbour
from options import ABOVE_ONE, available, parser, start
from updates import update, utterances

from asrkit.core.method import Method
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.nn.config import EncoderConfig
from asrkit.nn.linear import cpu_has_bf16
from asrkit.nn.waveform import WaveformConfig
from asrkit.training.compiled import compile_encoder
from asrkit.training.optimiser import OptimiserConfig

SHAPES = {
    "base": EncoderConfig(),
    "tiny": EncoderConfig(
        waveform=WaveformConfig(layers=[[16, 10, 5], [16, 8, 8], [16, 8, 8]]),
        layers=2,
        dim=32,
        ffn_dim=64,
        heads=2,
        conv_position_kernel=9,
        conv_position_groups=2,
    ),
}
"""wav2vec 2.0 BASE, and a shape that shows in seconds whether everything runs."""
OPTIMISER = OptimiserConfig(clip_norm=1.0)
"""AdamW and clipping, the same for all."""
IN_FLOAT32 = (
    "This CPU has no AMX: asrkit multiplies its bfloat16 activations in float32, which is faster here, the others use torch's "
    "products of bfloat16, which are also what the peak is of; so asrkit's MFU may pass 100 %."
)
OWN_COMPILED, OTHER_COMPILED = "asrkit, compiled", "transformers, compiled"
Maker = Callable[[Any, Batch, torch.device], Neighbour]


def step_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of training steps."""
    made = parser(description, rounds=10)
    made.add_argument("--batch", type=int, default=2, help="utterances")
    made.add_argument("--seconds", type=float, default=10.0, help="of the longest one")
    made.add_argument("--shortest", type=float, help="seconds of the shortest one; without it all are equally long")
    made.add_argument(
        "--layer-drop",
        type=float,
        default=0.0,
        help="probability of skipping a block, the same for all, each with draws of its own; 0: all blocks run",
    )
    made.add_argument("--compile", action="store_true", help="asrkit and transformers under torch.compile too")
    made.add_argument("--output", type=Path, help="JSON")
    return made


def measure(
    title: str,
    options: argparse.Namespace,
    make_method: Callable[[], Method],
    stream: str,
    makers: Mapping[str, Maker],
    *,
    frozen_frontend: bool,
    notes: Sequence[str],
) -> None:
    """Measure updates, print, write.

    Args:
        title: what is measured.
        options: of `step_parser`.
        make_method: asrkit's method with its weights, the same ones in every call.
        stream: the stream that the method learns from.
        makers: by name, what makes another toolkit's model of the same work from asrkit's method.
        frozen_frontend: whether the feature extractor learns nothing.
        notes: what else a reader must know.
    """
    engine = start(options)
    shortest = options.seconds if options.shortest is None else options.shortest
    batch = utterances(np.linspace(options.seconds, shortest, options.batch).tolist(), seed=1)
    method = make_method()
    said = [ABOVE_ONE, *notes, *([neighbours.LAYER_DROP] if options.layer_drop else [])]
    if engine.device.type == "cpu" and engine.precision == "bf16" and not cpu_has_bf16():
        said.append(IN_FLOAT32)

    def own(method: Method, compiled: bool = False) -> Callable[[], None]:
        if compiled:
            compile_encoder(method.encoder, engine.device)
        return update(method, {stream: [batch]}, engine, optimiser_config=OPTIMISER, advance=True)

    def other(maker: Maker, compiled: bool = False) -> Callable[[], None]:
        if compiled and not neighbours.compiles(engine.device):
            raise AsrkitError("torch.compile does not work here", mend="a C++ compiler, on a GPU Triton too")
        made = maker(make_method(), batch, engine.device)
        if made.note:
            said.append(made.note)
        if compiled:
            made.model.compile()
        return neighbours.update(made, engine, OPTIMISER)

    # Neighbours begin with the weights of a method of their own, which no update of asrkit has changed.
    chosen = {"asrkit": partial(own, method), **{name: partial(other, maker) for name, maker in makers.items()}}
    if options.compile:
        chosen[OWN_COMPILED] = partial(own, make_method(), compiled=True)
        chosen[OTHER_COMPILED] = partial(other, makers["transformers"], compiled=True)
    runs, absent = available(chosen)
    found = compare(runs, device=engine.device, rounds=options.rounds, warm_up=options.warm_up)
    ratios = against(found, "asrkit")
    if {OWN_COMPILED, OTHER_COMPILED} <= set(found):
        ratios += [ratio(found, OTHER_COMPILED, [OWN_COMPILED]), memory_ratio(found, OTHER_COMPILED, [OWN_COMPILED])]
    shape = method.encoder.config
    operations = update_operations(shape, batch.host_lengths, frozen_frontend=frozen_frontend)
    settings = {
        "size": options.size,
        "seconds of each utterance": ", ".join(f"{samples / 16_000:g}" for samples in batch.host_lengths),
        "precision": engine.precision,
        "layer drop": options.layer_drop,
        "dropout": shape.dropout,
        "attention dropout": shape.attention_dropout,
        "activation dropout": shape.activation_dropout,
        "input dropout": shape.input_dropout,
    }
    report(
        title,
        settings,
        found,
        ratios,
        device=engine.device,
        output=options.output,
        amount=batch.seconds,
        work=Work(operations, peak(engine.device, engine.precision, side=256 if options.size == "tiny" else 0)),
        absent=absent,
        notes=said,
    )
