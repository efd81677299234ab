"""What a run was made with, written beside its config so that a report can say so later."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path

import torch

import asrkit
from asrkit.files import write_text

FILE = "environment.json"
PACKAGES = ("torch", "torchaudio", "lhotse", "numpy", "sentencepiece", "triton")


def environment(device: torch.device, processes: int) -> dict[str, str]:
    """Return machine and versions, as lines for a reader."""
    found = {
        "asrkit": asrkit.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": str(processes),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def store_environment(exp_dir: Path, device: torch.device, processes: int) -> None:
    """Write environment.json; a run that is resumed elsewhere names the last place."""
    write_text(exp_dir / FILE, json.dumps(environment(device, processes), indent=1) + "\n")
