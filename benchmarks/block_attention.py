"""What an encoder takes on short and long recordings, with attention within blocks and over all frames.

    python benchmarks/block_attention.py                        the model of conf/mini, 10 s, 60 s and 600 s at a time
    python benchmarks/block_attention.py --train --seconds 10 60   forward and backward

Blocks are four seconds long, and positions are learned vectors of distances in both. In blocks a second of audio should take as
long in a recording of ten minutes as in one of a minute; ten seconds are too few to fill a machine, so that they may take longer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from harness import Ratio, compare, ratio, report
from options import own_parser, start_own

from asrkit.data.batch import SAMPLE_RATE
from asrkit.nn.encoder import Encoder
from asrkit.training.engine import TrainingEngine

TITLE = "Block attention"
SLACK = 1.2
"""How much longer than in proportion a longer recording may take."""


def main() -> int:
    """Measure, print, and fail where the limit is exceeded."""
    parser = own_parser(__doc__, 5, "conf/mini/finetune_mini.yaml", "whose encoder is taken")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 60.0, 600.0], help="lengths of recordings")
    parser.add_argument("--block", type=float, default=4.0, help="seconds of a block")
    parser.add_argument("--train", action="store_true", help="forward and backward; otherwise forward alone")
    options = parser.parse_args()
    config, engine, told = start_own(options)
    frames = round(options.block * Encoder(config.encoder).frame_rate)
    shapes = {
        "blocks": replace(config.encoder, positions="shaw", attention_block=frames),
        "all frames": replace(config.encoder, positions="shaw", position_reach=frames - 1),
    }
    contenders: dict[str, Callable[[], None]] = {}
    for name, shape in shapes.items():
        encoder = Encoder(shape).to(engine.device).train(options.train)
        for length in options.seconds:
            contenders[f"{name}, {length:g} s"] = _run(encoder, length, engine, options.train)
    found = compare(contenders, device=engine.device, rounds=options.rounds, warm_up=options.warm_up)
    settings = {
        **told,
        "pass": "forward and backward" if options.train else "forward",
        "frames of a block": frames,
    }
    ratios: list[Ratio] = []
    for shorter, longer in zip(options.seconds, options.seconds[1:], strict=False):
        for name in shapes:
            # From a minute on; what is below does not fill a GPU.
            limit = SLACK * longer / shorter if name == "blocks" and shorter >= 60 else None
            ratios.append(ratio(found, f"{name}, {longer:g} s", [f"{name}, {shorter:g} s"], limit))
    ratios += [ratio(found, f"blocks, {length:g} s", [f"all frames, {length:g} s"]) for length in options.seconds]
    kept = report(TITLE, settings, found, ratios, device=engine.device, output=options.output)
    return 0 if kept else 1


def _run(encoder: Encoder, seconds: float, engine: TrainingEngine, train: bool) -> Callable[[], None]:
    """Return a pass of the encoder over one recording of noise."""
    samples = round(seconds * SAMPLE_RATE)
    waves = 0.1 * torch.randn(1, samples, device=engine.device)
    lengths = torch.tensor([samples], device=engine.device)

    def run() -> None:
        with torch.set_grad_enabled(train), engine.autocast():
            states = encoder(waves, lengths, (samples,)).states
        if train:
            states.float().square().mean().backward()
            encoder.zero_grad(set_to_none=True)

    return run


if __name__ == "__main__":
    sys.exit(main())
