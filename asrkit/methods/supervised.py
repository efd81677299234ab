"""What methods with a CTC head share: how they mask and read labelled speech, are judged, and write transcripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.term import Losses, Prepared, Ratio
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.heads.ctc import CTCDraws, CTCHead, CTCHeadConfig
from asrkit.methods.common import encode, encoder_frames, spec_augment
from asrkit.nn.encoder import Encoder
from asrkit.nn.masking import MaskConfig, SpanMask, draw_mask
from asrkit.nn.spec_augment import SpecAugmentConfig, SpecMask
from asrkit.text.units import Units
from asrkit.text.wer import score


@dataclass
class SupervisedConfig:
    """The labelled side of a method."""

    mask: MaskConfig = field(default_factory=lambda: MaskConfig(time_probability=0.65, channel_probability=0.5))
    """Masks on the input of the encoder's blocks, in the manner of SpecAugment."""
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    """SpecAugment itself, on the spectrogram of a log-mel frontend."""
    ctc: CTCHeadConfig = field(default_factory=CTCHeadConfig)
    """The CTC head."""
    keep_head: bool = False
    """Take the CTC head and the units of `init` instead of a fresh head."""


@dataclass(frozen=True)
class SupervisedDraws:
    """What is random in an update's labelled part."""

    mask: SpanMask
    """On the input of the encoder's blocks."""
    spec_mask: SpecMask | None
    """On the spectrogram; None where SpecAugment is off."""
    head: CTCDraws
    """What the head drew."""


class Supervised(Method):
    """A method with an encoder and a CTC head, chosen by WER."""

    selection = ("wer", "min")

    def __init__(self, section: str, config: SupervisedConfig, encoder: Encoder, units: Units | None) -> None:
        """Make the CTC head.

        Args:
            section: the method's name, for messages.
            config: its settings.
            encoder: what the head builds on.
            units: what it predicts.

        Raises:
            AsrkitError: if there are no units, or a spectrogram is to be masked that does not exist.
        """
        super().__init__()
        if units is None:
            raise AsrkitError(f"{section} needs units")
        if config.spec_augment.active and encoder.config.frontend != "logmel":
            raise AsrkitError(
                f"{section}.spec_augment blanks out mel bins, but encoder.frontend is {encoder.config.frontend}",
                mend=f"leave it out: {section}.mask masks any frontend's frames",
            )
        self.labelled_config = config
        self.units = units
        self.encoder = encoder
        self.ctc = CTCHead(config.ctc, encoder.dim, units)

    def prepare_labelled(self, batch: Batch, clock: Clock) -> Prepared:
        """Draw a labelled batch's masks and count its terms."""
        config = self.labelled_config
        frames = encoder_frames(self.encoder, batch)
        mask = draw_mask(config.mask, batch.keys, frames, self.encoder.dim, seed=clock.seed, epoch=batch.epoch)
        spec_mask = spec_augment(self.encoder, config.spec_augment, batch, clock)
        head = self.ctc.draw(batch, frames, clock)
        return Prepared(SupervisedDraws(mask, spec_mask, head), self.ctc.counts(batch, head))

    def labelled_losses(
        self, batch: Batch, draws: SupervisedDraws, clock: Clock, frontend_gradient_scale: float, learns: bool = True
    ) -> Losses:
        """Return the CTC loss of a labelled batch under masks; with ``learns`` off the encoder keeps no graph."""
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            encoded = encode(self.encoder, batch, draws.mask, clock, frontend_gradient_scale, draws.spec_mask)
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
