"""Block attention is attention over all frames under a mask that hides other blocks, at a cost that is linear in time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from asrkit.errors import AsrkitError
from asrkit.nn import attention as module
from asrkit.nn.attention import SelfAttention
from asrkit.nn.config import EncoderConfig
from asrkit.nn.conformer import ConformerBlock
from asrkit.nn.positions import position_state, rotate

DIM, HEADS, BLOCK, REACH = 24, 3, 4, 2
KINDS = ("none", "rotary", "rotary-input", "relative", "shaw")


def make(kind: str, block: int = BLOCK, reach: int = REACH) -> SelfAttention:
    torch.manual_seed(1)
    layer = SelfAttention(DIM, HEADS, 0.0, kind, block=block, reach=reach).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return layer.eval()


def make_input(frames: int, padded: bool) -> tuple[Tensor, Tensor | None]:
    x = torch.randn(3, frames, DIM, dtype=torch.double, generator=torch.Generator().manual_seed(frames))
    lengths = torch.tensor([frames, max(1, frames - 2), max(1, frames - BLOCK - 1)])
    return x, torch.arange(frames) < lengths[:, None] if padded else None


def masked_full(layer: SelfAttention, kind: str, x: Tensor, frame_mask: Tensor | None, block: int) -> Tensor:
    """Attention of all frames to all, pair by pair, with other blocks hidden."""
    frames, size = x.size(1), DIM // HEADS
    places = torch.arange(frames)
    rotary = position_state("rotary", frames, DIM, HEADS, x.device).rotary
    if kind == "rotary-input":
        turned = rotate(x.unflatten(-1, (HEADS, size)), rotary).flatten(2)
        weights, biases = layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)
        inputs = (turned, turned, x)
        parts = [y @ weight.t() + bias for y, weight, bias in zip(inputs, weights, biases, strict=True)]
    else:
        parts = list(layer.qkv(x).chunk(3, dim=-1))
    query, key, value = (part.unflatten(-1, (HEADS, size)) for part in parts)
    if kind == "rotary":
        query, key = rotate(query, rotary), rotate(key, rotary)
    content = query + layer.content_bias if kind == "relative" else query
    scores = torch.einsum("nqhd,nkhd->nhqk", content, key)
    if kind in ("relative", "shaw"):
        distances = places[:, None] - places
        if kind == "shaw":
            vectors = layer.distances[distances.clamp(-REACH, REACH) + REACH][:, :, None].expand(-1, -1, HEADS, -1)
            asking = query
        else:
            rates = torch.exp(torch.arange(0, DIM, 2, dtype=torch.float32) * (-math.log(10_000.0) / DIM))
            angles = distances.float()[..., None] * rates
            sinusoids = torch.cat([angles.sin(), angles.cos()], dim=-1).double()
            vectors = layer.position(sinusoids).unflatten(-1, (HEADS, size))
            asking = query + layer.position_bias
        scores = scores + torch.einsum("nqhd,qkhd->nhqk", asking, vectors)
    hidden = (places[:, None] // block != places // block)[None]
    if frame_mask is not None:
        hidden = hidden | ~frame_mask[:, None]
    weights = (scores / math.sqrt(size)).masked_fill(hidden[:, None], -math.inf).softmax(-1).nan_to_num()
    return layer.output(torch.einsum("nhqk,nkhd->nqhd", weights, value).flatten(2))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("frames", [3, 4, 5, 8, 11])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_a_mask(kind: str, frames: int, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    layer, (x, frame_mask) = make(kind), make_input(frames, padded)
    shared = position_state(kind, frames, DIM, HEADS, x.device, block=BLOCK, reach=REACH)
    valid = torch.ones(3, frames, dtype=torch.bool) if frame_mask is None else frame_mask
    ours, expected = layer(x, frame_mask, shared)[valid], masked_full(layer, kind, x, frame_mask, BLOCK)[valid]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    into = torch.randn_like(ours)
    found, wanted = (torch.autograd.grad((y * into).sum(), list(layer.parameters())) for y in (ours, expected))
    for mine, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-10)


@pytest.mark.parametrize("tile", [1, 3, 100])
@torch.no_grad()
def test_learned_distances_over_all_frames(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TILE", tile)
    layer, (x, frame_mask) = make("shaw", block=0), make_input(9, True)
    shared = position_state("shaw", 9, DIM, HEADS, x.device, reach=REACH)
    expected = masked_full(layer, "shaw", x, frame_mask, 100)
    torch.testing.assert_close(layer(x, frame_mask, shared), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_hears_its_block_alone(kind: str) -> None:
    layer, (x, _) = make(kind), make_input(10, False)
    shared = position_state(kind, 10, DIM, HEADS, x.device, block=BLOCK, reach=REACH)
    x = x[:1].requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x, None, shared)[0, 5].sum(), x)
    assert gradient[0].abs().sum(-1).nonzero()[:, 0].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_work_grows_with_the_duration(kind: str) -> None:
    """Multiplications are counted, those of the backward pass among them: nothing here depends on a clock."""
    # Attention with dropout is made of plain products, which the counter counts; torch's fused kernel it would not see.
    sizes = {"dim": DIM, "ffn_dim": 32, "heads": HEADS, "blocks": "conformer", "dropout": 0.0, "attention_dropout": 0.1}

    def work(frames: int, length: int) -> int:
        reach = 49 if kind == "shaw" and not length else 0
        config = EncoderConfig(**sizes, positions=kind, attention_block=length, position_reach=reach)
        shared = position_state(kind, frames, DIM, HEADS, torch.device("cpu"), block=length, reach=config.reach)
        block = ConformerBlock(config).train()
        with FlopCounterMode(display=False) as counter:
            block(torch.randn(1, frames, DIM), None, shared).square().sum().backward()
        return int(counter.get_total_flops())

    counts = [work(frames, 50) for frames in (100, 500, 1000, 2000)]
    assert counts[3] - counts[2] == 2 * (counts[2] - counts[1])
    assert counts[2] == pytest.approx(10 * counts[0], rel=0.02)
    assert work(1000, 0) > 15 * work(100, 0), "what the whole of it takes, beside"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"attention_block": -1}, "encoder.attention_block is -1"),
        ({"positions": "shaw"}, "set encoder.position_reach"),
        ({"positions": "shaw", "attention_block": 8, "position_reach": 8}, "no distance is beyond 7"),
        ({"positions": "rotary", "position_reach": 8}, "encoder.position_reach is for encoder.positions: shaw"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(AsrkitError, match=told):
        EncoderConfig(**settings)  # type: ignore[arg-type]


def test_a_block_bounds_the_distances_there_are() -> None:
    assert EncoderConfig(positions="shaw", attention_block=200).reach == 199
    assert EncoderConfig(positions="shaw", attention_block=200, position_reach=64).reach == 64
    assert EncoderConfig(positions="rotary", attention_block=200).reach == 0
