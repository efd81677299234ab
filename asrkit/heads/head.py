"""What a method, model selection and decoding ask of a head. A head owns its loss and, if supervised, its hypotheses.

Shapes: N batch, S samples, T frames, L labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from asrkit.core.clock import Clock
from asrkit.core.term import Losses
from asrkit.data.batch import Batch
from asrkit.nn.encoder import Encoded, Encoder
from asrkit.nn.masking import SpanMask


class Head(nn.Module, ABC):
    """A loss on the encoder's output, with the parameters it needs.

    An update goes `draw` → `counts` (both without gradient, before any forward pass that is differentiated) → `loss`.
    """

    terms: tuple[str, ...]
    """Names of the terms that `loss` returns, each with its count in `counts`."""

    @abstractmethod
    def draw(self, batch: Batch, frames: Sequence[int], clock: Clock) -> Any:
        """Draw what is random in the loss: a pure function of the seed, the stream's epoch and the utterances' keys.

        Args:
            batch: the micro-batch.
            frames: encoder frames of each utterance, known on the host (`encoder.frames` of `batch.host_lengths`).
            clock: where the run stands.
        """

    @abstractmethod
    def counts(self, batch: Batch, draws: Any) -> Mapping[str, Tensor]:
        """Return each term's denominator on this micro-batch, a scalar on the device."""

    @abstractmethod
    def loss(self, encoded: Encoded, batch: Batch, draws: Any, clock: Clock) -> Losses:
        """Return terms and metrics of one micro-batch. Deterministic given ``draws``, dropout apart."""


class MaskedDraws(Protocol):
    """What is random in a self-supervised loss on a micro-batch."""

    @property
    def mask(self) -> SpanMask:
        """Of the encoder's input."""
        ...


@dataclass(frozen=True)
class Advice:
    """What a user is told whose `code_perplexity` has stayed next to nothing."""

    reason: str
    """What it means."""
    mend: str
    """What to do about it; {section} stands for the head's section of the configuration, {rate} for the learning rate's key."""


class SelfSupervisedHead(Head):
    """A head that learns from masked speech alone, of which `loss` finds the traces in `Encoded`.

    It reads of `Encoded` the states, the features and the extracted features, and nothing else: what a method does to these
    (scaling the gradient that goes back through them, say) holds for the whole loss.
    """

    codebooks: int = 0
    """Codebooks over which the metric `code_perplexity` is a sum; 0 if there is no such metric."""
    objective: str
    """The term by which one model is better than another."""
    advice: Advice
    """For a run that has next to no codes."""

    @abstractmethod
    def draw(self, batch: Batch, frames: Sequence[int], clock: Clock) -> MaskedDraws:
        """See `Head.draw`; the draws name the mask under which the encoder is to be run."""


class Pass(Protocol):
    """A pass through an encoder that lets its caller act between blocks."""

    def __call__(self, *, after_layer: Mapping[int, Callable[[Tensor], Tensor]] | None) -> Encoded:
        """Run it; ``after_layer`` is that of `Encoder.contextualise`."""
        ...


class SupervisedHead(Head):
    """A head that learns from transcripts and can write them."""

    def condition(self, encoder: Encoder, run: Pass) -> Encoded:
        """Run a pass through an encoder in which the head may take part; every pass whose result it gets goes through here."""
        return run(after_layer=None)

    @abstractmethod
    def hypotheses(self, encoded: Encoded) -> list[list[int]]:
        """Return the unit indices recognised in each utterance, by the head's own simplest decoding."""
