"""What a block of asrkit takes beside other toolkits' blocks of the same shape: forward and backward, in training mode.

    python benchmarks/blocks.py                             all kinds, on the GPU or the CPU where there is none
    python benchmarks/blocks.py --block transformer --batch 16 --frames 750 --precision bf16

`transformer` is a block of wav2vec 2.0 BASE; `conformer` one of the size of Conformer-L without positions, as torchaudio has it;
`conformer-relative` the same with relative positions. Frames, valid lengths, dropout rates and precision are the same for all, and
a gradient goes to the frames, as within a stack.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import neighbour_blocks
import numpy as np
import torch
from harness import against, compare, report
from neighbour_blocks import Block, Frames
from options import ABOVE_ONE, available, parser, start

from asrkit.nn.config import EncoderConfig
from asrkit.training.engine import TrainingEngine

TRANSFORMER = EncoderConfig(positions="none")
CONFORMER = EncoderConfig(
    blocks="conformer",
    dim=512,
    ffn_dim=2048,
    heads=8,
    conv_kernel=31,
    conv_norm="batch",
    positions="none",
    # torchaudio has one rate for all of a block.
    activation_dropout=0.1,
)
SHAPES = {
    "transformer": TRANSFORMER,
    "conformer": CONFORMER,
    "conformer-relative": replace(CONFORMER, positions="relative", conv_bias=False),
}
MAKERS = {
    "transformer": ("torchaudio", "transformers", "fairseq2"),
    "conformer": ("torchaudio", "transformers", "fairseq2"),
    "conformer-relative": ("transformers", "fairseq2"),
}
NOTES = {
    "conformer": ("Only asrkit and torchaudio have biases in the convolution module.",),
    "conformer-relative": ("fairseq2 has no dropout on attention weights here.",),
}


def title(kind: str) -> str:
    """Return what the measurement of a kind is called."""
    return f"Block, forward and backward: {kind}"


def shape_of(kind: str, size: str) -> EncoderConfig:
    """Return the shape of a kind of block."""
    shape = SHAPES[kind]
    return shape if size == "base" else replace(shape, dim=32, ffn_dim=64, heads=2, conv_kernel=5)


def call(block: Block, shape: EncoderConfig, frames: Frames, engine: TrainingEngine) -> Callable[[], None]:
    """Return a forward and a backward pass of a block on noise."""
    generator = torch.Generator().manual_seed(1)
    size = (len(frames.lengths), frames.most, shape.dim)
    x, gradient = (torch.randn(size, generator=generator).to(frames.device) for _ in range(2))
    x.requires_grad_()

    def run() -> None:
        with engine.autocast():
            y = block.forward(x)
        y.backward(gradient.to(y.dtype))
        x.grad = None
        block.module.zero_grad(set_to_none=True)

    return run


def measure(
    kind: str,
    shape: EncoderConfig,
    frames: Frames,
    engine: TrainingEngine,
    *,
    rounds: int,
    warm_up: int,
    output: Path | None,
) -> None:
    """Measure one kind of block, print, write."""
    torch.manual_seed(0)

    def make(name: str) -> Callable[[], None]:
        return call(getattr(neighbour_blocks, name)(shape, frames), shape, frames, engine)

    runs, absent = available({name: partial(make, name) for name in ("asrkit", *MAKERS[kind])})
    found = compare(runs, device=engine.device, rounds=rounds, warm_up=warm_up)
    settings = {
        "channels, inner channels, heads": f"{shape.dim}, {shape.ffn_dim}, {shape.heads}",
        **({"kernel": shape.conv_kernel} if shape.blocks == "conformer" else {}),
        "frames of each row": ", ".join(map(str, frames.lengths)),
        "dropout": shape.dropout,
        "attention dropout": shape.attention_dropout,
        "activation dropout": shape.activation_dropout,
        "precision": engine.precision,
    }
    report(
        title(kind),
        settings,
        found,
        against(found, "asrkit"),
        device=engine.device,
        output=output,
        absent=absent,
        notes=(ABOVE_ONE, *NOTES.get(kind, ())),
    )


def main() -> int:
    """Measure the kinds that are asked for."""
    options_of = parser(__doc__, rounds=20)
    options_of.add_argument("--block", choices=tuple(SHAPES), nargs="+", default=list(SHAPES))
    options_of.add_argument("--batch", type=int, default=4, help="rows")
    options_of.add_argument("--frames", type=int, default=500, help="of the longest row")
    options_of.add_argument("--shortest", type=int, help="frames of the shortest row; without it four fifths")
    options_of.add_argument("--output", type=Path, help="a folder for JSON, a file per kind")
    options = options_of.parse_args()
    engine = start(options)
    shortest = options.frames * 4 // 5 if options.shortest is None else options.shortest
    lengths = np.linspace(options.frames, shortest, options.batch).astype(int).tolist()
    for kind in options.block:
        name = f"block-{kind}-{engine.device.type}-{engine.precision}.json"
        measure(
            kind,
            shape_of(kind, options.size),
            Frames(lengths, engine.device),
            engine,
            rounds=options.rounds,
            warm_up=options.warm_up,
            output=options.output / name if options.output else None,
        )
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
