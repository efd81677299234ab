"""A trained experiment as a function from audio to text.

Shapes: N batch, S samples, T frames, V units (with blank).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from asrkit.data.audio import resample
from asrkit.data.batch import SAMPLE_RATE, Batch
from asrkit.errors import AsrkitError
from asrkit.inference.transcribe import Source, transcribe
from asrkit.inference.transcript import Transcript
from asrkit.training.engine import autocast, choose_device, choose_precision
from asrkit.training.experiment import needs_units, open_experiment
from asrkit.training.memory import out_of_memory

T = TypeVar("T")

_BLOCK_SECONDS = 30


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
        if self.experiment.units is None and needs_units(self.experiment.config):
            raise AsrkitError("has no units, though it has learnt to write", where=folder, mend="put its units/ back")
        if self.experiment.units is None:
            raise AsrkitError("this experiment has no recogniser", where=folder, mend="fine-tune from it first")
        self.units = self.experiment.units
        self.sample_rate = SAMPLE_RATE
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        method, self.update = self.experiment.method(checkpoint)
        self.method = method.to(self.device)

    def texts(self, batch: Batch) -> list[str]:
        """Return the text of each utterance of a batch."""

        def recognise(batch: Batch) -> list[str]:
            with torch.inference_mode(), autocast(self.device, self.precision):
                sequences = self.method.hypotheses(batch.to(self.device))
            return [self.units.decode(sequence) for sequence in sequences]

        return _in_pieces(recognise, batch)

    def log_probs(self, batch: Batch) -> list[np.ndarray]:
        """Return each utterance's natural log-probabilities of the units, float32 (T, V)."""

        def score(batch: Batch) -> list[np.ndarray]:
            with torch.inference_mode(), autocast(self.device, self.precision):
                scores, frames = self.method.log_probs(batch.to(self.device))
            host = scores.cpu().numpy()
            return [host[row, :count] for row, count in enumerate(frames)]

        return _in_pieces(score, batch)

    @property
    def frame_rate(self) -> float:
        """Encoder frames per second."""
        return float(self.method.encoder.frame_rate)

    @property
    def frame_samples(self) -> int:
        """Samples from one encoder frame to the next."""
        return round(SAMPLE_RATE / self.frame_rate)

    def transcribe(self, wave: np.ndarray | torch.Tensor, sample_rate: int) -> str:
        """Return the text of one recording of any length and sample rate.

        Args:
            wave: samples in [-1, 1], or signed integers of any width, of shape (S,), or (channels, S), which are averaged.
            sample_rate: in Hz.

        Raises:
            AsrkitError: if the wave is empty, not finite, or of another shape or type.
        """
        return self.transcript(wave, sample_rate).text

    def transcript(self, wave: np.ndarray | torch.Tensor, sample_rate: int) -> Transcript:
        """Return the text of one recording with its words in time; arguments and errors as for `transcribe`."""
        samples = _mono(wave)
        if sample_rate <= 0:
            raise AsrkitError(f"a sample rate of {sample_rate}", mend="samples per second, such as 16000")
        samples = resample(samples, sample_rate, self.sample_rate)
        # In blocks, as files are read: what is looked for in them costs as much as they are long.
        step = _BLOCK_SECONDS * self.sample_rate
        blocks = range(0, max(1, len(samples)), step)
        ((_, found),) = transcribe(self, [Source("wave", lambda: (samples[start : start + step] for start in blocks))])
        if isinstance(found, AsrkitError):
            raise found
        return found


def _in_pieces(function: Callable[[Batch], list[T]], batch: Batch) -> list[T]:
    """Return what a function gives for each utterance; a batch that does not fit into the memory is taken in halves.

    Raises:
        AsrkitError: if an utterance alone does not fit.
    """
    try:
        return function(batch)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        problem = str(error).strip().splitlines()[0]
    # Out here, the error's traceback no longer holds on to what was allocated.
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    rows = len(batch.ids)
    if rows == 1:
        what = f"out of memory, {batch.host_lengths[0] / SAMPLE_RATE:.1f} s of audio: {problem}"
        raise AsrkitError(what, where=batch.ids[0], mend="another --device, or shorter recordings")
    halves = (range(rows // 2), range(rows // 2, rows))
    return [one for half in halves for one in _in_pieces(function, batch.rows(half))]


def _mono(wave: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return a wave in [-1, 1], float32 (S,), of samples (S,) or (channels, S), floats or signed integers."""
    array = wave.detach().cpu().numpy() if isinstance(wave, torch.Tensor) else np.asarray(wave)
    if array.ndim not in (1, 2) or array.size == 0:
        raise AsrkitError(f"a wave of shape {array.shape}", mend="(samples,) or (channels, samples)")
    if array.ndim == 2 and array.shape[0] > array.shape[1]:
        raise AsrkitError(f"a wave of {array.shape[0]} channels", mend="transpose it: (channels, samples)")
    if array.dtype.kind not in "fi":
        raise AsrkitError(f"a wave of type {array.dtype}", mend="floats in [-1, 1], or signed integers")
    scale = -float(np.iinfo(array.dtype).min) if array.dtype.kind == "i" else 1.0
    samples = (array.mean(axis=0) if array.ndim == 2 else array).astype(np.float32) / np.float32(scale)
    if not np.isfinite(samples).all():
        raise AsrkitError("the wave has values that are not finite numbers")
    return samples


def load(folder: str | Path, *, device: str = "auto", precision: str = "auto", checkpoint: str = "best") -> Recogniser:
    """Return a recogniser of an experiment; see `Recogniser`."""
    return Recogniser(Path(folder), device=device, precision=precision, checkpoint=checkpoint)
