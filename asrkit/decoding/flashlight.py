"""Beam search by flashlight-text, the library behind `torchaudio.models.decoder.ctc_decoder`, with KenLM n-grams.

It is spoken to directly, since torchaudio's wrapper builds the tree of spellings anew for every pair of weights. Paths are
added up (`log_add`), so that at equal width it ranks as the built-in decoder does.

Shapes: T frames, V units (with blank).
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from asrkit.decoding.config import BeamConfig
from asrkit.decoding.hypothesis import Decoder, Hypothesis, merge_texts, word_spans
from asrkit.decoding.lexicon import Lexicon
from asrkit.decoding.ngram import UNKNOWN
from asrkit.errors import AsrkitError
from asrkit.text.units import Units

_IMPOSSIBLE = -1e4
"""Log-probability of what cannot be; with minus infinity, sums over paths become no numbers."""
_TIE_BREAK = 1e-4
"""Width of the fixed noise on scores. Those of bf16 often tie, and of equal prefixes flashlight keeps the one that lies first
in memory: without it, the same scores would not always give the same reading."""


def available() -> bool:
    """Return whether flashlight-text is installed."""
    try:
        import flashlight.lib.text.decoder  # noqa: F401
    except ImportError:
        return False
    return True


class FlashlightDecoder(Decoder):
    """Lexicon-constrained with a word n-gram, or lexicon-free with none or with one over units."""

    name = "flashlight"

    def __init__(
        self,
        units: Units,
        frame_rate: float,
        config: BeamConfig,
        *,
        lm: Path | None = None,
        lexicon: Lexicon | None = None,
    ) -> None:
        """Make a decoder.

        Args:
            units: what log-probabilities are for; with a lexicon, characters with a boundary.
            frame_rate: frames per second.
            config: width and weights.
            lm: an n-gram that KenLM reads, ARPA or binary: over words with a lexicon, else over unit symbols.
            lexicon: the only words that there are.

        Raises:
            AsrkitError: if flashlight-text is missing, cannot do what is asked, or KenLM cannot read the file.
        """
        super().__init__(units, frame_rate)
        if not available():
            raise AsrkitError(
                "the decoder flashlight is not installed", mend='pip install "asrkit[decode]", or --decoder beam'
            )
        if lexicon is not None and (units.kind != "char" or units.boundary is None):
            # A word's last unit could not last longer than a frame there: only a boundary may be held at a word's end.
            raise AsrkitError(
                "flashlight's lexicon needs characters with a word boundary", mend="use --decoder beam for these units"
            )
        if lexicon is None and config.word_score:
            raise AsrkitError("flashlight has no word score without a lexicon", mend="use --decoder beam")
        from flashlight.lib.text import decoder as library
        from flashlight.lib.text.dictionary import Dictionary

        self._library: Any = library
        self.config = config
        self.lexicon = lexicon
        # flashlight's "silence": it stands before the first frame, may be held between words, and ends each word.
        self._boundary = units.index[units.boundary] if units.kind == "char" and units.boundary else units.blank
        self._words: list[str] = list(lexicon) if lexicon is not None else list(units.symbols)
        dictionary = Dictionary(list(dict.fromkeys([*self._words, UNKNOWN])))
        self._place = {word: dictionary.get_index(word) for word in self._words}
        self._unknown = dictionary.get_index(UNKNOWN)
        self._lm: Any = library.ZeroLM() if lm is None else _read_kenlm(lm, dictionary)
        self._has_lm = lm is not None
        self.weights = (("lm_weight",) if lm is not None else ()) + (("word_score",) if lexicon is not None else ())
        self._trie: Any = None
        if lexicon is not None:
            self._trie = self._tree(lexicon)
        self._search = self._make()

    def reweighted(self, config: BeamConfig) -> FlashlightDecoder:
        """Return a decoder with other weights that shares this one's language model and spellings."""
        other = object.__new__(FlashlightDecoder)
        other.__dict__.update(self.__dict__, config=config)
        other._search = other._make()
        return other

    def search(self, log_probs: np.ndarray) -> list[Hypothesis]:
        """See `Decoder.search`."""
        emissions = self._emissions(log_probs)
        results = self._search.decode(emissions.ctypes.data, len(emissions), emissions.shape[1])
        read = self._with_lexicon if self.lexicon is not None else self._without_lexicon
        # Readings that differ in their boundaries alone become one.
        return merge_texts([read(result) for result in results], self.config.nbest)

    def _tree(self, lexicon: Lexicon) -> Any:
        trie = self._library.Trie(len(self.units), self._boundary)
        start = self._lm.start(False)
        for word, spellings in lexicon.items():
            _, score = self._lm.score(start, self._place[word])
            for spelling in spellings:
                trie.insert([*spelling, self._boundary], self._place[word], score)
        trie.smear(self._library.SmearingMode.MAX)
        return trie

    def _make(self) -> Any:
        library, config = self._library, self.config
        common: dict[str, Any] = {
            "beam_size": config.beam,
            "beam_size_token": len(self.units),
            "beam_threshold": config.threshold,
            "lm_weight": config.lm_weight,
            "sil_score": 0.0,
            "log_add": True,
            "criterion_type": library.CriterionType.CTC,
        }
        blank = self.units.blank
        if self._trie is None:
            options = library.LexiconFreeDecoderOptions(**common)
            return library.LexiconFreeDecoder(options, self._lm, self._boundary, blank, [])
        options = library.LexiconDecoderOptions(**common, word_score=config.word_score, unk_score=-math.inf)
        return library.LexiconDecoder(options, self._trie, self._lm, self._boundary, blank, self._unknown, [], False)

    def _emissions(self, log_probs: np.ndarray) -> np.ndarray:
        """Return contiguous float32 scores: what stands for no text is blank, and a last boundary ends the last word."""
        silent = list(self.units.silent)
        emissions = np.array(log_probs, dtype=np.float32).reshape(-1, len(self.units))
        # Row after row, so that a frame's noise does not depend on how many follow.
        emissions += _TIE_BREAK * (np.random.default_rng(0).random(emissions.shape, np.float32) - np.float32(0.5))
        if len(silent) > 1 and len(emissions):
            emissions[:, silent[0]] = np.logaddexp.reduce(emissions[:, silent], axis=1)
            emissions[:, silent[1:]] = _IMPOSSIBLE
        if self._trie is not None:
            last = np.full((1, len(self.units)), _IMPOSSIBLE, dtype=np.float32)
            last[0, self._boundary] = 0.0
            emissions = np.concatenate([emissions, last])
        return np.ascontiguousarray(np.maximum(emissions, _IMPOSSIBLE))

    def _with_lexicon(self, result: Any) -> Hypothesis:
        assert self.lexicon is not None
        words = [self._words[place] for place in result.words if 0 <= place < len(self._words)]
        collapsed = [unit for unit, _ in itertools.groupby(result.tokens) if unit >= 0 and unit != self.units.blank]
        groups = itertools.groupby(collapsed, lambda unit: unit == self._boundary)
        spelt = [tuple(group) for between, group in groups if not between]
        units: list[int] = []
        spans = []
        for place, word in enumerate(words):
            # The spelling that was found, where the path shows it.
            spellings = self.lexicon[word]
            spelling = spelt[place] if place < len(spelt) and spelt[place] in spellings else spellings[0]
            if units:
                units.append(self._boundary)
            spans.append((len(units), len(units) + len(spelling)))
            units.extend(spelling)
        return self._hypothesis(words, units, tuple(spans), result, words)

    def _without_lexicon(self, result: Any) -> Hypothesis:
        # The path has one frame more at either end; a boundary at once repeats the first, and is none of the text's.
        path = [unit for unit, _ in itertools.groupby(result.tokens[:-1])][1:]
        scored = [unit for unit in path if unit != self.units.blank]
        units = self._strip(scored)
        words = self.units.decode(units).split()
        symbols = [self.units.symbols[unit] for unit in scored]
        return self._hypothesis(words, units, word_spans(self.units, units), result, symbols)

    def _strip(self, units: Sequence[int]) -> list[int]:
        """Return units without boundaries that stand beside no other unit: at either end, or several in a row."""
        if self._boundary == self.units.blank:
            return list(units)
        kept = [unit for n, unit in enumerate(units) if unit != self._boundary or (n and units[n - 1] != unit)]
        return kept[:-1] if kept and kept[-1] == self._boundary else kept

    def _hypothesis(
        self,
        words: Sequence[str],
        units: Sequence[int],
        spans: tuple[tuple[int, int], ...],
        result: Any,
        symbols: Sequence[str],
    ) -> Hypothesis:
        """Return a reading; ``symbols`` is what the language model has seen."""
        lm = self._language(symbols)
        weighted = self.config.lm_weight * lm + (self.config.word_score * len(words) if self._trie is not None else 0.0)
        return Hypothesis(" ".join(words), tuple(units), spans, result.score, result.score - weighted, lm)

    def _language(self, symbols: Sequence[str]) -> float:
        """Return the log10 probability of a hypothesis."""
        if not self._has_lm:
            return 0.0
        state, total = self._lm.start(False), 0.0
        for symbol in symbols:
            state, log10 = self._lm.score(state, self._place[symbol])
            total += log10
        _, log10 = self._lm.finish(state)
        return float(total + log10)


def _read_kenlm(path: Path, dictionary: Any) -> Any:
    try:
        from flashlight.lib.text.decoder.kenlm import KenLM
    except ImportError:
        raise AsrkitError("this flashlight-text comes without KenLM", mend="use --decoder beam") from None
    if not path.is_file():
        raise AsrkitError("no such language model", where=path)
    try:
        with _hush():
            return KenLM(str(path), dictionary)
    except RuntimeError as error:
        raise AsrkitError(f"KenLM cannot read it: {error}", where=path) from None


@contextmanager
def _hush() -> Iterator[None]:
    """Keep KenLM's progress bar off the screen: it writes past Python's own standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
