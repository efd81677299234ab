"""The wav2vec 2.0 encoder, its pre-training losses and its CTC model against fairseq2, on random weights."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkit.core.clock import Clock
from asrkit.data.batch import Batch
from asrkit.heads.ctc import CTCHead, CTCHeadConfig
from asrkit.heads.wav2vec2 import Wav2Vec2Draws, Wav2Vec2Head, Wav2Vec2HeadConfig
from asrkit.losses.ctc import ctc_loss
from asrkit.nn.config import EncoderConfig
from asrkit.nn.encoder import Encoder
from asrkit.nn.masking import MaskConfig, pack
from asrkit.nn.waveform import WaveformConfig
from asrkit.randomness import utterance_keys
from asrkit.text.units import Units

# fairseq2's native library wants libsndfile, which the soundfile wheel carries.
for _library in (Path(soundfile.__file__).parent / "_soundfile_data").glob("libsndfile*.so*"):
    ctypes.CDLL(str(_library), mode=ctypes.RTLD_GLOBAL)
pytest.importorskip("fairseq2")

from fairseq2.models.transformer import TransformerNormOrder  # noqa: E402
from fairseq2.models.wav2vec2 import config as fairseq2_config  # noqa: E402
from fairseq2.models.wav2vec2 import vector_quantizer  # noqa: E402
from fairseq2.models.wav2vec2.asr import Wav2Vec2AsrConfig, create_wav2vec2_asr_model  # noqa: E402
from fairseq2.models.wav2vec2.factory import create_wav2vec2_model  # noqa: E402
from fairseq2.nn import BatchLayout  # noqa: E402

CONVOLUTIONS = [(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2
CLOCK = Clock(seed=1, update=0, phase="pretrain", phase_update=0, phase_updates=10)
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(autouse=True)
def _no_compiler() -> Iterator[None]:
    """Let what fairseq2 sends through torch.compile run as it is: a compiler may be missing."""
    with torch.compiler.set_stance("force_eager"):
        yield


def foreign_encoder_config(variant: str) -> fairseq2_config.Wav2Vec2EncoderConfig:
    large = variant == "large"
    return fairseq2_config.Wav2Vec2EncoderConfig(
        model_dim=32,
        feature_dim=CONVOLUTIONS[-1][0],
        feature_extractor_layer_descs=CONVOLUTIONS,
        feature_extractor_bias=large,
        feature_extractor_layer_norm_convs=large,
        layer_norm_features=not large,
        feature_grad_scale=0.25,
        pos_conv_kernel_size=16,
        num_pos_conv_groups=4,
        num_encoder_layers=3,
        num_encoder_attn_heads=4,
        ffn_inner_dim=48,
        dropout_p=0.0,
        attn_dropout_p=0.0,
        layer_drop_p=0.0,
        norm_order=TransformerNormOrder.PRE if large else TransformerNormOrder.POST,
    )


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def make_foreign(variant: str) -> nn.Module:
    torch.manual_seed(7)
    config = fairseq2_config.Wav2Vec2Config(
        encoder_config=foreign_encoder_config(variant),
        final_dim=24,
        quantized_dim=24,
        num_codebooks=2,
        num_codebook_entries=8,
        num_distractors=10,
    )
    return randomise(create_wav2vec2_model(config))


def make_encoder(variant: str, padding: str = "exact") -> Encoder:
    large = variant == "large"
    config = EncoderConfig(
        waveform=WaveformConfig([list(spec) for spec in CONVOLUTIONS], norm="layer" if large else "group", bias=large),
        layers=3,
        dim=32,
        ffn_dim=48,
        heads=4,
        pre_norm=large,
        conv_position_kernel=16,
        conv_position_groups=4,
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        padding=padding,
    )
    return Encoder(config).eval()


def copy_linear(source: nn.Module, target: nn.Module) -> None:
    """Copy weight and bias, of a linear map, a convolution or a norm."""
    target.weight.copy_(source.weight)
    if target.bias is not None:
        target.bias.copy_(source.bias)


@torch.no_grad()
def copy_encoder(source: nn.Module, target: Encoder) -> None:
    """Copy from a fairseq2 wav2vec 2.0 model, with or without the pre-training head."""
    frontend = source.encoder_frontend
    for theirs, ours in zip(frontend.feature_extractor.layers, target.frontend.layers, strict=True):
        copy_linear(theirs.conv, ours.conv)
        if theirs.group_norm is not None or theirs.layer_norm is not None:
            copy_linear(theirs.group_norm or theirs.layer_norm, ours.norm)
    copy_linear(frontend.post_extract_layer_norm, target.feature_norm)
    copy_linear(frontend.model_dim_proj, target.projection)
    if source.masker is not None:
        target.mask_embedding.copy_(source.masker.temporal_mask_embed)
    target.positions.direction.copy_(frontend.pos_encoder.conv.weight_v)
    target.positions.magnitude.copy_(frontend.pos_encoder.conv.weight_g.flatten())
    target.positions.bias.copy_(frontend.pos_encoder.conv.bias)
    copy_linear(frontend.layer_norm or source.encoder.layer_norm, target.norm)
    for theirs, ours in zip(source.encoder.layers, target.blocks, strict=True):
        attention = theirs.self_attn
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        ours.attention.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        ours.attention.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        copy_linear(attention.output_proj, ours.attention.output)
        copy_linear(theirs.self_attn_layer_norm, ours.attention_norm)
        copy_linear(theirs.ffn.inner_proj, ours.feed_forward.input)
        copy_linear(theirs.ffn.output_proj, ours.feed_forward.output)
        copy_linear(theirs.ffn_layer_norm, ours.feed_forward_norm)


@torch.no_grad()
def make_head(source: nn.Module) -> Wav2Vec2Head:
    # One span length and a batch minimum: fairseq2 wants as many masked frames in each row.
    mask = MaskConfig(time_probability=0.5, time_length=3, batch_minimum=True)
    config = Wav2Vec2HeadConfig(mask=mask, final_dim=24, groups=2, entries=8, negatives=10, features_dropout=0.0)
    head = Wav2Vec2Head(config, 32, CONVOLUTIONS[-1][0])
    copy_linear(source.final_proj, head.project_states)
    copy_linear(source.final_target_proj, head.project_targets)
    copy_linear(source.quantizer.entry_proj, head.quantiser.project)
    head.quantiser.codebook.copy_(source.quantizer.entries.view_as(head.quantiser.codebook))
    return head


def make_batch(lengths: Sequence[int]) -> Batch:
    generator = torch.Generator().manual_seed(3)
    waves = torch.zeros(len(lengths), max(lengths))
    for row, samples in enumerate(lengths):
        waves[row, :samples] = torch.randn(samples, generator=generator) * 0.1 * (row + 1) + 0.02 * row
    ids = tuple(f"utterance-{row}" for row in range(len(lengths)))
    return Batch(waves, torch.tensor(lengths), tuple(lengths), utterance_keys(ids), ids, epoch=1)


def layout(batch: Batch) -> BatchLayout:
    return BatchLayout.of(batch.waves, list(batch.host_lengths))


def assert_valid_close(ours: Tensor, theirs: Tensor, frames: Sequence[int]) -> None:
    assert ours.shape == theirs.shape
    for row, count in enumerate(frames):
        torch.testing.assert_close(ours[row, :count], theirs[row, :count], **TOLERANCE)


@pytest.mark.parametrize(
    ("variant", "padding", "lengths"),
    [
        ("base", "exact", [400]),
        ("base", "exact", [5123]),
        ("base", "foreign", [3000, 5123]),
        ("large", "exact", [719]),
        ("large", "exact", [3000, 5123, 400]),
    ],
)
@torch.no_grad()
def test_encoder(variant: str, padding: str, lengths: list[int]) -> None:
    foreign, encoder = make_foreign(variant), make_encoder(variant, padding)
    copy_encoder(foreign, encoder)
    batch = make_batch(lengths)
    features, features_layout, raw = foreign.encoder_frontend.extract_features(batch.waves, layout(batch))
    states, _ = foreign.encoder_frontend.process_features(features, features_layout)
    states = foreign.encoder(states, features_layout)
    ours = encoder(batch.waves, batch.wave_lengths, batch.host_lengths)
    assert_valid_close(ours.extracted, raw, ours.host_lengths)
    assert_valid_close(ours.features, features, ours.host_lengths)
    assert_valid_close(ours.states, states, ours.host_lengths)


def fix_draws(foreign: nn.Module, draws: Wav2Vec2Draws, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make fairseq2 use our masks, negatives and Gumbel noise."""
    foreign.masker.mask_factory = lambda **kwargs: draws.mask.time
    masked = int(draws.masked[0])
    negatives = draws.negatives[:, :masked]

    def sample_distractors(targets: Tensor) -> Tensor:
        return torch.stack([targets[row][negatives[row]] for row in range(len(targets))])

    monkeypatch.setattr(foreign, "_sample_distractors", sample_distractors)

    def gumbel_softmax(logits: Tensor, tau: float, hard: bool) -> Tensor:
        soft = ((logits + draws.noise[:, :masked].flatten(0, 2)) / tau).softmax(-1)
        best = F.one_hot(soft.argmax(-1), soft.size(-1)).to(soft.dtype)
        # Their one-hot + soft - soft misses 1 by a rounding error, which hides negatives that equal the target.
        return best + (soft - soft.detach())

    monkeypatch.setattr(vector_quantizer, "gumbel_softmax", gumbel_softmax)


@pytest.mark.parametrize("lengths", [[9000], [9000, 9000]])
@pytest.mark.parametrize("variant", ["base", "large"])
def test_pretraining_losses_logits_and_gradients(
    variant: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign, encoder = make_foreign(variant), make_encoder(variant)
    copy_encoder(foreign, encoder)
    head = make_head(foreign).train()
    batch = make_batch(lengths)
    frames = [encoder.frames(samples) for samples in lengths]
    draws = head.draw(batch, frames, CLOCK)
    fix_draws(foreign.train(), draws, monkeypatch)
    theirs, output = foreign(batch.waves, layout(batch))
    theirs.aggregate.backward()
    encoded = encoder(
        batch.waves, batch.wave_lengths, batch.host_lengths, mask=draws.mask, frontend_gradient_scale=0.25
    )
    losses = head.loss(encoded, batch, draws, CLOCK)
    ours = sum(term.weight * term.sum for term in losses.terms.values())
    ours.backward()

    assert int(draws.masked.sum()) == output.num_targets > 0
    torch.testing.assert_close(losses.terms["contrastive"].sum, theirs.contrastive, **TOLERANCE)
    torch.testing.assert_close(losses.terms["diversity"].sum, theirs.diversity, **TOLERANCE)
    torch.testing.assert_close(losses.terms["feature_penalty"].sum, theirs.features_penalty, **TOLERANCE)
    torch.testing.assert_close(ours, theirs.aggregate, **TOLERANCE)
    masked = int(draws.masked[0])
    places, _ = pack(draws.mask.time, draws.mask.most)
    rows = torch.arange(len(lengths))[:, None]
    predictions = head.project_states(encoded.states[rows, places[:, :masked]])
    similarity = F.cosine_similarity(predictions[:, :, None], output.quantized_targets[:, None], dim=-1) / 0.1
    torch.testing.assert_close(similarity.diagonal(dim1=1, dim2=2), output.logits[:, :, 0], **TOLERANCE)
    drawn, logits = similarity.gather(2, draws.negatives[:, :masked]), output.logits[:, :, 1:]
    torch.testing.assert_close(drawn[logits.isfinite()], logits[logits.isfinite()], **TOLERANCE)

    convolutions = foreign.encoder_frontend.feature_extractor.layers
    first_norm = convolutions[0].group_norm or convolutions[0].layer_norm
    for mine, other in (
        (encoder.frontend.layers[0].conv.weight, convolutions[0].conv.weight),
        (encoder.frontend.layers[0].norm.weight, first_norm.weight),
        (encoder.frontend.layers[3].conv.weight, convolutions[3].conv.weight),
        (encoder.projection.weight, foreign.encoder_frontend.model_dim_proj.weight),
        (encoder.mask_embedding, foreign.masker.temporal_mask_embed),
        (encoder.positions.magnitude, foreign.encoder_frontend.pos_encoder.conv.weight_g.flatten()),
        (encoder.positions.direction, foreign.encoder_frontend.pos_encoder.conv.weight_v),
        (encoder.blocks[0].attention.output.weight, foreign.encoder.layers[0].self_attn.output_proj.weight),
        (head.quantiser.project.weight, foreign.quantizer.entry_proj.weight),
        (head.quantiser.codebook.flatten(0, 1), foreign.quantizer.entries[0]),
    ):
        ours_gradient, their_gradient = gradient(mine), gradient(other)
        scale = their_gradient.abs().max().item()
        torch.testing.assert_close(ours_gradient / scale, their_gradient / scale, atol=1e-4, rtol=1e-3)


def gradient(tensor: Tensor) -> Tensor:
    """The gradient of a parameter, or of a reshaped view of one."""
    parameter = tensor if tensor.is_leaf else tensor._base
    return parameter.grad.view(tensor.shape)


@torch.no_grad()
def test_ctc_model() -> None:
    config = Wav2Vec2AsrConfig(
        encoder_config=foreign_encoder_config("base"), target_vocab_size=9, final_dropout_p=0.0, use_masking=False
    )
    foreign, encoder = randomise(create_wav2vec2_asr_model(config)), make_encoder("base", "foreign")
    copy_encoder(foreign, encoder)
    units = Units(("<blank>", "|", *"abcdefg"), blank=0, boundary="|", kind="char")
    head = CTCHead(CTCHeadConfig(dropout=0.0), 32, units).eval()
    copy_linear(foreign.final_proj, head.project)
    batch = make_batch([9000, 7001])
    targets, target_lengths = torch.tensor([[3, 4, 4, 5, 1, 2], [8, 1, 2, 0, 0, 0]]), [6, 3]
    loss, logits, _ = foreign(
        batch.waves, layout(batch), targets, BatchLayout.of(targets, target_lengths), return_logits=True
    )
    encoded = encoder(batch.waves, batch.wave_lengths, batch.host_lengths)
    assert_valid_close(head.logits(encoded.states), logits, encoded.host_lengths)
    ours = ctc_loss(
        head.logits(encoded.states), targets, encoded.lengths, torch.tensor(target_lengths), reduction="sum"
    )
    torch.testing.assert_close(ours, loss, **TOLERANCE)
