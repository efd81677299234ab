"""A model between two toolkits, in asrkit's terms; out of an experiment folder and into one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asrkit import config as configuration
from asrkit.core.method import Method
from asrkit.data.config import DataConfig
from asrkit.errors import AsrkitError
from asrkit.files import write_text
from asrkit.heads.ctc import CTCHeadConfig
from asrkit.heads.wav2vec2 import Wav2Vec2HeadConfig
from asrkit.methods.finetune import FinetuneConfig
from asrkit.methods.pretrain import PretrainConfig
from asrkit.methods.supervised import Supervised
from asrkit.nn.config import EncoderConfig
from asrkit.text.units import Units
from asrkit.training.checkpoint import Checkpoints
from asrkit.training.config import ExperimentConfig, schema
from asrkit.training.experiment import RECIPE, build_method, open_experiment

ORIGIN = "import.json"
"""What is known of an imported experiment's source."""

ENCODER, CTC, SSL = "encoder.", "ctc.", "ssl."


@dataclass(frozen=True)
class Portable:
    """An encoder, and perhaps a CTC head with its units or a wav2vec 2.0 head."""

    encoder: EncoderConfig
    """The encoder's shape; its regularisation means nothing."""
    weights: Mapping[str, Tensor]
    """Under asrkit's names, with the prefixes `encoder.` and `ctc.` or `ssl.`."""
    units: Units | None = None
    """The CTC head's symbols in the order of its outputs; None without such a head."""
    head: Wav2Vec2HeadConfig | None = None
    """The wav2vec 2.0 head's settings; None without one."""
    name: str = "model"
    """A word for it."""
    notes: tuple[str, ...] = field(default=())
    """What was left out or assumed, for the user to read."""
    ctc: CTCHeadConfig = field(default_factory=CTCHeadConfig)
    """Where the CTC head reads; what else it says means nothing."""


def peculiarity(model: Portable) -> str | None:
    """Return what a model has that no other toolkit's wav2vec 2.0 has, or None."""
    if model.encoder.attention_block:
        return "its frames attend within blocks (encoder.attention_block), which no wav2vec 2.0 elsewhere can"
    if model.ctc.intermediate:
        return "its CTC head takes part between blocks (ctc.intermediate), which no wav2vec 2.0 elsewhere allows"
    return None


def write_experiment(model: Portable, folder: Path, source: str) -> Method:
    """Write an experiment that can be decoded with and started from, and return it.

    It is a finished run of `finetune` where there is a CTC head, else of `pretrain`. A wav2vec 2.0 head or a mask
    embedding that the source lacks is drawn at random, the same one each time.

    Raises:
        AsrkitError: if the folder holds something already, or the weights are not those of the shape.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AsrkitError("holds something already", where=folder, mend="choose another --output, or remove it")
    config = _config(model, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = build_method(config, model.units)
    fresh = _load(method, model, source)
    if model.units is not None:
        model.units.save(folder / "units")
    write_text(folder / RECIPE, model.name + "\n")
    origin = {"source": source, "fresh": fresh, "notes": list(model.notes)}
    write_text(folder / ORIGIN, json.dumps(origin, ensure_ascii=False, indent=1) + "\n")
    Checkpoints(folder).save(0, {"model": method.state_dict(), "update": 0, "finished": True}, best=True)
    # A folder without it is no experiment, so it comes last.
    configuration.save(config, folder / "config.yaml")
    return method.eval()


def read_experiment(folder: Path, which: str = "best") -> Portable:
    """Return what an experiment has to give; of several heads the CTC head.

    Raises:
        AsrkitError: as `open_experiment`, or if there is no checkpoint.
    """
    experiment = open_experiment(folder)
    method, update = experiment.method(which)
    weights = method.state_dict()
    units = experiment.units if any(name.startswith(CTC) for name in weights) else None
    head = None
    if units is None and not (update == 0 and SSL in _fresh(folder)):
        own = getattr(getattr(method, "ssl", None), "config", None)
        # No other toolkit here has another head that learns from speech alone.
        head = own if isinstance(own, Wav2Vec2HeadConfig) else None
    kept = [ENCODER] + ([CTC] if units is not None else [SSL] if head is not None else [])
    return Portable(
        encoder=experiment.config.encoder,
        weights={name: tensor for name, tensor in weights.items() if name.startswith(tuple(kept))},
        units=units,
        head=head,
        ctc=method.ctc.config if isinstance(method, Supervised) else CTCHeadConfig(),
        name=re.sub(r"\W+", "_", experiment.folder.resolve().name).strip("_").lower() or "model",
    )


def _fresh(folder: Path) -> list[str]:
    try:
        fresh = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["fresh"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return list(fresh)


def _config(model: Portable, folder: Path) -> ExperimentConfig:
    common: dict[str, Any] = {"exp_dir": str(folder), "encoder": model.encoder, "data": DataConfig()}
    if model.units is not None:
        options = FinetuneConfig(ctc=model.ctc)
        return schema("finetune")(method="finetune", finetune=options, **common)  # type: ignore[call-arg]
    options_of_head = PretrainConfig(wav2vec2=model.head or Wav2Vec2HeadConfig())
    return schema("pretrain")(method="pretrain", pretrain=options_of_head, **common)  # type: ignore[call-arg]


def _load(method: Method, model: Portable, source: str) -> list[str]:
    """Put the weights into the method; return the prefixes and names that stay as they were drawn."""
    state = method.state_dict()
    may_lack = ("encoder.mask_embedding",) + ((SSL,) if model.head is None else ())
    missing = [name for name in state if name not in model.weights and not name.startswith(may_lack)]
    unknown = [name for name in model.weights if name not in state]
    if missing or unknown:
        what = f"expected the weight '{missing[0]}'" if missing else f"found the weight '{unknown[0]}'"
        raise AsrkitError(f"weights and configuration describe different models: {what}", where=source)
    for name, tensor in model.weights.items():
        if tensor.shape != state[name].shape:
            found, expected = tuple(tensor.shape), tuple(state[name].shape)
            raise AsrkitError(f"'{name}' has the shape {found}, expected was {expected}", where=source)
        state[name] = tensor.to(state[name].dtype)
    method.load_state_dict(state)
    fresh = {SSL if name.startswith(SSL) else name for name in state if name not in model.weights}
    return sorted(fresh)
