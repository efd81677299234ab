"""What the benchmarks' commands have in common: options, and which contenders there are."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from asrkit.errors import AsrkitError
from asrkit.training.config import ExperimentConfig, load_experiment_config
from asrkit.training.distributed import Ranks
from asrkit.training.engine import PRECISIONS, TrainingEngine, choose_device

ROOT = Path(__file__).resolve().parents[1]
ABOVE_ONE = "Ratios are another's time or memory over asrkit's: above 1, asrkit needs less."


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options of comparisons with other toolkits."""
    made = _parser(description, rounds)
    made.add_argument("--size", choices=("base", "tiny"), default="base", help="tiny only shows that everything runs")
    return made


def own_parser(description: str | None, rounds: int, config: str, what: str) -> argparse.ArgumentParser:
    """Return a parser with the options of benchmarks of asrkit alone, which take their model from a configuration."""
    made = _parser(description, rounds)
    made.add_argument("--config", type=Path, default=ROOT / config, help=what)
    made.add_argument("--output", type=Path, help="JSON")
    return made


def _parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:K")
    made.add_argument("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 where it is the faster one")
    made.add_argument("--rounds", type=int, default=rounds, help="timed calls of each contender, at least 2")
    made.add_argument("--warm-up", type=int, default=3, help="calls of each before")
    made.add_argument("--threads", type=int, help="of torch on a CPU; without it torch's own choice")
    return made


def start_own(options: argparse.Namespace) -> tuple[ExperimentConfig, TrainingEngine, dict[str, object]]:
    """Return configuration, device and precision that were asked for, and what to tell of them."""
    config, engine = load_experiment_config(options.config, ["exp_dir=unused"]), start(options)
    told = {"config": options.config.name, "precision": engine.precision, "threads": torch.get_num_threads()}
    return config, engine, told


def start(options: argparse.Namespace) -> TrainingEngine:
    """Return the device and the precision that were asked for; fix threads and random numbers."""
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return TrainingEngine(choose_device(options.device), options.precision, Ranks())


def available(
    makers: Mapping[str, Callable[[], Callable[[], None]]],
) -> tuple[dict[str, Callable[[], None]], dict[str, str]]:
    """Make the contenders; return those that there are, and why the others are absent."""
    runs: dict[str, Callable[[], None]] = {}
    absent: dict[str, str] = {}
    for name, make in makers.items():
        try:
            runs[name] = make()
        except AsrkitError as error:
            absent[name] = str(error)
    return runs, absent
