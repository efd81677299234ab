"""A prepared corpus in a moment, and a recogniser that mishears its transcripts: decoding without a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import torch

from asrkit.data.batch import Batch
from asrkit.data.config import DataConfig
from asrkit.data.prepare import PrepareConfig, prepare_table
from asrkit.inference.language_model import LMConfig, train_lm
from asrkit.randomness import utterance_key
from asrkit.text.units import BLANK, Units

UNITS = Units((BLANK, "|", *"ABCDEGHIKLNORSTU"))
_NOUNS = ("ALICE", "BOB", "THE CAT", "THE GOAT", "A BIRD", "THE RIDER")
_VERBS = ("HEARS", "TOOK", "EATS", "HOLDS", "CALLED")


def sentence(seed: int) -> str:
    """Return noun, verb, noun."""
    rng = np.random.default_rng(seed)
    return " ".join(str(rng.choice(part)) for part in (_NOUNS, _VERBS, _NOUNS))


def write_data(folder: Path, **sizes: int) -> Path:
    """Write and prepare labelled sets of short noises."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    inputs = []
    seed = 0
    for name, size in sizes.items():
        rows = []
        for number in range(size):
            path = folder / "audio" / f"{name}_{number}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, 0.1 * rng.standard_normal(3200 + 160 * number), 16_000)
            rows.append({"id": f"{name}-{number}", "audio": str(path), "text": sentence(seed), "speaker": f"{name}s"})
            seed += 1
        table = folder / f"{name}.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        inputs.append(f"{name}={table}")
    prepare_table(inputs, folder / "data", PrepareConfig(workers=1))
    return folder / "data"


def write_lm(folder: Path, order: int) -> Path:
    """Write an n-gram of sentences like those of the data."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text("".join(sentence(seed) + "\n" for seed in range(1000, 1150)))
    train_lm([folder / "text.txt"], folder / "nouns.arpa", LMConfig(order=order))
    return folder / "nouns.arpa"


class Mishearing:
    """Stands in for `asrkit.inference.recogniser.Recogniser`: knows each transcript and confuses its letters."""

    def __init__(self, folder: Path, noise: float = 2.2, update: int = 100) -> None:
        config = SimpleNamespace(data=DataConfig(workers=0), method="finetune", seed=1)
        config.data.labelled.sets = ["train"]
        self.experiment = SimpleNamespace(folder=folder, config=config, recipe="finetune", source="")
        self.units = UNITS
        self.frame_rate = 25.0
        self.update = update
        self.noise = noise
        self.device = torch.device("cpu")

    def log_probs(self, batch: Batch) -> list[np.ndarray]:
        return [self._hear(i, text) for i, text in zip(batch.ids, batch.texts or (), strict=True)]

    def texts(self, batch: Batch) -> list[str]:
        from asrkit.decoding.greedy import GreedyDecoder

        greedy = GreedyDecoder(self.units, self.frame_rate)
        return [greedy.search(scores)[0].text for scores in self.log_probs(batch)]

    def _hear(self, utterance_id: str, text: str) -> np.ndarray:
        rng = np.random.default_rng(utterance_key(utterance_id) & 0xFFFFFFFF)
        frames = [frame for unit in UNITS.encode(text) for frame in (unit, UNITS.blank)]
        logits = self.noise * rng.normal(size=(len(frames), len(UNITS)))
        logits[np.arange(len(frames)), frames] += 7.0
        return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
