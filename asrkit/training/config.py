"""The experiment's configuration: one section per concern, and one named after the method."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from asrkit import config as configuration
from asrkit.data.config import DataConfig
from asrkit.errors import AsrkitError, nearest
from asrkit.methods.registry import METHODS
from asrkit.nn.config import EncoderConfig
from asrkit.training.engine import PRECISIONS
from asrkit.training.optimiser import OptimiserConfig
from asrkit.training.units import UnitsConfig


@dataclass
class TrainingConfig:
    """The loop: how often it speaks, validates and saves; precision."""

    precision: str = "auto"
    """auto, bf16, fp16 or fp32; auto: bf16 where the hardware is fast at it, else fp16 on a GPU, fp32 on a CPU."""
    compile: bool = False
    """Compile the encoder's blocks (torch.compile): for a GPU, where it fuses what lies between products; needs a C compiler."""
    threads: int = 0
    """CPU threads per process; 0 is torch's choice for one process, and an equal share of the cores for each of several."""
    shard: bool = False
    """Divide weights and the optimiser's moments among the processes (FSDP2) instead of keeping all of them on each."""
    log_every: int = 50
    """Updates between rows of metrics.jsonl."""
    validate_every: int = 1000
    """Updates between validations on the dev sets; a phase's end validates too."""
    checkpoint_every: int = 1000
    """Updates between checkpoints; a phase's end and a best validation save too."""
    checkpoint_minutes: float = 30.0
    """Minutes after which a checkpoint is due, however few updates they held; 0 goes by updates alone."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay, beside `last` and `best`."""
    disk_patience_minutes: float = 10.0
    """How long a run that ends waits for room on the disk for its last checkpoint."""
    max_skipped_updates: int = 20
    """Updates in a row with a non-finite loss or gradient after which the run stops."""
    min_loss_scale: float = 1.0
    """fp16: the loss scale is not lowered below this; a gradient that overflows even then counts as not finite."""
    spike_deviations: float = 8.0
    """Robust standard deviations of the logarithm by which a gradient norm must stick out to be told; 0 tells none."""
    check_memory: str = "auto"
    """Whether the costliest batches are tried before training: on, off, or auto, which is on where there is a GPU."""
    timeout_minutes: float = 30.0
    """How long ranks wait for each other."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise AsrkitError(f"training.precision is '{self.precision}'", mend=nearest(self.precision, PRECISIONS))
        for name in ("log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "max_skipped_updates"):
            if getattr(self, name) < 1:
                raise AsrkitError(f"training.{name} is {getattr(self, name)}", mend="1 or more")
        if self.checkpoint_minutes < 0:
            raise AsrkitError(f"training.checkpoint_minutes is {self.checkpoint_minutes:g}", mend="0 or more")
        if self.threads < 0 or self.timeout_minutes <= 0:
            raise AsrkitError("training.threads is 0 or more, training.timeout_minutes more than 0")
        if self.check_memory not in ("auto", "on", "off"):
            raise AsrkitError(f"training.check_memory is '{self.check_memory}'", mend="auto, on or off")
        if self.min_loss_scale <= 0 or self.spike_deviations < 0:
            raise AsrkitError("training.min_loss_scale is more than 0, training.spike_deviations 0 or more")
        if not 0 <= self.disk_patience_minutes < self.timeout_minutes:
            mend = f"0 or more, and less than training.timeout_minutes, which is {self.timeout_minutes:g}"
            raise AsrkitError(f"training.disk_patience_minutes is {self.disk_patience_minutes:g}", mend=mend)


@dataclass
class ExperimentConfig:
    """Everything that defines a run, the method's own section apart."""

    method: str = ""
    """The method's name; the section of that name holds its settings."""
    exp_dir: str = ""
    """The experiment's folder: made if absent, resumed if it holds this run."""
    seed: int = 1
    """Fixes weights, data order, masks and dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:K."""
    init: str = ""
    """An experiment whose encoder this run starts from; empty starts from random weights."""
    data: DataConfig = field(default_factory=DataConfig)
    """Streams and batches."""
    units: UnitsConfig = field(default_factory=UnitsConfig)
    """What the supervised head predicts."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The shared encoder; with `init`, its shape is the initial experiment's."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """AdamW and clipping."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The loop."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise AsrkitError(f"seed is {self.seed}", mend="0 or more")

    @property
    def options(self) -> Any:
        """The method's own section."""
        return getattr(self, self.method)


def schema(method: str) -> type[ExperimentConfig]:
    """Return the configuration class of a method: the common sections and the method's own.

    Raises:
        AsrkitError: if there is no such method.
    """
    if method not in METHODS:
        raise AsrkitError(f"unknown method '{method}'", mend=nearest(method, METHODS))
    entry = METHODS[method]
    own = field(default_factory=entry.config, metadata={"doc": f"Settings of the method {method}."})
    return make_dataclass(
        f"{entry.config.__name__}Experiment", [(method, entry.config, own)], bases=(ExperimentConfig,)
    )


def load_experiment_config(path: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a run's configuration: defaults, then the YAML file, then `KEY=VALUE` overrides.

    Raises:
        AsrkitError: in one line that names the key and its file.
    """
    method = configuration.peek("method", path, overrides)
    if not method:
        raise AsrkitError("no `method`", where=path, mend="one of: " + ", ".join(sorted(METHODS)))
    config = configuration.load(schema(str(method)), path, overrides)
    check = METHODS[config.method].check
    if check is not None:
        check(config.options, config.data)
    if not config.exp_dir:
        raise AsrkitError("no `exp_dir`", where=path, mend="add exp_dir=FOLDER to the command")
    return config


PATHS = (
    "data.dir",
    "data.labelled.dir",
    "data.unlabelled.dir",
    "init",
    "units.dir",
    "units.lexicon",
    "data.labelled.noise.dir",
    "data.unlabelled.noise.dir",
)
"""Files and folders that a run reads, those of data.sources apart: kept as absolute paths, so that a run means the same from
wherever it is called."""

MAY_CHANGE = (
    "exp_dir",
    "device",
    "data.workers",
    "data.prefetch",
    "data.batch_seconds",
    "data.max_unreadable",
    "training.threads",
    "training.shard",
    "training.log_every",
    "training.validate_every",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.keep_checkpoints",
    "training.disk_patience_minutes",
    "training.max_skipped_updates",
    "training.spike_deviations",
    "training.check_memory",
    "training.timeout_minutes",
)
"""What does not define a run. A path may change too once there is nothing any more where it led."""


def make_paths_absolute(config: ExperimentConfig) -> None:
    """Turn the paths in a config that are relative to the working directory into absolute ones."""
    holders: list[tuple[Any, str]] = []
    for key in PATHS:
        section, name = config, key
        while "." in name:
            head, _, name = name.partition(".")
            section = getattr(section, head)
        holders.append((section, name))
    for source in config.data.sources.values():
        holders += [(source, "dir"), (source.noise, "dir")]
    for section, name in holders:
        value = getattr(section, name)
        setattr(section, name, os.path.abspath(value) if value else value)


def _is_path(key: str) -> bool:
    return key in PATHS or re.fullmatch(r"data\.sources\.[^.]+\.(noise\.)?dir", key) is not None


def check_same_run(stored: ExperimentConfig, config: ExperimentConfig, exp_dir: Path) -> None:
    """Refuse to go on with a run under other settings than it began with.

    Raises:
        AsrkitError: naming the first key that differs.
    """
    if stored.method != config.method:
        raise AsrkitError(
            f"this folder holds a run of the method '{stored.method}'", where=exp_dir, mend="choose another exp_dir"
        )
    for key, old, new in _differences(configuration.to_dict(stored), configuration.to_dict(config)):
        moved = _is_path(key) and old and not Path(old).exists()
        if key not in MAY_CHANGE and not moved:
            raise AsrkitError(
                f"this folder holds a run with other settings: {key} is {old!r} there and {new!r} here",
                where=exp_dir,
                mend="choose another exp_dir, or remove this one",
            )


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted({*old, *new}):
            found += _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if old == new else [(key, old, new)]
