"""A recogniser of random weights whose encoder hears a fraction of a second only, so that division can be exact."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from helpers import STILL, UNITS, make_method

from asrkit.data.batch import Batch

RATE = 16_000
_NO_BLOCKS: dict[str, Any] = {**STILL, "layers": 0, "positions": "none", "blocks": "transformer"}
ENCODERS: dict[str, dict[str, Any]] = {
    "logmel": {**_NO_BLOCKS, "frontend": "logmel", "logmel": {"normalisation": "global"}},
    "waveform": {
        **_NO_BLOCKS,
        "frontend": "waveform",
        "waveform": {"layers": [[8, 10, 5], [8, 8, 8], [8, 8, 8]], "norm": "layer"},
    },
}


def bounded_recogniser(kind: str) -> Any:
    """Return what `transcribe` and `align` need of a `Recogniser`."""
    method = make_method("finetune", encoder=ENCODERS[kind]).eval()
    with torch.no_grad():
        # Random weights say the same of every frame; sharpened, they do not.
        method.ctc.project.weight.mul_(20)

    def log_probs(batch: Batch) -> list[np.ndarray]:
        with torch.inference_mode():
            scores, frames = method.log_probs(batch)
        return [scores[row, :count].numpy() for row, count in enumerate(frames)]

    return SimpleNamespace(
        units=UNITS,
        sample_rate=RATE,
        frame_samples=round(RATE / method.encoder.frame_rate),
        device=torch.device("cpu"),
        log_probs=log_probs,
        method=method,
    )


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Return a sound that changes all the time and never pauses, float32 (S,)."""
    random = np.random.default_rng(seed)
    samples = round(seconds * RATE)
    loudness = np.repeat(random.uniform(0.05, 0.2, samples // 800 + 1), 800)[:samples]
    pitch = np.repeat(random.uniform(200, 3000, samples // 800 + 1), 800)[:samples]
    return (loudness * np.sin(2 * np.pi * pitch * np.arange(samples) / RATE)).astype(np.float32)


def with_pauses(seconds: list[float], pause: float) -> np.ndarray:
    """Return stretches of such a sound with digital silence between them."""
    parts = [
        part for n, length in enumerate(seconds) for part in (noise(length, n), np.zeros(round(pause * RATE), "f4"))
    ]
    return np.concatenate(parts[:-1])
