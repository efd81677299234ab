"""A corpus of tones that is written in a moment, and runs on it that take seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml

from asrkit import cli
from asrkit.config import from_dict
from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.data.batch import Batch
from asrkit.data.collate import Example, collate
from asrkit.data.prepare import PrepareConfig, prepare_table
from asrkit.text.normalise import TextConfig
from asrkit.text.units import Units
from asrkit.training.checkpoint import load
from asrkit.training.config import schema
from asrkit.training.experiment import build_method

TONES = {"A": 300.0, "B": 700.0, "C": 1300.0, "D": 2300.0}
"""Every letter is a tone; a space is silence."""

ENCODER: dict[str, Any] = {
    "frontend": "logmel",
    "logmel": {"bins": 16, "subsampling": 4, "channels": 4},
    "blocks": "conformer",
    "layers": 2,
    "dim": 16,
    "ffn_dim": 24,
    "heads": 2,
    "positions": "rotary",
    "conv_kernel": 5,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "input_dropout": 0.1,
    "layer_drop": 0.3,
}
"""With everything random switched on."""

WAVEFORM: dict[str, Any] = {
    "frontend": "waveform",
    "waveform": {"layers": [[8, 10, 5], [8, 8, 8], [8, 8, 8]]},
    "blocks": "transformer",
    "positions": "conv",
    "conv_position_kernel": 8,
    "conv_position_groups": 2,
}
"""Changes that make it a wav2vec 2.0."""

STILL: dict[str, float] = {"dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0, "layer_drop": 0.0}
"""Nothing random in the encoder."""


def speak(text: str, seed: int = 0) -> np.ndarray:
    """Return tones for a text, float32 (S,) at 16 kHz, some 0.12 s per letter."""
    random = np.random.default_rng(seed)
    parts = []
    for letter in text:
        samples = int(random.integers(1600, 2400))
        wave = (
            np.zeros(samples) if letter == " " else 0.3 * np.sin(2 * np.pi * TONES[letter] * np.arange(samples) / 16e3)
        )
        parts.append(wave + 0.01 * random.standard_normal(samples))
    return np.concatenate(parts).astype(np.float32)


def sentence(seed: int) -> str:
    """Return one to four words of two to four letters."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list(TONES), random.integers(2, 5))) for _ in range(random.integers(1, 5))]
    return " ".join(words)


def write_corpus(folder: Path, train: int = 14, dev: int = 4) -> Path:
    """Write and prepare the sets `train` and `dev`; return the prepared folder."""
    audio = folder / "audio"
    audio.mkdir(parents=True)
    tables = []
    for name, seeds in (("train", range(train)), ("dev", range(100, 100 + dev))):
        lines = ["id\taudio\ttext\tspeaker"]
        for seed in seeds:
            soundfile.write(audio / f"{name}{seed}.wav", speak(sentence(seed), seed), 16_000)
            lines.append(f"{name}-{seed}\t{audio / f'{name}{seed}.wav'}\t{sentence(seed)}\t{name}{seed % 3}")
        tables.append(folder / f"{name}.tsv")
        tables[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepare_table(tables, folder / "data", PrepareConfig(text=TextConfig(case="keep"), workers=1))
    return folder / "data"


def settings(method: str, data_dir: Path, **changes: Any) -> dict[str, Any]:
    """Return the settings of a run of ten updates; ``changes`` are merged in (sections deeply)."""
    stream = {"sets": ["train"], "seconds_per_update": 4.0}
    mask = {"time_length": 3, "channel_probability": 0.2, "channel_length": 4}
    schedule = {"learning_rate": 1e-2, "warmup": 0.2}
    whole: dict[str, Any] = {
        "method": method,
        "device": "cpu",
        "encoder": deepcopy(ENCODER),
        "data": {"dir": str(data_dir), "dev": ["dev"], "batch_seconds": 2.5, "workers": 0},
        "training": {
            "precision": "fp32",
            "log_every": 3,
            "validate_every": 5,
            "checkpoint_every": 100,
            "keep_checkpoints": 100,
        },
    }
    if method == "pretrain":
        whole["data"]["unlabelled"] = {**stream, "crop_seconds": 1.2}
        head = {"mask": mask, "final_dim": 8, "entries": 8, "negatives": 5, "gumbel_decay": 0.9}
        whole["pretrain"] = {"updates": 10, "schedule": schedule, "wav2vec2": head}
    elif method == "heterogeneous":
        one, other = {**stream, "crop_seconds": 1.2}, {**stream, "seconds_per_update": 3.0, "speed_factors": [0.8]}
        whole["data"]["sources"] = {"plain": one, "slow": other}
        head = {"mask": mask, "final_dim": 8, "entries": 8, "negatives": 5, "gumbel_decay": 0.9}
        inner = {"steps": 2, "rate": 0.05}
        whole["heterogeneous"] = {"updates": 10, "schedule": schedule, "wav2vec2": head, "inner": inner}
    elif method == "wav2vec_s":
        whole["data"]["labelled"] = {**stream, "seconds_per_update": 2.0}
        whole["data"]["unlabelled"] = stream
        whole["wav2vec_s"] = {
            "updates": 10,
            "warmup_updates": 3,
            "freeze_updates": 1,
            "freeze_frontend": False,
            "schedule": schedule,
            "mask": mask,
            "student_mask": mask,
            # A model of ten updates is sure of nothing.
            "pseudo": {
                "teacher": "ema",
                "ema_decay": 0.8,
                "confidence": 0.0,
                "ramp_updates": 3,
                "cache": 8,
                "cache_renewal": 0.3,
            },
        }
    elif method in ("bl_just", "weighted_sum"):
        whole["data"]["labelled"] = {**stream, "speed_factors": [0.9, 1.0, 1.1]}
        whole["data"]["unlabelled"] = {**stream, "crop_seconds": 1.2}
        whole[method] = joint_settings(method, mask, schedule)
    else:
        whole["data"]["labelled"] = {**stream, "speed_factors": [0.9, 1.0, 1.1]}
        whole["finetune"] = {
            "updates": 10,
            "freeze_updates": 4,
            "freeze_frontend": False,
            "schedule": schedule,
            "mask": mask,
        }
    return merged(whole, changes)


BEST_RQ: dict[str, Any] = {
    "mask": {"time_length": 3},
    "codebooks": 2,
    "entries": 12,
    "code_dim": 4,
    "bins": 8,
}
"""Settings of a small BEST-RQ head."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain, best_rq": ("pretrain", {"head": "best_rq", "wav2vec2": None, "best_rq": BEST_RQ}),
    "finetune, conditioned": ("finetune", {"ctc": {"intermediate": [1]}}),
    "wav2vec_s, conditioned": ("wav2vec_s", {"ctc": {"intermediate": [1]}}),
    "bl_just, best_rq, conditioned": (
        "bl_just",
        {"ssl": {"name": "best_rq", "wav2vec2": None, "best_rq": BEST_RQ}, "ctc": {"intermediate": [1]}},
    ),
    "weighted_sum, best_rq, conditioned": (
        "weighted_sum",
        {"ssl": {"name": "best_rq", "wav2vec2": None, "best_rq": BEST_RQ}, "ctc": {"intermediate": [1]}},
    ),
}
"""Methods with other heads than by default: the method, and what changes in its section."""


def variant(name: str, data_dir: Path, **changes: Any) -> dict[str, Any]:
    """Return the `settings` of a method, or of one of `VARIANTS`, which change in blocks what they attend to."""
    if name not in VARIANTS:
        return settings(name, data_dir, **changes)
    method, section = VARIANTS[name]
    blocks = {"positions": "shaw", "attention_block": 6}
    return merged(settings(method, data_dir, encoder=blocks, **{method: section}), changes)


def joint_settings(method: str, mask: dict[str, Any], schedule: dict[str, Any]) -> dict[str, Any]:
    """Return the section of a joint method: two outer epochs of 1 + 3 updates, or 7 joint updates; then fine-tuning."""
    head = {"mask": mask, "final_dim": 8, "entries": 8, "negatives": 5, "gumbel_decay": 0.9}
    section = {"ssl": {"wav2vec2": head}, "mask": mask, "diagnose_every": 2}
    if method == "weighted_sum":
        lengths, own = {"joint": 7, "finetune": 3}, {"weight": 0.5}
    else:
        lengths, own = {"exploration": 1, "joint": 3, "finetune": 2}, {"outer_epochs": 2, "gamma": {"slope": 0.3}}
    phases = {name: {"updates": updates, "schedule": schedule} for name, updates in lengths.items()}
    return {**section, **phases, **own}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def train(exp_dir: Path, whole: Mapping[str, Any], *overrides: str) -> int:
    """Run `asrkit train` in this process and return its exit status."""
    return cli.main(["train", str(write_config(exp_dir, whole)), f"exp_dir={exp_dir}", *overrides])


def write_config(exp_dir: Path, whole: Mapping[str, Any]) -> Path:
    """Write a run's settings into a file beside its folder."""
    path = exp_dir.with_name(f"{exp_dir.name}.yaml")
    path.write_text(yaml.safe_dump(dict(whole)), encoding="utf-8")
    return path


TIMING = ("seconds", "seconds_left", "audio_seconds_per_second", "data_wait_share")


def rows(exp_dir: Path) -> list[dict[str, Any]]:
    """Return metrics.jsonl without what is measured by a clock."""
    lines = (exp_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMING} for line in lines]


def checkpoint(exp_dir: Path, name: str = "last") -> dict[str, Any]:
    """Return what `last` or `best` names."""
    return load(exp_dir / "checkpoints" / (exp_dir / "checkpoints" / name).read_text().strip())


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Hold two nested states to equality to the last bit, wall time apart."""
    if isinstance(one, Mapping):
        assert sorted(one) == sorted(other), where
        for key in one:
            if key not in ("seconds", "wait"):
                assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (mine, its) in enumerate(zip(one, other, strict=True)):
            assert_same(mine, its, f"{where}.{number}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


UNITS = Units(("<blank>", "|", *TONES))
CLOCK = Clock(seed=3, update=2, phase="finetune", phase_update=2, phase_updates=10)


def make_method(method: str, data_dir: Path = Path("data"), **changes: Any) -> Method:
    """Return the method of `settings` with weights that depend on nothing."""
    config = from_dict(schema(method), settings(method, data_dir, **changes))
    torch.manual_seed(5)
    return build_method(config, UNITS)


def make_batch(seeds: Sequence[int], epoch: int = 2) -> Batch:
    """Return the utterances of some seeds as one labelled batch."""
    texts = [sentence(seed) for seed in seeds]
    examples = [
        Example(f"utterance-{seed}", speak(text, seed), UNITS.encode(text), text)
        for seed, text in zip(seeds, texts, strict=True)
    ]
    return collate(examples, epoch)
