"""What a joint update of BL-JUST costs beside a supervised and a contrastive one on the same batches.

    python benchmarks/joint_step.py                            the model of conf/mini, on the CPU or the GPU there is
    python benchmarks/joint_step.py --config conf/librispeech/bl_just_base.yaml --seconds 80

One backward pass per stream is all that the gradient rule needs: an update should take as long as the two it is made of, and hold
as much memory as the larger one. Updates that measure the gradients apart are shown beside them, without a limit.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from harness import compare, memory_ratio, ratio, report
from updates import UNITS, batch, update

from asrkit.methods.bl_just import BLJust
from asrkit.methods.finetune import Finetune, FinetuneConfig
from asrkit.methods.joint import JOINT
from asrkit.methods.penalty import PenaltyConfig
from asrkit.methods.pretrain import Pretrain, PretrainConfig
from asrkit.nn.encoder import Encoder
from asrkit.training.config import load_experiment_config
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine, choose_device

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Measure, print, and fail where a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "conf/mini/bl_just_mini.yaml", help="of bl_just")
    parser.add_argument("--seconds", type=float, default=60.0, help="audio of each stream per update")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="JSON")
    options = parser.parse_args()
    config = load_experiment_config(options.config, ["exp_dir=unused"])
    engine = TrainingEngine(choose_device(options.device), "auto", Ranks())
    torch.manual_seed(0)
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
    )
    settings = {
        "config": options.config.name,
        "precision": engine.precision,
        "audio seconds per stream and update": options.seconds,
        "threads": torch.get_num_threads(),
    }
    parts = ["supervised", "contrastive"]
    ratios = [
        ratio(found, "joint", parts, limit=1.05),
        memory_ratio(found, "joint", parts, limit=1.10),
        ratio(found, "joint, measured", parts),
        memory_ratio(found, "joint, measured", parts),
    ]
    kept = report("BL-JUST update", settings, found, ratios, device=engine.device, output=options.output)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
