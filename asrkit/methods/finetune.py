"""`finetune`: CTC on labelled speech, from a pre-trained encoder or from scratch (Baevski et al. 2020, section 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from asrkit.core.clock import Clock
from asrkit.core.phase import Phase
from asrkit.core.schedule import Schedule, ScheduleConfig
from asrkit.core.step import Accumulate
from asrkit.core.term import Losses, Prepared
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.methods.common import parameter_groups
from asrkit.methods.supervised import Supervised, SupervisedConfig, SupervisedDraws
from asrkit.nn.encoder import Encoder
from asrkit.text.units import Units

HEAD_ONLY = "head"


@dataclass
class FinetuneConfig(SupervisedConfig):
    """CTC fine-tuning; the defaults are fairseq's base_10h."""

    updates: int = 20_000
    """Length of the run, the head's phase included."""
    freeze_updates: int = 10_000
    """Updates at the beginning in which only the CTC head learns; masks, dropout and LayerDrop act all the same."""
    freeze_frontend: bool = True
    """Leave the feature extractor as it was pre-trained; from scratch, switch this off."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the run."""

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise AsrkitError(f"finetune.updates is {self.updates}", mend="1 or more")
        if not 0 <= self.freeze_updates <= self.updates:
            raise AsrkitError(
                f"finetune.freeze_updates is {self.freeze_updates} of {self.updates} updates",
                mend="between 0 and finetune.updates",
            )


class Finetune(Supervised):
    """One stream, two phases: the head alone, then all but (by option) the feature extractor."""

    def __init__(self, config: FinetuneConfig, encoder: Encoder, units: Units | None) -> None:
        super().__init__("finetune", config, encoder, units)
        self.config = config

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        """See `Method.groups`."""
        return parameter_groups(self.encoder, {"ctc": self.ctc})

    def phases(self) -> Sequence[Phase]:
        """See `Method.phases`: one schedule runs through both."""
        config = self.config
        moving = [name for name in self.groups() if name != "frontend" or not config.freeze_frontend]
        whole = Schedule(config.schedule, config.updates)
        rest = Schedule(config.schedule, config.updates, offset=config.freeze_updates)
        step = Accumulate()
        return [
            Phase(HEAD_ONLY, config.freeze_updates, ("labelled",), {"ctc": whole}, step),
            Phase("finetune", config.updates - config.freeze_updates, ("labelled",), dict.fromkeys(moving, rest), step),
        ]

    def check_scratch(self) -> None:
        """See `Method.check_scratch`."""
        if self.config.freeze_frontend and "frontend" in self.groups():
            raise AsrkitError(
                "finetune.freeze_frontend is on without `init`: the feature extractor would stay random",
                mend="init=EXP, or finetune.freeze_frontend=false",
            )

    def terms(self, stream: str) -> Sequence[str]:
        """See `Method.terms`."""
        return self.ctc.terms

    def prepare(self, stream: str, batch: Batch, clock: Clock) -> Prepared:
        """See `Method.prepare`: masks."""
        return self.prepare_labelled(batch, clock)

    def losses(self, stream: str, batch: Batch, draws: SupervisedDraws, clock: Clock) -> Losses:
        """See `Method.losses`."""
        scale = 0.0 if self.config.freeze_frontend else 1.0
        return self.labelled_losses(batch, draws, clock, scale, learns=clock.phase != HEAD_ONLY)
