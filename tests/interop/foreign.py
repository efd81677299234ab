"""Small random models of other toolkits, and the same audio for them and for asrkit."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor, nn

from asrkit import cli
from asrkit.core.method import Method
from asrkit.data.batch import Batch
from asrkit.randomness import utterance_keys
from asrkit.training.experiment import REGULARISATION, open_experiment

CONVOLUTIONS = [[16, 10, 5]] + [[16, 3, 2]] * 4 + [[16, 2, 2]] * 2
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "B": 5, "A": 6, "'": 7, "C": 8, "D": 9}
"""As released models have them: markers first, letters in an order of their own."""

# fairseq2's native library wants libsndfile, which the soundfile wheel carries.
for _library in (Path(soundfile.__file__).parent / "_soundfile_data").glob("libsndfile*.so*"):
    ctypes.CDLL(str(_library), mode=ctypes.RTLD_GLOBAL)


def randomise(model: nn.Module, markers: Sequence[int] = ()) -> nn.Module:
    """Give a model weights of which each part matters; the CTC head never chooses the markers."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        for name, parameter in model.named_parameters():
            if name in ("lm_head.bias", "aux.bias", "final_proj.bias"):
                parameter.mul_(5.0)
                parameter[list(markers)] = -100.0
    return model.eval()


def make_batch(lengths: Sequence[int]) -> Batch:
    """Return noise of these lengths, of a loudness and an offset of its own in each row."""
    generator = torch.Generator().manual_seed(3)
    waves = torch.zeros(len(lengths), max(lengths))
    for row, samples in enumerate(lengths):
        waves[row, :samples] = torch.randn(samples, generator=generator) * 0.1 * (row + 1) + 0.02 * row
    ids = tuple(f"utterance-{row}" for row in range(len(lengths)))
    return Batch(waves, torch.tensor(lengths), tuple(lengths), utterance_keys(ids), ids, epoch=1)


def attention_mask(batch: Batch) -> Tensor:
    return (torch.arange(batch.waves.size(1)) < batch.wave_lengths[:, None]).long()


def run_import(source: object, output: Path, *options: str) -> Path:
    """Run `asrkit import` and return the experiment."""
    assert cli.main(["import", str(source), "--output", str(output), *options]) == 0
    return output


def run_export(folder: Path, form: str, output: Path, *options: str) -> Path:
    """Run `asrkit export` and return the folder."""
    assert cli.main(["export", str(folder), "--format", form, "--output", str(output), *options]) == 0
    return output


def method_of(folder: Path, padding: str = "exact") -> Method:
    """Return the method of an experiment."""
    experiment = open_experiment(folder)
    experiment.config.encoder = replace(experiment.config.encoder, padding=padding)
    return experiment.method()[0]


@torch.no_grad()
def states(folder: Path, batch: Batch, padding: str = "exact") -> tuple[Tensor, tuple[int, ...]]:
    """Return what an experiment makes of a batch: logits (N, T, V) or states (N, T, C), and frames."""
    method = method_of(folder, padding)
    encoded = method.encode(batch)
    return (method.ctc.logits(encoded.states) if hasattr(method, "ctc") else encoded.states), encoded.host_lengths


def assert_valid_close(ours: Tensor, theirs: Tensor, frames: Sequence[int]) -> None:
    assert ours.shape == theirs.shape
    for row, count in enumerate(frames):
        torch.testing.assert_close(ours[row, :count], theirs[row, :count], **TOLERANCE)


def assert_same_model(one: Path, other: Path) -> None:
    """Hold two experiments to the same weights to the last bit, the same encoder and the same units."""
    first, second = open_experiment(one), open_experiment(other)
    shapes = (experiment.config.encoder for experiment in (first, second))
    one_shape, other_shape = (replace(shape, **dict.fromkeys(REGULARISATION, 0)) for shape in shapes)
    assert one_shape == other_shape
    assert first.units == second.units
    assert first.config.method == second.config.method
    weights, others = first.weights()[0], second.weights()[0]
    assert sorted(weights) == sorted(others)
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


def told(capsys: Any) -> str:
    """Return the one line that a failed command printed."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def write_vocabulary(folder: Path, vocabulary: dict[str, int], **tokenizer: Any) -> None:
    """Write a vocabulary beside a model of transformers."""
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Wav2Vec2CTCTokenizer", **tokenizer}), encoding="utf-8"
    )
