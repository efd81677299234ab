"""What an update of CTC fine-tuning takes in asrkit, transformers and fairseq2.

    python benchmarks/finetune_step.py                            BASE on two utterances of ten seconds
    python benchmarks/finetune_step.py --batch 20 --compile --output benchmarks/results/finetune-cuda.json

The recipe is fairseq's base_10h behind its first updates: a frozen feature extractor, masks over time and channels, CTC over
letters, backward pass, clipping and AdamW. Waves, transcripts, sizes, masking probability and length, dropout rates and precision
are the same for all; asrkit's and transformers' models begin with the same weights. All blocks run unless `--layer-drop` says
otherwise, for all alike.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from neighbours import fairseq2_ctc, transformers_ctc
from steps import SHAPES, measure, step_parser
from updates import UNITS

from asrkit.methods.finetune import Finetune, FinetuneConfig
from asrkit.nn.encoder import Encoder
from asrkit.nn.masking import MaskConfig

TITLE = "CTC fine-tuning, an update"
RATES = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.1, "input_dropout": 0.0}
"""Those of conf/librispeech/finetune_base.yaml."""
MASKS = {"base": FinetuneConfig().mask, "tiny": MaskConfig(channel_probability=0.5, channel_length=8)}


def make_method(size: str, layer_drop: float = 0.0) -> Finetune:
    """Return asrkit's method with random weights."""
    torch.manual_seed(0)
    encoder = Encoder(replace(SHAPES[size], **RATES, layer_drop=layer_drop))
    return Finetune(FinetuneConfig(freeze_updates=0, mask=MASKS[size]), encoder, UNITS)


def main() -> int:
    """Measure and print."""
    options = step_parser(__doc__).parse_args()
    measure(
        TITLE,
        options,
        lambda: make_method(options.size, options.layer_drop),
        "labelled",
        {"transformers": transformers_ctc, "fairseq2": fairseq2_ctc},
        frozen_frontend=True,
        notes=(),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
