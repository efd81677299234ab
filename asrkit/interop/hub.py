"""Model folders in Hugging Face's layout: read, written, fetched from the hub and pushed to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asrkit.data.batch import SAMPLE_RATE
from asrkit.errors import AsrkitError
from asrkit.files import atomic_path, write_text
from asrkit.interop.card import model_card
from asrkit.interop.huggingface import from_huggingface, to_huggingface
from asrkit.interop.packages import PATIENCE, optional
from asrkit.interop.portable import Portable
from asrkit.interop.vocabulary import hub_files, hub_units, read_json
from asrkit.text.units import Units

EXTRA = "huggingface"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_WANTED = ("*.json", "model*.safetensors", "pytorch_model*.bin")


def read_folder(folder: Path, units: Units | None = None, with_head: bool = True, name: str | None = None) -> Portable:
    """Read a model that transformers wrote.

    Args:
        folder: holds config.json and the weights, perhaps a vocabulary and preprocessor_config.json, or processor_config.json, in
            which transformers 5 has the same.
        units: a dictionary that wins over the folder's.
        with_head: whether the model's head is wanted.
        name: a word for the model; the folder's name.

    Raises:
        AsrkitError: naming the file that is missing or wrong.
    """
    config = read_json(folder / "config.json")
    where = folder / "preprocessor_config.json"
    preprocessor = _read_optional(where)
    if not preprocessor:
        where = folder / "processor_config.json"
        preprocessor = _read_optional(where).get("feature_extractor") or {}
    rate = preprocessor.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise AsrkitError(f"expected a sampling_rate of {SAMPLE_RATE}, found {rate}", where=where)
    state = read_weights(folder)
    vocabulary = folder / "vocab.json"
    if units is None and with_head and vocabulary.is_file() and "lm_head.weight" in state:
        tokenizer = _read_optional(folder / "tokenizer_config.json")
        added = _read_optional(folder / "added_tokens.json")
        size = state["lm_head.weight"].size(0)
        # transformers 5 has added symbols here, by their indices.
        listed = tokenizer.get("added_tokens_decoder") or {}
        later = {str(entry["content"]): int(index) for index, entry in listed.items()}
        symbols = {**later, **added, **read_json(vocabulary)}
        units = hub_units(symbols, tokenizer, config.get("pad_token_id"), vocabulary, size)
    # The preprocessor's own default is to normalise.
    normalise = (
        bool(preprocessor.get("do_normalize", True)) if preprocessor else config.get("feat_extract_norm") == "layer"
    )
    return from_huggingface(config, normalise, state, units, name or folder.resolve().name, folder, with_head)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a folder, in one file or several; nothing in them is executed.

    Raises:
        AsrkitError: if there are none, or a file is damaged.
    """
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            return {key: tensor for shard in shards for key, tensor in _read_weight_file(folder / shard).items()}
        if (folder / name).is_file():
            return _read_weight_file(folder / name)
    raise AsrkitError(f"expected {' or '.join(_WEIGHTS)}, found neither", where=folder)


def _read_weight_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            reader = optional("safetensors.torch", EXTRA, "reading safetensors")
            state = reader.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except AsrkitError:
        raise
    except FileNotFoundError:
        raise AsrkitError("expected a file of weights, found none", where=path) from None
    except Exception as error:  # both libraries raise many kinds for a torn or foreign file
        raise AsrkitError(
            f"expected a file of weights, found something else ({type(error).__name__})", where=path
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise AsrkitError("expected names and tensors, found something else", where=path)
    return dict(state)


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def fetch(name: str) -> Path:
    """Return the folder of a model of the hub, fetched or from the cache.

    Raises:
        AsrkitError: if the hub does not answer or has no such model.
    """
    hub = optional("huggingface_hub", EXTRA, "the Hugging Face hub")
    errors = optional("huggingface_hub.errors", EXTRA, "the Hugging Face hub")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(_WANTED), etag_timeout=PATIENCE))
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        mend = "OWNER/NAME as on huggingface.co; for a private one: hf auth login"
        raise AsrkitError("no such folder, and no such model on the Hugging Face hub", where=name, mend=mend) from None
    except Exception as error:  # the hub's library lets through what each layer of the network below it raises
        offline = isinstance(error, errors.LocalEntryNotFoundError)
        reason = "no connection, and it is not in the cache" if offline else type(error).__name__
        mend = f"with a network: hf download {name} --local-dir DIR, then: asrkit import DIR"
        raise AsrkitError(f"cannot be fetched from the Hugging Face hub ({reason})", where=name, mend=mend) from None


def write_folder(model: Portable, folder: Path) -> None:
    """Write a folder that transformers loads: configuration, preprocessor, vocabulary, weights, card.

    Raises:
        AsrkitError: if transformers has no such model, or the folder cannot be written.
    """
    config, state = to_huggingface(model)
    writer = optional("safetensors.torch", EXTRA, "writing safetensors")
    layered = model.encoder.waveform.norm == "layer"
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": model.encoder.waveform.normalise,
        "return_attention_mask": layered,
    }
    files: dict[str, dict[str, Any]] = {"preprocessor_config.json": preprocessor}
    if model.units is not None:
        preprocessor["processor_class"] = "Wav2Vec2Processor"
        files |= hub_files(model.units)
    for name, content in files.items():
        write_text(folder / name, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    with atomic_path(folder / "model.safetensors") as temporary:
        writer.save_file(state, temporary, metadata={"format": "pt"})
    write_text(folder / "README.md", model_card(model, config["architectures"][0]))
    # What makes it a model comes last.
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload a folder to a repository of the hub, made if absent; return its address.

    Raises:
        AsrkitError: if the hub refuses or does not answer.
    """
    hub = optional("huggingface_hub", EXTRA, "the Hugging Face hub")
    try:
        api = hub.HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by asrkit")
    except Exception as error:  # as in `fetch`
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        mend = f"hf auth login; the folder {folder} is complete and can be pushed again"
        raise AsrkitError(f"cannot be pushed to the Hugging Face hub: {reason}", where=repository, mend=mend) from None
    return str(address)
