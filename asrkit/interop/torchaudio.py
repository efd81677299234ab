"""torchaudio's Wav2Vec2Model: its pipelines by name, and a folder with weights, arguments and labels, in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asrkit.errors import AsrkitError, nearest
from asrkit.files import atomic_path, write_text
from asrkit.interop.packages import downloading
from asrkit.interop.portable import CTC, ENCODER, Portable, peculiarity
from asrkit.interop.tables import Names, encoder_rows, give, module, prefixed, take
from asrkit.interop.vocabulary import read_json
from asrkit.nn.config import EncoderConfig
from asrkit.nn.waveform import WaveformConfig
from asrkit.text.units import BOUNDARY, Units

DESCRIPTION = "torchaudio.json"
"""In a folder: the arguments of `torchaudio.models.wav2vec2_model`, and what else the weights do not say."""
WEIGHTS = "model.pt"
MASKED = "mask_embedding"
MASK = f"{MASKED}.pt"
"""What torchaudio's model has no place for, and a training that goes on wants back."""

NAMES = Names(
    convolution="feature_extractor.conv_layers.{}.conv",
    group_norm="feature_extractor.conv_layers.{}.layer_norm",
    layer_norm="feature_extractor.conv_layers.{}.layer_norm",
    feature_norm="encoder.feature_projection.layer_norm",
    projection="encoder.feature_projection.projection",
    mask=MASKED,
    positions="encoder.transformer.pos_conv_embed.conv",
    stacked_positions="",
    norm_before="encoder.transformer.layer_norm",
    norm_after="encoder.transformer.layer_norm",
    magnitude="parametrizations.weight.original0",
    direction="parametrizations.weight.original1",
    transformer={
        "attention.qkv": (
            "encoder.transformer.layers.{0}.attention.q_proj encoder.transformer.layers.{0}.attention.k_proj "
            "encoder.transformer.layers.{0}.attention.v_proj"
        ),
        "attention.output": "encoder.transformer.layers.{}.attention.out_proj",
        "attention_norm": "encoder.transformer.layers.{}.layer_norm",
        "feed_forward.input": "encoder.transformer.layers.{}.feed_forward.intermediate_dense",
        "feed_forward.output": "encoder.transformer.layers.{}.feed_forward.output_dense",
        "feed_forward_norm": "encoder.transformer.layers.{}.final_layer_norm",
    },
    conformer={},
)

CTC_ROWS = module("project", "aux")
_MODES = {"group": "group_norm", "layer": "layer_norm"}


def read_bundle(name: str, with_head: bool = True) -> Portable:
    """Return a pipeline of `torchaudio.pipelines`, fetched or from torch's cache.

    Raises:
        AsrkitError: if there is none of that name, it is another kind of model, or it cannot be fetched.
    """
    from torchaudio import pipelines

    bundles = {key: value for key, value in vars(pipelines).items() if isinstance(value, pipelines.Wav2Vec2Bundle)}
    if name not in bundles:
        raise AsrkitError("no such pipeline of torchaudio", where=f"torchaudio:{name}", mend=nearest(name, bundles))
    bundle = bundles[name]
    if bundle._model_type != "Wav2Vec2":
        raise AsrkitError(f"expected a Wav2Vec2 pipeline, found {bundle._model_type}", where=f"torchaudio:{name}")
    with downloading(f"torchaudio:{name}", "once with a network; torch keeps it in ~/.cache/torch/hub/checkpoints"):
        model = bundle.get_model()
    state = getattr(model, "model", model).state_dict()
    units = None
    if isinstance(bundle, pipelines.Wav2Vec2ASRBundle) and with_head:
        # The star of forced alignment has no output of the model.
        aligns = isinstance(bundle, pipelines.Wav2Vec2FABundle)
        labels = tuple(bundle.get_labels(blank="<pad>", **({"star": None} if aligns else {})))
        units = Units(labels, 0, BOUNDARY if BOUNDARY in labels else None)
    return _from_torchaudio(
        bundle._params, bundle._normalize_waveform, state, units, name.lower(), f"torchaudio:{name}"
    )


def read_folder(folder: Path, units: Units | None = None, with_head: bool = True) -> Portable:
    """Read what `write_folder` wrote.

    Raises:
        AsrkitError: naming the file that is missing or wrong.
    """
    found = read_json(folder / DESCRIPTION)
    path = folder / WEIGHTS
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if (folder / MASK).is_file():
            state |= torch.load(folder / MASK, map_location="cpu", weights_only=True)
        arguments, normalise, name = dict(found["arguments"]), bool(found["normalize_waveform"]), str(found["name"])
    except FileNotFoundError:
        raise AsrkitError("expected a file of weights, found none", where=path) from None
    except (KeyError, TypeError, ValueError) as error:
        raise AsrkitError(f"expected arguments, normalize_waveform and name, found no {error}", where=folder) from None
    except Exception as error:  # torch raises many kinds for a torn or foreign file
        raise AsrkitError(
            f"expected a PyTorch checkpoint, found something else ({type(error).__name__})", where=path
        ) from None
    if with_head and units is None and (folder / "units").is_dir():
        units = Units.load(folder / "units")
    return _from_torchaudio(arguments, normalise, state, units if with_head else None, name, folder)


def write_folder(model: Portable, folder: Path) -> None:
    """Write weights, arguments, labels and a loading snippet.

    Raises:
        AsrkitError: if torchaudio has no such model, or the folder cannot be written.
    """
    reason = refusal(model)
    if reason is not None:
        raise AsrkitError(reason)
    rows, fillers = encoder_rows(NAMES, model.encoder)
    rows = prefixed([row for row in rows if row.ours != MASKED], ENCODER)
    if model.units is not None:
        rows += prefixed(CTC_ROWS, CTC)
        model.units.save(folder / "units")
    state = give(rows, fillers, model.weights)
    mask = {MASKED: model.weights[ENCODER + MASKED].detach().cpu().clone()}
    for name, tensors in ((WEIGHTS, state), (MASK, mask)):
        with atomic_path(folder / name) as temporary:
            torch.save(tensors, temporary)
    labels = list(model.units.symbols) if model.units is not None else None
    waveform = model.encoder.waveform
    description = {
        "name": model.name,
        "arguments": _arguments(model),
        "normalize_waveform": waveform.normalise,
        "labels": labels,
        "blank": model.units.blank if model.units is not None else None,
    }
    write_text(folder / "load.py", _SNIPPET)
    write_text(folder / DESCRIPTION, json.dumps(description, ensure_ascii=False, indent=1) + "\n")


_SNIPPET = '''\
"""How to load this model with torchaudio; run it in this folder: python load.py speech.wav (mono, 16 kHz)."""

import json
import pathlib
import sys

import soundfile
import torch
import torchaudio

folder = pathlib.Path(__file__).parent
description = json.loads((folder / "torchaudio.json").read_text(encoding="utf-8"))


def load() -> torch.nn.Module:
    """Return the model; it takes waves (N, S), already normalised where `normalize_waveform` says so."""
    model = torchaudio.models.wav2vec2_model(**description["arguments"])
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return model.eval()


if __name__ == "__main__":
    wave = torch.from_numpy(soundfile.read(sys.argv[1], dtype="float32")[0])[None]
    if description["normalize_waveform"]:
        wave = torch.nn.functional.layer_norm(wave, wave.shape)
    with torch.inference_mode():
        output, _ = load()(wave)
    if description["labels"]:
        best = torch.unique_consecutive(output[0].argmax(-1)).tolist()
        print("".join(description["labels"][i] for i in best if i != description["blank"]))
'''


def refusal(model: Portable) -> str | None:
    """Return why torchaudio has no such model, or None."""
    reason = peculiarity(model)
    if reason is not None:
        return reason
    shape = model.encoder
    if shape.frontend != "waveform":
        return "torchaudio's wav2vec 2.0 begins with convolutions over the wave, not with a log-mel frontend"
    if shape.blocks != "transformer":
        return "torchaudio's wav2vec 2.0 has Transformer blocks, not Conformer blocks"
    if shape.positions != "conv" or shape.conv_position_layers > 1:
        return "torchaudio's wav2vec 2.0 has a single positional convolution and no other positions"
    return None


def _arguments(model: Portable) -> dict[str, Any]:
    shape, waveform = model.encoder, model.encoder.waveform
    return {
        "extractor_mode": _MODES[waveform.norm],
        "extractor_conv_layer_config": [list(spec) for spec in waveform.layers],
        "extractor_conv_bias": waveform.bias,
        "encoder_embed_dim": shape.dim,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": shape.conv_position_kernel,
        "encoder_pos_conv_groups": shape.conv_position_groups,
        "encoder_num_layers": shape.layers,
        "encoder_num_heads": shape.heads,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": shape.ffn_dim,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": shape.pre_norm,
        "encoder_layer_drop": 0.0,
        "aux_num_out": len(model.units) if model.units is not None else None,
    }


def _from_torchaudio(
    arguments: Mapping[str, Any],
    normalise: bool,
    state: Mapping[str, Tensor],
    units: Units | None,
    name: str,
    where: object,
) -> Portable:
    modes = {theirs: ours for ours, theirs in _MODES.items()}
    try:
        shape = EncoderConfig(
            waveform=WaveformConfig(
                layers=[list(spec) for spec in arguments["extractor_conv_layer_config"]],
                norm=modes[arguments["extractor_mode"]],
                bias=arguments["extractor_conv_bias"],
                normalise=normalise,
            ),
            layers=arguments["encoder_num_layers"],
            dim=arguments["encoder_embed_dim"],
            ffn_dim=arguments["encoder_ff_interm_features"],
            heads=arguments["encoder_num_heads"],
            pre_norm=arguments["encoder_layer_norm_first"],
            conv_position_kernel=arguments["encoder_pos_conv_kernel"],
            conv_position_groups=arguments["encoder_pos_conv_groups"],
        )
    except KeyError as error:
        raise AsrkitError(f"expected the argument {error}, found none", where=where) from None
    rows, _ = encoder_rows(NAMES, shape)
    rows = prefixed(rows, ENCODER)
    if units is not None:
        rows += prefixed(CTC_ROWS, CTC)
    renamed = {_today(key): tensor for key, tensor in state.items()}
    weights, _ = take(rows, renamed, where)
    return Portable(shape, weights, units, None, name)


def _today(key: str) -> str:
    """Return the present name of a weight under weight normalisation."""
    return key.replace("conv.weight_g", f"conv.{NAMES.magnitude}").replace("conv.weight_v", f"conv.{NAMES.direction}")
