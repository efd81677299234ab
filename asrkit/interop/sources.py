"""Where a model comes from and where it goes: `asrkit import` and `asrkit export`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from asrkit.errors import AsrkitError
from asrkit.interop import fairseq, fairseq2, hub, huggingface, onnx, torchaudio
from asrkit.interop.portable import Portable, read_experiment, write_experiment
from asrkit.interop.vocabulary import read_units

TOOLKITS = ("fairseq", "fairseq2", "huggingface", "torchaudio")
_HUB_NAME = r"[\w.-]+/[\w.-]+"


def read_source(source: str, dictionary: Path | None = None, with_head: bool = True) -> Portable:
    """Read another toolkit's model.

    Args:
        source: a file of fairseq, a folder of Hugging Face, fairseq2 or torchaudio, a name on the Hugging Face hub, or
            a toolkit and a name: ``fairseq2:wav2vec2_base``, ``torchaudio:WAV2VEC2_BASE``, ``huggingface:OWNER/NAME``.
        dictionary: the CTC head's symbols, where the source does not bring them.
        with_head: whether its head is wanted beside its encoder.

    Raises:
        AsrkitError: if there is no such thing, or it is no model that asrkit has.
    """
    units = read_units(dictionary) if dictionary is not None else None
    toolkit, colon, rest = source.partition(":")
    if not colon or toolkit not in TOOLKITS or Path(source).exists():
        toolkit, rest = "", source
    path = Path(rest).expanduser()
    if path.is_file():
        return fairseq.read_file(path, units, with_head)
    if path.is_dir():
        return _read_folder(path, units, with_head)
    if toolkit == "fairseq2":
        return fairseq2.read_asset(rest, units, with_head)
    if toolkit == "torchaudio":
        return torchaudio.read_bundle(rest, with_head)
    if toolkit != "fairseq" and re.fullmatch(_HUB_NAME, rest) and not rest.endswith((".pt", ".pth", ".bin")):
        return hub.read_folder(hub.fetch(rest), units, with_head, name=rest.rpartition("/")[2])
    raise AsrkitError(
        "no such file or folder", where=source, mend="or a name: OWNER/NAME, fairseq2:NAME, torchaudio:NAME"
    )


def _read_folder(folder: Path, units: object, with_head: bool) -> Portable:
    """Read a folder of whichever toolkit."""
    for name, read in _FOLDERS.items():
        if (folder / name).is_file():
            return read(folder, units, with_head)
    if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
        raise AsrkitError("is an experiment of asrkit already", where=folder, mend="init=FOLDER starts from it")
    files = sorted(folder.glob("*.pt"))
    mend = f"for fairseq name the file: {files[0]}" if files else None
    raise AsrkitError(f"expected {', '.join(_FOLDERS)}, found none of them", where=folder, mend=mend)


_FOLDERS: dict[str, Callable[..., Portable]] = {
    torchaudio.DESCRIPTION: torchaudio.read_folder,
    "config.json": hub.read_folder,
    fairseq2.CARD: fairseq2.read_folder,
}
"""By the file that gives it away, how a folder is read."""


def import_model(source: str, output: Path, dictionary: Path | None = None, with_head: bool = True) -> Portable:
    """Bring a model in as an experiment folder; return what it is. Raises as `read_source` and `write_experiment`."""
    if output.is_dir() and any(output.iterdir()):
        raise AsrkitError("holds something already", where=output, mend="choose another --output, or remove it")
    model = read_source(source, dictionary, with_head)
    write_experiment(model, output, source)
    return model


FORMATS: dict[str, tuple[Callable[[Portable], str | None], Callable[[Portable, Path], None]]] = {
    "huggingface": (huggingface.refusal, hub.write_folder),
    "fairseq2": (fairseq2.refusal, fairseq2.write_folder),
    "torchaudio": (torchaudio.refusal, torchaudio.write_folder),
    "onnx": (onnx.refusal, onnx.write_folder),
}
"""By name, why a model cannot be written in a format (None: it can), and what writes it."""


def export_model(folder: Path, form: str, output: Path, which: str = "best") -> Portable:
    """Write an experiment in another toolkit's format; return what it is.

    Raises:
        AsrkitError: if the format has no such model, saying why and which formats do.
    """
    model = read_experiment(folder, which)
    refusal, write = FORMATS[form]
    reason = refusal(model)
    if reason is not None:
        able = [name for name, (refuses, _) in FORMATS.items() if refuses(model) is None]
        raise AsrkitError(f"cannot be exported to {form}: {reason}", where=folder, mend=f"--format {' or '.join(able)}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise AsrkitError("holds something already", where=output, mend="choose another --output, or remove it")
    write(model, output)
    return model
