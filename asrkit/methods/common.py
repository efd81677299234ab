"""What every method does with the encoder: run it on a batch, and split its parameters into groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from asrkit.core.clock import Clock
from asrkit.data.batch import Batch
from asrkit.nn.encoder import Encoded, Encoder
from asrkit.nn.lengths import on_device
from asrkit.nn.logmel import LogMelFrontend
from asrkit.nn.masking import SpanMask
from asrkit.nn.spec_augment import SpecAugmentConfig, SpecMask, draw_spec_mask
from asrkit.randomness import layer_uniforms


@contextmanager
def without_gradient() -> Iterator[None]:
    """Compute without gradients what the same autocast goes on from with gradients.

    Autocast keeps the half-precision copies that it makes of weights; those made in here have no graph, and a weight that is used
    again behind would get no gradient.
    """
    with torch.no_grad():
        yield
    torch.clear_autocast_cache()


def encoder_frames(encoder: Encoder, batch: Batch) -> tuple[int, ...]:
    """Return the encoder frames of each utterance, computed on the host."""
    return tuple(encoder.frames(samples) for samples in batch.host_lengths)


def encode(
    encoder: Encoder,
    batch: Batch,
    mask: SpanMask | None = None,
    clock: Clock | None = None,
    frontend_gradient_scale: float = 1.0,
    spec_mask: SpecMask | None = None,
    *,
    after_layer: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
    keep_layers: bool = False,
) -> Encoded:
    """Run the encoder on a batch; in training, the clock fixes which layers LayerDrop leaves out."""
    encoded: Encoded = encoder(
        batch.waves,
        batch.wave_lengths,
        batch.host_lengths,
        mask=mask,
        drops=layer_drops(encoder, clock) if clock is not None and encoder.training else None,
        frontend_gradient_scale=frontend_gradient_scale,
        spec_mask=spec_mask,
        after_layer=after_layer,
        keep_layers=keep_layers,
    )
    return encoded


def spec_augment(encoder: Encoder, config: SpecAugmentConfig, batch: Batch, clock: Clock) -> SpecMask | None:
    """Draw SpecAugment's blanks for a batch on its way into a log-mel frontend; None where ``config`` wants none."""
    if not config.active:
        return None
    assert isinstance(encoder.frontend, LogMelFrontend)
    mel = encoder.frontend.mel
    frames = [mel.frames(samples) for samples in batch.host_lengths]
    # Even an utterance shorter than a window makes one (blank) mel frame.
    return draw_spec_mask(
        config,
        batch.keys,
        on_device(frames, batch.keys.device),
        max(1, *frames),
        mel.bins,
        seed=clock.seed,
        epoch=batch.epoch,
    )


def layer_drops(encoder: Encoder, clock: Clock) -> list[bool]:
    """Return which layers are left out in an update: the same ones in all its micro-batches and on all ranks."""
    draws = layer_uniforms(clock.seed, clock.update, encoder.config.layers)
    return [draw < encoder.config.layer_drop for draw in draws]


def parameter_groups(encoder: Encoder, heads: Mapping[str, nn.Module]) -> dict[str, list[nn.Parameter]]:
    """Return the groups `frontend` (the feature extractor), `encoder` (all the rest of it) and one per head.

    A group without parameters (a frontend may have none) is left out.
    """
    groups = encoder.groups() | {name: list(head.parameters()) for name, head in heads.items()}
    return {name: parameters for name, parameters in groups.items() if parameters}
