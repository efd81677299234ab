"""Streams of updates for training, and batches for evaluation.

A stream's state is (epoch, updates consumed). What workers have read ahead is no part of it: an update counts once its
step is done, so a run that stops loses nothing and repeats nothing, and may go on with another number of ranks or
workers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asrkit.data.augment import loaded_seconds, speed_factors
from asrkit.data.batch import Batch
from asrkit.data.collate import Loaded, Reader, Request
from asrkit.data.config import DataConfig, StreamConfig
from asrkit.data.costliest import extremes, synthetic
from asrkit.data.index import SetIndex, record_text
from asrkit.data.plan import EpochPlan, micro_batch_sizes, update_count
from asrkit.data.workers import load
from asrkit.errors import AsrkitError
from asrkit.text.units import Units, UnknownSymbols

__all__ = ["DataConfig", "Stream", "StreamConfig", "evaluation_batches"]

log = logging.getLogger("asrkit.data")

_HOPELESS = 200
"""Unreadable utterances in a row after which a run stops: the disk is gone, not a file."""
_WORKER_DEATHS = 3
"""Times that workers may die before a run stops."""


class Stream:
    """This rank's share of a stream's updates, for ever.

    Iterating gives one update at a time as a list of micro-batches, which may be empty; `consumed` says that its step
    is done.
    """

    def __init__(
        self,
        config: StreamConfig,
        data_config: DataConfig,
        units: Units | None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        """Open the sets and choose the utterances.

        Args:
            config: the stream's section.
            data_config: the section around it.
            units: what transcripts are encoded with; None makes the stream an unlabelled one.
            seed: the run's seed.
            rank: this process.
            world_size: how many there are.
            device: where batches go.

        Raises:
            AsrkitError: if a set is missing or has no transcripts, or no utterance is usable.
        """
        self.config = config
        self.data_config = data_config
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self.skipped = 0
        # Absolute, because workers may start in another folder.
        self.folder = data_config.folder(config)
        sets = [SetIndex.open((self.folder / name).absolute()) for name in config.sets]
        if not sets:
            raise AsrkitError("a stream needs at least one set", where=self.folder)
        self.reader = Reader(
            sets,
            units=units,
            texts=units is not None or _transcribed(sets, config),
            seed=seed,
            config=config,
        )
        self._starts = np.cumsum([0, *(len(index) for index in sets)])
        durations = np.concatenate([index.durations for index in sets])
        self._rows = self._usable(sets, durations, units)
        self._durations = durations[self._rows]
        self._keys = np.concatenate([index.keys for index in sets])[self._rows]
        mean_speed = float(np.mean(config.speed_factors)) if config.speed_factors else 1.0
        nominal = loaded_seconds(self._durations, mean_speed, config.crop_seconds)
        self.seconds_per_epoch = float(nominal.sum())
        """Audio of an epoch, cropped, at the mean speed."""
        self.updates_per_epoch = update_count(nominal, config.seconds_per_update)
        """Updates in every epoch."""
        self._plan: tuple[int, EpochPlan] | None = None
        self._consumed = 0
        self._given = 0
        self._unreadable: set[str] = set()
        self._failures_in_a_row = 0
        self._deaths = 0
        self._items: Iterator[Loaded] | None = None

    def __len__(self) -> int:
        """Utterances that are used."""
        return len(self._rows)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> list[Batch]:
        """Return this rank's micro-batches of the next update."""
        if self._items is None:
            requests = self._requests(self._given)
            self._items = load(self.reader, requests, self.data_config, pin=self.device.type == "cuda")
        try:
            loaded = [next(self._items)]
            while not loaded[-1].last:
                loaded.append(next(self._items))
        except RuntimeError as error:
            loaded = self._without_workers(error)
        self._given += 1
        for item in loaded:
            self._account(item)
        return [item.batch.to(self.device) for item in loaded if item.batch is not None]

    def consumed(self) -> None:
        """Count the oldest update that was given and not yet counted."""
        if self._consumed == self._given:
            raise RuntimeError("no update was given that is not counted yet")
        self._consumed += 1

    @property
    def epoch(self) -> int:
        """Epochs consumed in full."""
        return self._consumed // self.updates_per_epoch

    def state_dict(self) -> dict[str, int]:
        """Return where the stream stands: the epoch, and the updates consumed in it."""
        epoch, update = divmod(self._consumed, self.updates_per_epoch)
        return {"epoch": epoch, "update": update}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another stream stood; an epoch that has become shorter than its update counts as finished."""
        self.close()
        update = min(state["update"], self.updates_per_epoch)
        self._consumed = self._given = state["epoch"] * self.updates_per_epoch + update

    def close(self) -> None:
        """Let the workers go, and forget what they have read ahead: it is read again if the stream goes on."""
        self._items = None
        self._given = self._consumed

    def plan(self, epoch: int) -> EpochPlan:
        """Return an epoch's plan; its rows are places in the stream's list of usable utterances."""
        if self._plan is None or self._plan[0] != epoch:
            factors = speed_factors(torch.from_numpy(self._keys), self.config.speed_factors, self.seed, epoch)
            plan = EpochPlan(
                loaded_seconds(self._durations, factors, self.config.crop_seconds),
                seconds_per_update=self.config.seconds_per_update,
                batch_seconds=self.data_config.batch_seconds,
                seed=self.seed,
                epoch=epoch,
                updates=self.updates_per_epoch,
                bucket=self.config.bucket_updates,
                shuffle=self.config.shuffle,
                salt=int(self.reader.units is not None),
            )
            self._plan = (epoch, plan)
        return self._plan[1]

    def costliest(self) -> list[Batch]:
        """Return batches of noise that take as much memory as any of this stream's can: the longest, and the fullest."""
        fastest = min(self.config.speed_factors, default=1.0)
        durations = loaded_seconds(self._durations, fastest, self.config.crop_seconds)
        units = self.reader.units
        counts = np.concatenate([index.units for index in self.reader.sets])[self._rows]
        found = extremes(durations, counts, self.data_config.batch_seconds, self.config.seconds_per_update)
        symbols = [place for place in range(len(units)) if place != units.blank] if units is not None else []
        return [synthetic(extent, symbols).to(self.device) for extent in found]

    def _requests(self, start: int) -> Iterator[Request]:
        """Return this rank's micro-batches from update ``start`` (over all epochs) on, at least one per update."""
        while True:
            epoch, update = divmod(start, self.updates_per_epoch)
            shares = self.plan(epoch).micro_batches(update, self.world_size)[self.rank :: self.world_size]
            for number, places in enumerate(shares):
                yield Request(epoch, number + 1 == len(shares), _locate(self._starts, self._rows[places]))
            if not shares:
                yield Request(epoch, True, ())
            start += 1

    def _usable(self, sets: Sequence[SetIndex], durations: np.ndarray, units: Units | None) -> np.ndarray:
        """Return the rows, numbered through all sets, that the stream uses; say in one line what was left out."""
        config = self.config
        short = durations < config.min_seconds
        long = durations > config.max_seconds if config.max_seconds > 0 else np.zeros(len(durations), bool)
        strange = np.zeros(len(durations), bool)
        unknown = ""
        if units is not None:
            strange = np.concatenate([_unencodable(index, units) for index in sets]) & ~short & ~long
            places = _locate(self._starts, np.flatnonzero(strange))
            error = units.unknown(record_text(sets[number].read_record(row)) or "" for number, row in places)
            unknown = f" ({error})" if error is not None else ""
        rows = np.flatnonzero(~(short | long | strange))
        counts = {
            f"shorter than {config.min_seconds:g} s": int(short.sum()),
            f"longer than {config.max_seconds:g} s": int(long.sum()),
            f"without a transcript that the units can express{unknown}": int(strange.sum()),
        }
        left_out = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        names = "+".join(config.sets)
        if not len(rows):
            raise AsrkitError(f"no usable utterance: {left_out}", where=f"{self.folder}, sets {names}")
        if left_out:
            log.warning("%s: %d of %d utterances used; left out: %s", names, len(rows), len(durations), left_out)
        return rows

    def _without_workers(self, error: RuntimeError) -> list[Loaded]:
        """Read the update in this process: workers died, of a signal to the process group or for lack of memory."""
        self._items = None
        self._deaths += 1
        if self._deaths > _WORKER_DEATHS:
            mend = "out of memory? lower data.workers, data.prefetch or data.batch_seconds"
            raise AsrkitError(f"data workers keep dying: {str(error).splitlines()[0]}", mend=mend) from None
        log.warning("a data worker died (%s); workers are started anew", str(error).splitlines()[0])
        loaded: list[Loaded] = []
        for request in self._requests(self._given):
            loaded.append(self.reader[request])
            if request.last:
                break
        return loaded

    def _account(self, item: Loaded) -> None:
        for name, reason in item.failures:
            self.skipped += 1
            if name not in self._unreadable:
                self._unreadable.add(name)
                log.warning("utterance skipped: %s", reason)
        self._failures_in_a_row = 0 if item.batch is not None else self._failures_in_a_row + len(item.failures)
        if self._failures_in_a_row >= _HOPELESS:
            raise AsrkitError(
                f"the last {self._failures_in_a_row} utterances could not be read; {item.failures[-1][1]}",
                where=self.folder,
                mend="is the corpus still where it was when it was prepared?",
            )


def evaluation_batches(
    sets: Sequence[SetIndex | Path | str],
    units: Units | None,
    config: DataConfig,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Return this rank's batches of prepared sets, longest first, each utterance once over all ranks, with transcripts.

    Args:
        sets: the sets, or their folders.
        units: gives targets too (symbols that it lacks are left out of them, never of the texts); None gives none.
        config: for batch_seconds, workers and sample_rate.
        rank: this process.
        world_size: how many there are.
        device: where batches go.

    Raises:
        AsrkitError: if targets are wanted of a set without transcripts, or an utterance cannot be read: leaving it out
        would
            change the error rate in silence.
    """
    opened = [index if isinstance(index, SetIndex) else SetIndex.open(Path(index).absolute()) for index in sets]
    for index in opened:
        if units is not None and not index.labelled:
            raise AsrkitError("the set has no transcripts", where=index.dir)
    texts = all(index.labelled for index in opened)
    durations = np.concatenate([index.durations for index in opened])
    order = np.argsort(-durations, kind="stable")
    sizes = micro_batch_sizes(durations[order], config.batch_seconds)
    shares = np.split(order, np.cumsum(sizes)[:-1])[rank::world_size]
    starts = np.cumsum([0, *(len(index) for index in opened)])
    reader = Reader(opened, units=units, texts=texts)
    requests = (Request(0, True, _locate(starts, places)) for places in shares)
    target = torch.device(device)
    for loaded in load(reader, requests, config, pin=target.type == "cuda"):
        if loaded.failures or loaded.batch is None:
            raise AsrkitError(loaded.failures[0][1])
        # Batches are often kept: a copy, lest each hold shared memory and open files of its worker.
        yield _copy(loaded.batch) if target.type == "cpu" else loaded.batch.to(target)


def _copy(batch: Batch) -> Batch:
    tensors: dict[str, Any] = {
        field.name: value.clone() for field in fields(batch) if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return replace(batch, **tensors)


def _transcribed(sets: Sequence[SetIndex], config: StreamConfig) -> bool:
    """Whether the transcripts of sets that serve as unlabelled are known in full, to measure pseudo-labels by."""
    return all(index.labelled for index in sets) and not config.crop_seconds


def _locate(starts: np.ndarray, rows: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return (set, row in the set) for rows that are numbered through all sets, whose first rows are ``starts``."""
    sets = np.searchsorted(starts, rows, side="right") - 1
    return tuple(zip(sets.tolist(), (rows - starts[sets]).tolist(), strict=True))


def _unencodable(index: SetIndex, units: Units) -> np.ndarray:
    """Return for every utterance of a set whether it has no transcript, or one that ``units`` cannot express, bool."""
    if not index.labelled:
        raise AsrkitError("the set has no transcripts", where=index.dir, mend="it can go into data.unlabelled.sets")
    strange = np.zeros(len(index), bool)
    for row, record in enumerate(index.records()):
        text = record_text(record)
        try:
            strange[row] = not text or not units.encode(text)
        except UnknownSymbols:
            strange[row] = True
    return strange
