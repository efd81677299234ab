"""An experiment folder: its config, units and weights; making a run out of a config, and a trained method out of a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from rich.console import Console

from asrkit import config as configuration
from asrkit.core.method import Method
from asrkit.data.batch import Batch
from asrkit.data.index import SetIndex, record_text
from asrkit.data.stream import Stream, evaluation_batches
from asrkit.errors import AsrkitError
from asrkit.files import write_text
from asrkit.methods.registry import METHODS
from asrkit.nn.config import EncoderConfig
from asrkit.nn.encoder import Encoder
from asrkit.text.units import Units
from asrkit.training.checkpoint import Checkpoints, load
from asrkit.training.config import ExperimentConfig, schema, store_config
from asrkit.training.distributed import join, leave
from asrkit.training.engine import TrainingEngine, choose_device
from asrkit.training.environment import store_environment
from asrkit.training.log import ProgressView, configure_logging
from asrkit.training.loop import Interrupted, Trainer, seed_generators
from asrkit.training.optimiser import Optimiser
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
"""A one-line file: the methods that led to this experiment, so that reports need not find its ancestors."""


@dataclass(frozen=True)
class Experiment:
    """A folder that holds a run."""

    folder: Path
    config: ExperimentConfig
    units: Units | None

    @property
    def recipe(self) -> str:
        """The methods that led here, such as ``pretrain+finetune``."""
        return (self.folder / RECIPE).read_text(encoding="utf-8").strip()

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
        method.load_state_dict(weights)
        return method.eval(), update


def open_experiment(folder: Path) -> Experiment:
    """Read an experiment's config and units.

    Raises:
        AsrkitError: if the folder is not an experiment.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise AsrkitError("not an experiment: it has no config.yaml", where=folder, mend="give asrkit train's exp_dir")
    config = configuration.load(schema(str(configuration.peek("method", path))), path)
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
    standard = EncoderConfig()
    for field in fields(EncoderConfig):
        asked, given = getattr(own, field.name), getattr(initial, field.name)
        if field.name not in REGULARISATION and asked != given and asked != getattr(standard, field.name):
            raise AsrkitError(
                f"encoder.{field.name} is {asked!r} here, but `init` has {given!r}",
                mend="leave the encoder's shape out: it comes with init",
            )
    return replace(initial, **{name: getattr(own, name) for name in REGULARISATION})


def train(config: ExperimentConfig, console: Console) -> bool:
    """Run, or go on with, the experiment that ``config`` describes.

    Returns:
        True when the run is complete, False when a signal stopped it (its state is saved).

    Raises:
        AsrkitError: for whatever in config, data or checkpoints stands in the way.
    """
    device_type = choose_device(config.device).type
    ranks = join(device_type, config.training.timeout_minutes)
    try:
        device = choose_device(config.device, ranks.local_rank)
        exp_dir = Path(config.exp_dir)
        initial = open_experiment(Path(config.init)) if config.init else None
        if initial is not None:
            config.encoder = inherit_shape(config.encoder, initial.config.encoder)
        if ranks.is_first:
            store_config(config, exp_dir)
            before = f"{initial.recipe}+" if initial is not None else ""
            write_text(exp_dir / RECIPE, f"{before}{config.method}\n")
            store_environment(exp_dir, device, ranks.world_size)
        ranks.barrier()
        configure_logging(exp_dir, console, ranks.is_first)
        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        engine = TrainingEngine(device, config.training.precision, ranks)
        units = _units(config, exp_dir, initial, ranks.is_first)
        ranks.barrier()
        seed_generators([config.seed])
        method = build_method(config, units)
        if initial is not None:
            weights, update = initial.weights()
            taken = method.inherit(weights, keep_head=getattr(config.options, "keep_head", False))
            log.info("weights of %s (step %d): %s", initial.folder, update, ", ".join(p.rstrip(".") for p in taken))
        method.to(device)
        seed_generators([config.seed, ranks.rank])
        trainer = Trainer(
            method,
            _streams(config, units, ranks.rank, ranks.world_size, device),
            _dev_batches(config, units, ranks.rank, ranks.world_size),
            optimiser=Optimiser(method, config.optimiser),
            engine=engine,
            config=config.training,
            exp_dir=exp_dir,
            seed=config.seed,
            view=ProgressView(console, ranks.is_first),
        )
        log.info(
            "%s: %.2fM parameters, %s on %s, %d process(es), %s",
            config.method,
            sum(p.numel() for p in method.parameters()) / 1e6,
            engine.precision,
            device,
            ranks.world_size,
            exp_dir,
        )
        try:
            trainer.run()
        except Interrupted:
            log.warning("stopped at step %d, saved; the same command goes on from here", trainer.update)
            return False
        return True
    finally:
        leave()


def _units(config: ExperimentConfig, exp_dir: Path, initial: Experiment | None, first: bool) -> Units | None:
    if "labelled" not in METHODS[config.method].streams:
        return None
    keep_head = getattr(config.options, "keep_head", False)
    if keep_head and (initial is None or initial.units is None):
        raise AsrkitError(f"{config.method}.keep_head is on, but `init` has no units", mend="switch it off")
    inherited = initial.folder / "units" if initial is not None and keep_head else None
    units = resolve_units(config.units, Path(config.data.dir), exp_dir, lambda: _texts(config), inherited)
    if first and not (exp_dir / "units").is_dir():
        units.save(exp_dir / "units")
    return units


def _texts(config: ExperimentConfig) -> Iterator[str]:
    for name in config.data.labelled.sets:
        for record in SetIndex.open(Path(config.data.dir) / name).records():
            yield record_text(record) or ""


def _streams(
    config: ExperimentConfig, units: Units | None, rank: int, world_size: int, device: torch.device
) -> dict[str, Stream]:
    streams = {}
    for name in METHODS[config.method].streams:
        section = getattr(config.data, name)
        if not section.sets:
            raise AsrkitError(
                f"{config.method} needs the {name} stream, but data.{name}.sets is empty",
                where=config.exp_dir,
                mend=f"name prepared sets, e.g. data.{name}.sets=[train-clean-100]",
            )
        targets = units if name == "labelled" else None
        streams[name] = Stream(section, config.data, targets, config.seed, rank, world_size, device)
    return streams


def _dev_batches(config: ExperimentConfig, units: Units | None, rank: int, world_size: int) -> list[Batch]:
    """Return the dev sets, read once and kept: they are gone through again and again."""
    folders = [Path(config.data.dir) / name for name in config.data.dev]
    return list(evaluation_batches(folders, units, config.data, rank, world_size)) if folders else []
