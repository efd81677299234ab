"""`finetune`: CTC on labelled speech, from a pre-trained encoder or from scratch (Baevski et al. 2020, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from asrkit.core.clock import Clock
from asrkit.core.phase import Phase
from asrkit.core.schedule import Schedule, ScheduleConfig
from asrkit.core.step import Accumulate
from asrkit.core.term import Losses, Prepared
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.heads.ctc import CTCHeadConfig
from asrkit.methods.supervised import Supervised, SupervisedDraws, check_frozen_scratch, check_spec_augment
from asrkit.nn.encoder import Encoder
from asrkit.nn.masking import MaskConfig
from asrkit.nn.spec_augment import SpecAugmentConfig
from asrkit.text.units import Units

HEAD_ONLY = "head"


@dataclass
class FinetuneConfig:
    """CTC fine-tuning; the defaults are fairseq's base_10h."""

    updates: int = 20_000
    """Length of the run, the head's phase included."""
    freeze_updates: int = 10_000
    """Updates at the beginning in which only the CTC head learns; masks, dropout and LayerDrop act all the same."""
    freeze_frontend: bool = True
    """Leave the feature extractor as it was pre-trained; from scratch, switch this off."""
    keep_head: bool = False
    """Take the CTC head and the units of `init` instead of a fresh head."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the run."""
    mask: MaskConfig = field(default_factory=lambda: MaskConfig(time_probability=0.65, channel_probability=0.5))
    """Masks on the input of the encoder's blocks, in the manner of SpecAugment."""
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    """SpecAugment itself, on the spectrogram of a log-mel frontend."""
    ctc: CTCHeadConfig = field(default_factory=CTCHeadConfig)
    """The CTC head."""

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
        super().__init__("finetune", encoder, units, config.ctc)
        check_spec_augment(config.spec_augment, "finetune.spec_augment", encoder)
        self.config = config

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
        check_frozen_scratch(self.config.freeze_frontend, "finetune.freeze_frontend", self.groups())

    def terms(self, stream: str) -> Sequence[str]:
        """See `Method.terms`."""
        return self.ctc.terms

    def prepare(self, stream: str, batch: Batch, clock: Clock) -> Prepared:
        """See `Method.prepare`: masks."""
        return self.draw_supervised(batch, clock, self.config.mask, self.config.spec_augment)

    def losses(self, stream: str, batch: Batch, draws: SupervisedDraws, clock: Clock) -> Losses:
        """See `Method.losses`."""
        scale = 0.0 if self.config.freeze_frontend else 1.0
        return self.supervised_losses(
            batch, draws, clock, head_only=clock.phase == HEAD_ONLY, frontend_gradient_scale=scale
        )
