"""Other toolkits' wav2vec 2.0 models and blocks, made to do the work that asrkit's do: shapes, dropout, masks, losses.

Everything is made from a configuration, nothing is fetched. A toolkit that is not installed raises an AsrkitError when its
model is asked for. What they do differently, and cannot be told to do otherwise, is said in `PRETRAINING` and `LAYER_DROP`.

Shapes: N batch, S samples, T frames, C channels, L labels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.core.method import Method
from asrkit.data.batch import Batch
from asrkit.interop.huggingface import to_huggingface
from asrkit.interop.packages import optional
from asrkit.interop.portable import Portable
from asrkit.methods.finetune import Finetune
from asrkit.methods.pretrain import Pretrain
from asrkit.nn.config import EncoderConfig
from asrkit.nn.masking import MaskConfig
from asrkit.training.engine import TrainingEngine
from asrkit.training.optimiser import OptimiserConfig

PURPOSE = "the comparison"
RATE = 1e-5
"""Learning rate: what is learned does not matter, but nothing may overflow on the way."""
PRETRAINING = (
    "transformers' masks and negatives are drawn before the clock starts, as its loader would; asrkit and fairseq2 draw theirs in "
    "every update.",
    "transformers has no penalty on the frontend's features, and its gradients into the frontend are not scaled.",
)
"""What pre-training's contenders do differently and cannot be told to do otherwise."""
LAYER_DROP = "fairseq2 runs the blocks that LayerDrop skips all the same, and drops what they return."


@dataclass(frozen=True)
class Neighbour:
    """A model in training and what it is trained by."""

    model: nn.Module
    """Its parameters learn as far as they require gradients."""
    loss: Callable[[], Tensor]
    """The forward pass on the benchmark's batch: a scalar."""
    setting: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What the calls run in."""
    note: str = ""
    """What a reader must know of it."""


def update(neighbour: Neighbour, engine: TrainingEngine, config: OptimiserConfig) -> Callable[[], None]:
    """Return a function that does one update: forward, backward, clipping, AdamW."""
    model = neighbour.model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(
        parameters,
        lr=RATE,
        betas=(config.betas[0], config.betas[1]),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )

    def run() -> None:
        with neighbour.setting():
            with engine.autocast():
                loss = neighbour.loss()
            engine.scale(loss).backward()
            engine.scaler.unscale_(adamw)
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            engine.scaler.step(adamw)
            engine.scaler.update()
            adamw.zero_grad(set_to_none=True)

    return run


@cache
def compiles(device: torch.device) -> bool:
    """Whether torch.compile works here: it needs a C++ compiler on a CPU, Triton and a C compiler on a GPU."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception:  # each missing part has an exception of its own
        return False
    return True


def transformers_pretraining(method: Pretrain, batch: Batch, device: torch.device) -> Neighbour:
    """Return transformers' Wav2Vec2ForPreTraining with the weights and settings of asrkit's method."""
    transformers = optional("transformers", "huggingface", PURPOSE)
    modelling = optional("transformers.models.wav2vec2.modeling_wav2vec2", "huggingface", PURPOSE)
    head, shape = method.ssl.config, method.encoder.config
    config, weights = to_huggingface(Portable(shape, method.state_dict(), head=head))
    config |= {"feat_quantizer_dropout": head.features_dropout}
    model = transformers.Wav2Vec2ForPreTraining(transformers.Wav2Vec2Config(**config, **_dropouts(shape)))
    model.load_state_dict(weights)
    model.to(device).train()
    ready = batch.to(device)
    attention_mask = _attention_mask(ready)
    frames = [method.encoder.frames(samples) for samples in batch.host_lengths]
    size = (len(frames), max(frames))
    frame_mask = torch.arange(size[1]) < torch.tensor(frames)[:, None]
    masked = modelling._compute_mask_indices(
        size,
        head.mask.time_probability,
        head.mask.time_length,
        attention_mask=frame_mask.long(),
        min_masks=head.mask.time_minimum,
    )
    negatives = modelling._sample_negative_indices(size, head.negatives, mask_time_indices=masked)
    arguments = {
        "input_values": ready.waves,
        "attention_mask": attention_mask,
        "mask_time_indices": torch.from_numpy(masked).to(device),
        "sampled_negative_indices": torch.from_numpy(negatives).to(device),
    }
    count = int(masked.sum())
    return Neighbour(model, lambda: model(**arguments).loss / count)


def transformers_ctc(method: Finetune, batch: Batch, device: torch.device) -> Neighbour:
    """Return transformers' Wav2Vec2ForCTC with the weights and settings of asrkit's method."""
    transformers = optional("transformers", "huggingface", PURPOSE)
    shape, mask = method.encoder.config, method.config.mask
    config, weights = to_huggingface(Portable(shape, method.state_dict(), units=method.units))
    config |= {
        "mask_time_prob": mask.time_probability,
        "mask_time_length": mask.time_length,
        "mask_time_min_masks": mask.time_minimum,
        "mask_feature_prob": mask.channel_probability,
        "mask_feature_length": mask.channel_length,
        "mask_feature_min_masks": 0,
        "ctc_loss_reduction": "sum",
    }
    model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**config, **_dropouts(shape)))
    model.load_state_dict(weights)
    if method.config.freeze_frontend:
        model.freeze_feature_encoder()
    model.to(device).train()
    ready = batch.to(device)
    assert ready.targets is not None
    assert ready.target_lengths is not None
    places = torch.arange(ready.targets.size(1), device=device)
    labels = ready.targets.masked_fill(places >= ready.target_lengths[:, None], -100)
    arguments = {"input_values": ready.waves, "attention_mask": _attention_mask(ready), "labels": labels}
    return Neighbour(model, lambda: model(**arguments).loss / len(batch.ids))


def _dropouts(shape: EncoderConfig) -> dict[str, float]:
    return {
        "hidden_dropout": shape.dropout,
        "attention_dropout": shape.attention_dropout,
        "activation_dropout": shape.activation_dropout,
        "feat_proj_dropout": shape.input_dropout,
        "layerdrop": shape.layer_drop,
    }


def _attention_mask(batch: Batch) -> Tensor | None:
    """Return which samples are valid, int64 (N, S); None where nothing is padded, as the fastest of callers would."""
    if min(batch.host_lengths) == batch.waves.size(1):
        return None
    return (torch.arange(batch.waves.size(1), device=batch.waves.device) < batch.wave_lengths[:, None]).long()


def fairseq2_pretraining(method: Pretrain, batch: Batch, device: torch.device) -> Neighbour:
    """Return fairseq2's wav2vec 2.0 model of the shape and with the settings of asrkit's method."""
    models = optional("fairseq2.models.wav2vec2", "fairseq2", PURPOSE)
    head = method.ssl.config
    config = models.Wav2Vec2Config(
        encoder_config=_fairseq2_encoder(method, feature_grad_scale=method.config.frontend_gradient_scale),
        final_dim=head.final_dim,
        quantized_dim=head.final_dim,
        num_codebooks=head.groups,
        num_codebook_entries=head.entries,
        codebook_sampling_temperature=(head.gumbel_start, head.gumbel_end, head.gumbel_decay),
        num_distractors=head.negatives,
        logit_temp=head.temperature,
        **_fairseq2_mask(head.mask),
    )
    model = models.create_wav2vec2_model(config).to(device).train()
    waves, layout = _fairseq2_input(batch, device)

    def loss() -> Tensor:
        losses, output = model(
            waves,
            layout,
            diversity_weight=head.diversity_weight,
            features_penalty_weight=head.feature_penalty_weight,
        )
        mean: Tensor = losses.aggregate / output.num_targets
        return mean

    # Its quantiser goes through torch.compile wherever it runs; without a compiler it can only run as it stands.
    if compiles(device):
        return Neighbour(model, loss)
    return Neighbour(
        model, loss, _eager, "fairseq2's quantiser, which it compiles, ran as it stands: there is no compiler."
    )


def fairseq2_ctc(method: Finetune, batch: Batch, device: torch.device) -> Neighbour:
    """Return fairseq2's wav2vec 2.0 recogniser of the shape and with the settings of asrkit's method."""
    models = optional("fairseq2.models.wav2vec2.asr", "fairseq2", PURPOSE)
    layouts = optional("fairseq2.nn", "fairseq2", PURPOSE)
    config = models.Wav2Vec2AsrConfig(
        encoder_config=_fairseq2_encoder(method, feature_grad_scale=1.0),
        target_vocab_size=len(method.units),
        final_dropout_p=method.ctc.config.dropout,
        **_fairseq2_mask(method.config.mask),
    )
    model = models.create_wav2vec2_asr_model(config)
    if method.config.freeze_frontend:
        model.encoder_frontend.feature_extractor.requires_grad_(False)
    model.to(device).train()
    waves, layout = _fairseq2_input(batch, device)
    ready = batch.to(device)
    assert ready.targets is not None
    assert ready.host_target_lengths is not None
    targets_layout = layouts.BatchLayout.of(ready.targets, list(ready.host_target_lengths))
    return Neighbour(model, lambda: model(waves, layout, ready.targets, targets_layout) / len(batch.ids))


def _fairseq2_encoder(method: Method, **more: Any) -> Any:
    """Return fairseq2's configuration of the encoder of a method: a Transformer behind a waveform frontend."""
    models = optional("fairseq2.models.wav2vec2", "fairseq2", PURPOSE)
    shape = method.encoder.config
    return models.Wav2Vec2EncoderConfig(
        **fairseq2_blocks(shape),
        feature_dim=shape.waveform.layers[-1][0],
        feature_extractor_layer_descs=[tuple(spec) for spec in shape.waveform.layers],
        first_pass_dropout_p=shape.input_dropout,
        pos_conv_kernel_size=shape.conv_position_kernel,
        num_pos_conv_groups=shape.conv_position_groups,
        num_encoder_layers=shape.layers,
        layer_drop_p=shape.layer_drop,
        **more,
    )


def fairseq2_blocks(shape: EncoderConfig) -> dict[str, Any]:
    """Return what fairseq2's configuration says about blocks of a shape."""
    return {
        "model_dim": shape.dim,
        "num_encoder_attn_heads": shape.heads,
        "ffn_inner_dim": shape.ffn_dim,
        "dropout_p": shape.dropout,
        "attn_dropout_p": shape.attention_dropout,
        "ffn_inner_dropout_p": shape.activation_dropout,
    }


def _fairseq2_mask(mask: MaskConfig) -> dict[str, Any]:
    return {
        "temporal_mask_span_len": mask.time_length,
        "max_temporal_mask_prob": mask.time_probability,
        "min_num_temporal_mask_spans": mask.time_minimum,
        "spatial_mask_span_len": mask.channel_length,
        "max_spatial_mask_prob": mask.channel_probability,
        "min_num_spatial_mask_spans": 0,
    }


def _fairseq2_input(batch: Batch, device: torch.device) -> tuple[Tensor, Any]:
    layouts = optional("fairseq2.nn", "fairseq2", PURPOSE)
    waves = batch.waves.to(device)
    return waves, layouts.BatchLayout.of(waves, list(batch.host_lengths))


def _eager() -> AbstractContextManager[Any]:
    return torch.compiler.set_stance("force_eager")
