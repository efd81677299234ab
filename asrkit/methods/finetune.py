"""`finetune`: CTC on labelled speech, from a pre-trained encoder or from scratch (Baevski et al. 2020, section 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.phase import Phase
from asrkit.core.schedule import Schedule, ScheduleConfig
from asrkit.core.step import Accumulate
from asrkit.core.term import Losses, Prepared, Ratio
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.heads.ctc import CTCDraws, CTCHead, CTCHeadConfig
from asrkit.methods.common import encode, encoder_frames, parameter_groups, spec_augment
from asrkit.nn.encoder import Encoder
from asrkit.nn.masking import MaskConfig, SpanMask, draw_mask
from asrkit.nn.spec_augment import SpecAugmentConfig, SpecMask
from asrkit.text.units import Units
from asrkit.text.wer import score

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


@dataclass(frozen=True)
class FinetuneDraws:
    """What is random in an update."""

    mask: SpanMask
    """On the input of the encoder's blocks."""
    spec_mask: SpecMask | None
    """On the spectrogram; None where SpecAugment is off."""
    head: CTCDraws
    """What the head drew."""


class Finetune(Method):
    """One stream, two phases: the head alone, then all but (by option) the feature extractor."""

    selection = ("wer", "min")

    def __init__(self, config: FinetuneConfig, encoder: Encoder, units: Units | None) -> None:
        super().__init__()
        if units is None:
            raise AsrkitError("finetune needs units")
        if config.spec_augment.active and encoder.config.frontend != "logmel":
            raise AsrkitError(
                f"finetune.spec_augment blanks out mel bins, but encoder.frontend is {encoder.config.frontend}",
                mend="leave it out: finetune.mask masks any frontend's frames",
            )
        self.config = config
        self.units = units
        self.encoder = encoder
        self.ctc = CTCHead(config.ctc, encoder.dim, units)

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
        frames = encoder_frames(self.encoder, batch)
        mask = draw_mask(self.config.mask, batch.keys, frames, self.encoder.dim, seed=clock.seed, epoch=batch.epoch)
        spec_mask = spec_augment(self.encoder, self.config.spec_augment, batch, clock)
        head = self.ctc.draw(batch, frames, clock)
        return Prepared(FinetuneDraws(mask, spec_mask, head), self.ctc.counts(batch, head))

    def losses(self, stream: str, batch: Batch, draws: FinetuneDraws, clock: Clock) -> Losses:
        """See `Method.losses`."""
        scale = 0.0 if self.config.freeze_frontend else 1.0
        with torch.no_grad() if clock.phase == HEAD_ONLY else nullcontext():
            encoded = encode(self.encoder, batch, draws.mask, clock, scale, draws.spec_mask)
        return self.ctc.loss(encoded, batch, draws.head, clock)

    def validate(self, batch: Batch, clock: Clock) -> Mapping[str, Ratio]:
        """See `Method.validate`: CTC loss, WER and CER without masks."""
        encoded = encode(self.encoder, batch)
        draws = self.ctc.draw(batch, encoded.host_lengths, clock)
        losses = self.ctc.loss(encoded, batch, draws, clock)
        counts = self.ctc.counts(batch, draws)
        texts = [self.units.decode(sequence) for sequence in self.ctc.hypotheses(encoded)]
        references = dict(zip(batch.ids, batch.texts or (), strict=True))
        errors = score(references, dict(zip(batch.ids, texts, strict=True))).total
        loss = Ratio(losses.terms["ctc"].sum, counts["ctc"])
        return {
            "loss": loss,
            "ctc": loss,
            "wer": Ratio(float(errors.word_errors), float(errors.words)),
            "cer": Ratio(float(errors.character_errors), float(errors.characters)),
        }

    def hypotheses(self, batch: Batch) -> list[list[int]]:
        """See `Method.hypotheses`."""
        return self.ctc.hypotheses(encode(self.encoder, batch))

    def log_probs(self, batch: Batch) -> tuple[torch.Tensor, tuple[int, ...]]:
        """See `Method.log_probs`."""
        encoded = encode(self.encoder, batch)
        return self.ctc.log_probs(encoded), tuple(encoded.host_lengths)
