"""Sizes, stages, LayerDrop, hooks, precision and freezing of the encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from asrkit.errors import AsrkitError
from asrkit.heads.wav2vec2 import Wav2Vec2Head, Wav2Vec2HeadConfig
from asrkit.nn.config import EncoderConfig
from asrkit.nn.encoder import Encoded, Encoder
from asrkit.nn.gradient import scale_gradient
from asrkit.nn.masking import SpanMask
from asrkit.nn.waveform import Convolution, WaveformConfig

CONVOLUTIONS = [[16, 10, 5]] + [[16, 3, 2]] * 4 + [[16, 2, 2]] * 2
SMALL = EncoderConfig(
    waveform=WaveformConfig(CONVOLUTIONS),
    layers=3,
    dim=32,
    ffn_dim=48,
    heads=4,
    conv_position_kernel=16,
    conv_position_groups=4,
    conv_kernel=7,
)
LENGTHS = (6000, 4000)
VARIANTS = {
    "base": SMALL,
    "large": replace(SMALL, pre_norm=True, waveform=WaveformConfig(CONVOLUTIONS, "layer", bias=True, normalise=True)),
    "conformer, relative": replace(SMALL, blocks="conformer", positions="relative"),
    "conformer, rotary": replace(SMALL, blocks="conformer", positions="rotary", frontend="logmel"),
}


def make_encoder(config: EncoderConfig = SMALL) -> Encoder:
    torch.manual_seed(1)
    return Encoder(config).eval()


def make_waves(device: str = "cpu") -> Tensor:
    waves = torch.randn(2, max(LENGTHS), generator=torch.Generator().manual_seed(2)) * 0.1
    waves[1, LENGTHS[1] :] = 0.0
    return waves.to(device)


def run(encoder: Encoder, **options: object) -> Encoded:
    return encoder(make_waves(), torch.tensor(LENGTHS), LENGTHS, **options)


def test_base_with_its_head_has_the_size_of_the_paper() -> None:
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig())
        head = Wav2Vec2Head(Wav2Vec2HeadConfig(), encoder.dim, encoder.feature_dim)
    count = sum(p.numel() for module in (encoder, head) for p in module.parameters())
    assert count == 95_044_608
    assert sum(p.numel() for p in encoder.groups()["frontend"]) == 4_200_448


@pytest.mark.parametrize(("samples", "frames"), [(399, 0), (400, 1), (719, 1), (720, 2), (16_000, 49), (0, 0)])
def test_frames_of_the_convolutions(samples: int, frames: int) -> None:
    assert make_encoder().frames(samples) == frames


def test_frame_rate() -> None:
    assert make_encoder().frame_rate == 50.0


@pytest.mark.parametrize("name", VARIANTS)
def test_groups_are_a_partition(name: str) -> None:
    encoder = make_encoder(VARIANTS[name])
    groups = encoder.groups()
    assert set(groups) == {"frontend", "encoder"}
    parts = [id(p) for group in groups.values() for p in group]
    assert sorted(parts) == sorted(id(p) for p in encoder.parameters())
    assert id(encoder.mask_embedding) in {id(p) for p in groups["encoder"]}


@torch.no_grad()
def test_two_stages_are_one_pass() -> None:
    encoder = make_encoder()
    whole = run(encoder)
    extracted = encoder.extract(make_waves(), torch.tensor(LENGTHS), LENGTHS)
    staged = encoder.contextualise(extracted)
    for name in ("features", "extracted", "states"):
        assert torch.equal(getattr(whole, name), getattr(staged, name))


@torch.no_grad()
def test_masked_frames_are_replaced_and_features_are_not() -> None:
    encoder = make_encoder()
    frames = max(encoder.frames(samples) for samples in LENGTHS)
    time = torch.zeros(2, frames, dtype=torch.bool)
    time[:, 3:8] = True
    plain, masked = run(encoder), run(encoder, mask=SpanMask(time, None), keep_layers=True)
    assert torch.equal(plain.features, masked.features)
    assert not torch.allclose(plain.states, masked.states)
    # What stood under the mask has no influence on the states.
    extracted = encoder.extract(make_waves(), torch.tensor(LENGTHS), LENGTHS)
    changed = replace(extracted, extracted=extracted.extracted + time[:, :, None] * 3.0)
    assert torch.equal(encoder.contextualise(changed, SpanMask(time, None)).states, masked.states)


@torch.no_grad()
def test_dropped_layers_are_skipped() -> None:
    encoder = make_encoder()
    dropped = run(encoder, drops=[False, True, False], keep_layers=True)
    assert torch.equal(dropped.layers[1], dropped.layers[2])
    del encoder.blocks[1]
    assert torch.equal(dropped.states, run(encoder).states)


@torch.no_grad()
def test_after_layer_takes_the_layers_output_and_feeds_the_next() -> None:
    encoder = make_encoder()
    seen = []

    def double(states: Tensor) -> Tensor:
        seen.append(states)
        return 2.0 * states

    plain = run(encoder, keep_layers=True)
    changed = run(encoder, after_layer={1: double}, keep_layers=True)
    assert torch.equal(seen[0], plain.layers[2])
    assert torch.equal(changed.layers[2], 2.0 * plain.layers[2])
    assert not torch.allclose(changed.states, plain.states)
    run(encoder, after_layer={1: double}, drops=[False, True, False])
    assert len(seen) == 1


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("name", VARIANTS)
def test_checkpointing_changes_no_gradient_and_no_statistics(name: str, norm: str) -> None:
    results = []
    for recompute in (False, True):
        encoder = make_encoder(replace(VARIANTS[name], conv_norm=norm, checkpoint_activations=recompute)).train()
        torch.manual_seed(4)  # dropout is on
        loss = run(encoder).states.square().sum()
        learning = list(encoder.parameters())
        # Twice, as where gradients are measured first.
        measured = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True)
        loss.backward()
        found = [gradient for pair in zip(measured, (p.grad for p in learning), strict=True) for gradient in pair]
        results.append([*(gradient for gradient in found if gradient is not None), *encoder.buffers()])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_frontend_gradient_scale() -> None:
    def gradients(scale: float) -> tuple[Tensor | None, Tensor]:
        encoder = make_encoder()
        encoded = run(encoder, frontend_gradient_scale=scale)
        (encoded.states.square().sum() + encoded.extracted.square().sum()).backward()
        return encoder.frontend.layers[2].conv.weight.grad, encoder.projection.weight.grad

    (full, projection), (tenth, same) = gradients(1.0), gradients(0.1)
    torch.testing.assert_close(tenth, 0.1 * full)
    torch.testing.assert_close(same, projection)
    none, same = gradients(0.0)
    assert none is None
    torch.testing.assert_close(same, projection)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, -2.0])
def test_scale_gradient_is_an_identity(scale: float) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    anchor = torch.zeros((), requires_grad=True)
    y = scale_gradient(x, scale)
    assert torch.equal(x, y)
    ((y * y).sum() + anchor).backward()
    expected = 2.0 * scale * x.detach()
    assert x.grad is None if scale == 0.0 else torch.allclose(x.grad, expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_half_precision_stays_near_and_keeps_statistics_exact(name: str) -> None:
    encoder = make_encoder(VARIANTS[name])
    with torch.no_grad():
        exact = run(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        half = run(encoder)
        half.states.float().square().sum().backward()
    valid = exact.frame_mask
    difference = (half.states.float() - exact.states)[valid].abs().mean()
    assert difference < 0.03 * exact.states[valid].abs().mean()
    assert all(p.grad.dtype == torch.float32 for p in encoder.parameters() if p.grad is not None)


@torch.no_grad()
def test_half_precision_survives_quiet_and_loud_recordings() -> None:
    encoder = make_encoder()
    wave = make_waves()[:1]
    for loudness in (1e-3, 1.0, 50.0):
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(loudness * wave + 0.5, torch.tensor(LENGTHS[:1]), LENGTHS[:1]).extracted.float()
        exact = encoder(loudness * wave + 0.5, torch.tensor(LENGTHS[:1]), LENGTHS[:1]).extracted
        assert (half - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_is_asked_of_the_device(name: str) -> None:
    """Tensors without data stand in for a device: reading a value from one would raise."""
    encoder = make_encoder(VARIANTS[name]).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        waves, lengths = torch.zeros(2, max(LENGTHS)), torch.zeros(2, dtype=torch.int64)
        encoded = encoder(waves, lengths, LENGTHS, drops=[False, True, False], keep_layers=True)
        encoded.states.sum().backward()
    assert encoded.states.shape == (2, max(encoded.host_lengths), 32)


def test_deterministic_in_evaluation_and_random_in_training() -> None:
    encoder = make_encoder()
    assert torch.equal(run(encoder).states, run(encoder).states)
    encoder.train()
    assert not torch.equal(run(encoder).states, run(encoder).states)


def test_convolution_is_torch_s() -> None:
    encoder = make_encoder(
        replace(SMALL, waveform=WaveformConfig([[8, 11, 4], [6, 5, 2], [16, 4, 4]], "layer", bias=True))
    )
    waves = torch.randn(2, 3000)
    with torch.no_grad():
        ours, _, frames = encoder.frontend(waves, torch.tensor([3000, 3000]), (3000, 3000))
        x = waves[:, None]
        for layer in encoder.frontend.layers:
            x = F.conv1d(x, layer.conv.weight, layer.conv.bias, stride=layer.conv.stride).transpose(1, 2)
            x = F.gelu(F.layer_norm(x, x.shape[-1:], layer.norm.weight, layer.norm.bias)).transpose(1, 2)
    assert frames == (x.size(2), x.size(2))
    torch.testing.assert_close(ours, x.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (5, 2), (3, 1), (4, 3), (1, 1)])
@pytest.mark.parametrize("rows", [5, 12, 13])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_s_gradient(kernel: int, stride: int, rows: int, bias: bool) -> None:
    torch.manual_seed(1)
    convolution = Convolution(3, 4, kernel, stride, bias).double()
    x = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)

    def plain() -> Tensor:
        return F.conv1d(x.t()[None], convolution.weight, convolution.bias, stride=stride)[0].t()

    weight = torch.randn(plain().shape, dtype=torch.float64)
    inputs = [x, *convolution.parameters()]
    ours = torch.autograd.grad((convolution(x) * weight).sum(), inputs)
    for mine, other in zip(ours, torch.autograd.grad((plain() * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, other)
    with torch.no_grad():
        torch.testing.assert_close(convolution(x), plain())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frontend", "wave"),
        ("blocks", "rnn"),
        ("positions", "sine"),
        ("padding", "none"),
        ("conv_norm", "group"),
        ("dim", 0),
        ("layers", -1),
        ("heads", 5),
        ("conv_position_groups", 5),
        ("dropout", 1.0),
        ("layer_drop", -0.1),
    ],
)
def test_impossible_values_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(AsrkitError, match=f"encoder.{key}"):
        replace(SMALL, **{key: value})


def test_impossible_combinations_are_refused() -> None:
    with pytest.raises(AsrkitError, match=r"encoder\.positions"):
        replace(SMALL, positions="rotary", dim=36, heads=12, conv_position_groups=4)
    with pytest.raises(AsrkitError, match=r"encoder\.positions"):
        replace(SMALL, positions="relative", dim=33, heads=3)
    with pytest.raises(AsrkitError, match=r"encoder\.conv_kernel"):
        replace(SMALL, blocks="conformer", conv_kernel=8)
    for layers in ([], [[16, 10]], [[16, 2, 3]], [[0, 10, 5]]):
        with pytest.raises(AsrkitError, match=r"encoder\.waveform\.layers"):
            WaveformConfig(layers)
    with pytest.raises(AsrkitError, match=r"encoder\.waveform\.norm"):
        WaveformConfig(norm="batch")
