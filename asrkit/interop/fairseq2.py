"""fairseq2's wav2vec 2.0 models: assets by name, checkpoint folders and asset cards, in and out.

They are loaded by fairseq2 itself, through its asset store and its model hubs.
"""

from __future__ import annotations

import socket
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from asrkit.errors import AsrkitError, nearest
from asrkit.files import atomic_path, write_text
from asrkit.heads.wav2vec2 import Wav2Vec2HeadConfig
from asrkit.interop.packages import downloading, optional
from asrkit.interop.portable import CTC, ENCODER, SSL, Portable, peculiarity
from asrkit.interop.tables import Filler, Names, Row, codebook, encoder_rows, give, module, prefixed, take
from asrkit.interop.vocabulary import blank_first, released_units
from asrkit.nn.config import EncoderConfig
from asrkit.nn.masking import MaskConfig
from asrkit.nn.waveform import WaveformConfig
from asrkit.text.units import Units

CARD = "model.yaml"
"""The asset card, as fairseq2's trainer calls it in its checkpoint folders."""
WEIGHTS = "model.pt"
FAMILIES = ("wav2vec2", "wav2vec2_asr")
EXTRA = "fairseq2"
NORMALISE = "asrkit_normalise"
"""A key of exported cards: whether waves are normalised first, and how."""

NAMES = Names(
    convolution="encoder_frontend.feature_extractor.layers.{}.conv",
    group_norm="encoder_frontend.feature_extractor.layers.{}.group_norm",
    layer_norm="encoder_frontend.feature_extractor.layers.{}.layer_norm",
    feature_norm="encoder_frontend.post_extract_layer_norm",
    projection="encoder_frontend.model_dim_proj",
    mask="masker.temporal_mask_embed",
    positions="encoder_frontend.pos_encoder.conv",
    stacked_positions="encoder_frontend.pos_encoder.layers.{}.conv",
    norm_before="encoder_frontend.layer_norm",
    norm_after="encoder.layer_norm",
    optional_projection=True,
    paired_rotary=True,
    transformer={
        "attention.qkv": (
            "encoder.layers.{0}.self_attn.q_proj encoder.layers.{0}.self_attn.k_proj encoder.layers.{0}.self_attn.v_proj"
        ),
        "attention.output": "encoder.layers.{}.self_attn.output_proj",
        "attention.position": "encoder.layers.{}.self_attn.sdpa.r_proj",
        "attention.content_bias": "encoder.layers.{}.self_attn.sdpa.u_bias",
        "attention.position_bias": "encoder.layers.{}.self_attn.sdpa.v_bias",
        "attention_norm": "encoder.layers.{}.self_attn_layer_norm",
        "feed_forward.input": "encoder.layers.{}.ffn.inner_proj",
        "feed_forward.output": "encoder.layers.{}.ffn.output_proj",
        "feed_forward_norm": "encoder.layers.{}.ffn_layer_norm",
    },
    conformer={
        "before.norm": "encoder.layers.{}.ffn1_layer_norm",
        "before.input": "encoder.layers.{}.ffn1.inner_proj",
        "before.output": "encoder.layers.{}.ffn1.output_proj",
        "attention_norm": "encoder.layers.{}.self_attn_layer_norm",
        "attention.qkv": (
            "encoder.layers.{0}.self_attn.q_proj encoder.layers.{0}.self_attn.k_proj encoder.layers.{0}.self_attn.v_proj"
        ),
        "attention.output": "encoder.layers.{}.self_attn.output_proj",
        "attention.position": "encoder.layers.{}.self_attn.sdpa.r_proj",
        "attention.content_bias": "encoder.layers.{}.self_attn.sdpa.u_bias",
        "attention.position_bias": "encoder.layers.{}.self_attn.sdpa.v_bias",
        "convolution.norm": "encoder.layers.{}.conv_layer_norm",
        "convolution.gate": "encoder.layers.{}.conv.pointwise_conv1",
        "convolution.depthwise": "encoder.layers.{}.conv.depthwise_conv",
        "convolution.depthwise_norm": "encoder.layers.{}.conv.batch_norm",
        "convolution.output": "encoder.layers.{}.conv.pointwise_conv2",
        "after.norm": "encoder.layers.{}.ffn2_layer_norm",
        "after.input": "encoder.layers.{}.ffn2.inner_proj",
        "after.output": "encoder.layers.{}.ffn2.output_proj",
        "norm": "encoder.layers.{}.layer_norm",
    },
)

CTC_ROWS = module("project", "final_proj")


def ssl_rows(groups: int) -> list[Row]:
    """Return the table of the pre-training head with so many codebooks."""
    return [
        Row("quantiser.codebook", ("quantizer.entries",), codebook(groups)),
        *module("quantiser.project", "quantizer.entry_proj"),
        *module("project_targets", "final_target_proj"),
        *module("project_states", "final_proj"),
    ]


def read_asset(name: str, units: Units | None = None, with_head: bool = True) -> Portable:
    """Return a model that fairseq2 knows by name, fetched or from its cache.

    Raises:
        AsrkitError: if fairseq2 is missing or knows no such model, it is of another family, or it cannot be fetched.
    """
    store = _asset_store()
    where = f"fairseq2:{name}"
    card = store.maybe_retrieve_card(name)
    if card is None:
        names = {known.partition("@")[0] for known in store.asset_names}
        known = {known for known in names if known.startswith(FAMILIES)} or names
        raise AsrkitError("no such asset of fairseq2", where=where, mend=nearest(name, known))
    return _read_card(card, units, with_head, where)


def read_folder(folder: Path, units: Units | None = None, with_head: bool = True) -> Portable:
    """Read what `write_folder` wrote, or the `checkpoints` folder of a training with fairseq2, its newest step.

    Raises:
        AsrkitError: naming the file that is missing or wrong.
    """
    cards = optional("fairseq2.assets.card", EXTRA, "reading fairseq2's checkpoints")
    try:
        found = yaml.safe_load((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise AsrkitError(f"expected an asset card, found {type(error).__name__}", where=folder / CARD) from None
    if not isinstance(found, Mapping) or "model_family" not in found:
        raise AsrkitError("expected an asset card with model_family, found none", where=folder / CARD)
    metadata: dict[str, object] = {**found, "__base_path__": folder.resolve()}
    if "checkpoint" not in metadata:
        steps = {int(path.name[5:]): path for path in folder.glob("step_*") if path.name[5:].isdigit()}
        if not steps:
            raise AsrkitError("expected step_N folders beside the card, found none", where=folder)
        metadata["checkpoint"] = str((steps[max(steps)] / "model").resolve())
    if units is None and with_head and (folder / "units").is_dir():
        units = Units.load(folder / "units")
    name = str(metadata.get("name", folder.resolve().name))
    return _read_card(cards.AssetCard(name, metadata), units, with_head, folder)


def _asset_store() -> Any:
    fairseq2 = optional("fairseq2", EXTRA, "models by the name of a fairseq2 asset")
    assets = optional("fairseq2.assets", EXTRA, "models by the name of a fairseq2 asset")
    dependency = optional("fairseq2.runtime.dependency", EXTRA, "models by the name of a fairseq2 asset")
    if dependency._resolver is None:
        fairseq2.init_fairseq2(no_progress=True)
    return assets.get_asset_store()


def _read_card(card: Any, units: Units | None, with_head: bool, where: object) -> Portable:
    _asset_store()
    family = card.field("model_family").value
    if family not in FAMILIES:
        raise AsrkitError(f"expected a model_family among {', '.join(FAMILIES)}, found {family!r}", where=where)
    models = optional("fairseq2.models.wav2vec2", EXTRA, "reading fairseq2's checkpoints")
    recognisers = optional("fairseq2.models.wav2vec2.asr", EXTRA, "reading fairseq2's checkpoints")
    hub = models.get_wav2vec2_model_hub() if family == "wav2vec2" else recognisers.get_wav2vec2_asr_model_hub()
    with downloading(str(where), "once with a network; fairseq2 keeps it in its asset cache"):
        try:
            config = hub.get_model_config(card)
            model = hub.load_model(card, device=torch.device("cpu"), dtype=torch.float32)
        except Exception as error:  # fairseq2 has an exception of its own for each way in which this can fail
            inner = _innermost(error)
            if isinstance(inner, (TimeoutError, ConnectionError, urllib.error.URLError, socket.gaierror)):
                raise ConnectionError(str(inner)) from None
            reason = " ".join((str(inner) or type(inner).__name__).split())[:300]
            raise AsrkitError(f"fairseq2 cannot load it: {reason}", where=where) from None
    layered = config.encoder_config.feature_extractor_layer_norm_convs
    normalise = card.metadata.get(NORMALISE, {"on": layered, "epsilon": WaveformConfig.normalise_epsilon})
    name = str(card.name).partition("@")[0]
    return _from_fairseq2(config, normalise, model.state_dict(), units, with_head, name, where)


def _innermost(error: BaseException) -> BaseException:
    """Return the exception at the bottom of a chain: the reason."""
    below = error.__cause__ or error.__context__
    return error if below is None else _innermost(below)


def _from_fairseq2(
    config: Any,
    normalise: Mapping[str, Any],
    state: Mapping[str, Tensor],
    units: Units | None,
    with_head: bool,
    name: str,
    where: object,
) -> Portable:
    supervised = not hasattr(config, "num_codebooks")
    shape = _encoder_config(config.encoder_config, normalise, where)
    rows, _ = encoder_rows(NAMES, shape)
    rows = prefixed(rows, ENCODER)
    notes: list[str] = []
    head = None
    if supervised and with_head:
        if units is None:
            size = config.target_vocab_size
            units = released_units()
            if len(units) != size:
                mend = "--dictionary FILE, or --encoder-only"
                raise AsrkitError(f"expected a dictionary of {size} symbols, found none", where=where, mend=mend)
            notes.append("a fairseq2 checkpoint brings no dictionary: that of the released English models is taken")
        rows += prefixed(CTC_ROWS, CTC)
    else:
        units = None
        if with_head and not supervised and config.final_dim == config.quantized_dim and config.final_proj_bias:
            head = _head_config(config)
            rows += prefixed(ssl_rows(head.groups), SSL)
    weights, _ = take(rows, state, where)
    return Portable(shape, weights, units, head, name, tuple(notes))


def _encoder_config(config: Any, normalise: Mapping[str, Any], where: object) -> EncoderConfig:
    pre_norm = config.norm_order.name == "PRE"
    conformer = config.use_conformer
    for wrong, what in (
        (config.use_fbank, "use_fbank: True"),
        (config.norm_order.name not in ("PRE", "POST"), f"norm_order: {config.norm_order.name}"),
        (pre_norm == config.layer_norm_features and not conformer, "norm_order and layer_norm_features that disagree"),
    ):
        if wrong:
            raise AsrkitError(f"found {what}: asrkit has no such model", where=where)
    depth = config.pos_encoder_depth
    kernel = config.pos_conv_kernel_size
    return EncoderConfig(
        waveform=WaveformConfig(
            layers=[list(spec) for spec in config.feature_extractor_layer_descs],
            norm="layer" if config.feature_extractor_layer_norm_convs else "group",
            bias=config.feature_extractor_bias,
            normalise=bool(normalise["on"]),
            normalise_epsilon=float(normalise["epsilon"]),
        ),
        blocks="conformer" if conformer else "transformer",
        layers=config.num_encoder_layers,
        dim=config.model_dim,
        ffn_dim=config.ffn_inner_dim,
        heads=config.num_encoder_attn_heads,
        pre_norm=pre_norm,
        positions=config.pos_encoder_type,
        conv_position_kernel=kernel if depth == 1 else max(3, kernel // depth),
        conv_position_groups=config.num_pos_conv_groups,
        conv_position_layers=depth,
        conv_kernel=config.depthwise_conv_kernel_size or 31,
        conv_norm="batch" if conformer else "layer",
        conv_bias=not conformer,
        outer_norm="before" if conformer and config.layer_norm_features else "none",
    )


def _head_config(config: Any) -> Wav2Vec2HeadConfig:
    start, end, decay = config.codebook_sampling_temperature
    return Wav2Vec2HeadConfig(
        mask=MaskConfig(),
        final_dim=config.final_dim,
        groups=config.num_codebooks,
        entries=config.num_codebook_entries,
        negatives=config.num_distractors,
        temperature=config.logit_temp,
        gumbel_start=start,
        gumbel_end=end,
        gumbel_decay=decay,
    )


def _unprojected(shape: EncoderConfig) -> bool:
    """Whether fairseq2 has no projection of the features, which are as wide as the blocks."""
    return shape.waveform.layers[-1][0] == shape.dim


def refusal(model: Portable) -> str | None:
    """Return why fairseq2 has no such model, or None."""
    reason = peculiarity(model)
    if reason is not None:
        return reason
    shape = model.encoder
    if shape.frontend != "waveform":
        return "fairseq2's wav2vec 2.0 begins with convolutions over the wave, or with filter banks of its own"
    if shape.positions not in ("conv", "relative", "rotary"):
        return f"fairseq2's wav2vec 2.0 has no positions of the kind {shape.positions}"
    if shape.positions == "conv" and shape.conv_position_layers > 1 and shape.conv_position_kernel % 2 == 0:
        return "fairseq2's stacked positional convolutions place even kernels one frame further on"
    if shape.blocks == "conformer" and (shape.conv_norm != "batch" or shape.conv_bias or shape.outer_norm == "after"):
        return "fairseq2's Conformer has conv_norm: batch, conv_bias: false and no norm after its blocks"
    if _unprojected(shape) and not torch.equal(model.weights[ENCODER + "projection.weight"], torch.eye(shape.dim)):
        return "fairseq2 has no projection where the features are as wide as the blocks"
    if model.units is None and model.head is None:
        return "fairseq2 has no encoder without a head"
    if model.head is not None and not model.head.quantise_targets:
        return "fairseq2's pre-training always quantises its targets"
    return None


def write_folder(model: Portable, folder: Path) -> None:
    """Write weights and an asset card; the units of a CTC head go into `units`, the blank first as fairseq2 wants it.

    Raises:
        AsrkitError: if fairseq2 has no such model, or the folder cannot be written.
    """
    reason = refusal(model)
    if reason is not None:
        raise AsrkitError(reason)
    rows, fillers = encoder_rows(NAMES, model.encoder)
    rows = prefixed(rows, ENCODER)
    weights = dict(model.weights)
    if _unprojected(model.encoder):
        rows = [row for row in rows if not row.ours.startswith(ENCODER + "projection.")]
    if model.units is not None:
        units, order = blank_first(model.units)
        units.save(folder / "units")
        weights |= {CTC + row.ours: weights[CTC + row.ours][order] for row in CTC_ROWS}
        rows += prefixed(CTC_ROWS, CTC)
    elif model.head is not None:
        rows += prefixed(ssl_rows(model.head.groups), SSL)
        fillers.append(Filler("quantizer.num_updates", torch.zeros(())))
    with atomic_path(folder / WEIGHTS) as temporary:
        torch.save(give(rows, fillers, weights), temporary)
    card = {
        "name": model.name,
        "model_family": "wav2vec2_asr" if model.units is not None else "wav2vec2",
        "model_config": _foreign_config(model),
        "checkpoint": WEIGHTS,
        # fairseq2 normalises waves in its recipes, if at all; it passes over this key.
        NORMALISE: {"on": model.encoder.waveform.normalise, "epsilon": model.encoder.waveform.normalise_epsilon},
    }
    write_text(folder / CARD, yaml.safe_dump(card, sort_keys=False))


def _foreign_config(model: Portable) -> dict[str, Any]:
    shape, waveform, head = model.encoder, model.encoder.waveform, model.head
    depth = shape.conv_position_layers
    conformer = shape.blocks == "conformer"
    encoder = {
        "model_dim": shape.dim,
        "feature_dim": waveform.layers[-1][0],
        "layer_norm_features": shape.outer_norm == "before" if conformer else not shape.pre_norm,
        "feature_extractor_layer_descs": [list(spec) for spec in waveform.layers],
        "feature_extractor_bias": waveform.bias,
        "feature_extractor_layer_norm_convs": waveform.norm == "layer",
        "pos_encoder_type": shape.positions,
        "pos_encoder_depth": depth,
        "pos_conv_kernel_size": shape.conv_position_kernel * depth,
        "num_pos_conv_groups": shape.conv_position_groups,
        "use_conformer": conformer,
        "depthwise_conv_kernel_size": shape.conv_kernel if conformer else 0,
        "num_encoder_layers": shape.layers,
        "num_encoder_attn_heads": shape.heads,
        "ffn_inner_dim": shape.ffn_dim,
        "norm_order": "PRE" if shape.pre_norm and not conformer else "POST",
    }
    if model.units is not None:
        return {"encoder_config": encoder, "target_vocab_size": len(model.units)}
    if head is None:
        return {"encoder_config": encoder}
    return {
        "encoder_config": encoder,
        "final_dim": head.final_dim,
        "quantized_dim": head.final_dim,
        "num_codebooks": head.groups,
        "num_codebook_entries": head.entries,
        "num_distractors": head.negatives,
        "logit_temp": head.temperature,
        "codebook_sampling_temperature": [head.gumbel_start, head.gumbel_end, head.gumbel_decay],
    }
