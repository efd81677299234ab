"""An experiment folder: its config, units and weights; making a run out of a config, and a trained method out of a folder."""

from __future__ import annotations

import enum
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from asrkit import config as configuration
from asrkit.core.method import Method
from asrkit.data.batch import Batch
from asrkit.data.index import SetIndex, record_text
from asrkit.data.stream import Stream, evaluation_batches
from asrkit.errors import AsrkitError
from asrkit.files import held_alone, remove_parts, write_text
from asrkit.methods.registry import METHODS
from asrkit.nn.config import EncoderConfig
from asrkit.nn.encoder import Encoder
from asrkit.processes import cores
from asrkit.randomness import utterance_key
from asrkit.text.units import Units
from asrkit.training.checkpoint import Checkpoints, ShardedCheckpoints, load
from asrkit.training.compiled import compile_encoder
from asrkit.training.config import ExperimentConfig, check_same_run, make_paths_absolute, schema
from asrkit.training.distributed import Ranks, join, leave, ranks_of_environment, restarted, threads_group
from asrkit.training.engine import TrainingEngine, choose_device
from asrkit.training.environment import store_environment
from asrkit.training.generators import seed_generators
from asrkit.training.log import ProgressView, logging_to
from asrkit.training.loop import Trainer, load_weights
from asrkit.training.optimiser import Optimiser
from asrkit.training.rehearsal import Rehearsed, rehearse, tell
from asrkit.training.sharded_checkpoint import Together
from asrkit.training.sharding import Replicas, Shards, Weights
from asrkit.training.signals import Interrupted
from asrkit.training.units import resolve_units

log = logging.getLogger("asrkit.training")

REGULARISATION = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "input_dropout",
    "layer_drop",
    "checkpoint_activations",
)
"""Encoder fields that a run sets for itself; all others are the shape, which `init` brings along."""


RECIPE = "recipe"
"""A file of two lines, so that reports need not find an experiment's ancestors: the methods that led to it, and the labelled
sets that the ancestors learnt from (empty if they had none)."""


@dataclass(frozen=True)
class Experiment:
    """A folder that holds a run."""

    folder: Path
    config: ExperimentConfig
    units: Units | None

    @property
    def recipe(self) -> str:
        """The methods that led here, such as ``pretrain+wav2vec_s+finetune``."""
        return self._lineage()[0]

    @property
    def source(self) -> str:
        """The labelled sets that earlier stages learnt from, such as ``9h``; empty if there were none."""
        return self._lineage()[1]

    def _lineage(self) -> tuple[str, str]:
        try:
            lines = (self.folder / RECIPE).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise AsrkitError(f"cannot be read: {error.strerror}", where=self.folder / RECIPE) from None
        first, second = (*lines, "", "")[:2]
        return first.strip(), second.strip()

    def weights(self, which: str = "best") -> tuple[dict[str, torch.Tensor], int]:
        """Return the weights that `best` (or, where nothing was validated, `last`) names, and their update.

        Raises:
            AsrkitError: if there is no checkpoint, or it cannot be read.
        """
        checkpoints = Checkpoints(self.folder)
        path = checkpoints.named(which) or checkpoints.named("last")
        if path is None:
            raise AsrkitError("no checkpoint yet", where=self.folder, mend="train it first: asrkit train")
        state = load(path)
        return state["model"], state["update"]

    def method(self, which: str = "best") -> tuple[Method, int]:
        """Return the trained method in evaluation mode, on the CPU, and its update."""
        method = build_method(self.config, self.units)
        weights, update = self.weights(which)
        load_weights(method, weights, self.folder)
        return method.eval(), update


def open_experiment(folder: Path) -> Experiment:
    """Read an experiment's config and units.

    Raises:
        AsrkitError: if the folder is not an experiment.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise AsrkitError("not an experiment: it has no config.yaml", where=folder, mend="give asrkit train's exp_dir")
    method = configuration.peek("method", path)
    if method not in METHODS:
        raise AsrkitError(f"unknown method {method!r}", where=path, mend="known: " + ", ".join(sorted(METHODS)))
    config = configuration.load(schema(method), path)
    units = Units.load(folder / "units") if (folder / "units").is_dir() else None
    return Experiment(folder, config, units)


def build_method(config: ExperimentConfig, units: Units | None) -> Method:
    """Return the config's method with random weights."""
    return METHODS[config.method].build(config.options, Encoder(config.encoder), units)


def inherit_shape(own: EncoderConfig, initial: EncoderConfig) -> EncoderConfig:
    """Return the initial experiment's encoder with this run's regularisation.

    Raises:
        AsrkitError: if this run's config asks for another shape than the initial experiment has.
    """
    _check_shape(own, initial, EncoderConfig(), "encoder")
    return replace(initial, **{name: getattr(own, name) for name in REGULARISATION})


def _check_shape(own: Any, initial: Any, standard: Any, key: str) -> None:
    for field in fields(own):
        asked, given, usual = (getattr(one, field.name) for one in (own, initial, standard))
        if is_dataclass(asked):
            _check_shape(asked, given, usual, f"{key}.{field.name}")
        elif asked not in (given, usual) and not (key == "encoder" and field.name in REGULARISATION):
            raise AsrkitError(
                f"{key}.{field.name} is {asked!r} here, but `init` has {given!r}",
                mend="leave the encoder's shape out: it comes with init",
            )


class Outcome(enum.Enum):
    """How a call of `train` ended."""

    COMPLETE = "complete"
    """There is nothing left to do."""
    STOPPED = "stopped"
    """A signal stopped the run; its state is saved."""
    POSTPONED = "postponed"
    """The same, by a SIGUSR1: whoever sent it will start the run again."""


def train(config: ExperimentConfig, console: Console) -> Outcome:
    """Run, or go on with, the experiment that ``config`` describes; return how it ended.

    Raises:
        AsrkitError: for whatever in config, data or checkpoints stands in the way.
    """
    exp_dir = Path(config.exp_dir)
    with enter(config, exp_dir, console) as engine:
        return _train(config, exp_dir, engine, console)


@contextmanager
def enter(config: ExperimentConfig, exp_dir: Path, console: Console) -> Iterator[TrainingEngine]:
    """Join the other processes and hold the folder for a run; give its engine.

    Raises:
        AsrkitError: if a device or a process is missing, or another run is at work in the folder.
    """
    ranks = ranks_of_environment()
    device = choose_device(config.device, ranks)
    make_paths_absolute(config)
    join(ranks, device, config.training.timeout_minutes)
    # A file server may keep a dead machine's lock for its lease, 90 s or so.
    alone = held_alone(exp_dir, patience_seconds=180 if restarted() else 0) if ranks.is_first else nullcontext()
    with alone, logging_to(exp_dir, console, ranks.rank):
        yield TrainingEngine(device, config.training.precision, ranks, config.training.min_loss_scale)
    # After a mistake the group stays until the process ends: the other ranks fail only once this one has told its own.
    leave()


def _train(config: ExperimentConfig, exp_dir: Path, engine: TrainingEngine, console: Console) -> Outcome:
    ranks = engine.ranks
    if ranks.is_first:
        remove_parts(exp_dir)
        remove_parts(exp_dir / "checkpoints")
    ranks.barrier()
    state = Checkpoints(exp_dir).newest(ranks)
    fresh = state is None
    initial = begin(config, exp_dir, ranks) if fresh else None
    if not fresh:
        _go_on(config, exp_dir)
    ranks.barrier()
    if ranks.is_first and not fresh:  # all have read what stood there
        configuration.save(config, exp_dir / "config.yaml")
    if state is not None and state["finished"]:
        log.info("complete at step %d, nothing to do: %s", state["update"], exp_dir)
        return Outcome.COMPLETE
    _set_threads(config.training.threads, engine)
    if ranks.is_first:
        store_environment(exp_dir, engine.device, ranks.world_size)
    trainer = make_trainer(config, exp_dir, engine, console, initial, fresh=fresh)
    log.info(
        "%s: %.2fM parameters, %s on %s, %d process(es), %s",
        config.method,
        sum(p.numel() for p in trainer.method.parameters()) / 1e6,
        engine.precision,
        engine.device,
        ranks.world_size,
        exp_dir,
    )
    if config.training.check_memory == "on" or (
        config.training.check_memory == "auto" and engine.device.type == "cuda"
    ):
        rehearse_run(config, trainer)
    if state is not None:
        trainer.restore(state)
    del state  # gigabytes, on every rank
    try:
        trainer.run()
    except Interrupted as stop:
        log.warning("stopped at step %d, saved; the same command goes on from here", trainer.update)
        return Outcome.POSTPONED if stop.postponed else Outcome.STOPPED
    return Outcome.COMPLETE


def make_trainer(
    config: ExperimentConfig,
    exp_dir: Path,
    engine: TrainingEngine,
    console: Console,
    initial: Experiment | None,
    fresh: bool,
) -> Trainer:
    """Return the trainer of a run whose folder is made; ``fresh`` says that it begins, with what ``initial`` brings along."""
    ranks = engine.ranks
    units = Units.load(exp_dir / "units") if needs_units(config) else None
    seed_generators([config.seed])
    method = build_method(config, units)
    if initial is not None:
        given, update = initial.weights()
        taken = method.inherit(given, keep_head=_keeps_head(config))
        log.info("weights of %s (step %d): %s", initial.folder, update, ", ".join(p.rstrip(".") for p in taken))
    elif fresh:
        method.check_scratch()
    method.to(engine.device)
    if config.training.compile:
        compile_encoder(method.encoder, engine.device)
    seed_generators([config.seed, ranks.rank])
    streams = _streams(config, units, engine)
    method.observe_streams(updates_per_epoch(streams))
    dev_batches = _dev_batches(config, units, ranks)
    weights: Weights = Replicas()
    checkpoints = Checkpoints(exp_dir, config.training.keep_checkpoints)
    if config.training.shard and ranks.world_size > 1:
        weights = Shards(method, ranks, engine.device)
        together = Together(threads_group(), ranks.rank, ranks.world_size)
        checkpoints = ShardedCheckpoints(exp_dir, config.training.keep_checkpoints, together)
    with weights.divided():
        optimiser = Optimiser(method, config.optimiser)
    return Trainer(
        method,
        streams,
        dev_batches,
        optimiser=optimiser,
        weights=weights,
        checkpoints=checkpoints,
        engine=engine,
        config=config.training,
        exp_dir=exp_dir,
        seed=config.seed,
        view=ProgressView(console, ranks.is_first),
    )


def updates_per_epoch(streams: Mapping[str, Stream]) -> dict[str, int]:
    """Return how many updates a pass over each stream takes."""
    return {name: stream.updates_per_epoch for name, stream in streams.items()}


def rehearse_run(config: ExperimentConfig, trainer: Trainer) -> list[Rehearsed]:
    """Try the costliest batches of a run and say what they took."""
    units = Units.load(trainer.exp_dir / "units") if needs_units(config) else None
    device = trainer.engine.device

    def build() -> Method:
        method = build_method(config, units)
        method.observe_streams(updates_per_epoch(trainer.streams))
        return method.to(device)

    # With sharding, the copy of the model is more than this rank's share of the moments will be.
    found = rehearse(build, trainer.streams, trainer.engine, trainer.memory, moments=not trainer.weights.sharded)
    tell(found, device)
    return found


def begin(config: ExperimentConfig, exp_dir: Path, ranks: Ranks) -> Experiment | None:
    """Write down what a new run is; what a start without a checkpoint left here is replaced. Return its `init`."""
    initial = open_experiment(Path(config.init)) if config.init else None
    if initial is not None:
        config.encoder = inherit_shape(config.encoder, initial.config.encoder)
    if ranks.is_first:
        configuration.save(config, exp_dir / "config.yaml")
        methods, sources = ([initial.recipe], [initial.source]) if initial is not None else ([], [])
        if initial is not None and needs_units(initial.config):
            sources += initial.config.data.labelled.sets
        write_text(
            exp_dir / RECIPE, "+".join([*methods, config.method]) + "\n" + "+".join(filter(None, sources)) + "\n"
        )
        if needs_units(config):
            _new_units(config, initial).save(exp_dir / "units")
    return initial


def _go_on(config: ExperimentConfig, exp_dir: Path) -> None:
    """Check that a run that has begun is the one that ``config`` describes. Its `init` is not needed any more."""
    stored = open_experiment(exp_dir).config
    if config.init and stored.init and (config.init == stored.init or not Path(stored.init).exists()):
        config.encoder = inherit_shape(config.encoder, stored.encoder)
    check_same_run(stored, config, exp_dir)


def _set_threads(threads: int, engine: TrainingEngine) -> None:
    share = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not threads and share > 1 and engine.device.type == "cpu":
        threads = max(1, cores() // share)
    if threads:
        torch.set_num_threads(threads)


def needs_units(config: ExperimentConfig) -> bool:
    """Whether a run's method learns to write."""
    return "labelled" in METHODS[config.method].streams


def _keeps_head(config: ExperimentConfig) -> bool:
    return bool(getattr(config.options, "keep_head", False))


def _new_units(config: ExperimentConfig, initial: Experiment | None) -> Units:
    inherited = initial.units if initial is not None and _keeps_head(config) else None
    if _keeps_head(config) and inherited is None:
        raise AsrkitError(f"{config.method}.keep_head is on, but `init` has no units", mend="switch it off")
    return resolve_units(config.units, config.data.folder(config.data.labelled), lambda: _texts(config), inherited)


def _texts(config: ExperimentConfig) -> Iterator[str]:
    for name in config.data.labelled.sets:
        for record in SetIndex.open(config.data.folder(config.data.labelled) / name).records():
            yield record_text(record) or ""


def _streams(config: ExperimentConfig, units: Units | None, engine: TrainingEngine) -> dict[str, Stream]:
    streams = {}
    ranks = engine.ranks
    wanted = METHODS[config.method].streams
    sections = config.data.streams(wanted)
    if not sections:
        mend = "name streams and their sets, e.g. data.sources.NAME.sets=[train-clean-100]"
        raise AsrkitError(f"{config.method} needs data.sources, which is empty", where=config.exp_dir, mend=mend)
    for name, section in sections.items():
        key = f"data.{name}" if name in wanted else f"data.sources.{name}"
        if not section.sets:
            raise AsrkitError(
                f"{config.method} needs the {name} stream, but {key}.sets is empty",
                where=config.exp_dir,
                mend=f"name prepared sets, e.g. {key}.sets=[train-clean-100]",
            )
        targets = units if name == "labelled" else None
        # A source is in the order that its name gives it, whichever others there are.
        salt = None if name in wanted else utterance_key(name) & (1 << 63) - 1
        place = (ranks.rank, ranks.world_size, engine.device)
        streams[name] = Stream(section, config.data, targets, config.seed, *place, salt)
    return streams


def _dev_batches(config: ExperimentConfig, units: Units | None, ranks: Ranks) -> list[Batch]:
    """Return the dev sets, read once and kept: they are gone through again and again."""
    folders = [Path(config.data.dir) / name for name in config.data.dev]
    batches = list(evaluation_batches(folders, units, config.data, ranks.rank, ranks.world_size)) if folders else []
    learnt = config.data.labelled
    both = {Path(learnt.dir or config.data.dir) / name for name in learnt.sets} & set(folders)
    if both:
        names = ", ".join(sorted(folder.name for folder in both))
        log.warning("%s: in data.dev and trained on: figures flatter, and the best model is chosen by them", names)
    texts = [text for batch in batches for text in batch.texts or ()]
    told = units.unwritable("+".join(config.data.dev), texts) if units is not None else None
    if told is not None:
        log.warning("%s", told)
    return batches
