"""Reads what torch.distributed.checkpoint writes without running code from the files.

Its metadata are a pickle, which may name any function to be called. Here a name is looked up in a table of the dozen classes that
such metadata are made of, and in nothing else: no module is imported, and nothing but these is called. Tensors themselves are read
by torch's restricted loader; entries of other kinds, which torch would unpickle, and files outside of the folder are refused.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

_CLASSES = (
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
    metadata.TensorProperties,
    metadata.ChunkStorageMetadata,
    metadata.MetadataIndex,
    metadata._MEM_FORMAT_ENCODING,
    _StorageInfo,
    torch.Size,
)
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


def _member(kind: Any, name: str) -> Any:
    """Stand for getattr, by which some versions of Python pickle the members of an Enum."""
    if kind is not metadata._MEM_FORMAT_ENCODING:
        raise pickle.UnpicklingError(f"getattr of {kind!r} is not allowed")
    return kind[name]


def _layout(name: str) -> torch.layout:
    if name != "torch.strided":
        raise pickle.UnpicklingError(f"the layout {name!r} is not allowed")
    return torch.strided


_ALLOWED: dict[tuple[str, str], Any] = {
    **{(kind.__module__, kind.__qualname__): kind for kind in _CLASSES},
    **{("torch", name): value for name, value in _DTYPES.items()},
    ("torch.serialization", "_get_layout"): _layout,
    ("builtins", "getattr"): _member,
}


class RestrictedUnpickler(pickle.Unpickler):
    """Knows the classes of checkpoints' metadata and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name stands for.

        Raises:
            pickle.UnpicklingError: if it is none of those allowed.
        """
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None


class RestrictedReader(FileSystemReader):
    """Reads tensors out of a folder of torch.distributed.checkpoint, and nothing else."""

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        """Prepare to read.

        Args:
            folder: holds ``.metadata`` and the files that it names.
            sizes: bytes of the files that it may name.
        """
        super().__init__(folder)
        self.folder = folder
        self.sizes = sizes

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the metadata.

        Raises:
            pickle.UnpicklingError: if they name what is not allowed, or are no metadata of tensors in these files.
        """
        with open(self.folder / ".metadata", "rb") as file:
            found = RestrictedUnpickler(file).load()
        self._check(found)
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found

    def _check(self, found: Any) -> None:
        if not isinstance(found, Metadata) or not isinstance(found.state_dict_metadata, dict):
            raise pickle.UnpicklingError("not the metadata of a checkpoint")
        room = sum(self.sizes.values())
        for name, entry in found.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata) or not isinstance(entry.size, torch.Size):
                raise pickle.UnpicklingError(f"the entry {name!r} is no tensor")
            # A small file must not make the reader allocate all of the memory.
            if math.prod(entry.size) * entry.properties.dtype.itemsize > room:
                raise pickle.UnpicklingError(f"the entry {name!r} is larger than the files")
        if not isinstance(found.storage_data, dict):
            raise pickle.UnpicklingError("the metadata name no files")
        for place in found.storage_data.values():
            if not isinstance(place, _StorageInfo) or place.relative_path not in self.sizes:
                raise pickle.UnpicklingError("the metadata name a file that does not belong to the checkpoint")
            if place.transform_descriptors:
                raise pickle.UnpicklingError("the tensors are encoded in a way that is not known here")
