"""What an update of wav2vec-S costs beside a supervised one over as many seconds of audio.

    python benchmarks/wav2vec_s_step.py                          the model of conf/mini, on the CPU or the GPU there is
    python benchmarks/wav2vec_s_step.py --config conf/librispeech/wav2vec_s_base.yaml --seconds 160

Four fifths of the audio are unlabelled, every pseudo-label is kept, and the feature extractor is frozen in both, so that the
teacher's forward pass is the only extra. Audio is noise and labels are an untrained model's: that costs as much as speech does.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from harness import compare, memory_ratio, ratio, report
from options import own_parser, start_own
from updates import UNITS, batch, update

from asrkit.core.clock import Clock
from asrkit.methods.finetune import Finetune, FinetuneConfig
from asrkit.methods.pseudo_labels import PseudoLabelConfig
from asrkit.methods.wav2vec_s import SEMI, Wav2VecS
from asrkit.nn.encoder import Encoder

TITLE = "wav2vec-S update"


def main() -> int:
    """Measure, print, and fail where the limit is exceeded."""
    parser = own_parser(__doc__, 20, "conf/mini/wav2vec_s_mini.yaml", "of wav2vec_s")
    parser.add_argument("--seconds", type=float, default=60.0, help="audio per update")
    parser.add_argument("--share", type=float, default=0.8, help="of it without labels")
    options = parser.parse_args()
    config, engine, told = start_own(options)
    pseudo = PseudoLabelConfig(confidence=0.0)
    semi = Wav2VecS(replace(config.options, pseudo=pseudo, freeze_frontend=True), Encoder(config.encoder), UNITS)
    with torch.no_grad():
        # About as many labels per second as speech has; equal scores would give one per frame or none.
        semi.ctc.project.weight.mul_(4)
        semi.ctc.project.bias[UNITS.blank] = 4.0
    supervised = Finetune(
        FinetuneConfig(freeze_updates=0, mask=config.options.student_mask), Encoder(config.encoder), UNITS
    )
    unlabelled = replace(batch(options.seconds * options.share, 2), targets=None, target_lengths=None)
    labelled = batch(options.seconds * (1 - options.share), 1)
    kept = (
        semi.to(engine.device).prepare("unlabelled", unlabelled.to(engine.device), Clock(1, 10, SEMI, 10, 1000)).draws
    )
    found = compare(
        {
            "supervised": update(
                supervised, {"labelled": [labelled, batch(options.seconds * options.share, 2)]}, engine
            ),
            "wav2vec_s": update(semi, {"labelled": [labelled], "unlabelled": [unlabelled]}, engine),
        },
        device=engine.device,
        rounds=options.rounds,
        warm_up=options.warm_up,
    )
    spoken = sum(kept.batch.host_target_lengths)
    settings = {
        **told,
        "audio seconds per update": options.seconds,
        "unlabelled share": options.share,
        "pseudo-labels kept": f"{len(kept.batch.ids)} of {len(unlabelled.ids)}, {spoken / kept.batch.seconds:.1f} units/s",
    }
    ratios = [
        ratio(found, "wav2vec_s", ["supervised"], limit=1.35),
        memory_ratio(found, "wav2vec_s", ["supervised"]),
    ]
    kept_all = report(TITLE, settings, found, ratios, device=engine.device, output=options.output)
    return 0 if kept_all else 1


if __name__ == "__main__":
    sys.exit(main())
