"""Streams of updates for training, and batches for evaluation.

A stream's state is (epoch, updates consumed). What workers have read ahead is no part of it: an update counts once its
step is done, so a run that stops loses nothing and repeats nothing, and may go on with another number of ranks or
workers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asrkit.data.batch import Batch
from asrkit.data.collate import Loaded, Reader, Request
from asrkit.data.config import DataConfig, StreamConfig
from asrkit.data.costliest import extremes, synthetic
from asrkit.data.index import SetIndex, record_text
from asrkit.data.plan import EpochPlan, count_updates, micro_batch_sizes
from asrkit.data.sampling import SOFT_RANDOM, Draws, Everything, Items, draw_count
from asrkit.data.utterances import LoadedSeconds, Utterances
from asrkit.data.workers import load
from asrkit.errors import AsrkitError
from asrkit.text.units import Units, UnknownSymbols

__all__ = ["DataConfig", "Stream", "StreamConfig", "evaluation_batches"]

log = logging.getLogger("asrkit.data")

_HOPELESS = 200
"""Unreadable utterances in a row after which a run stops: the disk is gone, not a file."""
_RECENT, _FEW = 1000, 20
"""Utterances of which a share may be unreadable, and how many of them may be in any case."""
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
        salt: int | None = None,
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
            salt: tells streams apart that share a seed; by default whether it is a labelled one.

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
        self.utterances = self._usable(sets, units)
        self.salt = int(units is not None) if salt is None else salt
        mean_speed = float(np.mean(config.speed_factors)) if config.speed_factors else 1.0
        items = draw_count(len(self), config.ratio) if config.sampling == SOFT_RANDOM else len(self)
        whole = LoadedSeconds(self.utterances, config.crop_seconds, mean_speed).total()
        self.seconds_per_epoch = whole * items / len(self)
        """Audio of an epoch, cropped, at the mean speed; under soft random sampling what it is on average."""
        self.updates_per_epoch = count_updates(self.seconds_per_epoch, items, config.seconds_per_update)
        """Updates in every epoch."""
        self._plan: tuple[int, Items, EpochPlan] | None = None
        self._consumed = 0
        self._given = 0
        self._unreadable: set[str] = set()
        self._failures_in_a_row = 0
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._deaths = 0
        self._items: Iterator[Loaded] | None = None

    def __len__(self) -> int:
        """Utterances that are used."""
        return len(self.utterances)

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
        """Return an epoch's plan; its rows are numbers of the epoch's `items`."""
        return self._planned(epoch)[1]

    def items(self, epoch: int) -> Items:
        """Return what an epoch is made of: places in the stream's list of usable utterances."""
        return self._planned(epoch)[0]

    def _planned(self, epoch: int) -> tuple[Items, EpochPlan]:
        if self._plan is None or self._plan[0] != epoch:
            config = self.config
            items: Items = Everything(len(self))
            if config.sampling == SOFT_RANDOM:
                items = Draws(len(self), config.ratio, seed=self.seed, epoch=epoch, salt=self.salt)
            plan = EpochPlan(
                LoadedSeconds(self.utterances, config.crop_seconds, config.speed_factors, self.seed, epoch, items),
                seconds_per_update=self.config.seconds_per_update,
                batch_seconds=self.data_config.batch_seconds,
                seed=self.seed,
                epoch=epoch,
                updates=self.updates_per_epoch,
                bucket=self.config.bucket_updates,
                shuffle=self.config.shuffle,
                salt=self.salt,
            )
            self._plan = (epoch, items, plan)
        return self._plan[1:]

    def costliest(self) -> list[Batch]:
        """Return batches of noise that take as much memory as any of this stream's can: the longest, and the fullest."""
        fastest = min(self.config.speed_factors, default=1.0)
        seconds = LoadedSeconds(self.utterances, self.config.crop_seconds, fastest)
        units = self.reader.units
        blocks = ((seconds[places], self.utterances.column("units", places)) for places in self.utterances.blocks())
        found = extremes(blocks, self.data_config.batch_seconds, self.config.seconds_per_update)
        symbols = [place for place in range(len(units)) if place != units.blank] if units is not None else []
        return [synthetic(extent, symbols).to(self.device) for extent in found]

    def _requests(self, start: int) -> Iterator[Request]:
        """Return this rank's micro-batches from update ``start`` (over all epochs) on, at least one per update."""
        while True:
            epoch, update = divmod(start, self.updates_per_epoch)
            items, plan = self._planned(epoch)
            shares = plan.micro_batches(update, self.world_size)[self.rank :: self.world_size]
            for number, rows in enumerate(shares):
                copies = tuple(items.copies(rows).tolist())
                where = self.utterances.locate(items.places(rows))
                yield Request(epoch, number + 1 == len(shares), where, copies if any(copies) else ())
            if not shares:
                yield Request(epoch, True, ())
            start += 1

    def _usable(self, sets: Sequence[SetIndex], units: Units | None) -> Utterances:
        """Choose the utterances that the stream uses; say in one line what was left out."""
        config = self.config
        counts = {"short": 0, "long": 0, "strange": 0}
        unknown: dict[str, None] = {}
        covered = {index.dir: units is None or _covered(index, units) for index in sets}

        def wanted(index: SetIndex, rows: slice) -> np.ndarray:
            durations = index.durations[rows]
            short = durations < config.min_seconds
            long = durations > config.max_seconds if config.max_seconds > 0 else np.zeros(len(durations), bool)
            strange = np.zeros(len(durations), bool)
            if units is not None and covered[index.dir]:
                strange = (index.units[rows] <= 0) & ~short & ~long
            elif units is not None:
                for place in np.flatnonzero(~short & ~long):
                    strange[place] = _unencodable(index, rows.start + int(place), units, unknown)
            for name, mask in (("short", short), ("long", long), ("strange", strange)):
                counts[name] += int(mask.sum())
            return ~(short | long | strange)

        found = Utterances(sets, wanted)
        usable = len(found)
        if usable and config.hours:
            found.limit(3600 * config.hours)
            if len(found) == usable:
                log.warning("%s: no more than %g h of usable speech", "+".join(config.sets), config.hours)
        symbols = f" ({UnknownSymbols(unknown, units.kind)})" if units is not None and unknown else ""
        reasons = {
            f"shorter than {config.min_seconds:g} s": counts["short"],
            f"longer than {config.max_seconds:g} s": counts["long"],
            f"without a transcript that the units can express{symbols}": counts["strange"],
            f"beyond {config.hours:g} h": usable - len(found),
        }
        left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
        names = "+".join(config.sets)
        if not len(found):
            raise AsrkitError(f"no usable utterance: {left_out}", where=f"{self.folder}, sets {names}")
        if left_out:
            total = sum(len(index) for index in sets)
            log.warning("%s: %d of %d utterances used; left out: %s", names, len(found), total, left_out)
        return found

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
            raise self._hopeless(f"the last {self._failures_in_a_row} utterances", item)
        self._recent.extend([False] * (len(item.batch.ids) if item.batch is not None else 0))
        self._recent.extend([True] * len(item.failures))
        failed = sum(self._recent) if item.failures else 0
        if failed > max(_FEW, self.data_config.max_unreadable * len(self._recent)):
            raise self._hopeless(f"{failed} of the last {len(self._recent)} utterances", item)

    def _hopeless(self, which: str, item: Loaded) -> AsrkitError:
        return AsrkitError(
            f"{which} could not be read; {item.failures[-1][1]}",
            where=self.folder,
            mend="is the corpus still where it was when it was prepared? data.max_unreadable is the share that may be lost",
        )


def evaluation_batches(
    sets: Sequence[SetIndex | Path | str],
    units: Units | None,
    config: DataConfig,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    unreadable: Callable[[str], None] | None = None,
) -> Iterator[Batch]:
    """Return this rank's batches of prepared sets, longest first, each utterance once over all ranks, with transcripts.

    Args:
        sets: the sets, or their folders.
        units: gives targets too (symbols that it lacks are left out of them, never of the texts); None gives none.
        config: for batch_seconds and workers.
        rank: this process.
        world_size: how many there are.
        device: where batches go.
        unreadable: told of each utterance that cannot be read, which is then left out.

    Raises:
        AsrkitError: if targets are wanted of a set without transcripts, or, unless ``unreadable`` is given, if an utterance
            cannot be read: leaving it out would change the error rate in silence.
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
    everything = Utterances(opened, lambda index, rows: np.ones(len(index.durations[rows]), bool))
    reader = Reader(opened, units=units, texts=texts)
    requests = (Request(0, True, everything.locate(places)) for places in shares)
    target = torch.device(device)
    for loaded in load(reader, requests, config, pin=target.type == "cuda"):
        for _, problem in loaded.failures:
            if unreadable is None:
                raise AsrkitError(problem)
            unreadable(problem)
        if loaded.batch is None:
            continue
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


def _covered(index: SetIndex, units: Units) -> bool:
    """Whether the set's alphabet alone tells that ``units`` can express its transcripts, so that none need be read.

    Raises:
        AsrkitError: if the set has no transcripts.
    """
    if not index.labelled:
        raise AsrkitError("the set has no transcripts", where=index.dir, mend="it can go into data.unlabelled.sets")
    alphabet = index.info.get("alphabet")
    return isinstance(alphabet, str) and alphabet != "" and units.covers(alphabet)


def _unencodable(index: SetIndex, row: int, units: Units, unknown: dict[str, None]) -> bool:
    """Return whether an utterance has no transcript, or one that ``units`` cannot express; note what they lack."""
    text = record_text(index.read_record(row))
    try:
        return not text or not units.encode(text)
    except UnknownSymbols as error:
        unknown |= dict.fromkeys(error.symbols)
        return True
