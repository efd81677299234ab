"""The self-supervised heads by name. Adding one is a file beside this one and a line here."""

from __future__ import annotations

from dataclasses import dataclass, field

from asrkit.errors import AsrkitError, nearest
from asrkit.heads.head import SelfSupervisedHead
from asrkit.heads.wav2vec2 import Wav2Vec2Head, Wav2Vec2HeadConfig
from asrkit.nn.encoder import Encoder

SELF_SUPERVISED = {"wav2vec2": Wav2Vec2Head}


@dataclass
class SelfSupervisedConfig:
    """Which self-supervised loss, and the settings of each."""

    name: str = "wav2vec2"
    """The head: wav2vec2."""
    wav2vec2: Wav2Vec2HeadConfig = field(default_factory=Wav2Vec2HeadConfig)
    """Quantiser, contrastive loss, masks."""

    def __post_init__(self) -> None:
        if self.name not in SELF_SUPERVISED:
            raise AsrkitError(f"ssl.name is '{self.name}'", mend=nearest(self.name, SELF_SUPERVISED))


def self_supervised_head(config: SelfSupervisedConfig, encoder: Encoder) -> SelfSupervisedHead:
    """Return the head that a config names, with random weights, for an encoder."""
    return SELF_SUPERVISED[config.name](getattr(config, config.name), encoder.dim, encoder.feature_dim)
