"""What joint training of one encoder on labelled and unlabelled speech is made of, whatever weighs its losses.

θ is the encoder with frontend and mask embedding, φ the supervised head, η the self-supervised one. In a joint update θ
moves along ∇(L_sup + γ L_unsup), φ along ∇L_sup and η along ∇L_unsup.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from asrkit.core.clock import Clock
from asrkit.core.phase import Phase
from asrkit.core.schedule import Schedule, ScheduleConfig
from asrkit.core.step import Accumulate
from asrkit.core.term import Losses, Prepared, Ratio, Term
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.heads.ctc import CTCHeadConfig
from asrkit.heads.head import MaskedDraws
from asrkit.heads.registry import SelfSupervisedConfig, self_supervised_head
from asrkit.methods.collapse import CollapseWatch
from asrkit.methods.common import encode, encoder_frames, parameter_groups
from asrkit.methods.supervised import Supervised, check_spec_augment
from asrkit.nn.encoder import Encoder
from asrkit.nn.gradient import scale_gradient
from asrkit.nn.masking import MaskConfig
from asrkit.nn.spec_augment import SpecAugmentConfig
from asrkit.text.units import Units

EXPLORATION, JOINT, FINETUNE = "exploration", "joint", "finetune"
STREAMS = ("unlabelled", "labelled")
"""Of a joint update, in the order of their backward passes: the one with the larger graph comes before there are gradients."""
THETA = ("frontend", "encoder")
"""The groups that both levels share."""


@dataclass
class StageConfig:
    """One kind of phase: how long it is and at which rate it learns."""

    updates: int = 0
    """Length in updates; 0 takes it from passes."""
    passes: float = 0.0
    """Length as passes over the stream (of two, the one with more updates per pass; the other begins again and again)."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over all the updates of this kind together, with one warm-up, however many phases they come in."""

    def __post_init__(self) -> None:
        if self.updates < 0 or self.passes < 0:
            raise AsrkitError(f"updates is {self.updates}, passes is {self.passes}", mend="0 or more")


@dataclass
class FinalConfig(StageConfig):
    """Supervised fine-tuning at the end."""

    freeze_frontend: bool = False
    """Leave the feature extractor as it is by then."""


def steady(learning_rate: float) -> ScheduleConfig:
    """Return a rate that stays as it is after a short rise."""
    return ScheduleConfig(learning_rate=learning_rate, name="constant", warmup=0.02, hold=0.0)


@dataclass
class JointConfig:
    """What joint methods have in common."""

    mask: MaskConfig = field(default_factory=lambda: MaskConfig(time_probability=0.65, channel_probability=0.5))
    """Masks on labelled speech, on the input of the encoder's blocks."""
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    """SpecAugment on labelled speech, for a log-mel frontend."""
    keep_head: bool = False
    """Take the CTC head and the units of `init` instead of a fresh head."""
    # Per label as per masked frame: sums over utterances would drown the other loss whatever γ is.
    ctc: CTCHeadConfig = field(default_factory=lambda: CTCHeadConfig(normalise="labels"))
    """The CTC head."""
    ssl: SelfSupervisedConfig = field(default_factory=SelfSupervisedConfig)
    """The self-supervised loss."""
    joint: StageConfig = field(default_factory=lambda: StageConfig(passes=1.0, schedule=steady(1e-4)))
    """Updates on both streams at once."""
    finetune: FinalConfig = field(default_factory=FinalConfig)
    """Supervised updates at the end; without updates and passes there are none."""
    frontend_gradient_scale: float = 1.0
    """What gradients of either loss into the feature extractor are multiplied with, until the final fine-tuning."""
    diagnose_every: int = 0
    """Joint updates between measurements of both gradients on θ and of their cosine; 0 measures none."""
    min_code_perplexity: float = 1.5
    """A run whose code perplexity per codebook stays at or below this is stopped as collapsed; 0 never stops."""
    collapse_patience: int = 20
    """Rows of the log in a row below the floor before the run is stopped."""

    def __post_init__(self) -> None:
        if self.joint.updates == self.joint.passes == 0:
            raise AsrkitError("joint.updates and joint.passes are both 0", mend="give one of them")
        if self.frontend_gradient_scale < 0:
            raise AsrkitError(f"frontend_gradient_scale is {self.frontend_gradient_scale}", mend="0 or more")
        if self.diagnose_every < 0:
            raise AsrkitError(f"diagnose_every is {self.diagnose_every}", mend="0 or more")
        if self.collapse_patience < 1 or self.min_code_perplexity < 0:
            raise AsrkitError("collapse_patience is 1 or more, min_code_perplexity 0 or more")


class JointMethod(Supervised):
    """An encoder with a supervised and a self-supervised head, and updates on both streams at once."""

    def __init__(self, section: str, config: JointConfig, encoder: Encoder, units: Units | None) -> None:
        super().__init__(section, encoder, units, config.ctc)
        check_spec_augment(config.spec_augment, f"{section}.spec_augment", encoder)
        self.joint_config = config
        self.ssl = self_supervised_head(config.ssl.name, config.ssl, encoder)
        self.collapse = CollapseWatch(
            config.min_code_perplexity,
            config.collapse_patience,
            self.ssl,
            f"{section}.ssl.{config.ssl.name}",
            f"{section}.joint.schedule.learning_rate",
        )
        self.updates_per_epoch: Mapping[str, int] = {}
        self._apart = False

    @abstractmethod
    def gamma(self, clock: Clock) -> float:
        """Return what ∇L_unsup is multiplied with on its way to θ in a joint update, and only there."""

    @property
    def weight(self) -> float:
        """What L_unsup is multiplied with for η and θ alike."""
        return 1.0

    @abstractmethod
    def joint_update(self, clock: Clock) -> int:
        """Return the joint updates done before this one, over all joint phases."""

    @contextmanager
    def gradients_apart(self) -> Iterator[None]:
        """Leave γ out as long as the context lasts: whoever keeps the two gradients apart multiplies himself."""
        self._apart = True
        try:
            yield
        finally:
            self._apart = False

    def inherit(self, weights: Mapping[str, Tensor], keep_head: bool) -> list[str]:
        """See `Method.inherit`: takes the self-supervised head too where the other experiment has the same one."""
        taken = super().inherit(weights, keep_head)
        given = {name.removeprefix("ssl."): value for name, value in weights.items() if name.startswith("ssl.")}
        own = self.ssl.state_dict()
        if own.keys() == given.keys() and all(own[name].shape == given[name].shape for name in own):
            self.ssl.load_state_dict(given)
            taken.append("ssl.")
        return taken

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        """See `Method.groups`: θ is `frontend` and `encoder`, φ is `ctc`, η is `ssl`."""
        return parameter_groups(self.encoder, {"ctc": self.ctc, "ssl": self.ssl})

    def observe_streams(self, updates_per_epoch: Mapping[str, int]) -> None:
        """See `Method.observe_streams`."""
        self.updates_per_epoch = dict(updates_per_epoch)

    def length(self, stage: StageConfig, *streams: str) -> int:
        """Return the updates of one phase over some streams."""
        if stage.updates or not stage.passes:
            return stage.updates
        return max(1, round(stage.passes * max(self.updates_per_epoch[stream] for stream in streams)))

    def final_phases(self) -> list[Phase]:
        """Return the fine-tuning at the end, if there is any."""
        config = self.joint_config.finetune
        length = self.length(config, "labelled")
        if not length:
            return []
        moving = [
            name for name in self.groups() if name != "ssl" and (name != "frontend" or not config.freeze_frontend)
        ]
        rates = dict.fromkeys(moving, Schedule(config.schedule, length))
        return [Phase(FINETUNE, length, ("labelled",), rates, Accumulate())]

    def terms(self, stream: str) -> Sequence[str]:
        """See `Method.terms`."""
        return self.ctc.terms if stream == "labelled" else self.ssl.terms

    def prepare(self, stream: str, batch: Batch, clock: Clock) -> Prepared:
        """See `Method.prepare`: masks, and what else the heads draw."""
        if stream == "labelled":
            return self.draw_supervised(batch, clock, self.joint_config.mask, self.joint_config.spec_augment)
        draws = self.ssl.draw(batch, encoder_frames(self.encoder, batch), clock)
        return Prepared(draws, self.ssl.counts(batch, draws))

    def losses(self, stream: str, batch: Batch, draws: Any, clock: Clock) -> Losses:
        """See `Method.losses`."""
        scale = self.joint_config.frontend_gradient_scale
        if stream == "unlabelled":
            gamma = self.gamma(clock) if clock.phase == JOINT else 1.0
            losses = self._unlabelled_losses(batch, draws, clock, scale, 1.0 if self._apart else gamma)
            if clock.phase == JOINT:
                losses = replace(losses, metrics={**losses.metrics, "gamma": Ratio(gamma * self.weight, 1.0)})
            return losses
        if clock.phase == FINETUNE:
            scale = 0.0 if self.joint_config.finetune.freeze_frontend else 1.0
        return self.supervised_losses(batch, draws, clock, head_only=False, frontend_gradient_scale=scale)

    def _unlabelled_losses(
        self, batch: Batch, draws: MaskedDraws, clock: Clock, frontend_scale: float, gamma: float
    ) -> Losses:
        encoded = encode(self.encoder, batch, draws.mask, clock, frontend_scale)

        def scaled(x: Tensor) -> Tensor:
            return scale_gradient(x, gamma)

        # Every way from the loss to θ leads through one of these three.
        encoded = replace(
            encoded,
            states=scaled(encoded.states),
            features=scaled(encoded.features),
            extracted=scaled(encoded.extracted),
        )
        losses = self.ssl.loss(encoded, batch, draws, clock)
        weight = self.weight if clock.phase == JOINT else 1.0
        terms = {name: Term(term.sum, term.weight * weight) for name, term in losses.terms.items()}
        return Losses(terms, losses.metrics)

    def validate(self, batch: Batch, clock: Clock) -> Mapping[str, Ratio]:
        """See `Method.validate`: CTC loss, WER and CER without masks; the self-supervised losses under masks that never change."""
        # As in exploration: whatever weighs the losses against each other stays out.
        fixed = Clock(0, clock.update, EXPLORATION, clock.phase_update, clock.phase_updates)
        prepared = self.prepare("unlabelled", batch, fixed)
        losses = self.losses("unlabelled", batch, prepared.draws, fixed)
        terms = {name: Ratio(term.sum, prepared.counts[name]) for name, term in losses.terms.items()}
        return {**super().validate(batch, clock), **terms, **losses.metrics}

    def health(self, metrics: Mapping[str, float], clock: Clock) -> str | None:
        """See `Method.health`: stop when there are next to no codes for a long time."""
        return self.collapse.message(metrics)

    def extra_state(self) -> dict[str, int]:
        """See `Method.extra_state`."""
        return {"rows_on_floor": self.collapse.rows}

    def load_extra_state(self, state: dict[str, int]) -> None:
        """See `Method.load_extra_state`."""
        self.collapse.rows = state["rows_on_floor"]
