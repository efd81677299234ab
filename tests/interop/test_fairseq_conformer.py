"""fairseq's Conformers, written here in its own layout from models of transformers, which took theirs from fairseq."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from foreign import VOCABULARY
from test_fairseq import LAYERS
from test_huggingface import make

from asrkit.training.experiment import open_experiment

LAYOUT = {
    r"^wav2vec2_conformer\.": "w2v_encoder.w2v_model.",
    r"^lm_head\.": "w2v_encoder.proj.",
    r"feature_extractor\.conv_layers\.(\d+)\.conv\.": r"feature_extractor.conv_layers.\1.0.",
    r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.": r"feature_extractor.conv_layers.\1.2.1.",
    r"feature_projection\.layer_norm\.": "layer_norm.",
    r"feature_projection\.projection\.": "post_extract_proj.",
    r"masked_spec_embed$": "mask_emb",
    r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0": "encoder.pos_conv.0.weight_g",
    r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1": "encoder.pos_conv.0.weight_v",
    r"encoder\.pos_conv_embed\.conv\.": "encoder.pos_conv.0.",
    r"encoder\.embed_positions\.inv_freq": "encoder.layers.0.self_attn.rotary_emb.inv_freq",
    r"\.ffn([12])_layer_norm\.": r".ffn\1.layer_norm.",
    r"\.ffn([12])\.intermediate_dense\.": r".ffn\1.w_1.",
    r"\.ffn([12])\.output_dense\.": r".ffn\1.w_2.",
}
"""What fairseq calls the weights of a Conformer of transformers."""
POSITIONS = {"conformer-relative": "rel_pos", "conformer-rotary": "rope"}


def checkpoint(shape: str, theirs: torch.nn.Module) -> dict[str, Any]:
    state = {}
    for name, tensor in theirs.state_dict().items():
        for pattern, replacement in LAYOUT.items():
            name = re.sub(pattern, replacement, name)
        state[name] = tensor.clone()
    own = {
        "_name": "wav2vec2", "layer_type": "conformer", "pos_enc_type": POSITIONS[shape], "attn_type": "espnet",
        "extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True, "encoder_layers": 2,
        "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48, "encoder_attention_heads": 4, "conv_feature_layers": LAYERS,
        "conv_pos": 16, "conv_pos_groups": 4, "depthwise_conv_kernel_size": 5, "activation_fn": "gelu",
    }  # fmt: skip
    task = {"_name": "audio_finetuning", "normalize": False}
    model = {"_name": "wav2vec_ctc", "w2v_args": {"model": own, "task": task}}
    return {"model": state, "args": None, "cfg": {"model": model, "task": task}}


@pytest.mark.parametrize("shape", POSITIONS)
def test_conformers_come_and_go(shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = make(shape)
    torch.save(checkpoint(shape, theirs), tmp_path / "model.pt")
    letters = [symbol for symbol, index in VOCABULARY.items() if index > 3]
    (tmp_path / "dict.ltr.txt").write_text("".join(f"{letter} 1\n" for letter in letters), encoding="utf-8")
    first = foreign.run_import(tmp_path / "model.pt", tmp_path / "first")
    assert "left out" not in capsys.readouterr().out
    assert open_experiment(first).units.symbols == ("<s>", "<pad>", "</s>", "<unk>", *letters)
    exported = foreign.run_export(first, "huggingface", tmp_path / "exported")
    foreign.assert_same_model(first, foreign.run_import(exported, tmp_path / "second"))
    for samples in (400, 5123):
        batch = foreign.make_batch([samples])
        ours, _ = foreign.states(first, batch)
        with torch.no_grad():
            torch.testing.assert_close(ours, theirs(batch.waves).logits, **foreign.TOLERANCE)
