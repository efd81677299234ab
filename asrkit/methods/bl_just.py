"""`bl_just`: bilevel joint unsupervised and supervised training (Saif et al. 2024, arXiv 2401.06980; Cui et al., arXiv 2412.08548).

Upper level: min over θ, φ of L_sup(θ, φ). Lower level: θ, with some η, minimises L_unsup(θ, η). Penalty-based descent (Shen
and Chen 2023, arXiv 2302.05185) turns this into min L_sup + γ (L_unsup - min L_unsup), with γ growing: the minimum is a
constant, so that a joint update is one backward pass through each loss.

From the authors' code are: the update (θ along ∇(L_sup + γ L_unsup), η along ∇L_unsup, φ along ∇L_sup), the phases, γ's course
(`asrkit.methods.penalty`), four passes of exploration per outer epoch, five of fine-tuning by the joint phases' moments, the rates
1e-3, 1e-4 and 1e-5, and exploration by an optimiser of its own: what CTC's larger gradients leave in shared second moments makes
exploration's steps small. asrkit's own are masks, warm-up, joint phases that go through the longer stream (the authors' zip ends
with the shorter one), and every other default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from asrkit.core.clock import Clock
from asrkit.core.phase import Phase
from asrkit.core.schedule import Schedule
from asrkit.core.step import Accumulate
from asrkit.errors import AsrkitError
from asrkit.methods.diagnosis import joint_step
from asrkit.methods.joint import EXPLORATION, JOINT, STREAMS, FinalConfig, JointConfig, JointMethod, StageConfig, steady
from asrkit.methods.penalty import PenaltyConfig, penalty
from asrkit.nn.encoder import Encoder
from asrkit.text.units import Units


@dataclass
class BLJustConfig(JointConfig):
    """BL-JUST; see the file's head for what of the defaults is the authors' and what is ours."""

    outer_epochs: int = 200
    """How often exploration and a joint phase follow each other."""
    exploration: StageConfig = field(default_factory=lambda: StageConfig(passes=4.0, schedule=steady(1e-3)))
    """Self-supervised updates at the beginning of each outer epoch; without updates and passes there are none."""
    finetune: FinalConfig = field(default_factory=lambda: FinalConfig(passes=5.0, schedule=steady(1e-5)))
    """Supervised updates at the end; without updates and passes there are none."""
    separate_moments: bool = True
    """Exploration keeps Adam's moments of its own; off shares them with the joint phases, which halves their memory."""
    gamma: PenaltyConfig = field(default_factory=PenaltyConfig)
    """The penalty on the lower level over time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outer_epochs < 1:
            raise AsrkitError(f"bl_just.outer_epochs is {self.outer_epochs}", mend="1 or more")


class BLJust(JointMethod):
    """Per outer epoch exploration, then a joint phase; at the end supervised fine-tuning."""

    def __init__(self, config: BLJustConfig, encoder: Encoder, units: Units | None) -> None:
        super().__init__("bl_just", config, encoder, units)
        self.config = config

    def phases(self) -> Sequence[Phase]:
        """See `Method.phases`: each kind's schedule runs through all its phases."""
        config, groups = self.config, self.groups()
        explored, joint = self._lengths()
        final = self.final_phases()
        step, plain = joint_step(config.diagnose_every), Accumulate()
        own = EXPLORATION if config.separate_moments else ""
        phases = []
        for epoch in range(config.outer_epochs):
            if explored:
                rate = Schedule(config.exploration.schedule, config.outer_epochs * explored, offset=epoch * explored)
                rates = {name: rate for name in groups if name != "ctc"}
                phases.append(Phase(EXPLORATION, explored, ("unlabelled",), rates, plain, own, milestone=False))
            rate = Schedule(config.joint.schedule, config.outer_epochs * joint, offset=epoch * joint)
            last = epoch + 1 == config.outer_epochs
            phases.append(Phase(JOINT, joint, STREAMS, dict.fromkeys(groups, rate), step, milestone=last))
        return phases + final

    def gamma(self, clock: Clock) -> float:
        """See `JointMethod.gamma`."""
        config = self.config
        if config.gamma.by == "epoch":
            return penalty(config.gamma, self._epoch(clock), config.outer_epochs)
        return penalty(config.gamma, self.joint_update(clock), config.outer_epochs * self._lengths()[1])

    def joint_update(self, clock: Clock) -> int:
        """See `JointMethod.joint_update`."""
        return self._epoch(clock) * self._lengths()[1] + clock.phase_update

    def _epoch(self, clock: Clock) -> int:
        """Return the outer epochs before the one that an update belongs to."""
        return clock.update // sum(self._lengths())

    def _lengths(self) -> tuple[int, int]:
        """Return an outer epoch's updates of exploration, and its joint updates."""
        explored = self.length(self.config.exploration, "unlabelled")
        return explored, self.length(self.config.joint, "labelled", "unlabelled")
