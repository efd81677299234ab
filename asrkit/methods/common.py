"""What every method does with the encoder: run it on a batch, and split its parameters into groups."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from asrkit.core.clock import Clock
from asrkit.data.batch import Batch
from asrkit.nn.encoder import Encoded, Encoder
from asrkit.nn.masking import SpanMask
from asrkit.randomness import layer_uniforms


def encoder_frames(encoder: Encoder, batch: Batch) -> tuple[int, ...]:
    """Return the encoder frames of each utterance, computed on the host."""
    return tuple(encoder.frames(samples) for samples in batch.host_lengths)


def encode(
    encoder: Encoder,
    batch: Batch,
    mask: SpanMask | None = None,
    clock: Clock | None = None,
    frontend_gradient_scale: float = 1.0,
) -> Encoded:
    """Run the encoder on a batch; in training, the clock fixes which layers LayerDrop leaves out."""
    encoded: Encoded = encoder(
        batch.waves,
        batch.wave_lengths,
        batch.host_lengths,
        mask=mask,
        drops=layer_drops(encoder, clock) if clock is not None and encoder.training else None,
        frontend_gradient_scale=frontend_gradient_scale,
    )
    return encoded


def layer_drops(encoder: Encoder, clock: Clock) -> list[bool]:
    """Return which layers are left out in an update: the same ones in all its micro-batches and on all ranks."""
    draws = layer_uniforms(clock.seed, clock.update, encoder.config.layers)
    return [draw < encoder.config.layer_drop for draw in draws]


def parameter_groups(encoder: Encoder, heads: Mapping[str, nn.Module]) -> dict[str, list[nn.Parameter]]:
    """Return the groups `frontend` (the feature extractor), `encoder` (all the rest of it) and one per head."""
    return encoder.groups() | {name: list(head.parameters()) for name, head in heads.items()}
