"""A trained experiment as a function from audio to text.

Shapes: N batch, S samples, T frames, V units (with blank).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from asrkit.data.audio import load_file, resample
from asrkit.data.batch import Batch
from asrkit.data.collate import Example, collate
from asrkit.data.pauses import cut_at_pauses
from asrkit.errors import AsrkitError
from asrkit.training.engine import autocast, choose_device, choose_precision
from asrkit.training.experiment import open_experiment

SAMPLE_RATE = 16_000
LONGEST_PIECE = 25.0
"""Seconds; longer audio is cut at pauses and recognised piece by piece."""


class Recogniser:
    """Weights, units and device of an experiment that can write text. Make one with `asrkit.load`."""

    def __init__(
        self, folder: Path, *, device: str = "auto", precision: str = "auto", checkpoint: str = "best"
    ) -> None:
        """Load an experiment.

        Args:
            folder: the experiment (`exp_dir` of `asrkit train`).
            device: auto, cpu, cuda or cuda:K.
            precision: auto, bf16, fp16 or fp32.
            checkpoint: best or last.

        Raises:
            AsrkitError: if the folder is no experiment, has no checkpoint, or has no recogniser.
        """
        self.experiment = open_experiment(folder)
        if self.experiment.units is None:
            raise AsrkitError("this experiment has no recogniser", where=folder, mend="fine-tune from it first")
        self.units = self.experiment.units
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        method, self.update = self.experiment.method(checkpoint)
        self.method = method.to(self.device)

    def texts(self, batch: Batch) -> list[str]:
        """Return the text of each utterance of a batch."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            sequences = self.method.hypotheses(batch.to(self.device))
        return [self.units.decode(sequence) for sequence in sequences]

    def log_probs(self, batch: Batch) -> list[np.ndarray]:
        """Return each utterance's natural log-probabilities of the units, float32 (T, V)."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            scores, frames = self.method.log_probs(batch.to(self.device))
        host = scores.cpu().numpy()
        return [host[row, :count] for row, count in enumerate(frames)]

    @property
    def frame_rate(self) -> float:
        """Encoder frames per second."""
        return float(self.method.encoder.frame_rate)

    def transcribe(self, wave: np.ndarray | torch.Tensor, sample_rate: int) -> str:
        """Return the text of one recording of any length and sample rate.

        Args:
            wave: samples in [-1, 1], of shape (S,), or (channels, S), which are averaged.
            sample_rate: in Hz.

        Raises:
            AsrkitError: if the wave is empty, not finite, or of another shape.
        """
        samples = np.asarray(wave, dtype=np.float32)
        if samples.ndim == 2:
            samples = samples.mean(axis=0)
        if samples.ndim != 1 or samples.size == 0:
            raise AsrkitError(f"a wave of shape {tuple(samples.shape)}", mend="(samples,) or (channels, samples)")
        if not np.isfinite(samples).all():
            raise AsrkitError("the wave has values that are not finite numbers")
        pieces = split(resample(samples, sample_rate, SAMPLE_RATE))
        texts = [self.texts(collate([Example("wave", piece)], epoch=0))[0] for piece in pieces]
        return " ".join(text for text in texts if text)


def split(wave: np.ndarray) -> list[np.ndarray]:
    """Cut a wave (S,) at 16 kHz into pieces of at most `LONGEST_PIECE` seconds, at its quietest places."""
    hop = SAMPLE_RATE // 100
    whole = wave[: len(wave) // hop * hop].reshape(-1, hop)
    ends = cut_at_pauses(np.square(whole).mean(axis=1), hop, 0, len(wave), round(LONGEST_PIECE * SAMPLE_RATE))
    return np.split(wave, ends[:-1])


def load(folder: str | Path, *, device: str = "auto", precision: str = "auto", checkpoint: str = "best") -> Recogniser:
    """Return a recogniser of an experiment; see `Recogniser`."""
    return Recogniser(Path(folder), device=device, precision=precision, checkpoint=checkpoint)


def transcribe_files(recogniser: Recogniser, paths: Sequence[Path]) -> list[tuple[Path, str | AsrkitError]]:
    """Return the text of each file, or what is wrong with it; one bad file does not stop the others."""
    results: list[tuple[Path, str | AsrkitError]] = []
    for path in paths:
        try:
            results.append((path, recogniser.transcribe(load_file(path, SAMPLE_RATE), SAMPLE_RATE)))
        except AsrkitError as error:
            results.append((path, error))
    return results
