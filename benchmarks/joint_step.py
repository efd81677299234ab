"""What a joint update of BL-JUST costs beside a supervised and a contrastive one on the same batches.

    python benchmarks/joint_step.py                            the model of conf/mini, on the CPU or the GPU there is
    python benchmarks/joint_step.py --config conf/librispeech/bl_just_base.yaml --seconds 80

One backward pass per stream is all that the gradient rule needs: an update should take as long as the two it is made of, and hold
as much memory as the larger one. Updates that measure the gradients apart are shown beside them, without a limit.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from harness import compare, memory_ratio, ratio, report
from options import own_parser, start_own
from updates import UNITS, batch, update

from asrkit.methods.bl_just import BLJust
from asrkit.methods.finetune import Finetune, FinetuneConfig
from asrkit.methods.joint import JOINT
from asrkit.methods.penalty import PenaltyConfig
from asrkit.methods.pretrain import Pretrain, PretrainConfig
from asrkit.nn.encoder import Encoder

TITLE = "BL-JUST update"


def main() -> int:
    """Measure, print, and fail where a limit is exceeded."""
    parser = own_parser(__doc__, 20, "conf/mini/bl_just_mini.yaml", "of bl_just")
    parser.add_argument("--seconds", type=float, default=60.0, help="audio of each stream per update")
    options = parser.parse_args()
    config, engine, told = start_own(options)
    own = config.options
    gamma = PenaltyConfig(name="constant", start=0.5)
    joint = replace(own.joint, updates=1000)
    plain, measuring = (
        BLJust(
            replace(
                own,
                gamma=gamma,
                joint=joint,
                outer_epochs=1,
                exploration=replace(own.exploration, updates=1),
                finetune=replace(own.finetune, updates=1),
                diagnose_every=every,
            ),
            Encoder(config.encoder),
            UNITS,
        )
        for every in (0, 1)
    )
    supervised = FinetuneConfig(freeze_updates=0, freeze_frontend=False, mask=own.mask, ctc=own.ctc)
    contrastive = PretrainConfig(frontend_gradient_scale=own.frontend_gradient_scale, wav2vec2=own.ssl.wav2vec2)
    labelled = [batch(options.seconds, 1)]
    unlabelled = [replace(batch(options.seconds, 2), targets=None, target_lengths=None)]
    both = {"unlabelled": unlabelled, "labelled": labelled}
    found = compare(
        {
            "supervised": update(Finetune(supervised, Encoder(config.encoder), UNITS), {"labelled": labelled}, engine),
            "contrastive": update(Pretrain(contrastive, Encoder(config.encoder)), {"unlabelled": unlabelled}, engine),
            "joint": update(plain, both, engine, JOINT),
            "joint, measured": update(measuring, both, engine, JOINT),
        },
        device=engine.device,
        rounds=options.rounds,
        warm_up=options.warm_up,
    )
    settings = {
        **told,
        "audio seconds per stream and update": options.seconds,
    }
    parts = ["supervised", "contrastive"]
    ratios = [
        ratio(found, "joint", parts, limit=1.05),
        memory_ratio(found, "joint", parts, limit=1.10),
        ratio(found, "joint, measured", parts),
        memory_ratio(found, "joint, measured", parts),
    ]
    kept = report(TITLE, settings, found, ratios, device=engine.device, output=options.output)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
