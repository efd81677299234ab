"""Which units a run predicts, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from asrkit.errors import AsrkitError, nearest
from asrkit.text.units import Units

KINDS = ("char", "bpe", "phone")


@dataclass
class UnitsConfig:
    """What the supervised head predicts."""

    kind: str = "char"
    """char (the prepared data's alphabet), bpe (sentencepiece, trained on the labelled stream) or phone (a lexicon)."""
    size: int = 500
    """bpe: number of pieces, the blank not counted."""
    lexicon: str = ""
    """phone: a file with a word and its phones per line."""
    dir: str = ""
    """A folder of units to use as they are, instead of any of the above."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise AsrkitError(f"units.kind is '{self.kind}'", mend=nearest(self.kind, KINDS))
        if self.kind == "phone" and not self.lexicon and not self.dir:
            raise AsrkitError("units.kind is phone but units.lexicon is empty", mend="name a lexicon file")
        if self.size < 2:
            raise AsrkitError(f"units.size is {self.size}", mend="2 or more")


def resolve_units(
    config: UnitsConfig, data_dir: Path, texts: Callable[[], Iterable[str]], inherited: Units | None
) -> Units:
    """Return a new run's units: the initial experiment's where its head is kept, a given folder's, or new ones.

    Args:
        config: the section `units`.
        data_dir: prepared data; its `units/` is the alphabet read off the labelled sets.
        texts: gives the labelled stream's transcripts, for BPE.
        inherited: the initial experiment's units, where its head is kept.

    Raises:
        AsrkitError: if there are none, or others are asked for than those of the head that is kept.
    """
    given = Units.load(Path(config.dir)) if config.dir else None
    if inherited is not None:
        other = given is not None and given != inherited
        if other or config.kind not in (inherited.kind, "char"):
            what = config.dir or f"units.kind {config.kind}"
            raise AsrkitError(
                f"keep_head is on, but `init` has other units than {what}", mend="leave units out, or keep_head=false"
            )
        return inherited
    if given is not None:
        return given
    if config.kind == "bpe":
        try:
            return Units.train_bpe(texts(), config.size)
        except AsrkitError as error:
            raise AsrkitError(str(error), where=f"units.size={config.size}") from None
    if config.kind == "phone":
        return Units.phones(Path(config.lexicon))
    folder = data_dir / "units"
    if not folder.is_dir():
        raise AsrkitError("no alphabet", where=folder, mend="prepare a labelled set: asrkit prepare --help")
    return Units.load(folder)
