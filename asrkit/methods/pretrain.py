"""`pretrain`: self-supervised pre-training on unlabelled speech, by the loss of a head.

The defaults are those of wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.phase import Phase
from asrkit.core.schedule import Schedule, ScheduleConfig
from asrkit.core.step import Accumulate
from asrkit.core.term import Losses, Prepared, Ratio
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.heads.best_rq import BestRQHeadConfig
from asrkit.heads.head import MaskedDraws
from asrkit.heads.registry import choose_head, self_supervised_head
from asrkit.heads.wav2vec2 import Wav2Vec2HeadConfig
from asrkit.methods.collapse import CollapseWatch
from asrkit.methods.common import encode, encoder_frames, parameter_groups
from asrkit.nn.encoder import Encoder
from asrkit.text.units import Units


def _schedule() -> ScheduleConfig:
    return ScheduleConfig(
        learning_rate=5e-4, name="polynomial", warmup=0.08, hold=0.0, initial_scale=0.0, final_scale=0.0
    )


@dataclass
class PretrainConfig:
    """Pre-training; the defaults are fairseq's wav2vec2_base_librispeech."""

    section: ClassVar[str] = "pretrain"
    updates: int = 400_000
    """Length of the run."""
    schedule: ScheduleConfig = field(default_factory=_schedule)
    """Learning rate over the run."""
    frontend_gradient_scale: float = 0.1
    """What gradients into the feature extractor are multiplied with."""
    head: str = "wav2vec2"
    """The loss: wav2vec2 or best_rq; only the section of that name may have settings."""
    wav2vec2: Wav2Vec2HeadConfig | None = None
    """wav2vec 2.0: quantiser, contrastive loss, masks."""
    best_rq: BestRQHeadConfig | None = None
    """BEST-RQ: random codebooks, masks."""
    min_code_perplexity: float = 1.5
    """A run whose code perplexity per codebook stays at or below this is stopped as collapsed; 0 never stops."""
    collapse_patience: int = 20
    """Rows of the log in a row below the floor before the run is stopped."""

    def __post_init__(self) -> None:
        choose_head(self, f"{self.section}.head", self.head)
        if self.updates < 1:
            raise AsrkitError(f"{self.section}.updates is {self.updates}", mend="1 or more")
        if self.frontend_gradient_scale < 0:
            what = f"{self.section}.frontend_gradient_scale is {self.frontend_gradient_scale}"
            raise AsrkitError(what, mend="0 or more")
        if self.collapse_patience < 1 or self.min_code_perplexity < 0:
            what = f"{self.section}.collapse_patience is 1 or more, {self.section}.min_code_perplexity 0 or more"
            raise AsrkitError(what)


class Pretrain(Method):
    """One phase, one stream: L_unsup on unlabelled speech."""

    def __init__(self, config: PretrainConfig, encoder: Encoder, units: Units | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.ssl = self_supervised_head(config.head, config, encoder)
        self.selection = (self.ssl.objective, "min")
        self.collapse = CollapseWatch(
            config.min_code_perplexity,
            config.collapse_patience,
            self.ssl,
            f"{config.section}.{config.head}",
            f"{config.section}.schedule.learning_rate",
        )

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        """See `Method.groups`."""
        return parameter_groups(self.encoder, {"ssl": self.ssl})

    def phases(self) -> Sequence[Phase]:
        """See `Method.phases`."""
        schedule = Schedule(self.config.schedule, self.config.updates)
        rates = dict.fromkeys(self.groups(), schedule)
        return [Phase("pretrain", self.config.updates, ("unlabelled",), rates, Accumulate())]

    def terms(self, stream: str) -> Sequence[str]:
        """See `Method.terms`."""
        return self.ssl.terms

    def prepare(self, stream: str, batch: Batch, clock: Clock) -> Prepared:
        """See `Method.prepare`: masks, and what else the head draws."""
        draws = self.ssl.draw(batch, encoder_frames(self.encoder, batch), clock)
        return Prepared(draws, self.ssl.counts(batch, draws))

    def losses(self, stream: str, batch: Batch, draws: MaskedDraws, clock: Clock) -> Losses:
        """See `Method.losses`."""
        encoded = encode(self.encoder, batch, draws.mask, clock, self.config.frontend_gradient_scale)
        return self.ssl.loss(encoded, batch, draws, clock)

    def validate(self, batch: Batch, clock: Clock) -> Mapping[str, Ratio]:
        """See `Method.validate`: the losses under masks that never change, so that rows can be compared."""
        fixed = Clock(0, clock.update, clock.phase, clock.phase_update, clock.phase_updates)
        prepared = self.prepare("unlabelled", batch, fixed)
        losses = self.losses("unlabelled", batch, prepared.draws, fixed)
        terms = {name: Ratio(term.sum, prepared.counts[name]) for name, term in losses.terms.items()}
        # The terms of a head share one count.
        loss = sum(term.weight * term.sum for term in losses.terms.values())
        return {"loss": Ratio(loss, next(iter(prepared.counts.values()))), **terms, **losses.metrics}

    def health(self, metrics: Mapping[str, float], clock: Clock) -> str | None:
        """See `Method.health`: stop when there are next to no codes for a long time."""
        return self.collapse.message(metrics)

    def extra_state(self) -> dict[str, int]:
        """See `Method.extra_state`."""
        return {"rows_on_floor": self.collapse.rows}

    def load_extra_state(self, state: dict[str, int]) -> None:
        """See `Method.load_extra_state`."""
        self.collapse.rows = state["rows_on_floor"]
