"""fairseq's files, written here in its own layout, which fairseq2 and torchaudio must understand too."""

from __future__ import annotations

import argparse
import enum
import json
import os
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from foreign import CONVOLUTIONS
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchaudio.models.wav2vec2.utils.import_fairseq import _convert_state_dict

from asrkit.errors import AsrkitError
from asrkit.interop.fairseq import convolutions
from asrkit.interop.pickles import read_pickled
from asrkit.training.experiment import open_experiment

pytest.importorskip("fairseq2")

from fairseq2.models.transformer import TransformerNormOrder
from fairseq2.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2EncoderConfig
from fairseq2.models.wav2vec2.asr import Wav2Vec2AsrConfig, create_wav2vec2_asr_model
from fairseq2.models.wav2vec2.asr.interop import convert_wav2vec2_asr_state_dict
from fairseq2.models.wav2vec2.factory import create_wav2vec2_model
from fairseq2.models.wav2vec2.interop import convert_wav2vec2_state_dict
from fairseq2.nn import BatchLayout

UNITS = 10
LAYERS = "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] + [(16,2,2)]"
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({}, {}),
    "large": (
        {
            "feature_extractor_bias": True,
            "feature_extractor_layer_norm_convs": True,
            "layer_norm_features": False,
            "norm_order": TransformerNormOrder.PRE,
        },
        {"extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True},
    ),
    "stacked": (
        {"feature_extractor_layer_norm_convs": True, "pos_encoder_depth": 3, "pos_conv_kernel_size": 15},
        {"extractor_mode": "layer_norm", "conv_pos": 15, "pos_conv_depth": 3},
    ),
}
"""By name, fairseq2's settings and fairseq's for the same model."""

LAYOUT = {
    r"^encoder_frontend\.layer_norm\.": "encoder.layer_norm.",
    r"^encoder_frontend\.feature_extractor\.layers\.(\d+)\.conv\.": r"feature_extractor.conv_layers.\1.0.",
    r"^encoder_frontend\.feature_extractor\.layers\.(\d+)\.layer_norm\.": r"feature_extractor.conv_layers.\1.2.1.",
    r"^encoder_frontend\.feature_extractor\.layers\.0\.group_norm\.": "feature_extractor.conv_layers.0.2.",
    r"^encoder_frontend\.post_extract_layer_norm\.": "layer_norm.",
    r"^encoder_frontend\.model_dim_proj\.": "post_extract_proj.",
    r"^encoder_frontend\.pos_encoder\.conv\.": "encoder.pos_conv.0.",
    r"^encoder_frontend\.pos_encoder\.layers\.(\d+)\.conv\.": r"encoder.pos_conv.\1.0.",
    r"\.self_attn\.output_proj\.": ".self_attn.out_proj.",
    r"\.ffn\.inner_proj\.": ".fc1.",
    r"\.ffn\.output_proj\.": ".fc2.",
    r"\.ffn_layer_norm\.": ".final_layer_norm.",
    r"^masker\.temporal_mask_embed$": "mask_emb",
    r"^quantizer\.entries$": "quantizer.vars",
    r"^quantizer\.entry_proj\.": "quantizer.weight_proj.",
    r"^final_target_proj\.": "project_q.",
}
"""What fairseq calls the weights of a model of fairseq2."""


@pytest.fixture(autouse=True)
def _no_compiler() -> Iterator[None]:
    """Let what fairseq2 sends through torch.compile run as it is: a compiler may be missing."""
    with torch.compiler.set_stance("force_eager"):
        yield


def encoder_config(shape: str) -> Wav2Vec2EncoderConfig:
    return Wav2Vec2EncoderConfig(
        **{
            "model_dim": 32,
            "feature_dim": CONVOLUTIONS[-1][0],
            "feature_extractor_layer_descs": [tuple(spec) for spec in CONVOLUTIONS],
            "pos_conv_kernel_size": 16,
            "num_pos_conv_groups": 4,
            "num_encoder_layers": 2,
            "num_encoder_attn_heads": 4,
            "ffn_inner_dim": 48,
            **SHAPES[shape][0],
        }
    )


def make(shape: str, supervised: bool) -> tuple[nn.Module, Any]:
    torch.manual_seed(5)
    if supervised:
        config: Any = Wav2Vec2AsrConfig(encoder_config=encoder_config(shape), target_vocab_size=UNITS)
        return foreign.randomise(create_wav2vec2_asr_model(config)), config
    small = {"final_dim": 24, "quantized_dim": 24, "num_codebooks": 2, "num_codebook_entries": 8}
    config = Wav2Vec2Config(encoder_config=encoder_config(shape), **small)
    return foreign.randomise(create_wav2vec2_model(config)), config


def fairseq_state(model: nn.Module, supervised: bool) -> dict[str, Tensor]:
    """Return a model's weights as fairseq names them."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "quantizer.num_updates":
            continue
        for pattern, replacement in LAYOUT.items():
            name = re.sub(pattern, replacement, name)
        if supervised:
            head = name.startswith("final_proj.")
            name = name.replace("final_proj.", "w2v_encoder.proj.") if head else f"w2v_encoder.w2v_model.{name}"
        state[name] = tensor.clone()
    return state


def settings(shape: str) -> dict[str, Any]:
    """Return what fairseq notes of the encoder."""
    return {
        "_name": "wav2vec2",
        "extractor_mode": "default",
        "encoder_layers": 2,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 48,
        "encoder_attention_heads": 4,
        "activation_fn": "gelu",
        "conv_feature_layers": LAYERS,
        "conv_bias": False,
        "conv_pos": 16,
        "conv_pos_groups": 4,
        "layer_norm_first": False,
        "final_dim": 24,
        "latent_vars": 8,
        "latent_groups": 2,
        "latent_dim": 0,
        "num_negatives": 50,
        "logit_temp": 0.1,
        **SHAPES[shape][1],
    }


def checkpoint(
    shape: str, supervised: bool, form: str, normalise: bool = False
) -> tuple[dict[str, Any], nn.Module, Any]:
    """Return a checkpoint with its settings in one of the forms that fairseq has had."""
    model, config = make(shape, supervised)
    own, task = settings(shape), {"_name": "audio_pretraining", "normalize": normalise}
    if form == "namespace":
        flat = argparse.Namespace(**{**task, **own})
        args: Any = argparse.Namespace(w2v_args=flat, normalize=normalise, mask_prob=0.5) if supervised else flat
        extra: dict[str, Any] = {"args": args, "cfg": None}
    else:
        inner = {"model": own, "task": task}
        whole = {"model": {"_name": "wav2vec_ctc", "w2v_args": inner}, "task": task} if supervised else inner
        extra = {"args": None, "cfg": OmegaConf.create(whole) if form == "omegaconf" else whole}
    state = fairseq_state(model, supervised)
    extra["extra_state"] = {"best": np.float64(1.5), "train_iterator": {"epoch": 3}}
    return {"model": state, "optimizer_history": [{"num_updates": 5}], **extra}, model, config


@torch.no_grad()
def logits(model: nn.Module, batch: Any) -> Tensor:
    return model(batch.waves, BatchLayout.of(batch.waves, list(batch.host_lengths)))[0]


@pytest.mark.parametrize("form", ["namespace", "dictionary", "omegaconf"])
@pytest.mark.parametrize("shape", SHAPES)
def test_ctc_models(shape: str, form: str, tmp_path: Path) -> None:
    found, theirs, config = checkpoint(shape, True, form)
    # fairseq2's and torchaudio's own readers of fairseq's layout take the same weights.
    again = create_wav2vec2_asr_model(config).eval()
    if shape != "stacked":  # their readers of fine-tuned models know a single positional convolution
        again.load_state_dict(convert_wav2vec2_asr_state_dict(dict(found["model"]), config))
        inner = {name.removeprefix("w2v_encoder."): tensor for name, tensor in found["model"].items()}
        assert len(_convert_state_dict(inner)) == len(inner) - 1  # all but the mask embedding
    path = tmp_path / "checkpoint_best.pt"
    torch.save(found, path, _use_new_zipfile_serialization=form != "namespace")
    (tmp_path / "dict.ltr.txt").write_text("| 90\nB 80\nA 70\n' 60\nC 50\nD 40\n")
    folder = foreign.run_import(path, tmp_path / "ours")
    assert open_experiment(folder).units.symbols == ("<s>", "<pad>", "</s>", "<unk>", *"|BA'CD")
    batch = foreign.make_batch([5123])
    ours, _ = foreign.states(folder, batch)
    torch.testing.assert_close(ours, logits(theirs, batch), **foreign.TOLERANCE)
    if shape != "stacked":
        torch.testing.assert_close(ours, logits(again, batch), **foreign.TOLERANCE)


@pytest.mark.parametrize("form", ["namespace", "omegaconf"])
@pytest.mark.parametrize("shape", SHAPES)
def test_pretrained_models(shape: str, form: str, tmp_path: Path) -> None:
    found, theirs, config = checkpoint(shape, False, form)
    path = tmp_path / "model.pt"
    torch.save(found, path)
    folder = foreign.run_import(path, tmp_path / "ours")
    head = open_experiment(folder).config.options.wav2vec2
    assert (head.final_dim, head.groups, head.entries, head.negatives) == (24, 2, 8, 50)
    # fairseq2 0.8 recognises fairseq's files by a name that the mask embedding does not have there.
    marked = {**found["model"], "mask_emb.weight": found["model"]["mask_emb"]}
    del marked["mask_emb"]
    converted = convert_wav2vec2_state_dict(marked, config)
    converted["masker.temporal_mask_embed"] = converted.pop("masker.temporal_mask_embed.weight")
    for name in list(converted):  # nor does it rename a single positional convolution
        converted[name.replace("encoder.pos_conv.0.", "encoder_frontend.pos_encoder.conv.")] = converted.pop(name)
    again = create_wav2vec2_model(config).eval()
    again.load_state_dict(converted)
    batch = foreign.make_batch([5123])
    layout = BatchLayout.of(batch.waves, list(batch.host_lengths))
    method = foreign.method_of(folder)
    ours, _ = foreign.states(folder, batch)
    with torch.no_grad():
        features, inner, _ = again.encoder_frontend.extract_features(batch.waves, layout)
        hidden, _ = again.encoder_frontend.process_features(features, inner)
        hidden = again.encoder(hidden, inner)
        torch.testing.assert_close(ours, hidden, **foreign.TOLERANCE)
        projected, wanted = method.ssl.project_states(ours), again.final_proj(hidden)
        torch.testing.assert_close(projected, wanted, **foreign.TOLERANCE)
        codebook = method.ssl.quantiser.codebook.flatten(0, 1)
        torch.testing.assert_close(codebook, theirs.quantizer.entries[0], atol=0.0, rtol=0.0)


def test_normalised_waves_and_released_dictionary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of 32 outputs without a dictionary is taken for an English one; waves are normalised as its task says."""
    found, _, _ = checkpoint("large", True, "omegaconf", normalise=True)
    for name in ("weight", "bias"):
        tensor = found["model"][f"w2v_encoder.proj.{name}"]
        found["model"][f"w2v_encoder.proj.{name}"] = torch.cat([tensor, tensor, tensor, tensor])[:32]
    torch.save(found, tmp_path / "model.pt")
    folder = foreign.run_import(tmp_path / "model.pt", tmp_path / "ours")
    assert "the dictionary of the released English models is taken" in capsys.readouterr().out
    experiment = open_experiment(folder)
    assert experiment.units.symbols[:8] == ("<s>", "<pad>", "</s>", "<unk>", "|", "E", "T", "A")
    assert experiment.config.encoder.waveform.normalise
    assert experiment.config.encoder.waveform.normalise_epsilon == 1e-5


def test_hubert_and_half_precision(tmp_path: Path) -> None:
    """Of HuBERT the encoder is taken; its weights may be half as wide."""
    found, theirs, _ = checkpoint("base", False, "dictionary")
    left = ("quantizer.", "project_q.", "final_proj.")
    state = {name: tensor for name, tensor in found["model"].items() if not name.startswith(left)}
    state |= {"final_proj.weight": torch.zeros(24, 32), "label_embs_concat": torch.zeros(50, 24)}
    found["model"] = {name: tensor.half() for name, tensor in state.items()}
    torch.save(found, tmp_path / "hubert.pt")
    folder = foreign.run_import(tmp_path / "hubert.pt", tmp_path / "ours")
    assert json.loads((folder / "import.json").read_text())["fresh"] == ["ssl."]
    weights = open_experiment(folder).weights()[0]
    projection = theirs.state_dict()["encoder_frontend.model_dim_proj.weight"]
    torch.testing.assert_close(weights["encoder.projection.weight"], projection.half().float(), atol=0.0, rtol=0.0)


def test_classes_of_fairseq_are_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings hold objects of classes that exist in fairseq only."""
    module = types.ModuleType("fairseq.dataclass.constants")
    choice = enum.Enum("Choice", {"fp16": "c10d"}, module=module.__name__)
    module.Choice = choice
    monkeypatch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.dataclass", types.ModuleType("fairseq.dataclass"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found, _, _ = checkpoint("base", False, "omegaconf")
    found["cfg"]["common"] = {"backend": choice.fp16, "where": Path("/data")}
    torch.save(found, tmp_path / "model.pt")
    monkeypatch.undo()
    # Some releases of Python pickle a member of an Enum by its value, some by its name.
    assert read_pickled(tmp_path / "model.pt")["cfg"]["common"]["backend"] in ("c10d", "fp16")
    foreign.run_import(tmp_path / "model.pt", tmp_path / "ours")


class Evil:
    """Runs a program when it is unpickled."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("call", [os.system, eval, getattr, __import__, np.load, torch.load])
def test_malicious_pickles_are_refused(
    call: Any, new: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"
    arguments = {os.system: (f"touch {mark}",), eval: (f"open({str(mark)!r}, 'w')",), getattr: ("text", "upper")}
    found, _, _ = checkpoint("base", False, "dictionary")
    found["cfg"]["common"] = Evil(call, *arguments.get(call, (str(mark),)))
    torch.save(found, tmp_path / "model.pt", _use_new_zipfile_serialization=new)
    assert foreign.cli.main(["import", str(tmp_path / "model.pt"), "--output", str(tmp_path / "ours")]) == 2
    line = foreign.told(capsys)
    assert "to be called, which no checkpoint needs; nothing was called (do not trust this file)" in line
    assert not mark.exists()
    assert not (tmp_path / "ours").exists()


def test_programs_are_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "program.pt")
    with pytest.raises(AsrkitError, match="found a TorchScript program"):
        read_pickled(tmp_path / "program.pt")


def test_other_files_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(content: bytes, expected: str) -> None:
        path = tmp_path / "model.pt"
        path.write_bytes(content)
        assert foreign.cli.main(["import", str(path), "--output", str(tmp_path / "ours")]) == 2
        assert expected in foreign.told(capsys)

    def saved(value: Any) -> bytes:
        torch.save(value, tmp_path / "saved.pt")
        return (tmp_path / "saved.pt").read_bytes()

    found, _, _ = checkpoint("base", True, "dictionary")
    whole = saved(found)
    fails(whole[: len(whole) // 2], "expected a PyTorch checkpoint, found a torn or foreign zip archive")
    fails(b"", "expected a PyTorch checkpoint, found an empty file")
    fails(b"RIFF....WAVEfmt ", "expected a PyTorch checkpoint, found a wave file")
    fails(b"<html>404</html>", "expected a PyTorch checkpoint, found a web page")
    fails(
        saved({"weights": torch.ones(1)}),
        "expected a fairseq checkpoint with `model` and `cfg` or `args`, found weights",
    )
    fails(saved([1, 2]), "expected a fairseq checkpoint with `model` and `cfg` or `args`, found list")
    fails(saved({"model": found["model"]}), "expected the model's settings in `cfg` or `args`, found none")
    fails(
        saved({**found, "cfg": {"model": {"arch": "transformer"}}}),
        "expected `encoder_layers` among the model's settings",
    )
    fails(whole, "expected a dictionary of 10 symbols, found none")
    found["cfg"]["model"]["w2v_args"]["model"]["conv_feature_layers"] = "__import__('os').system('true')"
    fails(saved(found), "expected conv_feature_layers such as")
    assert foreign.cli.main(["import", str(tmp_path / "none.pt"), "--output", str(tmp_path / "ours")]) == 2
    assert "no such file or folder" in foreign.told(capsys)


def test_convolutions_are_read_as_text() -> None:
    assert convolutions(LAYERS, None) == CONVOLUTIONS
    assert convolutions("[(512, 10, 5)] + [(512, 3, 2)] * 2", None) == [[512, 10, 5], [512, 3, 2], [512, 3, 2]]
    for text in ("", "open('x')", "[(1, 2)]", "[(1, 2, 3)] ** 2", "[" * 500, "[(1, 2, 3)] * 10 ** 10"):
        with pytest.raises(AsrkitError, match="expected conv_feature_layers"):
            convolutions(text, None)
