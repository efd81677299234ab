"""What methods with a CTC head share: the supervised pass, figures on a dev set, and what decoding asks for.

Shapes: N batch, T frames, V units (with blank).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.term import Losses, Prepared, Ratio
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.heads.ctc import CTCDraws, CTCHead, CTCHeadConfig, check_depth
from asrkit.methods.common import encode, encoder_frames, parameter_groups, spec_augment, without_gradient
from asrkit.nn.encoder import Encoded, Encoder
from asrkit.nn.masking import MaskConfig, SpanMask, draw_mask
from asrkit.nn.spec_augment import SpecAugmentConfig, SpecMask
from asrkit.text.units import Units
from asrkit.text.wer import count_errors


@dataclass(frozen=True)
class SupervisedDraws:
    """What is random in a supervised pass."""

    mask: SpanMask
    """On the input of the encoder's blocks."""
    spec_mask: SpecMask | None
    """On the spectrogram; None where SpecAugment is off."""
    head: CTCDraws
    """What the head drew."""


class Supervised(Method):
    """A method that recognises: an encoder and a CTC head."""

    letter_rate: str
    """The finest error rate that there is: `cer`, or for phones `per`."""

    def __init__(self, name: str, encoder: Encoder, units: Units | None, ctc: CTCHeadConfig) -> None:
        """Make the head.

        Args:
            name: the method's, for messages.
            encoder: the encoder.
            units: what the head predicts.
            ctc: the head's settings.

        Raises:
            AsrkitError: if there are no units, or no blocks where the head is to read.
        """
        super().__init__()
        if units is None:
            raise AsrkitError(f"{name} needs units")
        check_depth(ctc, f"{name}.ctc", encoder)
        self.units = units
        self.letter_rate = "per" if units.kind == "phone" else "cer"
        # Phones are not words: without a search through the lexicon there is no word error rate.
        self.selection = ("per" if units.kind == "phone" else "wer", "min")
        self.encoder = encoder
        self.ctc = CTCHead(ctc, encoder.dim, units)

    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        """See `Method.groups`."""
        return parameter_groups(self.encoder, {"ctc": self.ctc})

    def draw_supervised(self, batch: Batch, clock: Clock, mask: MaskConfig, spec: SpecAugmentConfig) -> Prepared:
        """Draw the masks of a supervised pass and count its labels."""
        frames = encoder_frames(self.encoder, batch)
        span = draw_mask(mask, batch.keys, frames, self.encoder.dim, seed=clock.seed, epoch=batch.epoch)
        head = self.ctc.draw(batch, frames, clock)
        draws = SupervisedDraws(span, spec_augment(self.encoder, spec, batch, clock), head)
        return Prepared(draws, self.ctc.counts(batch, head))

    def supervised_losses(
        self, batch: Batch, draws: SupervisedDraws, clock: Clock, *, head_only: bool, frontend_gradient_scale: float
    ) -> Losses:
        """Run a supervised pass; with ``head_only`` nothing gets a gradient but the head where it writes."""
        run = partial(encode, self.encoder, batch, draws.mask, clock, frontend_gradient_scale, draws.spec_mask)
        with without_gradient() if head_only else nullcontext():
            encoded = self.ctc.condition(self.encoder, run)
        return self.ctc.loss(encoded, batch, draws.head, clock)

    def validate(self, batch: Batch, clock: Clock) -> Mapping[str, Ratio]:
        """See `Method.validate`: CTC losses and error rates without masks; `loss` is that of the last block."""
        encoded = self.encode(batch)
        draws = self.ctc.draw(batch, encoded.host_lengths, clock)
        losses, counts = self.ctc.loss(encoded, batch, draws, clock), self.ctc.counts(batch, draws)
        terms = {name: Ratio(term.sum, counts[name]) for name, term in losses.terms.items()}
        return {"loss": terms["ctc"], **terms, **self.error_rates(batch, self.ctc.hypotheses(encoded))}

    def error_rates(self, batch: Batch, hypotheses: Sequence[Sequence[int]]) -> dict[str, Ratio]:
        """Return `wer` and `cer` of unit sequences against the batch's transcripts; for phones `per`, their error rate."""
        texts = [self.units.decode(sequence) for sequence in hypotheses]
        references = [self.units.reference(text) for text in batch.texts or ()]
        errors = count_errors(references, texts)
        if self.units.kind == "phone":
            return {"per": Ratio(float(errors.word_errors), float(errors.words))}
        return {
            "wer": Ratio(float(errors.word_errors), float(errors.words)),
            "cer": Ratio(float(errors.character_errors), float(errors.characters)),
        }

    def selection_value(self, figures: Mapping[str, float]) -> float:
        """See `Method.selection_value`: the sum of the error rates of words and letters; for phones, theirs.

        Words alone say little while few of them are right: a model that says nothing has a word error rate of 1, and would
        pass for better than one that has most letters right and no word yet.
        """
        return sum(figures[name] for name in {self.selection[0], self.letter_rate})

    def encode(self, batch: Batch, *, keep_layers: bool = False) -> Encoded:
        """See `Method.encode`."""
        return self.ctc.condition(self.encoder, partial(encode, self.encoder, batch, keep_layers=keep_layers))

    def hypotheses(self, batch: Batch) -> list[list[int]]:
        """See `Method.hypotheses`."""
        return self.ctc.hypotheses(self.encode(batch))

    def log_probs(self, batch: Batch) -> tuple[torch.Tensor, tuple[int, ...]]:
        """See `Method.log_probs`."""
        encoded = self.encode(batch)
        return self.ctc.log_probs(encoded), tuple(encoded.host_lengths)


def check_spec_augment(config: SpecAugmentConfig, key: str, encoder: Encoder) -> None:
    """Refuse SpecAugment where there is no spectrogram, or none whose mean is known.

    Raises:
        AsrkitError: naming the key.
    """
    if config.active and encoder.config.frontend != "logmel":
        raise AsrkitError(
            f"{key} blanks out mel bins, but encoder.frontend is {encoder.config.frontend}",
            mend="leave it out: the masks on the encoder's input suit any frontend",
        )
    if config.active and encoder.config.logmel.normalisation == "none":
        raise AsrkitError(
            f"{key} puts a mel bin's mean, zero, into what it blanks out, but encoder.logmel.normalisation is none",
            mend="normalisation utterance or global, or leave SpecAugment out",
        )


def check_frozen_scratch(frozen: bool, key: str, groups: Mapping[str, list[nn.Parameter]]) -> None:
    """Refuse a feature extractor that would stay random.

    Raises:
        AsrkitError: naming the key.
    """
    if frozen and "frontend" in groups:
        raise AsrkitError(
            f"{key} is on without `init`: the feature extractor would stay random", mend=f"init=EXP, or {key}=false"
        )
