"""What an update of BEST-RQ's pre-training costs beside one of wav2vec 2.0's over the same audio.

    python benchmarks/best_rq_step.py                             the model of conf/mini, on the CPU or the GPU there is
    python benchmarks/best_rq_step.py --config conf/librispeech/pretrain_base.yaml --seconds 87.5 --entries 8192

Encoder and masks are the same, so that the difference is that of the losses: a quantiser that learns, negatives and a diversity
term there; a spectrogram, a frozen projection and a softmax over the codes here. The encoder alone is shown beside them, with the
masks and the mean square of its output as a loss: what no loss can go below.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from harness import compare, memory_ratio, ratio, report
from options import own_parser, start_own
from updates import batch, update

from asrkit.core.clock import Clock
from asrkit.data.batch import Batch
from asrkit.heads.best_rq import BestRQHeadConfig
from asrkit.methods.common import encode, encoder_frames
from asrkit.methods.pretrain import Pretrain
from asrkit.nn.encoder import Encoder
from asrkit.nn.masking import MaskConfig, draw_mask
from asrkit.training.engine import TrainingEngine

TITLE = "BEST-RQ update"


def main() -> int:
    """Measure and print."""
    parser = own_parser(__doc__, 20, "conf/mini/pretrain_mini.yaml", "of wav2vec 2.0")
    parser.add_argument("--seconds", type=float, default=50.0, help="audio per update")
    parser.add_argument("--entries", type=int, default=1024, help="of a codebook of BEST-RQ")
    parser.add_argument("--codebooks", type=int, nargs="+", default=[1, 4], help="of BEST-RQ, each a measurement")
    options = parser.parse_args()
    config, engine, told = start_own(options)
    own = config.options
    speech = replace(batch(options.seconds, 1), targets=None, target_lengths=None)
    contenders = {"wav2vec 2.0": update(Pretrain(own, Encoder(config.encoder)), {"unlabelled": [speech]}, engine)}
    names = []
    for codebooks in options.codebooks:
        head = BestRQHeadConfig(mask=own.wav2vec2.mask, codebooks=codebooks, entries=options.entries)
        method = Pretrain(replace(own, head="best_rq", wav2vec2=None, best_rq=head), Encoder(config.encoder))
        names.append(f"BEST-RQ, {codebooks} x {options.entries}")
        contenders[names[-1]] = update(method, {"unlabelled": [speech]}, engine)
    contenders["encoder alone"] = _encoder(Encoder(config.encoder), speech, own.wav2vec2.mask, engine)
    found = compare(contenders, device=engine.device, rounds=options.rounds, warm_up=options.warm_up)
    settings = {
        **told,
        "audio seconds per update": options.seconds,
    }
    ratios = []
    for name in names:
        ratios += [ratio(found, name, ["wav2vec 2.0"]), memory_ratio(found, name, ["wav2vec 2.0"])]
    ratios += [ratio(found, name, ["encoder alone"]) for name in ("wav2vec 2.0", *names)]
    report(
        TITLE,
        settings,
        found,
        ratios,
        device=engine.device,
        output=options.output,
        amount=options.seconds,
    )
    return 0


def _encoder(encoder: Encoder, speech: Batch, mask: MaskConfig, engine: TrainingEngine) -> Callable[[], None]:
    """Return a forward and a backward pass of a masked encoder, without an update of its weights."""
    encoder.to(engine.device).train()
    ready = speech.to(engine.device)

    def run() -> None:
        clock = Clock(1, 10, "", 10, 1000)
        drawn = draw_mask(mask, ready.keys, encoder_frames(encoder, ready), encoder.dim, seed=1, epoch=0)
        with engine.autocast():
            states = encode(encoder, ready, drawn, clock).states
        states.float().square().mean().backward()
        encoder.zero_grad(set_to_none=True)

    return run


if __name__ == "__main__":
    sys.exit(main())
