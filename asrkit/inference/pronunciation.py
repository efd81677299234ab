"""A pronunciation lexicon made by espeak-ng: for languages that have no dictionary at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from asrkit.data.espeak import Synthesiser
from asrkit.errors import AsrkitError
from asrkit.files import write_text
from asrkit.inference.language_model import read_sentences, transcripts
from asrkit.text.normalise import TextConfig

_VARIANT = "m1"
"""A variant says how a voice sounds; it leaves pronunciations alone."""


def pronounce(words: Iterable[str], voice: str) -> dict[str, tuple[str, ...]]:
    """Return the phones of words (IPA, without stress), in alphabetical order; none for what espeak-ng cannot say.

    Args:
        words: each is spoken on its own; one in capitals is lowered first, lest it be spelt.
        voice: an accent of espeak-ng, such as en-us.

    Raises:
        AsrkitError: if espeak-ng or the voice is missing.
    """
    with Synthesiser(voice, _VARIANT) as speech:
        return {word: speech.phones(word.lower() if word.isupper() else word) for word in sorted(set(words))}


def write_lexicon(
    texts: Sequence[Path], output: Path, voice: str, *, data_dir: Path | None = None, sets: Sequence[str] = ()
) -> str:
    """Write a lexicon of every word in some texts, a word and its phones per line.

    Args:
        texts: files as `asrkit lm train` takes them.
        output: the lexicon.
        voice: as in `pronounce`.
        data_dir: prepared data.
        sets: sets of it, of which the transcripts are taken.

    Returns:
        A line on what was made.

    Raises:
        AsrkitError: as `pronounce`, and if there is no text or it cannot be read.
    """
    if bool(sets) != (data_dir is not None):
        raise AsrkitError("prepared transcripts need both --data and --sets")
    words = {word for sentence in _sentences(texts, data_dir or Path(), sets) for word in sentence.split()}
    if not words:
        raise AsrkitError("no words to pronounce", mend="give text files, or --data DATA --sets SET")
    lexicon = pronounce(words, voice)
    silent = [word for word, phones in lexicon.items() if not phones]
    if len(silent) == len(lexicon):
        raise AsrkitError(f"espeak-ng's {voice} pronounces none of the {len(words)} words", mend="another --voice")
    lines = (f"{word} {' '.join(phones)}\n" for word, phones in lexicon.items() if phones)
    write_text(output, "".join(lines))
    inventory = {phone for phones in lexicon.values() for phone in phones}
    left_out = f"; left out, for want of a sound: {', '.join(silent[:10])}" if silent else ""
    return f"{output}: {len(lexicon) - len(silent):,} words in {len(inventory)} phones{left_out}"


def _sentences(texts: Sequence[Path], data_dir: Path, sets: Sequence[str]) -> Iterator[str]:
    for path in texts:
        yield from read_sentences(path, TextConfig(case="keep", punctuation="keep"))
    for name in sets:
        yield from transcripts(data_dir / name)
