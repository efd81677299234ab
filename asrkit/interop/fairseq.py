"""fairseq's `.pt` files: wav2vec 2.0, HuBERT and data2vec encoders, pre-trained or with a CTC head; read without fairseq."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from asrkit.errors import AsrkitError
from asrkit.heads.wav2vec2 import Wav2Vec2HeadConfig
from asrkit.interop.pickles import read_pickled
from asrkit.interop.portable import CTC, ENCODER, SSL, Portable
from asrkit.interop.tables import Names, Row, codebook, encoder_rows, module, prefixed, take
from asrkit.interop.vocabulary import fairseq_units, released_units
from asrkit.nn.config import EncoderConfig
from asrkit.nn.masking import MaskConfig
from asrkit.nn.waveform import WaveformConfig
from asrkit.text.units import Units

NAMES = Names(
    convolution="feature_extractor.conv_layers.{}.0",
    group_norm="feature_extractor.conv_layers.{}.2",
    layer_norm="feature_extractor.conv_layers.{}.2.1",
    feature_norm="layer_norm",
    projection="post_extract_proj",
    mask="mask_emb",
    positions="encoder.pos_conv.0",
    stacked_positions="encoder.pos_conv.{}.0",
    norm_before="encoder.layer_norm",
    norm_after="encoder.layer_norm",
    optional_projection=True,
    transformer={
        "attention.qkv": (
            "encoder.layers.{0}.self_attn.q_proj encoder.layers.{0}.self_attn.k_proj encoder.layers.{0}.self_attn.v_proj"
        ),
        "attention.output": "encoder.layers.{}.self_attn.out_proj",
        "attention_norm": "encoder.layers.{}.self_attn_layer_norm",
        "feed_forward.input": "encoder.layers.{}.fc1",
        "feed_forward.output": "encoder.layers.{}.fc2",
        "feed_forward_norm": "encoder.layers.{}.final_layer_norm",
    },
    conformer={
        "before.norm": "encoder.layers.{}.ffn1.layer_norm",
        "before.input": "encoder.layers.{}.ffn1.w_1",
        "before.output": "encoder.layers.{}.ffn1.w_2",
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
        "after.norm": "encoder.layers.{}.ffn2.layer_norm",
        "after.input": "encoder.layers.{}.ffn2.w_1",
        "after.output": "encoder.layers.{}.ffn2.w_2",
        "norm": "encoder.layers.{}.final_layer_norm",
    },
)

CTC_ROWS = module("project", "w2v_encoder.proj")
CTC_PREFIX = "w2v_encoder.w2v_model."
DICTIONARY = "dict.ltr.txt"
LAYER_TYPES = ("transformer", "conformer")


def ssl_rows(groups: int) -> list[Row]:
    """Return the table of the pre-training head with so many codebooks."""
    return [
        Row("quantiser.codebook", ("quantizer.vars",), codebook(groups)),
        *module("quantiser.project", "quantizer.weight_proj"),
        *module("project_targets", "project_q"),
        *module("project_states", "final_proj"),
    ]


def read_file(path: Path, units: Units | None = None, with_head: bool = True) -> Portable:
    """Read a checkpoint.

    Args:
        path: the file.
        units: the dictionary of a CTC model; without it `dict.ltr.txt` beside the file is taken, or for 32 symbols the
            dictionary of the released English models.
        with_head: whether the model's head is wanted.

    Raises:
        AsrkitError: if it is no checkpoint of fairseq, or of another kind of model, or asks for code to be run.
    """
    found = read_pickled(path)
    if not isinstance(found, Mapping) or not isinstance(found.get("model"), Mapping):
        what = ", ".join(map(str, list(found)[:3])) if isinstance(found, Mapping) else type(found).__name__
        raise AsrkitError(f"expected a fairseq checkpoint with `model` and `cfg` or `args`, found {what}", where=path)
    state = {str(key): tensor for key, tensor in found["model"].items() if isinstance(tensor, Tensor)}
    settings, task = _settings(found, path)
    supervised = f"{CTC_ROWS[0].theirs[0]}" in state
    prefix = CTC_PREFIX if any(key.startswith(CTC_PREFIX) for key in state) else ""
    shape = _encoder_config(settings, task, path)
    rows, _ = encoder_rows(NAMES, shape)
    rows = prefixed(rows, ENCODER, prefix)
    notes: list[str] = []
    head = None
    if supervised and with_head:
        if units is None:
            units = _dictionary(path, state[CTC_ROWS[0].theirs[0]].size(0), notes)
        rows += prefixed(CTC_ROWS, CTC)
    else:
        units = None
        head = _head_config(settings, state) if with_head else None
        if head is not None:
            rows += prefixed(ssl_rows(head.groups), SSL)
    weights, left = take(rows, state, path)
    left = [key for key in left if not key.endswith(_COMPUTED) and not _idle(shape, key)]
    if left:
        notes.append(f"left out: {', '.join(left[:3])}{', …' if len(left) > 3 else ''} ({len(left)} weights)")
    return Portable(shape, weights, units, head, path.stem, tuple(notes))


_COMPUTED = ("num_batches_tracked", ".inv_freq")
"""Endings of names whose values follow from the shape or mean nothing."""


def _idle(shape: EncoderConfig, key: str) -> bool:
    """Whether a weight is one that fairseq's Conformers hold and never run."""
    return shape.blocks == "conformer" and "encoder.pos_conv." in key


def _settings(found: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the encoder's model and of its task."""
    cfg, args = found.get("cfg"), found.get("args")
    if isinstance(cfg, Mapping) and isinstance(cfg.get("model"), Mapping):
        model, task = dict(cfg["model"]), dict(cfg.get("task") or {})
    elif isinstance(args, Mapping):
        model = task = dict(args)
    else:
        raise AsrkitError("expected the model's settings in `cfg` or `args`, found none", where=path)
    inner = model.get("w2v_args")
    if isinstance(inner, Mapping):
        # A fine-tuned model keeps the settings of the encoder that it began with.
        parts = [inner[key] if isinstance(inner.get(key), Mapping) else inner for key in ("model", "task")]
        model, task = dict(parts[0]), {**parts[1], **task}
    if "encoder_layers" not in model:
        missing = (
            f"expected `encoder_layers` among the model's settings, found {', '.join(sorted(map(str, model))[:4])}, …"
        )
        raise AsrkitError(missing, where=path, mend="a wav2vec 2.0, HuBERT or data2vec model with its settings inside")
    return model, task


def _encoder_config(settings: Mapping[str, Any], task: Mapping[str, Any], path: Path) -> EncoderConfig:
    conformer = settings.get("layer_type") == "conformer"
    layer_type = settings.get("layer_type") or "transformer"
    activation = (
        "gelu" if conformer else settings.get("activation_fn") or "gelu"
    )  # Conformers have SiLU whatever it says
    for key, value, known in (("layer_type", layer_type, LAYER_TYPES), ("activation_fn", activation, ("gelu",))):
        if value not in known:
            expected = " or ".join(repr(one) for one in known)
            raise AsrkitError(f"expected {key} {expected}, found {value!r}: asrkit has no such model", where=path)
    layered = settings.get("extractor_mode", "default") == "layer_norm"
    positions = "conv"
    if conformer:
        positions = {"rel_pos": "relative", "rope": "rotary-input"}.get(str(settings.get("pos_enc_type")), "none")
    return EncoderConfig(
        waveform=WaveformConfig(
            layers=convolutions(settings.get("conv_feature_layers") or _CONVOLUTIONS, path),
            norm="layer" if layered else "group",
            bias=bool(settings.get("conv_bias")),
            normalise=bool(task.get("normalize")),
        ),
        blocks="conformer" if conformer else "transformer",
        layers=int(settings["encoder_layers"]),
        dim=int(settings.get("encoder_embed_dim") or 768),
        ffn_dim=int(settings.get("encoder_ffn_embed_dim") or 3072),
        heads=int(settings.get("encoder_attention_heads") or 12),
        pre_norm=bool(settings.get("layer_norm_first")) and not conformer,
        positions=positions,
        **_kernels(settings, conformer),
    )


def _kernels(settings: Mapping[str, Any], conformer: bool) -> dict[str, Any]:
    """Return what is the Conformer's own, or the Transformer's."""
    if conformer:
        kernel = int(settings.get("depthwise_conv_kernel_size") or 31)
        place = "after" if settings.get("layer_norm_first") else "before"
        return {"conv_kernel": kernel, "conv_norm": "batch", "conv_bias": False, "outer_norm": place}
    depth = int(settings.get("pos_conv_depth") or 1)
    kernel = int(settings.get("conv_pos") or 128)
    return {
        "conv_position_kernel": kernel if depth == 1 else max(3, kernel // depth),
        "conv_position_groups": int(settings.get("conv_pos_groups") or 16),
        "conv_position_layers": depth,
    }


_CONVOLUTIONS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"


def convolutions(text: Any, where: object) -> list[list[int]]:
    """Return the convolutions that fairseq writes as a Python expression of lists, read without running it.

    Raises:
        AsrkitError: if there is anything but tuples of three numbers in lists, joined by + and repeated by *.
    """

    def value(node: ast.AST) -> list[list[int]]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return value(node.left) + value(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return value(node.left) * min(int(ast.literal_eval(node.right)), 100)
        listed = ast.literal_eval(node)
        return [[int(number) for number in spec] for spec in listed]

    try:
        layers = value(ast.parse(str(text), mode="eval").body)
        if not layers or any(len(spec) != 3 for spec in layers):
            raise ValueError
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        found = f"found {str(text)[:60]!r}"
        raise AsrkitError(
            f"expected conv_feature_layers such as [(512, 10, 5)] + [(512, 3, 2)] * 4, {found}", where=where
        ) from None
    return layers


def _head_config(settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Wav2Vec2HeadConfig | None:
    """Return the pre-training head's settings, None where there is no such head, or one with two widths."""
    if "quantizer.vars" not in state or "project_q.weight" not in state or "quantizer.weight_proj.weight" not in state:
        return None
    width = int(settings.get("final_dim") or settings.get("encoder_embed_dim") or 768)
    groups = int(settings.get("latent_groups") or 2)
    if int(settings.get("latent_dim") or width) != width:
        return None
    return Wav2Vec2HeadConfig(
        mask=MaskConfig(),
        final_dim=width,
        groups=groups,
        entries=int(settings.get("latent_vars") or 320),
        negatives=int(settings.get("num_negatives") or 100),
        temperature=float(settings.get("logit_temp") or 0.1),
    )


def _dictionary(path: Path, size: int, notes: list[str]) -> Units:
    beside = path.with_name(DICTIONARY)
    if beside.is_file():
        units = fairseq_units(beside)
    else:
        units = released_units()
        notes.append(f"no {DICTIONARY} beside the file: the dictionary of the released English models is taken")
    if len(units) != size:
        what = f"expected a dictionary of {size} symbols, found {'one of ' + str(len(units)) if beside.is_file() else 'none'}"
        raise AsrkitError(what, where=path, mend=f"--dictionary FILE, or {DICTIONARY} beside it, or --encoder-only")
    return units
