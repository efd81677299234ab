"""`wav2vec_s`: semi-supervised pre-training between self-supervision and fine-tuning (Zhu et al. 2022, arXiv 2110.04484).

CTC on labelled speech plus CTC on pseudo-labels of unlabelled speech, which the model (or a moving average of it) makes as
training goes on. The paper's training code is not public: where it leaves a detail open, defaults follow the same author's
next paper (CASTLE, arXiv 2206.09783) or are our own, and each says which.

Shapes: N batch, T frames, V units (with blank).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from asrkit.core.clock import Clock
from asrkit.core.phase import Phase
from asrkit.core.schedule import Schedule, ScheduleConfig
from asrkit.core.step import Accumulate, Engine
from asrkit.core.term import Losses, Prepared, Ratio, Term
from asrkit.data.batch import SAMPLE_RATE, Batch
from asrkit.data.config import DataConfig
from asrkit.errors import AsrkitError
from asrkit.heads.ctc import CTCHead, CTCHeadConfig
from asrkit.heads.head import Pass
from asrkit.methods.common import encode, encoder_frames, layer_drops, without_gradient
from asrkit.methods.pseudo_labels import (
    LEAST_KEPT,
    UNKEPT_ROWS,
    LabelCache,
    PseudoLabel,
    PseudoLabelConfig,
    collapse,
    label_figures,
    labelled_with,
    read_off,
    speech_figures,
)
from asrkit.methods.supervised import Supervised, SupervisedDraws, check_frozen_scratch, check_spec_augment
from asrkit.methods.teacher import MovingAverage, evaluating
from asrkit.nn.encoder import Encoder, Extracted
from asrkit.nn.masking import MaskConfig
from asrkit.nn.spec_augment import SpecAugmentConfig
from asrkit.text.units import Units

HEAD_ONLY, WARMUP, SEMI = "head", "warmup", "semi"
log = logging.getLogger("asrkit.methods")


def _schedule() -> ScheduleConfig:
    return ScheduleConfig(learning_rate=3e-5, name="tri_stage", warmup=0.1, hold=0.4, final_scale=0.05)


@dataclass
class Wav2VecSConfig:
    """wav2vec-S; updates, rates and masks are CASTLE's, which is the nearest public evidence.

    The ratio of labelled to unlabelled speech is that of data.labelled.seconds_per_update to
    data.unlabelled.seconds_per_update.
    """

    updates: int = 20_000
    """Length of the run, warm-up included."""
    warmup_updates: int = 2_000
    """Updates at the beginning on labelled speech alone: a fresh head's labels are worth nothing. (ours)"""
    freeze_updates: int = 1_000
    """Of those, the first in which only the CTC head learns. (ours)"""
    freeze_frontend: bool = True
    """Leave the feature extractor as it is; teacher and student then share its output. Switch it off from scratch. (CASTLE)"""
    keep_head: bool = False
    """Take the CTC head and the units of `init` too, where that was fine-tuned."""
    schedule: ScheduleConfig = field(default_factory=_schedule)
    """Learning rate over the run."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Masks on labelled speech, on the input of the encoder's blocks. (CASTLE)"""
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    """SpecAugment on labelled speech, for a log-mel frontend."""
    student_mask: MaskConfig = field(default_factory=lambda: MaskConfig(channel_probability=0.5))
    """Masks on unlabelled speech: the student learns to hear with them what the teacher heard without. (CASTLE)"""
    student_spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    """SpecAugment on unlabelled speech, for a log-mel frontend; the student then needs a frontend pass of its own."""
    pseudo: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    """Teacher, filter, weight, cache."""
    ctc: CTCHeadConfig = field(default_factory=CTCHeadConfig)
    """The CTC head."""
    collapse_patience: int = 20
    """Rows of the log in a row with labels that have collapsed before the run is stopped; 0 only warns."""

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise AsrkitError(f"wav2vec_s.updates is {self.updates}", mend="1 or more")
        if not 0 <= self.freeze_updates <= self.warmup_updates <= self.updates:
            raise AsrkitError(
                f"wav2vec_s: freeze_updates {self.freeze_updates}, warmup_updates {self.warmup_updates}, updates {self.updates}",
                mend="each is at most the next",
            )
        if self.collapse_patience < 0:
            raise AsrkitError(f"wav2vec_s.collapse_patience is {self.collapse_patience}", mend="0 or more")


def check_streams(config: Wav2VecSConfig, data: DataConfig) -> None:
    """Refuse a cache of labels for audio that is cropped elsewhere in every epoch.

    Raises:
        AsrkitError: naming the keys.
    """
    if config.pseudo.cache and data.unlabelled.crop_seconds:
        raise AsrkitError(
            "wav2vec_s.pseudo.cache remembers labels of whole utterances, but data.unlabelled.crop_seconds cuts them",
            mend="set one of the two to 0; data.unlabelled.max_seconds leaves long utterances out",
        )


def _pseudo(term: str) -> str:
    """Return the name of a term of the CTC head where it learns from pseudo-labels."""
    return f"pseudo_{term}"


@dataclass(frozen=True)
class Draws:
    """A micro-batch as the student gets it."""

    batch: Batch | None
    """The utterances with targets: transcripts, or the labels that are kept; None if no label is."""
    masks: SupervisedDraws | None
    """What is hidden from the student; None where there is no batch."""
    extracted: Extracted | None
    """The frontend's output where the teacher has it already."""
    weight: float
    """Of the loss."""
    figures: Mapping[str, Ratio]
    """What the log says of the labels."""


class Wav2VecS(Supervised):
    """Two streams; phases: the head alone, supervised warm-up, then both streams."""

    def __init__(self, config: Wav2VecSConfig, encoder: Encoder, units: Units | None) -> None:
        super().__init__("wav2vec_s", encoder, units, config.ctc)
        check_spec_augment(config.spec_augment, "wav2vec_s.spec_augment", encoder)
        check_spec_augment(config.student_spec_augment, "wav2vec_s.student_spec_augment", encoder)
        self.config = config
        self.average: MovingAverage | None = None
        if config.pseudo.teacher == "ema":
            self.average = MovingAverage(self._student, config.pseudo.ema_decay)
        self.cache = LabelCache(config.pseudo.cache, config.pseudo.cache_renewal)
        self.collapsed_rows = 0
        self.unkept_rows = 0
        self.rehearsing = False

    def phases(self) -> Sequence[Phase]:
        """See `Method.phases`: one schedule runs through all."""
        config = self.config
        moving = [name for name in self.groups() if name != "frontend" or not config.freeze_frontend]
        head, warm = config.freeze_updates, config.warmup_updates
        schedules = [Schedule(config.schedule, config.updates, offset=offset) for offset in (0, head, warm)]
        step = Accumulate()
        both = ("labelled", "unlabelled")
        return [
            Phase(HEAD_ONLY, head, ("labelled",), {"ctc": schedules[0]}, step),
            Phase(WARMUP, warm - head, ("labelled",), dict.fromkeys(moving, schedules[1]), step),
            Phase(SEMI, config.updates - warm, both, dict.fromkeys(moving, schedules[2]), step),
        ]

    def check_scratch(self) -> None:
        """See `Method.check_scratch`."""
        check_frozen_scratch(self.config.freeze_frontend, "wav2vec_s.freeze_frontend", self.groups())

    def terms(self, stream: str) -> Sequence[str]:
        """See `Method.terms`."""
        return self.ctc.terms if stream == "labelled" else tuple(map(_pseudo, self.ctc.terms))

    def prepare(self, stream: str, batch: Batch, clock: Clock) -> Prepared:
        """See `Method.prepare`: masks, and for unlabelled speech its labels."""
        if stream == "unlabelled":
            return self._prepare_student(batch, clock)
        ready = self.draw_supervised(batch, clock, self.config.mask, self.config.spec_augment)
        figures = {}
        if clock.phase == SEMI and batch.targets is not None and batch.host_target_lengths is not None:
            rows = zip(batch.targets.tolist(), batch.host_target_lengths, strict=True)
            figures = speech_figures("labelled", [row[:length] for row, length in rows], batch.seconds)
        return Prepared(Draws(batch, ready.draws, None, 1.0, figures), ready.counts)

    def losses(self, stream: str, batch: Batch, draws: Draws, clock: Clock) -> Losses:
        """See `Method.losses`."""
        if draws.batch is None or draws.masks is None:
            nothing = Term(torch.zeros((), device=self.device))
            return Losses(dict.fromkeys(self.terms(stream), nothing), draws.figures)
        run: Pass
        if draws.extracted is not None:
            drops = layer_drops(self.encoder, clock) if self.encoder.training else None
            run = partial(self.encoder.contextualise, draws.extracted, draws.masks.mask, drops=drops)
        else:
            scale = 0.0 if self.config.freeze_frontend else 1.0
            run = partial(encode, self.encoder, draws.batch, draws.masks.mask, clock, scale, draws.masks.spec_mask)
        with without_gradient() if clock.phase == HEAD_ONLY else nullcontext():
            encoded = self.ctc.condition(self.encoder, run)
        losses = self.ctc.loss(encoded, draws.batch, draws.masks.head, clock)
        metrics = losses.metrics if stream == "labelled" else {}
        weighed = (Term(term.sum, term.weight * draws.weight) for term in losses.terms.values())
        return Losses(dict(zip(self.terms(stream), weighed, strict=True)), {**metrics, **draws.figures})

    @property
    def shares_frontend(self) -> bool:
        """Whether one frontend pass serves teacher and student."""
        return self.config.freeze_frontend and not self.config.student_spec_augment.active

    def _prepare_student(self, batch: Batch, clock: Clock) -> Prepared:
        pseudo = self.config.pseudo
        labels, extracted = self._label(batch, clock)
        if self.rehearsing:
            frames = encoder_frames(self.encoder, batch)
            labels = [self._stand_in(label, length) for label, length in zip(labels, frames, strict=True)]
        rows = [row for row, label in enumerate(labels) if label.passes(pseudo.confidence)]
        ramp = min(1.0, (clock.phase_update + 1) / pseudo.ramp_updates) if pseudo.ramp_updates else 1.0
        weight = pseudo.weight * ramp
        figures = {
            "pseudo_weight": Ratio(weight * len(labels), float(len(labels))),
            **self._figures(batch, labels, rows),
        }
        if not rows:
            return Prepared(Draws(None, None, None, weight, figures), self._counts(batch, labels, None, clock))
        kept = labelled_with(batch.rows(rows), [labels[row] for row in rows])
        ready = self.draw_supervised(kept, clock, self.config.student_mask, self.config.student_spec_augment)
        shared = extracted.rows(rows) if extracted is not None else None
        return Prepared(Draws(kept, ready.draws, shared, weight, figures), self._counts(batch, labels, ready, clock))

    def _stand_in(self, label: PseudoLabel, frames: int) -> PseudoLabel:
        """Return a label for a rehearsal: what random weights hear is little and never sure."""
        unit = (self.units.blank + 1) % len(self.units)
        return PseudoLabel(label.units or (unit,) * max(1, frames // 2), 1.0)

    def _counts(
        self, batch: Batch, labels: Sequence[PseudoLabel], kept: Prepared | None, clock: Clock
    ) -> dict[str, torch.Tensor]:
        """Return what the loss is divided by: labelled speech has no part in it, nor this speech in labelled speech's."""
        counts: Mapping[str, torch.Tensor]
        if self.config.pseudo.count == "all":
            whole = labelled_with(batch, labels)
            counts = self.ctc.counts(whole, self.ctc.draw(whole, encoder_frames(self.encoder, whole), clock))
        elif kept is not None:
            counts = kept.counts
        else:
            counts = dict.fromkeys(self.ctc.terms, torch.zeros((), device=batch.waves.device))
        return {_pseudo(name): count for name, count in counts.items()}

    def _label(self, batch: Batch, clock: Clock) -> tuple[list[PseudoLabel], Extracted | None]:
        """Return each utterance's label, from the cache or from the teacher, and the frontend's output if it is shared."""
        shared = self._extract(self.encoder, batch) if self.shares_frontend else None
        known = self.cache.find(batch, clock.seed)
        rows = [row for row in range(len(batch.ids)) if row not in known]
        labels = dict(known)
        if rows:
            if shared is not None:
                extracted = shared.rows(rows) if known else shared
            else:
                extracted = self._extract(self._teacher[0], batch.rows(rows) if known else batch)
            heard = self._teach(extracted)
            self.cache.note([batch.ids[row] for row in rows], heard)
            labels.update(zip(rows, heard, strict=True))
        return [labels[row] for row in range(len(batch.ids))], shared

    @property
    def _student(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "ctc": self.ctc}

    @property
    def _teacher(self) -> tuple[Encoder, CTCHead]:
        if self.average is None or not self.average.begun:
            return self.encoder, self.ctc
        encoder, head = self.average.copies["encoder"], self.average.copies["ctc"]
        assert isinstance(encoder, Encoder)
        assert isinstance(head, CTCHead)
        return encoder, head

    def _extract(self, encoder: Encoder, batch: Batch) -> Extracted:
        with torch.no_grad(), evaluating(encoder.frontend):
            return encoder.extract(batch.waves, batch.wave_lengths, batch.host_lengths)

    def _teach(self, extracted: Extracted) -> list[PseudoLabel]:
        """Return what the teacher hears, unmasked and in evaluation mode."""
        encoder, head = self._teacher
        with torch.no_grad(), evaluating(encoder, head):
            encoded = head.condition(encoder, partial(encoder.contextualise, extracted))
            return read_off(head.log_probs(encoded), encoded.lengths, head.blank)

    def _figures(self, batch: Batch, labels: Sequence[PseudoLabel], rows: Sequence[int]) -> dict[str, Ratio]:
        seconds = sum(batch.host_lengths[row] for row in rows) / SAMPLE_RATE
        figures = label_figures(labels, self.config.pseudo.confidence)
        figures |= speech_figures("pseudo", [labels[row].units for row in rows], seconds)
        if batch.texts is not None:
            rate = self.letter_rate
            figures[f"pseudo_{rate}"] = self.error_rates(batch, [label.units for label in labels])[rate]
            if rows:
                kept = self.error_rates(batch.rows(rows), [labels[row].units for row in rows])
                figures[f"pseudo_{rate}_kept"] = kept[rate]
        return figures

    def validate(self, batch: Batch, clock: Clock) -> Mapping[str, Ratio]:
        """See `Method.validate`: CTC loss and error rates, and what the teacher's labels are like on held-out speech."""
        figures = super().validate(batch, clock)
        if clock.phase != SEMI:
            return figures
        labels = self._teach(self._extract(self._teacher[0], batch))
        rows = [row for row, label in enumerate(labels) if label.passes(self.config.pseudo.confidence)]
        return {**figures, **self._figures(batch, labels, rows)}

    def rehearse(self) -> None:
        """See `Method.rehearse`: the average is held, and every label is learnt from."""
        self.rehearsing = True
        if self.average is not None:
            self.average.begin(self._student)

    def after_update(self, clock: Clock, engine: Engine) -> None:
        """See `Method.after_update`: the moving average follows, the cache takes in what was labelled."""
        if clock.phase != SEMI:
            return
        if self.average is not None:
            # Here and not where labels are made: a rank without unlabelled audio in this update needs it too.
            (self.average.follow if self.average.begun else self.average.begin)(self._student)
        if self.cache.size:
            self.cache.take(engine.gather(self.cache.fresh))

    def derived(self, figures: Mapping[str, float]) -> Mapping[str, float]:
        """See `Method.derived`: how long the labels are beside real transcripts."""
        real = figures.get("labelled_units_per_second", 0.0)
        if not real or "pseudo_units_per_second" not in figures:
            return {}
        return {"pseudo_length_ratio": figures["pseudo_units_per_second"] / real}

    def health(self, metrics: Mapping[str, float], clock: Clock) -> str | None:
        """See `Method.health`: warn at once, and stop in the end, when labels collapse to blanks or to loops; warn if none pass."""
        self._watch_filter(metrics, clock)
        reason = collapse(metrics)
        self.collapsed_rows = self.collapsed_rows + 1 if reason else 0
        if reason is None:
            return None
        advice = (
            "lengthen wav2vec_s.warmup_updates, raise wav2vec_s.pseudo.confidence, lower wav2vec_s.pseudo.weight, or use "
            "wav2vec_s.pseudo.teacher=ema"
        )
        if 0 < self.config.collapse_patience <= self.collapsed_rows:
            return f"{reason}, for {self.collapsed_rows} rows of the log; {advice}"
        if self.collapsed_rows == 1:
            log.warning("step %d: %s; if this lasts, %s", clock.update, reason, advice)
        return None

    def _watch_filter(self, metrics: Mapping[str, float], clock: Clock) -> None:
        """Warn once if the filter has let next to no label through for some rows of the log: then there is no second loss."""
        if "pseudo_kept" not in metrics:
            return
        self.unkept_rows = self.unkept_rows + 1 if metrics["pseudo_kept"] < LEAST_KEPT else 0
        if self.unkept_rows == UNKEPT_ROWS:
            log.warning(
                "step %d: next to no pseudo-label passes wav2vec_s.pseudo.confidence=%g (theirs is %.2f in the mean): nothing is "
                "learnt from unlabelled speech; lower it, or lengthen wav2vec_s.warmup_updates",
                clock.update, self.config.pseudo.confidence, metrics.get("pseudo_confidence", math.nan),
            )  # fmt: skip

    def extra_state(self) -> dict[str, Any]:
        """See `Method.extra_state`: the moving average and the cache."""
        return {
            "average": self.average.state_dict() if self.average is not None and self.average.begun else None,
            "cache": self.cache.state_dict(),
            "collapsed_rows": self.collapsed_rows,
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See `Method.load_extra_state`."""
        if self.average is not None and state["average"] is not None:
            self.average.begin(self._student)
            self.average.load_state_dict(state["average"])
        self.cache.load_state_dict(state["cache"])
        self.collapsed_rows = state["collapsed_rows"]
