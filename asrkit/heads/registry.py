"""The self-supervised heads by name. Adding one is a file beside this one, a line here and a field in each of the two sections.

The sections are `SelfSupervisedConfig`, for joint methods, and `PretrainConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asrkit.errors import AsrkitError, nearest
from asrkit.heads.best_rq import BestRQHead, BestRQHeadConfig
from asrkit.heads.head import SelfSupervisedHead
from asrkit.heads.wav2vec2 import Wav2Vec2Head, Wav2Vec2HeadConfig
from asrkit.nn.encoder import Encoder


@dataclass(frozen=True)
class HeadEntry:
    """What the registry knows of a head."""

    config: Callable[[], Any]
    """Its settings' defaults."""
    build: Callable[[Any, Encoder], SelfSupervisedHead]
    """Makes it, with random weights."""


SELF_SUPERVISED = {
    "wav2vec2": HeadEntry(
        Wav2Vec2HeadConfig, lambda config, encoder: Wav2Vec2Head(config, encoder.dim, encoder.feature_dim)
    ),
    "best_rq": HeadEntry(BestRQHeadConfig, BestRQHead),
}


def choose_head(section: Any, key: str, name: str) -> None:
    """Give the chosen head its defaults where the section has nothing of it; refuse settings of any other head.

    Args:
        section: a config with a field per head, of the head's name, None where nothing is set.
        key: by which the user chooses, for messages.
        name: the choice.

    Raises:
        AsrkitError: if there is no such head, or settings of another one would be ignored.
    """
    if name not in SELF_SUPERVISED:
        raise AsrkitError(f"{key} is '{name}'", mend=nearest(name, SELF_SUPERVISED))
    for other, entry in SELF_SUPERVISED.items():
        settings = getattr(section, other)
        if other == name:
            setattr(section, other, entry.config() if settings is None else settings)
            continue
        # Defaults stand for nothing: the default head's come with every section.
        if settings not in (None, entry.config()):
            raise AsrkitError(
                f"{key} is {name}, so that the settings of {other} mean nothing",
                mend=f"leave them out, or write {other}: null where another file has set them",
            )
        setattr(section, other, None)


@dataclass
class SelfSupervisedConfig:
    """Which self-supervised loss, and its settings."""

    name: str = "wav2vec2"
    """The head: wav2vec2 or best_rq; only the section of that name may have settings."""
    wav2vec2: Wav2Vec2HeadConfig | None = None
    """wav2vec 2.0: quantiser, contrastive loss, masks."""
    best_rq: BestRQHeadConfig | None = None
    """BEST-RQ: random codebooks, masks."""

    def __post_init__(self) -> None:
        choose_head(self, "ssl.name", self.name)


def self_supervised_head(name: str, section: Any, encoder: Encoder) -> SelfSupervisedHead:
    """Return the head of a name, with random weights, for an encoder; ``section`` holds its settings under its name."""
    return SELF_SUPERVISED[name].build(getattr(section, name), encoder)
