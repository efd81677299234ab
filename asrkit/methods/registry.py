"""The methods by name. Adding one is a file beside this one, a line here, and a YAML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from asrkit.core.method import Method
from asrkit.data.config import DataConfig
from asrkit.methods.bl_just import BLJust, BLJustConfig
from asrkit.methods.finetune import Finetune, FinetuneConfig
from asrkit.methods.heterogeneous import Heterogeneous, HeterogeneousConfig
from asrkit.methods.pretrain import Pretrain, PretrainConfig
from asrkit.methods.wav2vec_s import Wav2VecS, Wav2VecSConfig, check_streams
from asrkit.methods.weighted_sum import WeightedSum, WeightedSumConfig
from asrkit.nn.encoder import Encoder
from asrkit.text.units import Units


class Builder(Protocol):
    """Makes a method from its section of the configuration."""

    def __call__(self, config: Any, encoder: Encoder, units: Units | None) -> Method:
        """Return the method with random weights; ``units`` is None for a method without a labelled stream."""
        ...


@dataclass(frozen=True)
class Entry:
    """What the registry knows of a method."""

    config: type
    """The dataclass of its section."""
    build: Builder
    """Makes it."""
    streams: tuple[str, ...]
    """The streams it needs: `labelled`, `unlabelled`, or `sources`, which stands for all of data.sources."""
    summary: str
    """One line for `--help`."""
    check: Callable[[Any, DataConfig], None] | None = None
    """Refuses a section that does not go with the data's."""


METHODS: dict[str, Entry] = {
    "pretrain": Entry(
        PretrainConfig,
        Pretrain,
        ("unlabelled",),
        "self-supervised pre-training on unlabelled speech, by wav2vec 2.0's loss or BEST-RQ's",
    ),
    "heterogeneous": Entry(
        HeterogeneousConfig,
        Heterogeneous,
        ("sources",),
        "pre-training on several unlabelled sources, good for each after a few gradient steps there",
    ),
    "finetune": Entry(
        FinetuneConfig, Finetune, ("labelled",), "CTC on labelled speech, from a pre-trained encoder or from scratch"
    ),
    "bl_just": Entry(
        BLJustConfig,
        BLJust,
        ("labelled", "unlabelled"),
        "bilevel joint training: CTC above, a self-supervised loss below, weighed by a growing penalty",
    ),
    "weighted_sum": Entry(
        WeightedSumConfig,
        WeightedSum,
        ("labelled", "unlabelled"),
        "joint training on CTC plus a constant times a self-supervised loss, the control of bl_just",
    ),
    "wav2vec_s": Entry(
        Wav2VecSConfig,
        Wav2VecS,
        ("labelled", "unlabelled"),
        "semi-supervised pre-training: CTC on labelled speech and on pseudo-labels of unlabelled speech",
        check_streams,
    ),
}
