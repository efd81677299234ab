"""Hugging Face's causal language models as judges of sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from asrkit.errors import AsrkitError

_BATCH = 16
"""Texts per forward pass."""


class CausalLM:
    """A causal language model that scores texts."""

    def __init__(self, name: str, device: torch.device) -> None:
        """Load a model.

        Args:
            name: a name on the hub, or a folder with the model and its tokeniser.
            device: where it runs.

        Raises:
            AsrkitError: if transformers is missing, or the model cannot be loaded.
        """
        try:
            import transformers
        except ImportError:
            raise AsrkitError(
                "language models of Hugging Face need transformers", mend='pip install "asrkit[huggingface]"'
            ) from None
        try:
            self._tokeniser: Any = transformers.AutoTokenizer.from_pretrained(name)
            self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(name).to(device).eval()
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().split("\n")[0]
            raise AsrkitError(f"no causal language model can be loaded: {first}", where=name) from None
        self._device = device
        end = self._tokeniser.eos_token_id
        begin = self._tokeniser.bos_token_id if self._tokeniser.bos_token_id is not None else end
        self._begin = [] if begin is None else [begin]
        self._end = [] if end is None else [end]

    @torch.inference_mode()
    def log10(self, texts: Sequence[str]) -> list[float]:
        """Return each text's log10 probability, its end included.

        Texts all in capitals, which these models have hardly seen, are judged in lower case.
        """
        spelt = [text.lower() if text == text.upper() else text for text in texts]
        tokens = [self._begin + self._tokeniser.encode(text, add_special_tokens=False) + self._end for text in spelt]
        order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
        found = [0.0] * len(tokens)
        for first in range(0, len(order), _BATCH):
            places = order[first : first + _BATCH]
            for place, log10 in zip(places, self._batch([tokens[place] for place in places]), strict=True):
                found[place] = log10
        return found

    def _batch(self, rows: Sequence[Sequence[int]]) -> list[float]:
        longest = max(1, *(len(row) for row in rows))
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self._device)
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        inside = torch.arange(longest, device=self._device) < lengths[:, None]
        logits = self._model(input_ids=padded, attention_mask=inside.long()).logits.float()
        following = logits[:, :-1].log_softmax(-1).gather(2, padded[:, 1:, None])[..., 0]
        return (following * inside[:, 1:]).double().sum(1).div(math.log(10)).tolist()
