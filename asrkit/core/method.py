"""What the training loop asks of a method. The loop, precision, distribution, checkpoints and data know no method by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from asrkit.core.clock import Clock
from asrkit.core.phase import Phase
from asrkit.core.step import Engine
from asrkit.core.term import Losses, Prepared, Ratio
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.nn.encoder import Encoded, Encoder


class Method(nn.Module, ABC):
    """Encoder, heads, and the rule by which they learn. Its weights are its `state_dict`."""

    encoder: Encoder
    """What all heads build on."""
    selection: tuple[str, str] = ("loss", "min")
    """The validation metric that `selection_value` goes by, and its direction: "min" or "max"."""

    @abstractmethod
    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        """Return the parameters in named groups (`frontend`, `encoder`, `ctc`, …); together they are all parameters, once."""

    def observe_streams(self, updates_per_epoch: Mapping[str, int]) -> None:
        """Take note of how many updates each stream has per epoch; called once, before `phases`."""

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """Return the phases in order."""

    @abstractmethod
    def terms(self, stream: str) -> Sequence[str]:
        """Return the names of the terms that `losses` gives for a stream; a rank without audio must know them too."""

    @abstractmethod
    def prepare(self, stream: str, batch: Batch, clock: Clock) -> Prepared:
        """Fix, without gradient, what the losses will need: masks, pseudo-labels, the terms' counts."""

    @abstractmethod
    def losses(self, stream: str, batch: Batch, draws: Any, clock: Clock) -> Losses:
        """Run the differentiated forward pass on one micro-batch. Deterministic given `draws`, dropout apart."""

    @abstractmethod
    def validate(self, batch: Batch, clock: Clock) -> Mapping[str, Ratio]:
        """Return figures on a batch of a development set, in evaluation mode."""

    def selection_value(self, figures: Mapping[str, float]) -> float:
        """Return what the model with the best figures on the development sets has the least of: the one `selection` names."""
        name, direction = self.selection
        return figures[name] if direction == "min" else -figures[name]

    def encode(self, batch: Batch, *, keep_layers: bool = False) -> Encoded:
        """Return what the encoder makes of a batch without masks; what heads do between its blocks is done.

        Args:
            batch: the utterances.
            keep_layers: keep the input and the output of the blocks.
        """
        encoded: Encoded = self.encoder(batch.waves, batch.wave_lengths, batch.host_lengths, keep_layers=keep_layers)
        return encoded

    def hypotheses(self, batch: Batch) -> list[list[int]]:
        """Return greedy unit sequences, one per utterance; call it in evaluation mode.

        Raises:
            AsrkitError: if the method has no supervised head.
        """
        raise AsrkitError("this experiment has no recogniser yet", mend="fine-tune it first: asrkit train … init=THIS")

    def log_probs(self, batch: Batch) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Return natural log-probabilities of the units, float32 (N, T, V), and the frames of each utterance.

        What beam search decodes; call it in evaluation mode.

        Raises:
            AsrkitError: if the method has no supervised head, or one that gives no scores per frame.
        """
        raise AsrkitError("this experiment has no unit scores to search in", mend="decode it with --decoder greedy")

    def inherit(self, weights: Mapping[str, torch.Tensor], keep_head: bool) -> list[str]:
        """Take over another experiment's weights where the method has a use for them: the encoder's, always.

        Args:
            weights: the other experiment's `state_dict`.
            keep_head: take the supervised head too (its units are the same).

        Returns:
            The prefixes that were taken.
        """
        prefixes = ["encoder."] + (["ctc."] if keep_head else [])
        own = self.state_dict()
        for prefix in prefixes:
            wanted = {name for name in own if name.startswith(prefix)}
            given = {name for name in weights if name.startswith(prefix)}
            if wanted != given:
                odd = sorted(wanted ^ given)[0]
                raise AsrkitError(f"the weights of `init` do not fit: '{odd}' is on one side only")
            for name in wanted:
                if own[name].shape != weights[name].shape:
                    shapes = f"{tuple(weights[name].shape)} in `init`, {tuple(own[name].shape)} here"
                    raise AsrkitError(f"the weights of `init` do not fit: '{name}' is {shapes}")
            own.update({name: weights[name] for name in wanted})
        self.load_state_dict(own)
        return prefixes

    def check_scratch(self) -> None:
        """Refuse settings that make no sense where nothing is inherited; called when a run begins without `init`.

        Raises:
            AsrkitError: naming the setting.
        """

    def rehearse(self) -> None:
        """Get ready for batches of noise whose memory is measured: hold all that training will, and leave no row out."""

    def after_update(self, clock: Clock, engine: Engine) -> None:
        """Act once the optimiser has stepped: an EMA, a cache, a temperature. Called on every rank."""

    def derived(self, figures: Mapping[str, float]) -> Mapping[str, float]:
        """Return figures for a row of the log that are made of others in it."""
        return {}

    def health(self, metrics: Mapping[str, float], clock: Clock) -> str | None:
        """Return why the run should stop (a collapse, say), or None. Called with each logged row."""
        return None

    def extra_state(self) -> dict[str, Any]:
        """Return what must survive a restart beside weights: tensors, numbers, strings, lists and dicts of them."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` gave."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device
