"""Checkpoints of other programs that are pickles, read without running anything in them.

A pickle names functions and classes to be called. Here it gets those that rebuild tensors and plain containers; settings
(argparse, omegaconf, fairseq's own classes) become inert stand-ins that only keep what they are given; everything else
is refused.
"""

from __future__ import annotations

import collections
import io
import pickle
import re
import tarfile
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asrkit.errors import AsrkitError


class Inert:
    """Stands in for an object of a class that is not there; it has no behaviour."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        values = state[0] if isinstance(state, tuple) and state else state
        if isinstance(values, Mapping):
            self.__dict__.update({str(key): value for key, value in values.items()})

    def __hash__(self) -> int:
        return id(self)


class InertMapping(Inert, dict):  # type: ignore[type-arg, misc]
    """Stands in for a subclass of dict."""


_INERT = ("argparse.Namespace", "omegaconf.", "fairseq.", "examples.", "typing.", "pathlib.")
"""Names, or beginnings of names, whose objects become stand-ins."""

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules under the names that pickles of protocol 2 give them."""


def _number(kind: Any, data: Any) -> Any:
    """Return the value of one of numpy's scalars, None for anything but a plain number."""
    name = str(kind.arguments[0]) if isinstance(kind, Inert) and kind.arguments else ""
    if not re.fullmatch(r"[<>=|]?[bBiuf][1248]", name) or not isinstance(data, bytes):
        return None
    return np.frombuffer(data, name)[0].item()


def _member(owner: Any, name: Any) -> Inert:
    """Stand in for `getattr`, by which early releases of Python 3.11 pickle members of an Enum: look up nothing, keep the name."""
    if owner is not Inert:
        raise Refused("builtins.getattr")
    return Inert(name)


_PLAIN: dict[str, Any] = {
    "builtins.getattr": _member,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": InertMapping,
    "collections.Counter": InertMapping,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    **{
        f"builtins.{name}": Inert for name in ("dict", "list", "tuple", "int", "long", "float", "str", "bool", "object")
    },
    "_codecs.encode": lambda text, encoding="latin1": str(text).encode("latin1"),
    "numpy.dtype": Inert,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
}


class Refused(pickle.UnpicklingError):
    """The pickle asks for something that a checkpoint does not need."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{_PYTHON_2.get(module, module)}.{name}"
        if full in _PLAIN:
            return _PLAIN[full]
        if module == "torch" and (name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if module == "torch.storage" and name in ("UntypedStorage", "TypedStorage"):
            return getattr(torch.storage, name)
        if full.startswith(_INERT):
            return Inert
        raise Refused(full)


_MODULE = types.SimpleNamespace(
    Unpickler=_Unpickler,
    UnpicklingError=pickle.UnpicklingError,
    load=lambda file, **options: _Unpickler(file, **options).load(),
    loads=lambda data, **options: _Unpickler(io.BytesIO(data), **options).load(),
    __name__="asrkit.interop.pickles",
)


def read_pickled(path: Path) -> Any:
    """Read what `torch.save` wrote, in its present or its old format; settings come as dictionaries, lists and values.

    Raises:
        AsrkitError: if the file is missing, torn, none of torch's, or asks for anything to be run.
    """
    try:
        kind = _describe(path)
    except OSError as error:
        raise AsrkitError(f"cannot be read: {error.strerror or error}", where=path) from None
    if kind in (_PROGRAM, _TAR):
        raise AsrkitError(f"expected a PyTorch checkpoint, found {kind}", where=path)
    try:
        found = torch.load(path, map_location="cpu", pickle_module=_MODULE, weights_only=False)
    except Refused as error:
        what = f"asks for {error} to be called, which no checkpoint needs; nothing was called"
        raise AsrkitError(what, where=path, mend="do not trust this file") from None
    except Exception as error:  # torch and pickle raise all kinds for a torn or foreign file
        what = f"expected a PyTorch checkpoint, found {kind} ({type(error).__name__})"
        raise AsrkitError(what, where=path) from None
    return plain(found)


def plain(value: Any) -> Any:
    """Return a value with stand-ins for settings turned into dictionaries, lists and what they hold."""
    return _plain(value, set())


def _plain(value: Any, above: set[int]) -> Any:
    if isinstance(value, torch.Tensor) or id(value) in above:
        return value if isinstance(value, torch.Tensor) else None
    inner = above | {id(value)}
    if isinstance(value, Inert) and not isinstance(value, dict):
        state = vars(value)
        if "_content" in state:  # a DictConfig or ListConfig of omegaconf
            return _plain(state["_content"], inner)
        if "_val" in state:  # one of its values
            return _plain(state["_val"], inner)
        kept = {key: item for key, item in state.items() if key != "arguments"}
        return _plain(kept or (state.get("arguments") or (None,))[0], inner)
    if isinstance(value, Mapping):
        return {_key(key): _plain(item, inner) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, inner) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _key(key: Any) -> Any:
    return key if isinstance(key, (str, int, float, bool, bytes, type(None))) else str(key)


_PROGRAM = "a TorchScript program"
_TAR = "a tar archive"
_SIGNS = {
    b"PK": "a torn or foreign zip archive",
    b"\x80": "a torn or foreign pickle",
    b"RIFF": "a wave file",
    b"fLaC": "a flac file",
    b"{": "JSON",
    b"<": "a web page",
    b"\x1f\x8b": "a gzip archive",
}


def _describe(path: Path) -> str:
    """Return what a file seems to be, by its first bytes and, for archives, its contents."""
    with open(path, "rb") as file:
        head = file.read(16)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                return _PROGRAM
    elif tarfile.is_tarfile(path):
        return _TAR
    return next(
        (kind for sign, kind in _SIGNS.items() if head.startswith(sign)), "something else" if head else "an empty file"
    )
