"""The encoder: frontend, projection, masking, positions, blocks.

Source: Baevski et al. 2020 (wav2vec 2.0), section 2.
Shapes: N batch, S samples, T frames, F feature channels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asrkit.data.batch import SAMPLE_RATE
from asrkit.errors import AsrkitError
from asrkit.nn.config import EncoderConfig
from asrkit.nn.conformer import ConformerBlock
from asrkit.nn.dropout import dropout
from asrkit.nn.gradient import scale_gradient
from asrkit.nn.lengths import inside
from asrkit.nn.linear import Linear
from asrkit.nn.logmel import LogMelFrontend
from asrkit.nn.normalisation import LayerNorm
from asrkit.nn.positions import PositionState, make_positions, position_state
from asrkit.nn.transformer import TransformerBlock
from asrkit.nn.waveform import WaveformFrontend

if TYPE_CHECKING:
    from asrkit.nn.masking import SpanMask
    from asrkit.nn.spec_augment import SpecMask

_WAYS = 64


@dataclass(frozen=True)
class Extracted:
    """The frontend's output, before any masking; a teacher and a student can share it."""

    extracted: Tensor
    """Raw features (N, T, F), zero in padded frames."""
    lengths: Tensor
    """Frames per row, int64 (N,)."""
    host_lengths: tuple[int, ...]
    """The same as Python integers."""
    frame_mask: Tensor
    """bool (N, T), True where a frame is valid."""

    @property
    def padded(self) -> bool:
        """Whether any row has padded frames."""
        return min(self.host_lengths) < self.extracted.size(1)

    def rows(self, chosen: Sequence[int]) -> Extracted:
        """Return some of the utterances (at least one), padded no longer than they need."""
        index = torch.tensor(chosen, dtype=torch.int64, device=self.lengths.device)
        lengths = tuple(self.host_lengths[row] for row in chosen)
        frames = max(1, *lengths)
        return Extracted(self.extracted[index, :frames], self.lengths[index], lengths, self.frame_mask[index, :frames])


@dataclass(frozen=True)
class Encoded:
    """What the encoder made of a batch."""

    features: Tensor
    """Normalised frontend output, never masked (N, T, F)."""
    extracted: Tensor
    """Frontend output before that normalisation (N, T, F), zero in padded frames."""
    states: Tensor
    """Output of the last block (N, T, C), zero in padded frames."""
    lengths: Tensor
    """Frames per row, int64 (N,)."""
    host_lengths: tuple[int, ...]
    """The same as Python integers."""
    frame_mask: Tensor
    """bool (N, T), True where a frame is valid."""
    layers: tuple[Tensor, ...] | None = None
    """On request the blocks' input and each block's output, (N, T, C) each; padded frames have no meaning."""
    intermediate: tuple[Tensor, ...] | None = None
    """What a head has read between blocks (N, T, C), where it takes part in the pass; padded frames have no meaning."""


class Encoder(nn.Module):
    """Speech to a state per frame. No method of it waits for the device."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.frontend: WaveformFrontend | LogMelFrontend
        if config.frontend == "waveform":
            self.frontend = WaveformFrontend(config.waveform, foreign_padding=config.padding == "foreign")
        else:
            self.frontend = LogMelFrontend(config.logmel)
        self.dim, self.feature_dim = config.dim, self.frontend.feature_dim
        self.feature_norm = LayerNorm(self.feature_dim)
        self.projection = Linear(self.feature_dim, config.dim)
        self.mask_embedding = nn.Parameter(torch.empty(config.dim).uniform_())
        self.positions = make_positions(config)
        make = TransformerBlock if config.blocks == "transformer" else ConformerBlock
        self.blocks = nn.ModuleList(make(config) for _ in range(config.layers))
        # Before the blocks under post-norm, behind them under pre-norm; Conformer blocks end in a norm of their own.
        place = config.outer_norm if config.blocks == "conformer" else "after" if config.pre_norm else "before"
        self.norm: nn.Module = nn.Identity() if place == "none" else LayerNorm(config.dim)
        self.norm_is_last = place == "after"

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        # The difference of two long stretches is free of what the first window takes.
        return (self.frames(2_000 * SAMPLE_RATE) - self.frames(1_000 * SAMPLE_RATE)) / 1_000

    def frames(self, samples: int) -> int:
        """Return the number of frames of a wave of so many samples."""
        return self.frontend.frames(samples)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of the groups `frontend` (convolutions only) and `encoder` (all others)."""
        frontend = list(self.frontend.parameters())
        known = {id(parameter) for parameter in frontend}
        return {"frontend": frontend, "encoder": [p for p in self.parameters() if id(p) not in known]}

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Have torch.compile make kernels of the blocks, one code for all of them, whatever the batch's size and length.

        The weights keep their names. Each block calls its compiled code, which is made at its first call.
        """
        # There is one code for each way to call it: with a mask or not, one utterance or several, with gradients or not (a frozen
        # encoder, a teacher, validation). torch would stop at the eighth.
        torch._dynamo.config.recompile_limit = max(_WAYS, torch._dynamo.config.recompile_limit)
        for block in self.blocks:
            block.compile(dynamic=True, backend=backend)

    def forward(
        self,
        waves: Tensor,
        wave_lengths: Tensor,
        host_lengths: Sequence[int],
        *,
        mask: SpanMask | None = None,
        drops: Sequence[bool] | None = None,
        after_layer: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
        keep_layers: bool = False,
        frontend_gradient_scale: float = 1.0,
        spec_mask: SpecMask | None = None,
    ) -> Encoded:
        """Encode a batch: `extract`, then `contextualise`; the arguments are theirs."""
        extracted = self.extract(
            waves, wave_lengths, host_lengths, gradient_scale=frontend_gradient_scale, spec_mask=spec_mask
        )
        return self.contextualise(extracted, mask, drops=drops, after_layer=after_layer, keep_layers=keep_layers)

    def extract(
        self,
        waves: Tensor,
        wave_lengths: Tensor,
        host_lengths: Sequence[int],
        *,
        gradient_scale: float = 1.0,
        spec_mask: SpecMask | None = None,
    ) -> Extracted:
        """Run the frontend.

        Args:
            waves: (N, S), zero behind each row's end.
            wave_lengths: samples per row, int64 (N,).
            host_lengths: the same as Python integers.
            gradient_scale: what gradients into the frontend are multiplied with; at 0 it keeps no graph.
            spec_mask: what SpecAugment blanks out of the spectrogram; for the log-mel frontend only.

        Raises:
            AsrkitError: if there is a spec_mask, but no spectrogram.
        """
        if spec_mask is not None and not isinstance(self.frontend, LogMelFrontend):
            raise AsrkitError("SpecAugment needs encoder.frontend: logmel", mend="use the masks of the encoder's input")
        arguments = () if spec_mask is None else (spec_mask,)
        with torch.set_grad_enabled(torch.is_grad_enabled() and gradient_scale != 0.0):
            features, lengths, host_frames = self.frontend(waves, wave_lengths, host_lengths, *arguments)
        features = scale_gradient(features, gradient_scale)
        frame_mask = inside(lengths, features.size(1))
        if min(host_frames) < features.size(1):
            features = features.masked_fill(~frame_mask[:, :, None], 0.0)
        return Extracted(features, lengths, host_frames, frame_mask)

    def contextualise(
        self,
        extracted: Extracted,
        mask: SpanMask | None = None,
        *,
        drops: Sequence[bool] | None = None,
        after_layer: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
        keep_layers: bool = False,
    ) -> Encoded:
        """Run everything behind the frontend.

        Args:
            extracted: the frontend's output.
            mask: frames to be replaced by the mask embedding, and channels to be zeroed; None for no masking.
            drops: for each block whether it is skipped (LayerDrop); None runs them all.
            after_layer: by block number (from 0) what its output (N, T, C) is sent through; skipped with its block.
            keep_layers: keep the input and the output of the blocks.
        """
        config = self.config
        features = self.feature_norm(extracted.extracted)
        x = dropout(self.projection(features), config.input_dropout, self.training)
        if mask is not None and mask.time is not None:
            x = torch.where(mask.time[:, :, None], self.mask_embedding.to(x.dtype), x)
        if mask is not None and mask.channels is not None:
            x = x.masked_fill(mask.channels[:, None, :], 0.0)
        hidden = ~extracted.frame_mask[:, :, None] if extracted.padded else None
        foreign = config.padding == "foreign"
        if hidden is not None and (foreign or self.positions is not None):
            x = x.masked_fill(hidden, 0.0)
        if self.positions is not None:
            x = x + self.positions(x, None if foreign else hidden)
        if not self.norm_is_last:
            x = self.norm(x)
        x = dropout(x, config.dropout, self.training)
        shared = position_state(
            config.positions,
            x.size(1),
            config.dim,
            config.heads,
            x.device,
            block=config.attention_block,
            reach=config.reach,
        )
        x, layers = self._run_blocks(x, self._attention_mask(extracted), shared, drops, after_layer or {}, keep_layers)
        x = self.output(x)
        if hidden is not None:
            x = x.masked_fill(hidden, 0.0)
        return Encoded(
            features=features,
            extracted=extracted.extracted,
            states=x,
            lengths=extracted.lengths,
            host_lengths=extracted.host_lengths,
            frame_mask=extracted.frame_mask,
            layers=layers,
        )

    def output(self, x: Tensor) -> Tensor:
        """Return the output (N, T, C) of a block as it would be if the block were the last one."""
        return self.norm(x) if self.norm_is_last else x

    def _run_blocks(
        self,
        x: Tensor,
        frame_mask: Tensor | None,
        positions: PositionState | None,
        drops: Sequence[bool] | None,
        after_layer: Mapping[int, Callable[[Tensor], Tensor]],
        keep_layers: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        layers = [x]
        for number, block in enumerate(self.blocks):
            if drops is None or not drops[number]:
                if self.config.checkpoint_activations and torch.is_grad_enabled():
                    contexts = partial(_contexts, block)
                    x = checkpoint(block, x, frame_mask, positions, use_reentrant=False, context_fn=contexts)
                else:
                    x = block(x, frame_mask, positions)
                if number in after_layer:
                    x = after_layer[number](x)
            if keep_layers:
                layers.append(x)
        return x, tuple(layers) if keep_layers else None

    @staticmethod
    def _attention_mask(extracted: Extracted) -> Tensor | None:
        """Return the mask for attention, None if nothing is padded; a row without frames attends to its first."""
        if not extracted.padded:
            return None
        if min(extracted.host_lengths) > 0:
            return extracted.frame_mask
        return inside(extracted.lengths.clamp(min=1), extracted.frame_mask.size(1))


class _Recomputation(AbstractContextManager[None]):
    """Leaves a block's running statistics where its forward pass has moved them, while that is run again."""

    def __init__(self, block: nn.Module) -> None:
        self.running = list(block.buffers()) if block.training else []
        self.kept: list[Tensor] = []

    def __enter__(self) -> None:
        self.kept = [buffer.clone() for buffer in self.running]

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for buffer, value in zip(self.running, self.kept, strict=True):
            buffer.copy_(value)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _Recomputation(block)
