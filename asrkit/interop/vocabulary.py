"""Other toolkits' dictionaries and asrkit's units: their order is kept, whatever it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asrkit.errors import AsrkitError
from asrkit.text.units import BOUNDARY, Units

LETTERS = tuple("|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
"""The letters of the released English fairseq models, in their dictionary's order (by frequency)."""
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
"""What stands before them; the first is the blank."""
_PHONEMES = "Wav2Vec2PhonemeCTCTokenizer"


def fairseq_units(path: Path) -> Units:
    """Read a fairseq dictionary, `dict.ltr.txt`: a symbol and its count per line.

    Raises:
        AsrkitError: if it is none.
    """
    symbols = list(SPECIALS)
    for number, line in enumerate(_lines(path), 1):
        fields = line.rsplit(" ", 1)
        if len(fields) != 2 or not fields[1].strip().isdigit():
            found = f"found '{line[:40]}'"
            raise AsrkitError(f"expected a symbol and its count, {found}", where=f"{path}:{number}")
        symbols.append(fields[0])
    return Units(tuple(symbols), blank=0, boundary=BOUNDARY if BOUNDARY in symbols else None)


def released_units() -> Units:
    """Return the units of the released English fairseq models."""
    return Units((*SPECIALS, *LETTERS), blank=0)


def read_units(path: Path) -> Units:
    """Read a dictionary that a user names: fairseq's, Hugging Face's `vocab.json`, or a folder of asrkit's units.

    The blank of a `vocab.json` has the name that the `tokenizer_config.json` beside it gives; without one, `<pad>` or `[PAD]`.

    Raises:
        AsrkitError: if it is none of them.
    """
    if path.is_dir():
        return Units.load(path)
    if path.suffix == ".json":
        vocabulary, beside = read_json(path), path.with_name("tokenizer_config.json")
        usual = {"pad_token": "[PAD]", "unk_token": "[UNK]"} if "[PAD]" in vocabulary else {}
        return hub_units(vocabulary, read_json(beside) if beside.is_file() else usual, blank=None, where=path)
    return fairseq_units(path)


def hub_units(
    vocabulary: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    blank: int | None,
    where: object,
    size: int | None = None,
) -> Units:
    """Return the units of a Hugging Face CTC model.

    Args:
        vocabulary: `vocab.json`, symbols and their indices.
        tokenizer: `tokenizer_config.json`; empty for the defaults.
        blank: `pad_token_id` of the model's configuration, which counts where the tokeniser's own is unknown.
        where: for complaints.
        size: outputs of the model; symbols beyond them, which tokenisers add, are left out.

    Raises:
        AsrkitError: if indices are missing, or the symbols are not letters.
    """
    if tokenizer.get("tokenizer_class") == _PHONEMES:
        what = f"its tokeniser ({_PHONEMES}) writes phones by another program's rules"
        raise AsrkitError(what, where=where, mend="models of letters only; for its encoder alone use --encoder-only")
    if tokenizer.get("target_lang") or any(isinstance(value, Mapping) for value in vocabulary.values()):
        raise AsrkitError("has one dictionary for each of several languages", where=where, mend="--encoder-only")
    by_index = {index: symbol for symbol, index in vocabulary.items() if isinstance(index, int)}
    count = len(by_index) if size is None else size
    absent = next((index for index in range(count) if index not in by_index), None)
    if absent is not None:
        raise AsrkitError(f"expected {count} symbols, found none with the index {absent}", where=where)
    symbols = [by_index[index] for index in range(count)]
    pad = _token(tokenizer, "pad_token", "<pad>")
    place = symbols.index(pad) if pad in symbols else blank
    if place is None or not 0 <= place < count:
        raise AsrkitError(f"expected the blank '{pad}' among the symbols, found none", where=where)
    # Other names of the markers would be read as text.
    for key, usual in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")):
        name = _token(tokenizer, key, usual)
        if name in symbols and usual not in symbols and symbols.index(name) != place:
            symbols[symbols.index(name)] = usual
    boundary = _token(tokenizer, "word_delimiter_token", BOUNDARY)
    if tokenizer.get("do_lower_case"):
        symbols = [symbol.lower() if len(symbol) == 1 else symbol for symbol in symbols]
    return Units(tuple(symbols), blank=place, boundary=boundary if boundary in symbols else None)


def _token(tokenizer: Mapping[str, Any], key: str, usual: str) -> str:
    value = tokenizer.get(key, usual)
    return str(value.get("content", usual) if isinstance(value, Mapping) else usual if value is None else value)


def hub_files(units: Units) -> dict[str, dict[str, Any]]:
    """Return `vocab.json` and `tokenizer_config.json` for units of characters."""
    names = {key: name if name in units.index else None for key, name in (("bos_token", "<s>"), ("eos_token", "</s>"))}
    config = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "processor_class": "Wav2Vec2Processor",
        **names,
        "unk_token": "<unk>" if "<unk>" in units.index else units.symbols[units.blank],
        "pad_token": units.symbols[units.blank],
        "word_delimiter_token": units.boundary,
        "replace_word_delimiter_char": " ",
        "do_lower_case": False,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "vocab.json": {symbol: index for index, symbol in enumerate(units.symbols)},
        "tokenizer_config.json": config,
    }


def blank_first(units: Units) -> tuple[Units, list[int]]:
    """Return units whose blank comes first, as some toolkits want it, and the old index of each new one."""
    order = [units.blank, *(index for index in range(len(units)) if index != units.blank)]
    symbols = tuple(units.symbols[index] for index in order)
    return Units(symbols, 0, units.boundary, units.kind, units.model, units.lexicon), order


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        AsrkitError: if it cannot be read or is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AsrkitError(f"cannot be read: {error.strerror}", where=path) from None
    except (ValueError, RecursionError) as error:
        raise AsrkitError(f"expected JSON: {error}", where=path) from None
    if not isinstance(value, dict):
        raise AsrkitError(f"expected a JSON object, found a {type(value).__name__}", where=path)
    return value


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise AsrkitError(f"cannot be read: {error.strerror}", where=path) from None
    except UnicodeDecodeError as error:
        raise AsrkitError(f"expected a text file, found byte {error.start} that is not UTF-8", where=path) from None
