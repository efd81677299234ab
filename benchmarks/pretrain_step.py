"""What an update of wav2vec 2.0's pre-training takes in asrkit, transformers and fairseq2.

    python benchmarks/pretrain_step.py                            BASE on two utterances of ten seconds
    python benchmarks/pretrain_step.py --batch 8 --seconds 15.6 --compile --output benchmarks/results/pretrain-cuda.json

An update is waveform frontend, masks, contrastive and diversity loss, backward pass, clipping and AdamW. Waves, sizes, masking
probability and length, dropout rates and precision are the same for all; asrkit's and transformers' models begin with the same
weights. All blocks run unless `--layer-drop` says otherwise, for all alike.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from neighbours import PRETRAINING, fairseq2_pretraining, transformers_pretraining
from steps import SHAPES, measure, step_parser

from asrkit.heads.wav2vec2 import Wav2Vec2HeadConfig
from asrkit.methods.pretrain import Pretrain, PretrainConfig
from asrkit.nn.encoder import Encoder

TITLE = "wav2vec 2.0 pre-training, an update"
HEADS = {"base": Wav2Vec2HeadConfig(), "tiny": Wav2Vec2HeadConfig(final_dim=16, entries=8, negatives=5)}


def make_method(size: str, layer_drop: float = 0.0) -> Pretrain:
    """Return asrkit's method with random weights."""
    torch.manual_seed(0)
    return Pretrain(PretrainConfig(wav2vec2=HEADS[size]), Encoder(replace(SHAPES[size], layer_drop=layer_drop)))


def main() -> int:
    """Measure and print."""
    options = step_parser(__doc__).parse_args()
    measure(
        TITLE,
        options,
        lambda: make_method(options.size, options.layer_drop),
        "unlabelled",
        {"transformers": transformers_pretraining, "fairseq2": fairseq2_pretraining},
        frozen_frontend=False,
        notes=PRETRAINING,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
