"""`weighted_sum`: joint training on L_sup + weight · L_unsup, the control that tells what `bl_just` adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from asrkit.core.clock import Clock
from asrkit.core.phase import Phase
from asrkit.core.schedule import Schedule
from asrkit.errors import AsrkitError
from asrkit.methods.diagnosis import joint_step
from asrkit.methods.joint import JOINT, JointConfig, JointMethod, StageConfig, steady
from asrkit.nn.encoder import Encoder
from asrkit.text.units import Units


@dataclass
class WeightedSumConfig(JointConfig):
    """A constant weight in one phase, and by option supervised fine-tuning behind it."""

    weight: float = 1.0
    """What the self-supervised loss is multiplied with."""
    joint: StageConfig = field(default_factory=lambda: StageConfig(passes=200.0, schedule=steady(1e-4)))
    """Updates on both streams at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight <= 0:
            raise AsrkitError(f"weighted_sum.weight is {self.weight}", mend="more than 0; without it, use finetune")


class WeightedSum(JointMethod):
    """One joint phase; then fine-tuning, if asked for."""

    def __init__(self, config: WeightedSumConfig, encoder: Encoder, units: Units | None) -> None:
        super().__init__("weighted_sum", config, encoder, units)
        self.config = config

    def phases(self) -> Sequence[Phase]:
        """See `Method.phases`."""
        length = self.length(self.config.joint, "labelled", "unlabelled")
        rates = dict.fromkeys(self.groups(), Schedule(self.config.joint.schedule, length))
        step = joint_step(self.config.diagnose_every)
        return [Phase(JOINT, length, ("labelled", "unlabelled"), rates, step), *self.final_phases()]

    def gamma(self, clock: Clock) -> float:
        """See `JointMethod.gamma`: the weight holds for θ and η alike, nothing for θ alone."""
        return 1.0

    @property
    def weight(self) -> float:
        """See `JointMethod.weight`."""
        return self.config.weight

    def joint_update(self, clock: Clock) -> int:
        """See `JointMethod.joint_update`."""
        return clock.phase_update
