"""The wav2vec 2.0 encoder, its pre-training head and its CTC head against transformers, on random weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
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
from asrkit.nn.masking import MaskConfig, SpanMask, draw_mask, pack
from asrkit.nn.waveform import WaveformConfig
from asrkit.randomness import utterance_keys
from asrkit.text.units import Units

transformers = pytest.importorskip("transformers")

CONVOLUTIONS = [[16, 10, 5]] + [[16, 3, 2]] * 4 + [[16, 2, 2]] * 2
CLOCK = Clock(seed=1, update=0, phase="pretrain", phase_update=0, phase_updates=10)
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def make_foreign(kind: str, variant: str) -> nn.Module:
    """A small random model of transformers: variant "base" or "large"."""
    large = variant == "large"
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=[spec[0] for spec in CONVOLUTIONS],
        conv_kernel=[spec[1] for spec in CONVOLUTIONS],
        conv_stride=[spec[2] for spec in CONVOLUTIONS],
        conv_bias=large,
        feat_extract_norm="layer" if large else "group",
        do_stable_layer_norm=large,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        num_codevectors_per_group=8,
        num_codevector_groups=2,
        codevector_dim=24,
        proj_codevector_dim=24,
        contrastive_logits_temperature=0.1,
        diversity_loss_weight=0.1,
        vocab_size=9,
        pad_token_id=0,
        ctc_zero_infinity=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        feat_quantizer_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=True,
        mask_time_prob=0.05,
        mask_feature_prob=0.0,
    )
    torch.manual_seed(7)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_encoder(variant: str, padding: str = "exact") -> Encoder:
    large = variant == "large"
    config = EncoderConfig(
        waveform=WaveformConfig(layers=CONVOLUTIONS, norm="layer" if large else "group", bias=large),
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
    for theirs, ours in zip(source.feature_extractor.conv_layers, target.frontend.layers, strict=True):
        copy_linear(theirs.conv, ours.conv)
        if hasattr(theirs, "layer_norm"):
            copy_linear(theirs.layer_norm, ours.norm)
    copy_linear(source.feature_projection.layer_norm, target.feature_norm)
    copy_linear(source.feature_projection.projection, target.projection)
    target.mask_embedding.copy_(source.masked_spec_embed)
    conv = source.encoder.pos_conv_embed.conv
    # Any pair of direction and magnitude that gives the same weight will do.
    target.positions.direction.copy_(2.0 * conv.weight)
    target.positions.magnitude.copy_(conv.weight.norm(dim=(0, 1)))
    target.positions.bias.copy_(conv.bias)
    copy_linear(source.encoder.layer_norm, target.norm)
    for theirs, ours in zip(source.encoder.layers, target.blocks, strict=True):
        attention = theirs.attention
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        ours.attention.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        ours.attention.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        copy_linear(attention.out_proj, ours.attention.output)
        copy_linear(theirs.layer_norm, ours.attention_norm)
        copy_linear(theirs.feed_forward.intermediate_dense, ours.feed_forward.input)
        copy_linear(theirs.feed_forward.output_dense, ours.feed_forward.output)
        copy_linear(theirs.final_layer_norm, ours.feed_forward_norm)


def make_head(source: nn.Module) -> Wav2Vec2Head:
    config = Wav2Vec2HeadConfig(
        mask=MaskConfig(time_probability=0.5, time_length=3), final_dim=24, groups=2, entries=8, negatives=10
    )
    head = Wav2Vec2Head(config, 32, CONVOLUTIONS[-1][0])
    with torch.no_grad():
        copy_linear(source.project_hid, head.project_states)
        copy_linear(source.project_q, head.project_targets)
        copy_linear(source.quantizer.weight_proj, head.quantiser.project)
        head.quantiser.codebook.copy_(source.quantizer.codevectors.view_as(head.quantiser.codebook))
    head.dropout.p = 0.0
    return head


def make_batch(lengths: Sequence[int]) -> Batch:
    generator = torch.Generator().manual_seed(3)
    waves = torch.zeros(len(lengths), max(lengths))
    for row, samples in enumerate(lengths):
        # A different loudness and offset per row, which group normalisation must undo.
        waves[row, :samples] = torch.randn(samples, generator=generator) * 0.1 * (row + 1) + 0.02 * row
    ids = tuple(f"utterance-{row}" for row in range(len(lengths)))
    return Batch(waves, torch.tensor(lengths), tuple(lengths), utterance_keys(ids), ids, epoch=1)


def attention_mask(batch: Batch) -> Tensor:
    return (torch.arange(batch.waves.size(1)) < batch.wave_lengths[:, None]).long()


def assert_valid_close(ours: Tensor, theirs: Tensor, frames: Sequence[int]) -> None:
    assert ours.shape == theirs.shape
    for row, count in enumerate(frames):
        torch.testing.assert_close(ours[row, :count], theirs[row, :count], **TOLERANCE)


@pytest.mark.parametrize("variant", ["base", "large"])
@pytest.mark.parametrize("samples", [400, 719, 720, 4000, 5123])
@torch.no_grad()
def test_encoder_on_one_utterance(variant: str, samples: int) -> None:
    foreign, encoder = make_foreign("Wav2Vec2Model", variant), make_encoder(variant)
    copy_encoder(foreign, encoder)
    batch = make_batch([samples])
    theirs = foreign(batch.waves, output_hidden_states=True)
    ours = encoder(batch.waves, batch.wave_lengths, batch.host_lengths, keep_layers=True)
    torch.testing.assert_close(ours.features, theirs.extract_features, **TOLERANCE)
    torch.testing.assert_close(ours.states, theirs.last_hidden_state, **TOLERANCE)
    # The last of their hidden states is behind the final norm in the pre-norm variant.
    for mine, other in zip(ours.layers[:-1], theirs.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine, other, **TOLERANCE)


@pytest.mark.parametrize(("variant", "padding"), [("base", "foreign"), ("large", "exact"), ("large", "foreign")])
@torch.no_grad()
def test_encoder_on_a_padded_batch(variant: str, padding: str) -> None:
    foreign, encoder = make_foreign("Wav2Vec2Model", variant), make_encoder(variant, padding)
    copy_encoder(foreign, encoder)
    batch = make_batch([3000, 5123, 400])
    theirs = foreign(batch.waves, attention_mask=attention_mask(batch))
    ours = encoder(batch.waves, batch.wave_lengths, batch.host_lengths)
    assert_valid_close(ours.features, theirs.extract_features, ours.host_lengths)
    assert_valid_close(ours.states, theirs.last_hidden_state, ours.host_lengths)


@torch.no_grad()
def test_exact_padding_is_the_foreign_model_without_padding() -> None:
    foreign, encoder = make_foreign("Wav2Vec2Model", "base"), make_encoder("base")
    copy_encoder(foreign, encoder)
    batch = make_batch([3000, 5123])
    padded = foreign(batch.waves, attention_mask=attention_mask(batch)).last_hidden_state
    alone = foreign(batch.waves[:1, :3000]).last_hidden_state
    ours = encoder(batch.waves, batch.wave_lengths, batch.host_lengths)
    frames = ours.host_lengths[0]
    assert (padded[0, :frames] - alone[0]).abs().max() > 0.01  # their own result depends on padding
    torch.testing.assert_close(ours.states[0, :frames], alone[0], **TOLERANCE)


@pytest.mark.parametrize("variant", ["base", "large"])
@torch.no_grad()
def test_time_mask(variant: str) -> None:
    foreign, encoder = make_foreign("Wav2Vec2Model", variant), make_encoder(variant, "foreign")
    copy_encoder(foreign, encoder)
    batch = make_batch([6000, 8000])
    frames = [encoder.frames(samples) for samples in batch.host_lengths]
    config = MaskConfig(time_probability=0.5, time_length=3)
    mask = draw_mask(config, batch.keys, frames, 32, seed=1, epoch=1)
    theirs = foreign(batch.waves, attention_mask=attention_mask(batch), mask_time_indices=mask.time)
    ours = encoder(batch.waves, batch.wave_lengths, batch.host_lengths, mask=mask)
    assert_valid_close(ours.features, theirs.extract_features, frames)
    assert_valid_close(ours.states, theirs.last_hidden_state, frames)


@torch.no_grad()
def test_channel_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign, encoder = make_foreign("Wav2Vec2Model", "base"), make_encoder("base")
    copy_encoder(foreign, encoder)
    batch = make_batch([5000, 5000])
    channels = torch.zeros(2, 32, dtype=torch.bool)
    channels[0, 3:9] = channels[1, 20:31] = True
    module = __import__(type(foreign).__module__, fromlist=["_compute_mask_indices"])
    monkeypatch.setattr(module, "_compute_mask_indices", lambda *args, **kwargs: channels.numpy())
    foreign.config.mask_time_prob, foreign.config.mask_feature_prob = 0.0, 0.5
    theirs = foreign.train()(batch.waves)
    ours = encoder(batch.waves, batch.wave_lengths, batch.host_lengths, mask=SpanMask(None, channels))
    torch.testing.assert_close(ours.states, theirs.last_hidden_state, **TOLERANCE)


def sampled_negatives(draws: Wav2Vec2Draws, places: Tensor, valid: Tensor) -> Tensor:
    """Our negatives, places among a row's masked frames, as indices into all frames of the batch, (N, T, K)."""
    rows, frames = draws.mask.time.shape
    result = torch.zeros(rows, frames, draws.negatives.size(2), dtype=torch.int64)
    for row in range(rows):
        for place in range(int(valid[row].sum())):
            result[row, places[row, place]] = row * frames + places[row, draws.negatives[row, place]]
    return result


def scatter_noise(noise: Tensor, places: Tensor, frames: int) -> Tensor:
    """Gumbel noise of the packed masked frames (N, M, G, E), laid out over all frames (N · T · G, E)."""
    everywhere = torch.zeros(noise.size(0), frames, *noise.shape[2:])
    everywhere.scatter_(1, places[:, :, None, None].expand_as(noise), noise)
    return everywhere.flatten(0, 2)


@pytest.mark.parametrize(
    ("variant", "lengths"), [("base", [9000]), ("base", [9000, 7001]), ("large", [9000]), ("large", [9000, 7001])]
)
def test_pretraining_losses_and_gradients(variant: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    foreign, encoder = make_foreign("Wav2Vec2ForPreTraining", variant), make_encoder(variant, "foreign")
    copy_encoder(foreign.wav2vec2, encoder)
    head = make_head(foreign).train()
    batch = make_batch(lengths)
    frames = [encoder.frames(samples) for samples in lengths]
    draws = head.draw(batch, frames, CLOCK)
    places, valid = pack(draws.mask.time, draws.mask.most)
    noise = scatter_noise(draws.noise, places, max(frames))

    def gumbel_softmax(logits: Tensor, tau: float, hard: bool) -> Tensor:
        soft = ((logits + noise) / tau).softmax(-1)
        best = F.one_hot(soft.argmax(-1), soft.size(-1)).to(soft.dtype)
        # Their one-hot + soft - soft misses 1 by a rounding error, which hides negatives that equal the target.
        return best + (soft - soft.detach())

    monkeypatch.setattr(nn.functional, "gumbel_softmax", gumbel_softmax)
    foreign.quantizer.train()
    foreign.quantizer.temperature = head.gumbel_temperature(CLOCK)
    theirs = foreign(
        batch.waves,
        attention_mask=attention_mask(batch),
        mask_time_indices=draws.mask.time,
        sampled_negative_indices=sampled_negatives(draws, places, valid),
    )
    theirs.loss.backward()
    encoded = encoder(batch.waves, batch.wave_lengths, batch.host_lengths, mask=draws.mask)
    losses = head.loss(encoded, batch, draws, CLOCK)
    contrastive, diversity = losses.terms["contrastive"], losses.terms["diversity"]
    ours = contrastive.sum + diversity.weight * diversity.sum
    ours.backward()

    assert_valid_close(head.project_states(encoded.states), theirs.projected_states, frames)
    torch.testing.assert_close(contrastive.sum, theirs.contrastive_loss, **TOLERANCE)
    torch.testing.assert_close(diversity.sum, theirs.diversity_loss, **TOLERANCE)
    torch.testing.assert_close(ours, theirs.loss, **TOLERANCE)
    torch.testing.assert_close(
        torch.as_tensor(losses.metrics["prob_perplexity"].numerator / losses.metrics["prob_perplexity"].denominator),
        theirs.codevector_perplexity,
        **TOLERANCE,
    )
    for mine, other in (
        (encoder.frontend.layers[0].conv.weight, foreign.wav2vec2.feature_extractor.conv_layers[0].conv.weight),
        (encoder.frontend.layers[0].norm.weight, foreign.wav2vec2.feature_extractor.conv_layers[0].layer_norm.weight),
        (encoder.frontend.layers[3].conv.weight, foreign.wav2vec2.feature_extractor.conv_layers[3].conv.weight),
        (encoder.projection.weight, foreign.wav2vec2.feature_projection.projection.weight),
        (encoder.mask_embedding, foreign.wav2vec2.masked_spec_embed),
        (encoder.positions.bias, foreign.wav2vec2.encoder.pos_conv_embed.conv.bias),
        (encoder.blocks[0].attention.output.weight, foreign.wav2vec2.encoder.layers[0].attention.out_proj.weight),
        (head.quantiser.project.weight, foreign.quantizer.weight_proj.weight),
        (head.project_targets.weight, foreign.project_q.weight),
    ):
        scale = other.grad.abs().max().item()
        torch.testing.assert_close(mine.grad / scale, other.grad / scale, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_pretraining_logits() -> None:
    foreign, encoder = make_foreign("Wav2Vec2ForPreTraining", "base"), make_encoder("base")
    copy_encoder(foreign.wav2vec2, encoder)
    head = make_head(foreign).eval()
    batch = make_batch([9000])
    draws = head.draw(batch, [encoder.frames(9000)], CLOCK)
    theirs = foreign(batch.waves, mask_time_indices=draws.mask.time)
    places, valid = pack(draws.mask.time, draws.mask.most)
    assert valid.any()
    encoded = encoder(batch.waves, batch.wave_lengths, batch.host_lengths, mask=draws.mask)
    features = encoded.features[0, places[0]][None]
    targets = head.project_targets(head.quantiser(features, valid).vectors)[0]
    predictions = head.project_states(encoded.states[0, places[0]])
    torch.testing.assert_close(targets, theirs.projected_quantized_states[0, places[0]], **TOLERANCE)
    ours = F.cosine_similarity(predictions[:, None], targets[None], dim=-1) / head.config.temperature
    quantised = theirs.projected_quantized_states[0, places[0]]
    logits = foreign.compute_contrastive_logits(
        quantised[None], quantised[:, None].expand(-1, len(quantised), -1), theirs.projected_states[0, places[0]], 0.1
    )
    torch.testing.assert_close(ours.diagonal(), logits[0], **TOLERANCE)
    torch.testing.assert_close(ours.t(), logits[1:], **TOLERANCE)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("variant", ["base", "large"])
@torch.no_grad()
def test_ctc_head(variant: str, reduction: str) -> None:
    foreign, encoder = make_foreign("Wav2Vec2ForCTC", variant), make_encoder(variant, "foreign")
    foreign.config.ctc_loss_reduction = reduction
    copy_encoder(foreign.wav2vec2, encoder)
    units = Units(("<blank>", "|", *"abcdefg"), blank=0, boundary="|", kind="char")
    head = CTCHead(CTCHeadConfig(dropout=0.0), 32, units).eval()
    copy_linear(foreign.lm_head, head.project)
    batch = make_batch([9000, 7001])
    labels = torch.tensor([[3, 4, 4, 5, 1, 2], [8, 1, 2, -100, -100, -100]])
    theirs = foreign(batch.waves, attention_mask=attention_mask(batch), labels=labels)
    encoded = encoder(batch.waves, batch.wave_lengths, batch.host_lengths)
    logits = head.logits(encoded.states)
    assert_valid_close(logits, theirs.logits, encoded.host_lengths)
    ours = ctc_loss(logits, labels.clamp(min=0), encoded.lengths, torch.tensor([6, 3]), blank=0, reduction=reduction)
    torch.testing.assert_close(ours, theirs.loss, **TOLERANCE)
