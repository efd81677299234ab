"""What an update of wav2vec-S costs beside a supervised one over as many seconds of audio.

    python benchmarks/wav2vec_s_step.py                          the model of conf/mini, on the CPU or the GPU there is
    python benchmarks/wav2vec_s_step.py --config conf/librispeech/wav2vec_s_base.yaml --seconds 160

Four fifths of the audio are unlabelled, every pseudo-label is kept, and the feature extractor is frozen in both, so that the
teacher's forward pass is the only extra. Audio is noise and labels are an untrained model's: that costs as much as speech does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness import compare, memory_ratio, ratio, report

from asrkit.core.clock import Clock
from asrkit.core.step import Totals
from asrkit.data.batch import Batch
from asrkit.data.collate import Example, collate
from asrkit.methods.finetune import Finetune, FinetuneConfig
from asrkit.methods.supervised import Supervised
from asrkit.methods.wav2vec_s import SEMI, PseudoLabelConfig, Wav2VecS
from asrkit.nn.encoder import Encoder
from asrkit.text.units import Units
from asrkit.training.config import load_experiment_config
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine, choose_device
from asrkit.training.optimiser import Optimiser, OptimiserConfig

ROOT = Path(__file__).resolve().parents[1]
UNITS = Units(("<blank>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"))
UTTERANCE = 5.0
"""Mean seconds of an utterance; they are half to one and a half times as long."""
LABELS = 14
"""Characters per second of a transcript, as in LibriSpeech."""


def batch(seconds: float, seed: int) -> Batch:
    """Return noise of about so many seconds, with transcripts."""
    random = np.random.default_rng(seed)
    examples: list[Example] = []
    while seconds > 0:
        length = min(max(seconds, 1.0), UTTERANCE * random.uniform(0.5, 1.5))
        target = random.integers(2, len(UNITS), int(length * LABELS)).tolist()
        wave = random.standard_normal(int(length * 16_000)).astype(np.float32)
        examples.append(Example(f"{seed}-{len(examples)}", wave, target, ""))
        seconds -= length
    return collate(examples, epoch=0)


def update(method: Supervised, batches: dict[str, list[Batch]], engine: TrainingEngine) -> Callable[[], None]:
    """Return a function that does one update of the method's last phase."""
    phase = method.phases()[-1]
    method.to(engine.device).train()
    optimiser = Optimiser(method, OptimiserConfig())
    optimiser.enter(phase, fresh=True)
    ready = {name: [one.to(engine.device) for one in several] for name, several in batches.items()}

    def run() -> None:
        clock = Clock(1, 10, phase.name, 10, 1000)
        phase.step.run(method, ready, clock, engine, Totals({}))
        optimiser.update(phase, 10, engine)
        method.after_update(clock, engine)

    return run


def main() -> int:
    """Measure, print, and fail where the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "conf/mini/wav2vec_s_mini.yaml", help="of wav2vec_s")
    parser.add_argument("--seconds", type=float, default=60.0, help="audio per update")
    parser.add_argument("--share", type=float, default=0.8, help="of it without labels")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="JSON")
    options = parser.parse_args()
    config = load_experiment_config(options.config, ["exp_dir=unused"])
    engine = TrainingEngine(choose_device(options.device), "auto", Ranks())
    torch.manual_seed(0)
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
    )
    spoken = sum(kept.batch.host_target_lengths)
    settings = {
        "config": options.config.name,
        "precision": engine.precision,
        "audio seconds per update": options.seconds,
        "unlabelled share": options.share,
        "pseudo-labels kept": f"{len(kept.batch.ids)} of {len(unlabelled.ids)}, {spoken / kept.batch.seconds:.1f} units/s",
        "threads": torch.get_num_threads(),
    }
    ratios = [
        ratio(found, "wav2vec_s", ["supervised"], limit=1.35),
        memory_ratio(found, "wav2vec_s", ["supervised"]),
    ]
    kept_all = report("wav2vec-S update", settings, found, ratios, device=engine.device, output=options.output)
    return 0 if kept_all else 1


if __name__ == "__main__":
    sys.exit(main())
