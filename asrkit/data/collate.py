"""From rows of prepared sets to a padded batch. Runs in worker processes.

Shapes: N batch, S samples, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from lhotse import MonoCut, MultiCut
from torch import Tensor

from asrkit.data.audio import read
from asrkit.data.augment import NoiseMixer, crop_positions, perturb_speed, speed_factors
from asrkit.data.batch import SAMPLE_RATE, Batch
from asrkit.data.config import StreamConfig
from asrkit.data.index import SetIndex
from asrkit.errors import AsrkitError
from asrkit.randomness import copy_keys, utterance_keys
from asrkit.text.units import Units, UnknownSymbols


@dataclass(frozen=True)
class Request:
    """A micro-batch to be read."""

    epoch: int
    """The stream's epoch."""
    last: bool
    """Whether it is the rank's last of its update."""
    rows: tuple[tuple[int, int], ...]
    """(set, row in the set) of each utterance; none where a rank has no share of an update."""
    copies: tuple[int, ...] = ()
    """How often each was drawn in the epoch before; empty where an epoch has no utterance twice."""


@dataclass(frozen=True)
class Loaded:
    """What became of a request."""

    batch: Batch | None
    """The utterances that could be read; None if there are none."""
    last: bool
    """As in the request."""
    failures: tuple[tuple[str, str], ...]
    """(id, reason) of those that could not."""

    def pin_memory(self) -> Loaded:
        """Called by torch's DataLoader where batches go to a GPU."""
        return self if self.batch is None else replace(self, batch=self.batch.pin())


@dataclass(frozen=True)
class Example:
    """An utterance that is ready to be padded."""

    id: str
    """Its id."""
    wave: np.ndarray
    """Audio, float32 (S,)."""
    target: list[int] | None = None
    """Unit indices."""
    text: str | None = None
    """Transcript."""
    copy: int = 0
    """How often the utterance was drawn in the epoch before."""


def collate(examples: Sequence[Example], epoch: int) -> Batch:
    """Pad examples to a batch; either all or none have a target, and likewise a text."""
    waves, wave_lengths = pad_waves([example.wave for example in examples])
    ids = tuple(example.id for example in examples)
    texts = tuple(example.text for example in examples if example.text is not None)
    batch = Batch(
        waves=waves,
        wave_lengths=wave_lengths,
        host_lengths=tuple(wave_lengths.tolist()),
        keys=copy_keys(utterance_keys(ids), torch.tensor([example.copy for example in examples])),
        ids=ids,
        epoch=epoch,
        texts=texts if len(texts) == len(ids) else None,
    )
    targets = [example.target for example in examples if example.target is not None]
    if len(targets) < len(ids):
        return batch
    padded, target_lengths = pad_targets(targets)
    return replace(
        batch, targets=padded, target_lengths=target_lengths, host_target_lengths=tuple(target_lengths.tolist())
    )


def pad_waves(waves: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return waves padded with zeros, float32 (N, S), and their lengths, int64 (N,)."""
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.zeros(len(waves), int(lengths.max()))
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    return padded, lengths


def pad_targets(targets: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return targets padded with 0, int64 (N, L), and their lengths, int64 (N,)."""
    lengths = torch.tensor([len(target) for target in targets])
    padded = torch.zeros(len(targets), int(lengths.max()), dtype=torch.int64)
    for row, target in zip(padded, targets, strict=True):
        row[: len(target)] = torch.tensor(target, dtype=torch.int64)
    return padded, lengths


def encode_known(units: Units, text: str) -> list[int]:
    """Return the target of ``text`` without what ``units`` cannot express, so that an odd symbol costs no utterance."""
    try:
        return units.encode(text)
    except UnknownSymbols as error:
        unknown = set(error.symbols)
    known = "".join(symbol for symbol in text if symbol not in unknown)
    try:
        return units.encode(" ".join(word for word in known.split() if word not in unknown))
    except UnknownSymbols:
        return []


class Reader:
    """Turns requests into batches: a map-style dataset whose indices are requests.

    Picklable, and cheap to send to a worker: sets travel as the names of their folders.
    """

    def __init__(
        self,
        sets: Sequence[SetIndex],
        *,
        units: Units | None,
        texts: bool,
        seed: int = 0,
        config: StreamConfig | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            sets: the sets that requests refer to by number.
            units: gives targets; None for none.
            texts: whether transcripts go into the batches.
            seed: the run's seed.
            config: crop, speed and noise; None reads utterances as they are.
        """
        self.sets = list(sets)
        self.units = units
        self.texts = texts
        self.seed = seed
        self.config = config
        self.noise = NoiseMixer(config.noise, SAMPLE_RATE) if config and config.noise.probability > 0 else None

    def __getitem__(self, request: Request) -> Loaded:
        """Read a micro-batch, leaving out what cannot be read."""
        examples, failures = [], []
        for (number, row), copy in zip(request.rows, request.copies or [0] * len(request.rows), strict=True):
            name = f"{self.sets[number].name}:{row}"
            try:
                cut = self.sets[number].read_cut(row)
                name = cut.id
                examples.append(self._example(cut, request.epoch, copy))
            except AsrkitError as error:
                failures.append((name, str(error)))
        batch = collate(examples, request.epoch) if examples else None
        return Loaded(batch, request.last, tuple(failures))

    def _example(self, cut: MonoCut | MultiCut, epoch: int, copy: int) -> Example:
        text = cut.supervisions[0].text if cut.supervisions and (self.units or self.texts) else None
        target = None if self.units is None else encode_known(self.units, text or "")
        return Example(cut.id, self._wave(cut, epoch, copy), target, (text or "") if self.texts else None, copy)

    def _wave(self, cut: MonoCut | MultiCut, epoch: int, copy: int) -> np.ndarray:
        if self.config is None:
            return read(cut, SAMPLE_RATE)
        keys = copy_keys(utterance_keys([cut.id]), torch.tensor([copy]))
        factor = float(speed_factors(keys, self.config.speed_factors, self.seed, epoch)[0])
        longest = self.config.crop_seconds
        if longest > 0 and cut.duration > longest * factor:
            start = float(crop_positions(keys, self.seed, epoch)[0]) * (cut.duration - longest * factor)
            cut = cut.truncate(offset=start, duration=longest * factor, preserve_id=True)
        wave = read(cut, SAMPLE_RATE)
        # Prepared sets hold no such utterance: a disk that lost its blocks gives zeros.
        if not wave.any():
            raise AsrkitError("digital silence: all samples are zero", where=cut.id)
        wave = perturb_speed(wave, factor, SAMPLE_RATE)
        if longest > 0:
            # Resampling rounds up: the crop is exact to the sample.
            wave = wave[: round(longest * SAMPLE_RATE)]
        return wave if self.noise is None else self.noise.mix(wave, int(keys[0]), self.seed, epoch)
