"""Experiments with everything that a report shows, made without training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment

from asrkit.config import from_dict, save
from asrkit.data.index import write_index
from asrkit.files import write_text
from asrkit.text.units import Units
from asrkit.text.wer import score, write_transcripts
from asrkit.training.checkpoint import Checkpoints
from asrkit.training.config import schema
from asrkit.training.environment import store_environment
from asrkit.training.experiment import build_method

WORDS = ("FOUR", "RED", "BOATS", "LEAVE", "NEAR", "SEVEN", "GARDENS")

Texts = Mapping[str, str]


def tone(number: int, seconds: float = 0.7) -> np.ndarray:
    """Return a wave of its own for each number."""
    time = np.arange(round(16_000 * seconds)) / 16_000
    return (0.3 * np.sin(2 * np.pi * (200 + 90 * number) * time)).astype(np.float32)


def prepared_set(folder: Path, references: Texts, speakers: Mapping[str, str] | None = None) -> Path:
    """Write a prepared set with a tone for each utterance."""
    folder.mkdir(parents=True)
    cuts = []
    for number, (utterance_id, text) in enumerate(references.items()):
        path = folder / f"{number}.wav"
        soundfile.write(path, tone(number), 16_000)
        recording = Recording.from_file(path, recording_id=utterance_id)
        speaker = (speakers or {}).get(utterance_id)
        said = SupervisionSegment(utterance_id, utterance_id, 0.0, recording.duration, text=text, speaker=speaker)
        cuts.append(MonoCut(utterance_id, 0.0, recording.duration, 0, [said], recording=recording))
    write_index(folder, cuts)
    write_text(folder / "set.json", json.dumps({"name": folder.name, "corpus": "toy", "labelled": True}))
    return folder


def add_decoding(exp: Path, name: str, references: Texts, hypotheses: Texts, **changes: Any) -> Path:
    """Write decode/NAME/DECODER of an experiment, with the errors that the texts have."""
    total = score(references, hypotheses).total
    values = {
        "set": name,
        "corpus": "toy",
        "wer": total.wer,
        "cer": total.cer,
        "words": total.words,
        "substitutions": total.substitutions,
        "deletions": total.deletions,
        "insertions": total.insertions,
        "utterances": total.utterances,
        "decoder": "greedy",
        "lm": None,
        "model": str(exp),
        "recipe": "pretrain+finetune",
        "method": "finetune",
        "source": None,
        "subset": "1h",
        "seed": 1,
        "updates": 20,
        "seconds": 2.0,
        "audio_seconds": 50.0,
        "hardware": "a machine",
        "commit": "abcdef",
    } | changes
    folder = exp / "decode" / name / str(values["decoder"])
    write_transcripts(folder / "ref.trans.txt", references)
    write_transcripts(folder / "hyp.trans.txt", hypotheses)
    write_text(folder / "results.json", json.dumps(values))
    return folder


def make_experiment(folder: Path, data_dir: Path, *, weights: bool = True, **changes: Any) -> Path:
    """Write an experiment with random weights and a few rows of metrics."""
    values = {
        "method": "finetune",
        "exp_dir": str(folder),
        "data": {"dir": str(data_dir), "labelled": {"sets": ["1h"]}},
        "encoder": {
            "frontend": "logmel",
            "logmel": {"bins": 20, "channels": 8},
            "blocks": "transformer",
            "positions": "rotary",
            "layers": 1,
            "dim": 16,
            "ffn_dim": 16,
            "heads": 2,
        },
    } | changes
    config = from_dict(schema("finetune"), values)
    save(config, folder / "config.yaml")
    store_environment(folder, torch.device("cpu"), 1)
    write_text(folder / "recipe", "pretrain+finetune\n")
    write_text(folder / "train.log", "2026-01-01 INFO it runs\n")
    rows: list[dict[str, Any]] = []
    for step in range(5, 105, 5):
        place = {"step": step, "phase": "finetune", "phase_step": step, "phase_steps": 200, "seconds": 2.0 * step}
        rows.append({**place, "ctc": 100 / step, "grad_norm": 3.0 + step % 7, "learning_rate": 1e-3 * step})
        if step % 25 == 0:
            rows.append({**place, "dev/wer": 1 / step, "dev/ctc": 90 / step})
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if weights:
        units = Units.characters(["".join(WORDS)])
        units.save(folder / "units")
        torch.manual_seed(len(folder.name))
        state = {"model": build_method(config, units).state_dict(), "update": 100}
        Checkpoints(folder).save(100, state, best=True)
    return folder
