"""`heterogeneous`: self-supervised pre-training on several sources with local constraints (Cui et al., arXiv 2508.19990).

The encoder is to be good for each domain or language after K gradient steps there, not for a pool of all of them:
`asrkit.core.inner` has the problem and its first-order step. Sources are the streams of `data.sources`, any number of them; each
counts as much as another, however large it is. Encoder and self-supervised head are shared by all, and both take part in the
inner steps. The outer step is the run's optimiser and schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from asrkit.core.inner import Inner, InnerConfig
from asrkit.core.phase import Phase
from asrkit.core.schedule import Schedule
from asrkit.methods.pretrain import Pretrain, PretrainConfig
from asrkit.nn.encoder import Encoder
from asrkit.text.units import Units


@dataclass
class HeterogeneousConfig(PretrainConfig):
    """Pre-training on several sources; all but `inner` is as in `pretrain`."""

    section: ClassVar[str] = "heterogeneous"
    inner: InnerConfig = field(default_factory=InnerConfig)
    """The gradient steps on each source from which the outer gradient is taken."""


class Heterogeneous(Pretrain):
    """One phase, a stream for each source."""

    def __init__(self, config: HeterogeneousConfig, encoder: Encoder, units: Units | None = None) -> None:
        super().__init__(config, encoder, units)
        self.inner = config.inner
        self.sources: tuple[str, ...] = ()

    def observe_streams(self, updates_per_epoch: Mapping[str, int]) -> None:
        """See `Method.observe_streams`: this is where the sources' names come from."""
        self.sources = tuple(updates_per_epoch)

    def phases(self) -> Sequence[Phase]:
        """See `Method.phases`."""
        rates = dict.fromkeys(self.groups(), Schedule(self.config.schedule, self.config.updates))
        return [Phase("heterogeneous", self.config.updates, self.sources, rates, Inner(self.inner))]
