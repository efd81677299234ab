"""ONNX for inference: waves and their lengths in, CTC logits and frames out, both axes dynamic."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from asrkit.data.batch import SAMPLE_RATE
from asrkit.errors import AsrkitError
from asrkit.files import atomic_path, write_text
from asrkit.heads.ctc import CTCHead
from asrkit.interop.packages import optional
from asrkit.interop.portable import CTC, ENCODER, Portable
from asrkit.nn.attention import SelfAttention
from asrkit.nn.encoder import Encoder, Extracted
from asrkit.nn.lengths import inside
from asrkit.nn.logmel import LogMelFrontend
from asrkit.nn.normalisation import row_normalise
from asrkit.nn.positions import ConvPositions, PositionState, StackedConvPositions
from asrkit.nn.waveform import FirstLayer, FoldedGroupNorm, LaterLayer, WaveformFrontend

WEIGHTS = "model.onnx"
EXTRA = "onnx"
_OPSET = 18


class _Always(Extracted):
    """A batch whose lengths are known to the device alone: its mask is always applied."""

    @property
    def padded(self) -> bool:
        return True


class Runtime(nn.Module):
    """An encoder and its CTC head in operations that every runtime has, with lengths as tensors only."""

    def __init__(self, encoder: Encoder, head: CTCHead | None) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        frontend = encoder.frontend
        waveform = isinstance(frontend, WaveformFrontend)
        self.frontend = _Waveform(frontend) if waveform else _LogMel(frontend)  # type: ignore[arg-type]
        if isinstance(encoder.positions, ConvPositions):
            encoder.positions = _Positions(encoder.positions)  # type: ignore[assignment]
        elif isinstance(encoder.positions, StackedConvPositions):
            encoder.positions = _StackedPositions(encoder.positions)  # type: ignore[assignment]
        for block in encoder.blocks:
            block.attention = _Attention(block.attention)  # type: ignore[arg-type]

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, T, V), or states (N, T, C) without a head, and frames (N,), of waves (N, S) of lengths (N,)."""
        features, frames = self.frontend(waves, lengths)
        mask = inside(frames, features.size(1))
        features = features.masked_fill(~mask[:, :, None], 0.0)
        run = partial(self.encoder.contextualise, _Always(features, frames, (1,), mask))
        if self.head is None:
            return run().states, frames
        return self.head.logits(self.head.condition(self.encoder, run).states), frames


class _Attention(nn.Module):
    """`SelfAttention` by plain products, over all queries at once, with no size that the exporter would hold to.

    Blocks are a mask here: the same result, at a cost that grows with the square of the duration.
    """

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, frame_mask: Tensor, positions: PositionState | None) -> Tensor:
        """Attend from and to frames (N, T, C) whose mask is (N, T)."""
        attention = self.attention
        rotary = None if positions is None else positions.rotary
        query, key, value = (part.transpose(1, 2) for part in attention.project(x, rotary))
        content = query
        bias: Tensor | float = 0.0
        if positions is not None and (positions.relative is not None or positions.clipped is not None):
            distances, content_bias, position_bias = attention.relative_positions(positions, query.dtype)
            content = (query.transpose(1, 2) + content_bias).transpose(1, 2)
            scores = (query.transpose(1, 2) + position_bias).transpose(1, 2) @ distances.transpose(1, 2)
            # Row q wants the columns T - 1 - q, …: seen as one long line, each row begins one column earlier.
            frames = x.size(1)
            line = scores.flatten(2)[:, :, frames - 1 : -1]
            bias = line.reshape(x.size(0), attention.heads, frames, 2 * frames - 1)[..., :frames]
        scores = (content @ key.transpose(2, 3) + bias) * query.size(3) ** -0.5
        scores = scores.masked_fill(~self._seen(frame_mask), float("-inf"))
        y: Tensor = attention.output((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        return y

    def _seen(self, frame_mask: Tensor) -> Tensor:
        """Return which frames each frame attends to, bool (N, 1, T or 1, T), of the valid frames (N, T)."""
        block = self.attention.block
        if not block:
            return frame_mask[:, None, None]
        places = torch.arange(frame_mask.size(1), device=frame_mask.device)
        number = torch.div(places, block, rounding_mode="floor")
        # A block that is padding as a whole needs a frame to attend to all the same.
        some = frame_mask | (places == number * block)
        return (number[:, None] == number) & some[:, None, None]


class _Positions(nn.Module):
    """`ConvPositions` with its weight worked out."""

    def __init__(self, positions: ConvPositions) -> None:
        super().__init__()
        dim, kernel = positions.bias.numel(), positions.kernel
        self.conv = nn.Conv1d(dim, dim, kernel, groups=positions.groups)
        self.conv.weight, self.conv.bias = nn.Parameter(positions.weight().detach()), positions.bias

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return what is to be added to the frames (N, T, C)."""
        return functional.gelu(_same(self.conv, x))


class _StackedPositions(nn.Module):
    """`StackedConvPositions` by plain convolutions."""

    def __init__(self, positions: StackedConvPositions) -> None:
        super().__init__()
        self.layers = positions.layers

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return what is to be added to the frames (N, T, C), of which those that are ``hidden`` are padding."""
        for layer in self.layers:
            assert isinstance(layer, nn.Conv1d)
            y = _same(layer, x.masked_fill(hidden, 0.0))
            x = functional.gelu(functional.layer_norm(y, (layer.out_channels,)))
        return x


def _same(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Convolve (N, T, C) into as many frames; an even kernel of K taps reaches back by K / 2 frames."""
    kernel = conv.kernel_size[0]
    y = functional.conv1d(x.transpose(1, 2), conv.weight, conv.bias, padding=kernel // 2, groups=conv.groups)
    return (y if kernel % 2 else y[:, :, :-1]).transpose(1, 2)


class _Waveform(nn.Module):
    """`WaveformFrontend` by plain convolutions over padded rows."""

    def __init__(self, frontend: WaveformFrontend) -> None:
        super().__init__()
        self.frontend = frontend

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, T, F) and frames (N,)."""
        frontend = self.frontend
        if frontend.normalise:
            waves = row_normalise(waves, lengths, inside(lengths, waves.size(1)), frontend.normalise_epsilon)
        x = waves[:, None]
        for layer in frontend.layers:
            assert isinstance(layer, (FirstLayer, LaterLayer))
            conv, norm = layer.conv, layer.norm
            x = functional.conv1d(x, conv.weight, conv.bias, stride=conv.stride)
            lengths = torch.div(lengths - conv.kernel, conv.stride, rounding_mode="floor") + 1
            if isinstance(norm, FoldedGroupNorm):
                x = _over_time(x, inside(lengths, x.size(2))[:, None], norm)
            elif norm is not None:
                x = norm(x.transpose(1, 2)).transpose(1, 2)
            x = functional.gelu(x)
        return x.transpose(1, 2), lengths


def _over_time(x: Tensor, valid: Tensor, norm: FoldedGroupNorm) -> Tensor:
    """Normalise each channel of (N, C, T) over its valid frames (N, 1, T)."""
    count = valid.sum(2, keepdim=True)
    mean = torch.where(valid, x, 0.0).sum(2, keepdim=True) / count
    centred = torch.where(valid, x - mean, 0.0)
    variance = centred.square().sum(2, keepdim=True) / count
    return centred * torch.rsqrt(variance + 1e-5) * norm.weight[:, None] + norm.bias[:, None]


class _LogMel(nn.Module):
    """`LogMelFrontend` with the spectrum by a convolution with cosines and sines."""

    basis: Tensor

    def __init__(self, frontend: LogMelFrontend) -> None:
        super().__init__()
        self.frontend = frontend
        mel = frontend.mel
        steps = torch.arange(mel.width, dtype=torch.float64)
        angles = torch.outer(torch.arange(mel.size // 2 + 1, dtype=torch.float64), steps) * (2 * math.pi / mel.size)
        waves = torch.cat([angles.cos(), angles.sin()]) * mel.window.double()
        self.register_buffer("basis", waves.float()[:, None])

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, T, F) and frames (N,)."""
        frontend, mel = self.frontend, self.frontend.mel
        frames = torch.div(lengths - mel.width, mel.hop, rounding_mode="floor") + 1
        cosines, sines = functional.conv1d(waves[:, None], self.basis, stride=mel.hop).chunk(2, dim=1)
        power = (cosines.square() + sines.square()).transpose(1, 2)
        return frontend.subsample(mel.energies(power, frames), frames)


def refusal(model: Portable) -> str | None:
    """Return why the model cannot be written, or None."""
    gigabytes = sum(tensor.numel() for tensor in model.weights.values()) * 4 / 2**30
    return f"an ONNX file holds 2 GB at most, and these weights take {gigabytes:.1f}" if gigabytes > 1.9 else None


def runtime(model: Portable) -> Runtime:
    """Return the model in operations that every runtime has, in evaluation mode."""
    encoder = Encoder(replace(model.encoder, padding="exact"))
    # The exporter would cut distances off where its example ends.
    encoder.config = replace(encoder.config, attention_block=0, position_reach=encoder.config.reach)
    encoder.load_state_dict({k.removeprefix(ENCODER): v for k, v in model.weights.items() if k.startswith(ENCODER)})
    head = None
    if model.units is not None:
        head = CTCHead(model.ctc, encoder.dim, model.units)
        head.load_state_dict({k.removeprefix(CTC): v for k, v in model.weights.items() if k.startswith(CTC)})
    return Runtime(encoder, head).eval()


def write_folder(model: Portable, folder: Path) -> None:
    """Write `model.onnx`, and the units where there is a CTC head; onnxruntime must give what torch gives.

    Raises:
        AsrkitError: if a package is missing, the folder cannot be written, or the results differ.
    """
    optional("onnx", EXTRA, "writing ONNX")
    optional("onnxruntime", EXTRA, "checking ONNX")
    module = runtime(model)
    example = _example((1.0, 0.7))
    output = "logits" if model.units is not None else "states"
    with atomic_path(folder / WEIGHTS) as temporary, _quiet():
        # The exporter through torch.export takes minutes where this one takes a second.
        torch.onnx.export(
            module,
            example,
            temporary,
            input_names=["waves", "lengths"],
            output_names=[output, "frames"],
            dynamic_axes={
                "waves": {0: "batch", 1: "samples"},
                "lengths": {0: "batch"},
                output: {0: "batch", 1: "frames"},
                "frames": {0: "batch"},
            },
            opset_version=_OPSET,
            dynamo=False,
        )
        _check(module, temporary)
    if model.units is not None:
        model.units.save(folder / "units")
    write_text(folder / "README.md", _README.format(name=model.name, output=output))


_README = """\
# {name}

`model.onnx`, exported by asrkit. Inputs: `waves`, float32 (batch, samples), mono at 16 kHz in [-1, 1], zero behind each
row's end, and `lengths`, int64 (batch), samples per row. Outputs: `{output}`, float32 (batch, frames, …), and `frames`,
int64 (batch), the valid frames of each row. Batches may be padded: padding changes nothing.

```python
import numpy, onnxruntime, soundfile

wave, rate = soundfile.read("speech.flac", dtype="float32")  # mono, 16 kHz
session = onnxruntime.InferenceSession("model.onnx")
scores, frames = session.run(None, {{"waves": wave[None], "lengths": numpy.array([len(wave)])}})
```

`units/units.json`, where there is one, names the symbols in the order of the scores, and the blank.
"""


def _example(seconds: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Return noise of several lengths as one padded batch, float32 (N, S), and int64 (N,)."""
    lengths = torch.tensor([int(SAMPLE_RATE * length) for length in seconds])
    generator = torch.Generator().manual_seed(0)
    waves = 0.1 * torch.randn(len(seconds), int(lengths.max()), generator=generator)
    return waves.masked_fill(~inside(lengths, waves.size(1)), 0.0), lengths


def _check(module: Runtime, path: Path) -> None:
    """Compare onnxruntime with torch on batches of other shapes than the one that was exported."""
    runtime = optional("onnxruntime", EXTRA, "checking ONNX")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for seconds in ((0.5,), (0.9, 1.6, 0.6)):
        waves, lengths = _example(seconds)
        found, frames = session.run(None, {"waves": waves.numpy(), "lengths": lengths.numpy()})
        with torch.inference_mode():
            wanted, wanted_frames = module(waves, lengths)
        apart = float((torch.from_numpy(found) - wanted).abs().max())
        if frames.tolist() != wanted_frames.tolist() or not apart <= 1e-3 * max(1.0, float(wanted.abs().max())):
            raise AsrkitError(f"onnxruntime and torch differ by {apart:.2g}: the file is not kept", where=path.parent)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about constants and its age to itself."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
