"""From what a user asks for to a decoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asrkit.decoding import flashlight
from asrkit.decoding.arpa import read_arpa, read_vocabulary
from asrkit.decoding.config import BeamConfig
from asrkit.decoding.flashlight import FlashlightDecoder
from asrkit.decoding.greedy import GreedyDecoder
from asrkit.decoding.hypothesis import Decoder
from asrkit.decoding.lexicon import Lexicon, read_spellings, spell
from asrkit.decoding.ngram import MARKERS
from asrkit.decoding.prefix_beam import PrefixBeamDecoder
from asrkit.errors import AsrkitError, nearest
from asrkit.text.units import Units

log = logging.getLogger("asrkit.decoding")

DECODERS = ("greedy", "beam", "flashlight")
LEXICON_OF_LM = "lm"
"""The value of `--lexicon` that stands for the language model's own words."""


@dataclass(frozen=True)
class DecoderChoice:
    """Which decoder, and what it knows."""

    decoder: str = "auto"
    """greedy, beam, flashlight; or auto: greedy, and with a language model or a lexicon the fastest that can do it."""
    lm: Path | None = None
    """An n-gram over words, or over unit symbols: ARPA, or (flashlight only) a KenLM binary."""
    lexicon: str | None = None
    """A file with the only words that there are, or `lm` for the language model's."""

    def __post_init__(self) -> None:
        if self.decoder not in (*DECODERS, "auto"):
            raise AsrkitError(f"there is no decoder '{self.decoder}'", mend=nearest(self.decoder, (*DECODERS, "auto")))
        if self.lm is not None and not self.lm.is_file():
            raise AsrkitError("no such language model", where=self.lm, mend="make one with asrkit lm train")
        if self.decoder == "greedy" and (self.lm or self.lexicon):
            raise AsrkitError("greedy decoding uses no language model and no lexicon", mend="use --decoder auto")
        if self.lexicon == LEXICON_OF_LM and self.lm is None:
            raise AsrkitError("--lexicon lm needs a language model", mend="give --lm FILE")


def resolve(choice: DecoderChoice, units: Units, nbest: int) -> str:
    """Return the decoder's name for a choice that may be `auto`."""
    if choice.decoder != "auto":
        return choice.decoder
    if choice.lm is None and choice.lexicon is None and nbest == 1:
        return "greedy"
    if units.kind == "char" and units.boundary is not None:
        fits = True
    else:
        fits = (
            units.kind != "phone" and choice.lexicon is None and (choice.lm is None or _is_unit_level(choice.lm, units))
        )
    return "flashlight" if fits and flashlight.available() else "beam"


def make_decoder(choice: DecoderChoice, units: Units, frame_rate: float, config: BeamConfig) -> Decoder:
    """Return the decoder.

    A word n-gram in flashlight implies a lexicon of the n-gram's words; the built-in decoder then takes any word, unless
    a lexicon is given or the units are phones.

    Raises:
        AsrkitError: if the decoder cannot do it, or a file is no good.
    """
    name = resolve(choice, units, config.nbest)
    if name == "greedy":
        return GreedyDecoder(units, frame_rate)
    vocabulary, unit_level = None, False
    if choice.lm is not None and (name == "beam" or not _is_binary(choice.lm)):
        vocabulary = [word for word in read_vocabulary(choice.lm) if word not in MARKERS]
        unit_level = is_unit_vocabulary(vocabulary, units)
    lexicon = _lexicon(choice, units, vocabulary, closed=name == "flashlight" and not unit_level)
    if name == "flashlight":
        return FlashlightDecoder(units, frame_rate, config, lm=choice.lm, lexicon=lexicon)
    model = read_arpa(choice.lm) if choice.lm is not None else None
    return PrefixBeamDecoder(units, frame_rate, config, model=model, unit_level=unit_level, lexicon=lexicon)


def reweighted(decoder: Decoder, config: BeamConfig) -> Decoder:
    """Return the decoder with other settings; greedy has none."""
    return decoder.reweighted(config) if isinstance(decoder, PrefixBeamDecoder | FlashlightDecoder) else decoder


def is_unit_vocabulary(vocabulary: list[str], units: Units) -> bool:
    """Return whether a language model's words are unit symbols: all of them, the boundary among them if there is one."""
    symbols = set(units.symbols)
    if units.kind == "char" and units.boundary is not None and units.boundary not in vocabulary:
        return False
    return all(word in symbols for word in vocabulary)


def _lexicon(choice: DecoderChoice, units: Units, vocabulary: list[str] | None, *, closed: bool) -> Lexicon | None:
    if choice.lexicon is not None and choice.lexicon != LEXICON_OF_LM:
        return read_spellings(Path(choice.lexicon), units)
    if units.kind == "phone":
        given: Mapping[str, tuple[str, ...]] = units.lexicon or {}
        return spell(given, units)[0]
    if choice.lm is None or not (closed or choice.lexicon == LEXICON_OF_LM):
        return None
    if vocabulary is None:
        raise AsrkitError(
            "a KenLM binary does not tell its words", where=choice.lm, mend="give --lexicon FILE, or the ARPA file"
        )
    lexicon, missing = spell(vocabulary, units)
    if missing:
        log.info("%s: %d of %d words cannot be spelt in the model's units", choice.lm, missing, len(vocabulary))
    if not lexicon:
        raise AsrkitError(
            "none of its words can be spelt in the model's units", where=choice.lm, mend="mind upper and lower case"
        )
    return lexicon


def _is_unit_level(lm: Path, units: Units) -> bool:
    return not _is_binary(lm) and is_unit_vocabulary([w for w in read_vocabulary(lm) if w not in MARKERS], units)


def _is_binary(path: Path) -> bool:
    """Return whether a file is KenLM's own format rather than an ARPA file."""
    with open(path, "rb") as file:
        return file.read(6) == b"mmap l"
