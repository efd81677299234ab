"""Hugging Face's Wav2Vec2, Wav2Vec2Conformer, HuBERT and data2vec-audio, in and out; files and hub: `hub.py`.

Checkpoints are read and written as files, so that transformers itself is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from asrkit.errors import AsrkitError
from asrkit.heads.wav2vec2 import Wav2Vec2HeadConfig
from asrkit.interop.portable import CTC, ENCODER, SSL, Portable, peculiarity
from asrkit.interop.tables import (
    Filler,
    Names,
    Row,
    codebook,
    encoder_rows,
    give,
    module,
    prefixed,
    take,
)
from asrkit.nn.config import EncoderConfig
from asrkit.nn.masking import MaskConfig
from asrkit.nn.waveform import WaveformConfig
from asrkit.text.units import Units

PREFIXES = {
    "wav2vec2": "wav2vec2.",
    "wav2vec2-conformer": "wav2vec2_conformer.",
    "hubert": "hubert.",
    "data2vec-audio": "data2vec_audio.",
}
"""By `model_type`, what stands before the encoder's weights where the model has a head."""

NAMES = Names(
    convolution="feature_extractor.conv_layers.{}.conv",
    group_norm="feature_extractor.conv_layers.{}.layer_norm",
    layer_norm="feature_extractor.conv_layers.{}.layer_norm",
    feature_norm="feature_projection.layer_norm",
    projection="feature_projection.projection",
    mask="masked_spec_embed",
    positions="encoder.pos_conv_embed.conv",
    stacked_positions="encoder.pos_conv_embed.layers.{}.conv",
    norm_before="encoder.layer_norm",
    norm_after="encoder.layer_norm",
    magnitude="parametrizations.weight.original0",
    direction="parametrizations.weight.original1",
    transformer={
        "attention.qkv": (
            "encoder.layers.{0}.attention.q_proj encoder.layers.{0}.attention.k_proj encoder.layers.{0}.attention.v_proj"
        ),
        "attention.output": "encoder.layers.{}.attention.out_proj",
        "attention_norm": "encoder.layers.{}.layer_norm",
        "feed_forward.input": "encoder.layers.{}.feed_forward.intermediate_dense",
        "feed_forward.output": "encoder.layers.{}.feed_forward.output_dense",
        "feed_forward_norm": "encoder.layers.{}.final_layer_norm",
    },
    conformer={
        "before.norm": "encoder.layers.{}.ffn1_layer_norm",
        "before.input": "encoder.layers.{}.ffn1.intermediate_dense",
        "before.output": "encoder.layers.{}.ffn1.output_dense",
        "attention_norm": "encoder.layers.{}.self_attn_layer_norm",
        "attention.qkv": (
            "encoder.layers.{0}.self_attn.linear_q encoder.layers.{0}.self_attn.linear_k "
            "encoder.layers.{0}.self_attn.linear_v"
        ),
        "attention.output": "encoder.layers.{}.self_attn.linear_out",
        "attention.position": "encoder.layers.{}.self_attn.linear_pos",
        "attention.content_bias": "encoder.layers.{}.self_attn.pos_bias_u",
        "attention.position_bias": "encoder.layers.{}.self_attn.pos_bias_v",
        "convolution.norm": "encoder.layers.{}.conv_module.layer_norm",
        "convolution.gate": "encoder.layers.{}.conv_module.pointwise_conv1",
        "convolution.depthwise": "encoder.layers.{}.conv_module.depthwise_conv",
        "convolution.depthwise_norm": "encoder.layers.{}.conv_module.batch_norm",
        "convolution.output": "encoder.layers.{}.conv_module.pointwise_conv2",
        "after.norm": "encoder.layers.{}.ffn2_layer_norm",
        "after.input": "encoder.layers.{}.ffn2.intermediate_dense",
        "after.output": "encoder.layers.{}.ffn2.output_dense",
        "norm": "encoder.layers.{}.final_layer_norm",
    },
)

CTC_ROWS = module("project", "lm_head")
_RATES = "encoder.embed_positions.inv_freq"


def ssl_rows(groups: int) -> list[Row]:
    """Return the table of the pre-training head with so many codebooks."""
    return [
        Row("quantiser.codebook", ("quantizer.codevectors",), codebook(groups)),
        *module("quantiser.project", "quantizer.weight_proj"),
        *module("project_targets", "project_q"),
        *module("project_states", "project_hid"),
    ]


def from_huggingface(
    config: Mapping[str, Any],
    normalise: bool,
    state: Mapping[str, Tensor],
    units: Units | None,
    name: str,
    where: object,
    with_head: bool = True,
) -> Portable:
    """Return a model of transformers in asrkit's terms.

    Args:
        config: its `config.json`.
        normalise: whether waves are normalised first (`do_normalize` of the preprocessor).
        state: its weights.
        units: its dictionary, needed where it has a CTC head.
        name: a word for it.
        where: for complaints.
        with_head: whether its head is wanted.

    Raises:
        AsrkitError: if it is another kind of model, or one with parts that asrkit has not.
    """
    kind = config.get("model_type")
    if kind not in PREFIXES:
        known = ", ".join(PREFIXES)
        raise AsrkitError(f"expected a model_type among {known}, found {kind!r}", where=where)
    state = {_today(key): tensor for key, tensor in state.items()}
    shape = _encoder_config(config, kind, normalise, where, with_head)
    prefix = PREFIXES[kind] if any(key.startswith(PREFIXES[kind]) for key in state) else ""
    rows, fillers = _encoder_table(shape, prefix)
    head = None
    if with_head and "lm_head.weight" in state:
        if units is None:
            raise AsrkitError(
                "has a CTC head but no vocab.json", where=where, mend="--dictionary FILE, or --encoder-only"
            )
        rows += prefixed(CTC_ROWS, CTC)
    else:
        units = None
        head = _head_config(config) if with_head and "quantizer.codevectors" in state else None
        if head is not None:
            rows += prefixed(ssl_rows(head.groups), SSL)
    weights, left = take(rows, state, where)
    known_left = {filler.theirs for filler in fillers} | _unused(shape, prefix)
    left = [key for key in left if key not in known_left]
    notes = [f"left out: {', '.join(left[:3])}{', …' if len(left) > 3 else ''} ({len(left)} weights)"] if left else []
    return Portable(shape, weights, units, head, name, tuple(notes))


def to_huggingface(model: Portable) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return `config.json` and the weights of a model for transformers.

    Raises:
        AsrkitError: if transformers has no such model.
    """
    reason = refusal(model)
    if reason is not None:
        raise AsrkitError(reason)
    config = _foreign_config(model)
    prefix = PREFIXES[config["model_type"]] if model.units is not None or model.head is not None else ""
    rows, fillers = _encoder_table(model.encoder, prefix)
    if model.units is not None:
        rows += prefixed(CTC_ROWS, CTC)
    elif model.head is not None:
        rows += prefixed(ssl_rows(model.head.groups), SSL)
    if model.encoder.blocks == "conformer":
        fillers += _unused_positions(config, prefix)
        if model.encoder.positions == "rotary-input":
            fillers.append(Filler(f"{prefix}{_RATES}", _rates(model.encoder)))
    return config, give(rows, fillers, model.weights)


def refusal(model: Portable) -> str | None:
    """Return why transformers has no such model, or None."""
    reason = peculiarity(model)
    if reason is not None:
        return reason
    shape, units = model.encoder, model.units
    if model.head is not None and not model.head.quantise_targets:
        return "Hugging Face's wav2vec 2.0 always quantises the targets of its pre-training"
    if shape.frontend != "waveform":
        return "Hugging Face's speech encoders begin with convolutions over the wave, not with a log-mel frontend"
    if units is not None and units.kind != "char":
        return f"Hugging Face's CTC tokeniser writes letters, not units of kind '{units.kind}'"
    if shape.blocks == "transformer":
        if shape.positions != "conv":
            return f"Hugging Face's Wav2Vec2 has convolutional positions, not {shape.positions} ones"
        if shape.conv_position_layers > 1:
            if model.head is not None:
                return "Hugging Face's data2vec-audio has no wav2vec 2.0 head"
            if shape.pre_norm or shape.waveform.norm != "layer":
                return (
                    "Hugging Face has stacked positional convolutions in data2vec-audio alone (post-norm, layer norms)"
                )
        return None
    if shape.positions not in ("relative", "rotary-input", "none"):
        return f"Hugging Face's Wav2Vec2Conformer has relative or rotary-input positions, not {shape.positions}"
    if shape.conv_norm != "batch" or shape.conv_bias or shape.outer_norm != "after":
        return "Hugging Face's Wav2Vec2Conformer has conv_norm: batch, conv_bias: false and outer_norm: after"
    return None


def _today(key: str) -> str:
    """Return the present name of a weight under weight normalisation."""
    for old, new in (("weight_g", NAMES.magnitude), ("weight_v", NAMES.direction)):
        if key.endswith(f"pos_conv_embed.conv.{old}"):
            return key.removesuffix(old) + new
    return key


def _encoder_table(shape: EncoderConfig, prefix: str) -> tuple[list[Row], list[Filler]]:
    rows, fillers = encoder_rows(NAMES, shape)
    return prefixed(rows, ENCODER, prefix), [Filler(prefix + filler.theirs, filler.value) for filler in fillers]


def _unused(shape: EncoderConfig, prefix: str) -> set[str]:
    """Return the names of weights that transformers stores and never uses."""
    names = {prefix + _RATES}
    if shape.blocks == "conformer":
        parts = ("bias", NAMES.magnitude, NAMES.direction)
        names |= {f"{prefix}{NAMES.positions}.{part}" for part in parts}
    return names


def _rates(shape: EncoderConfig) -> Tensor:
    """Return the rates of rotary positions, (D / 2,), which follow from the shape and are stored all the same."""
    width = shape.dim // shape.heads
    return 1.0 / 10_000 ** (torch.arange(0, width, 2).float() / width)


def _unused_positions(config: Mapping[str, Any], prefix: str) -> list[Filler]:
    """Return positional convolutions that Wav2Vec2Conformer holds and never runs."""
    dim, kernel = config["hidden_size"], config["num_conv_pos_embeddings"]
    shapes = {
        "bias": torch.zeros(dim),
        NAMES.magnitude: torch.ones(1, 1, kernel),
        NAMES.direction: torch.ones(dim, dim // config["num_conv_pos_embedding_groups"], kernel),
    }
    return [Filler(f"{prefix}{NAMES.positions}.{part}", value) for part, value in shapes.items()]


def _encoder_config(
    config: Mapping[str, Any],
    kind: str,
    normalise: bool,
    where: object,
    with_head: bool,
) -> EncoderConfig:
    conformer, stacked = kind == "wav2vec2-conformer", kind == "data2vec-audio"

    def expect(key: str, allowed: tuple[Any, ...]) -> None:
        value = config.get(key, allowed[0])
        if value not in allowed:
            expected = " or ".join(repr(one) for one in allowed)
            raise AsrkitError(f"expected {key} {expected}, found {value!r}: asrkit has no such model", where=where)

    expect("layer_norm_eps", (1e-5,))
    expect("feat_extract_activation", ("gelu",))
    expect("add_adapter", (False,))
    expect("feat_proj_layer_norm", (True,))
    expect("conv_pos_batch_norm", (False,))
    if conformer:
        # Its class's default differs from all that was released; where it is absent it holds.
        if config.get("hidden_act", "gelu") not in ("swish", "silu"):
            found = f"found {config.get('hidden_act', 'gelu')!r}: asrkit has no such model"
            raise AsrkitError(f"expected hidden_act 'swish' in a Conformer, {found}", where=where)
        expect("rotary_embedding_base", (10000,))
        expect("position_embeddings_type", ("relative", "rotary", None))
    else:
        expect("hidden_act", ("gelu",))
    if config.get("adapter_attn_dim") and with_head:
        what = "has adapters for each of several languages, which asrkit has not"
        raise AsrkitError(what, where=where, mend="--encoder-only, or a checkpoint without adapters")
    layers = [config.get(key, usual) for key, usual in _CONVOLUTIONS.items()]
    if len({len(part) for part in layers}) != 1:
        raise AsrkitError("expected conv_dim, conv_kernel and conv_stride of one length", where=where)
    positions = "conv"
    if conformer:
        positions = {"relative": "relative", "rotary": "rotary-input"}.get(
            config.get("position_embeddings_type", "relative"), "none"
        )
    return EncoderConfig(
        waveform=WaveformConfig(
            layers=[list(spec) for spec in zip(*layers, strict=True)],
            norm="layer" if stacked else config.get("feat_extract_norm", "group"),
            bias=bool(config.get("conv_bias", False)),
            normalise=normalise,
            normalise_epsilon=1e-7 if normalise else WaveformConfig.normalise_epsilon,
        ),
        blocks="conformer" if conformer else "transformer",
        layers=config.get("num_hidden_layers", 12),
        dim=config.get("hidden_size", 768),
        ffn_dim=config.get("intermediate_size", 3072),
        heads=config.get("num_attention_heads", 12),
        pre_norm=bool(config.get("do_stable_layer_norm", False)) and not conformer and not stacked,
        positions=positions,
        **_kernels(config, kind),
    )


def _kernels(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return what is the Conformer's, data2vec's or the others' own."""
    if kind == "wav2vec2-conformer":
        kernel = config.get("conv_depthwise_kernel_size", 31)
        return {"conv_kernel": kernel, "conv_norm": "batch", "conv_bias": False, "outer_norm": "after"}
    groups = {"conv_position_groups": config.get("num_conv_pos_embedding_groups", 16)}
    if kind == "data2vec-audio":
        layers = config.get("num_conv_pos_embeddings", 5)
        return {
            "conv_position_kernel": config.get("conv_pos_kernel_size", 19),
            "conv_position_layers": layers,
            **groups,
        }
    return {"conv_position_kernel": config.get("num_conv_pos_embeddings", 128), **groups}


_CONVOLUTIONS = {
    "conv_dim": (512,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
}


def _head_config(config: Mapping[str, Any]) -> Wav2Vec2HeadConfig | None:
    """Return the pre-training head's settings; None where it has two widths, which ours has not."""
    width = config.get("proj_codevector_dim", 256)
    if width != config.get("codevector_dim", 256):
        return None
    return Wav2Vec2HeadConfig(
        mask=MaskConfig(),
        final_dim=width,
        groups=config.get("num_codevector_groups", 2),
        entries=config.get("num_codevectors_per_group", 320),
        negatives=config.get("num_negatives", 100),
        temperature=config.get("contrastive_logits_temperature", 0.1),
        diversity_weight=config.get("diversity_loss_weight", 0.1),
    )


def _foreign_config(model: Portable) -> dict[str, Any]:
    shape, waveform, units, head = model.encoder, model.encoder.waveform, model.units, model.head
    conformer, stacked = shape.blocks == "conformer", shape.conv_position_layers > 1
    kind = "wav2vec2-conformer" if conformer else "data2vec-audio" if stacked else "wav2vec2"
    family = {"wav2vec2": "Wav2Vec2", "wav2vec2-conformer": "Wav2Vec2Conformer", "data2vec-audio": "Data2VecAudio"}[
        kind
    ]
    ending = "ForCTC" if units is not None else "ForPreTraining" if head is not None else "Model"
    config: dict[str, Any] = {
        "architectures": [family + ending],
        "model_type": kind,
        "torch_dtype": "float32",
        "hidden_size": shape.dim,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn_dim,
        "hidden_act": "swish" if conformer else "gelu",
        "layer_norm_eps": 1e-5,
        "feat_extract_activation": "gelu",
        "feat_extract_norm": waveform.norm,
        **{key: [spec[part] for spec in waveform.layers] for part, key in enumerate(_CONVOLUTIONS)},
        "conv_bias": waveform.bias,
        "num_feat_extract_layers": len(waveform.layers),
        "do_stable_layer_norm": shape.pre_norm and not conformer,
        "num_conv_pos_embedding_groups": shape.conv_position_groups,
        "mask_time_prob": 0.05,
        "final_dropout": 0.0,
    }
    if stacked:
        config |= {
            "num_conv_pos_embeddings": shape.conv_position_layers,
            "conv_pos_kernel_size": shape.conv_position_kernel,
        }
    else:
        config["num_conv_pos_embeddings"] = shape.conv_position_kernel
    if conformer:
        kinds = {"relative": "relative", "rotary-input": "rotary", "none": None}
        config |= {"position_embeddings_type": kinds[shape.positions], "conv_depthwise_kernel_size": shape.conv_kernel}
        # The convolution for positions is there, but never run: the least one will do.
        config |= {"num_conv_pos_embeddings": 1, "num_conv_pos_embedding_groups": shape.dim}
    if head is not None:
        config |= {
            "codevector_dim": head.final_dim,
            "proj_codevector_dim": head.final_dim,
            "num_codevector_groups": head.groups,
            "num_codevectors_per_group": head.entries,
            "num_negatives": head.negatives,
            "contrastive_logits_temperature": head.temperature,
            "diversity_loss_weight": head.diversity_weight,
        }
    if units is not None:
        config |= {
            "vocab_size": len(units),
            "pad_token_id": units.blank,
            "bos_token_id": units.index.get("<s>"),
            "eos_token_id": units.index.get("</s>"),
            "ctc_loss_reduction": "mean",
            "ctc_zero_infinity": True,
        }
    return config
