"""Settings of the data floor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asrkit.data.augment import NoiseConfig
from asrkit.data.sampling import ALL, SAMPLINGS
from asrkit.errors import AsrkitError, nearest


@dataclass
class StreamConfig:
    """What a training stream is made of."""

    sets: list[str] = field(default_factory=list)
    """Names of prepared sets; empty = the stream is not used."""
    dir: str = ""
    """Folder of these sets, as `asrkit prepare` wrote it; empty = data.dir."""
    seconds_per_update: float = 400.0
    """Audio per update, over all ranks, in seconds without padding; the accumulation follows from it."""
    min_seconds: float = 0.0
    """Shorter utterances are left out."""
    max_seconds: float = 0.0
    """Longer utterances are left out; 0 = no limit."""
    crop_seconds: float = 0.0
    """Longer utterances are cropped to this, elsewhere in every epoch (unlabelled only); 0 = no cropping."""
    speed_factors: list[float] = field(default_factory=list)
    """Speeds of which every utterance gets one in each epoch, such as [0.9, 1.0, 1.1]; empty = as recorded."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """Noise to mix in."""
    hours: float = 0.0
    """Use so much speech at most, always the same utterances for as many hours, and the more with more; 0 = all."""
    sampling: str = "all"
    """An epoch is all utterances once (all), or draws with replacement, anew in every epoch (soft_random)."""
    ratio: float = 1.0
    """soft_random: draws per epoch, as a share of the utterances; a pass over the stream is as much shorter."""
    shuffle: bool = True
    """Whether the order is drawn anew in every epoch."""
    bucket_updates: int = 8
    """Updates whose utterances are sorted by length together: more = less padding, 1 = lengths mix freely."""

    def __post_init__(self) -> None:
        if self.seconds_per_update <= 0:
            raise AsrkitError(f"seconds_per_update is {self.seconds_per_update}", mend="more than 0")
        for name in ("min_seconds", "max_seconds", "crop_seconds", "hours"):
            if getattr(self, name) < 0:
                raise AsrkitError(f"{name} is {getattr(self, name)}", mend="0 or more")
        if 0 < self.max_seconds < self.min_seconds:
            raise AsrkitError(f"max_seconds {self.max_seconds} is below min_seconds {self.min_seconds}")
        if 0 < self.crop_seconds < self.min_seconds:
            raise AsrkitError(f"crop_seconds {self.crop_seconds} is below min_seconds {self.min_seconds}")
        if any(not 0.5 <= factor <= 2.0 for factor in self.speed_factors):
            raise AsrkitError(f"speed_factors is {self.speed_factors}", mend="factors from 0.5 to 2")
        if self.sampling not in SAMPLINGS:
            raise AsrkitError(f"unknown sampling '{self.sampling}'", mend=nearest(self.sampling, SAMPLINGS))
        if self.ratio <= 0:
            raise AsrkitError(f"ratio is {self.ratio}", mend="more than 0")
        if self.ratio != 1.0 and self.sampling == ALL:
            raise AsrkitError(f"ratio is {self.ratio}, but sampling is all", mend="sampling: soft_random")
        if self.bucket_updates < 1:
            raise AsrkitError(f"bucket_updates is {self.bucket_updates}", mend="1 or more")


@dataclass
class DataConfig:
    """Where the data is and how it is read."""

    dir: str = "data"
    """Folder that `asrkit prepare` wrote; a stream may name another one for itself."""
    labelled: StreamConfig = field(default_factory=StreamConfig)
    """The stream with transcripts."""
    unlabelled: StreamConfig = field(default_factory=StreamConfig)
    """The stream without; transcripts that a set has are used to measure pseudo-labels, never to learn from."""
    sources: dict[str, StreamConfig] = field(default_factory=dict)
    """Named unlabelled streams, each with the settings of data.unlabelled: {radio: {dir: …, sets: [train]}, …}."""
    dev: list[str] = field(default_factory=list)
    """Names of the prepared sets for validation."""
    batch_seconds: float = 80.0
    """Largest padded micro-batch on one device, in seconds; lower it if memory runs out."""
    workers: int = 2
    """Processes per stream and rank that read audio; 0 = the training process reads it itself."""
    prefetch: int = 4
    """Micro-batches that each worker reads ahead."""
    max_unreadable: float = 0.1
    """Share of the last thousand utterances of a stream and rank that may be unreadable; with more, the run stops."""

    def __post_init__(self) -> None:
        if self.labelled.crop_seconds > 0:
            mend = "a transcript belongs to the whole utterance: use data.labelled.max_seconds"
            raise AsrkitError("data.labelled.crop_seconds is set", mend=mend)
        for name in self.sources:
            if not re.fullmatch(r"\w[\w-]*", name) or name in ("labelled", "unlabelled", "sources"):
                raise AsrkitError(
                    f"data.sources has the name '{name}'", mend="letters, digits and - of your own choice"
                )
        if self.batch_seconds <= 0:
            raise AsrkitError(f"data.batch_seconds is {self.batch_seconds}", mend="more than 0")
        if self.workers < 0:
            raise AsrkitError(f"data.workers is {self.workers}", mend="0 or more")
        if self.prefetch < 1:
            raise AsrkitError(f"data.prefetch is {self.prefetch}", mend="1 or more")

        if not 0.0 <= self.max_unreadable <= 1.0:
            raise AsrkitError(f"data.max_unreadable is {self.max_unreadable}", mend="a share: 0 to 1")

    def streams(self, wanted: Sequence[str]) -> dict[str, StreamConfig]:
        """Return the sections of the streams that a method wants by name; `sources` stands for all of that section."""
        found: dict[str, StreamConfig] = {}
        for name in wanted:
            found |= self.sources if name == "sources" else {name: getattr(self, name)}
        return found

    def folder(self, stream: StreamConfig) -> Path:
        """Return the prepared folder that a stream reads."""
        return Path(stream.dir or self.dir)
