"""The mean of a run's last checkpoints: often a better model than the last of them alone.

Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018; in speech recognition
the mean of the last N checkpoints of one run is the custom.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from asrkit import config as configuration
from asrkit.errors import AsrkitError
from asrkit.training.checkpoint import Checkpoints, load
from asrkit.training.experiment import RECIPE, open_experiment


def average(folder: Path, output: Path, updates: Sequence[int] = (), newest: int = 0) -> list[int]:
    """Write a new experiment whose weights are the mean over checkpoints of another; it can be decoded and be `init`.

    Args:
        folder: the experiment.
        output: the new one's folder.
        updates: which checkpoints; none takes them all.
        newest: only so many of the newest of these; 0 sets no bound.

    Returns:
        The updates that went into the mean.

    Raises:
        AsrkitError: if a checkpoint is missing or unreadable, or ``output`` exists.
    """
    experiment = open_experiment(folder)
    checkpoints = Checkpoints(folder)
    chosen = sorted(updates or checkpoints.updates())[-newest:]
    if not chosen:
        raise AsrkitError("no checkpoint yet", where=folder, mend="train it first: asrkit train")
    if output.exists():
        raise AsrkitError("exists already", where=output, mend="choose another --output")
    sums: dict[str, Tensor] = {}
    model: dict[str, Tensor] = {}
    for update in chosen:
        model = load(checkpoints.path(update))["model"]
        for name, weight in model.items():
            if weight.is_floating_point():
                sums[name] = sums[name] + weight.double() if name in sums else weight.double()
    # What is no real number (a counter, say) is taken from the newest.
    mean = model | {name: (total / len(chosen)).to(model[name].dtype) for name, total in sums.items()}
    config = experiment.config
    config.exp_dir = str(output)
    configuration.save(config, output / "config.yaml")
    shutil.copy(folder / RECIPE, output / RECIPE)
    if experiment.units is not None:
        experiment.units.save(output / "units")
    state = {"model": mean, "update": chosen[-1], "averaged": chosen, "finished": True}
    Checkpoints(output).save(chosen[-1], state, best=True)
    return chosen
