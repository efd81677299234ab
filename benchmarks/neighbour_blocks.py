"""Other toolkits' blocks of the shape of asrkit's: each a module and its forward pass on padded frames.

Masks and positions are made beforehand, since a stack of blocks makes them once per pass.

Shapes: N batch, T frames, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from neighbours import PURPOSE, fairseq2_blocks
from torch import Tensor, nn
from torchaudio.models.conformer import ConformerLayer
from torchaudio.models.wav2vec2.components import EncoderLayer, FeedForward, SelfAttention

from asrkit.interop.packages import optional
from asrkit.nn.config import EncoderConfig
from asrkit.nn.conformer import ConformerBlock
from asrkit.nn.lengths import inside
from asrkit.nn.positions import position_state
from asrkit.nn.transformer import TransformerBlock

HIDDEN = -10_000.0
"""What torchaudio and transformers add to scores of padded frames."""


@dataclass(frozen=True)
class Frames:
    """What a block is run on."""

    lengths: Sequence[int]
    """Valid frames of each row."""
    device: torch.device
    """Where."""

    @property
    def most(self) -> int:
        """T."""
        return max(self.lengths)

    @property
    def valid(self) -> Tensor | None:
        """Which frames are valid, bool (N, T); None if all are."""
        if min(self.lengths) == self.most:
            return None
        return inside(torch.tensor(self.lengths, device=self.device), self.most)

    @property
    def bias(self) -> Tensor | None:
        """What is added to scores, float32 (N, 1, T, T); None if nothing is padded."""
        valid = self.valid
        if valid is None:
            return None
        return (~valid).float().mul(HIDDEN)[:, None, None, :].expand(-1, 1, self.most, -1)


@dataclass(frozen=True)
class Block:
    """A block in training."""

    module: nn.Module
    """On its device, in training mode."""
    forward: Callable[[Tensor], Tensor]
    """From (N, T, C) to as many frames."""


def asrkit(shape: EncoderConfig, frames: Frames) -> Block:
    """Return asrkit's block of a shape."""
    make = TransformerBlock if shape.blocks == "transformer" else ConformerBlock
    block = make(shape).to(frames.device).train()
    valid = frames.valid
    shared = position_state(shape.positions, frames.most, shape.dim, shape.heads, frames.device)
    return Block(block, lambda x: block(x, valid, shared))


def torchaudio(shape: EncoderConfig, frames: Frames) -> Block:
    """Return torchaudio's block of a shape; its Conformer has no positions, and biases in the convolution module."""
    if shape.blocks == "conformer":
        layer = ConformerLayer(shape.dim, shape.ffn_dim, shape.heads, shape.conv_kernel, dropout=shape.dropout)
        layer.to(frames.device).train()
        valid = frames.valid
        padded = None if valid is None else ~valid
        return Block(layer, lambda x: layer(x.transpose(0, 1), padded).transpose(0, 1))
    attention = SelfAttention(shape.dim, shape.heads, shape.attention_dropout)
    feed_forward = FeedForward(shape.dim, shape.ffn_dim, shape.activation_dropout, shape.dropout)
    block = EncoderLayer(attention, shape.dropout, shape.pre_norm, feed_forward).to(frames.device).train()
    bias = frames.bias
    return Block(block, lambda x: block(x, bias)[0])


def transformers(shape: EncoderConfig, frames: Frames) -> Block:
    """Return transformers' block of a shape."""
    conformer = shape.blocks == "conformer"
    family = "wav2vec2_conformer" if conformer else "wav2vec2"
    modelling = optional(f"transformers.models.{family}.modeling_{family}", "huggingface", PURPOSE)
    common = {
        "hidden_size": shape.dim,
        "intermediate_size": shape.ffn_dim,
        "num_attention_heads": shape.heads,
        "hidden_dropout": shape.dropout,
        "attention_dropout": shape.attention_dropout,
        "activation_dropout": shape.activation_dropout,
    }
    bias = frames.bias
    if not conformer:
        config = modelling.Wav2Vec2Config(**common, hidden_act="gelu", attn_implementation="sdpa")
        block = modelling.Wav2Vec2EncoderLayer(config).to(frames.device).train()
        return Block(block, lambda x: block(x, attention_mask=bias)[0])
    config = modelling.Wav2Vec2ConformerConfig(
        **common,
        hidden_act="swish",
        conv_depthwise_kernel_size=shape.conv_kernel,
        conformer_conv_dropout=shape.dropout,
        position_embeddings_type="relative" if shape.positions == "relative" else None,
    )
    layer = modelling.Wav2Vec2ConformerEncoderLayer(config).to(frames.device).train()
    positions = None
    if shape.positions == "relative":
        embed = modelling.Wav2Vec2ConformerRelPositionalEmbedding(config)
        positions = embed(torch.zeros(1, frames.most, shape.dim, device=frames.device))
    return Block(layer, lambda x: layer(x, attention_mask=bias, relative_position_embeddings=positions)[0])


def fairseq2(shape: EncoderConfig, frames: Frames) -> Block:
    """Return fairseq2's block of a shape; with relative positions it has no dropout on attention weights."""
    models = optional("fairseq2.models.wav2vec2", "fairseq2", PURPOSE)
    blocks = optional("fairseq2.models.transformer", "fairseq2", PURPOSE)
    layouts = optional("fairseq2.nn", "fairseq2", PURPOSE)
    lazy = optional("fairseq2.runtime.lazy", "fairseq2", PURPOSE)
    conformer = shape.blocks == "conformer"
    config = models.Wav2Vec2EncoderConfig(
        **fairseq2_blocks(shape),
        use_conformer=conformer,
        depthwise_conv_kernel_size=shape.conv_kernel if conformer else 0,
        pos_encoder_type="relative" if shape.positions == "relative" else "conv",
    )
    factory = models.Wav2Vec2EncoderFactory(config)
    positions = lazy.Lazy(factory.create_rel_pos_encoding)
    make = factory.create_conformer_block if conformer else factory.create_encoder_layer
    block = make(positions).to(frames.device).train()
    layout = layouts.BatchLayout(
        (len(frames.lengths), frames.most), list(frames.lengths), device=torch.device(frames.device)
    )
    cache = blocks.AttentionBiasCache()
    return Block(block, lambda x: block(x, layout, cache))
