"""What this machine has: devices, precision, optional packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

import asrkit
from asrkit.losses import ctc_route
from asrkit.training.engine import choose_device, choose_precision

PACKAGES = {
    "torch": "",
    "torchaudio": "",
    "lhotse": "",
    "sentencepiece": "",
    "jiwer": "",
    "espeakng-loader": "mini",
    "flashlight-text": "decode",
    "transformers": "huggingface",
    "onnxruntime": "onnx",
    "fsspec": "cloud",
    "fairseq2": "fairseq2",
}
"""Distribution name, and the extra that brings it (empty for what asrkit always needs)."""


def findings() -> list[tuple[str, str]]:
    """Return (what, finding) pairs, in the order to show them."""
    device = choose_device("auto")
    lines = [
        ("asrkit", asrkit.__version__),
        ("python", platform.python_version()),
        ("processor", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"),
        ("device", torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"),
        ("precision", choose_precision("auto", device)),
        ("ctc loss", ctc_route(device)),
    ]
    for package, extra in PACKAGES.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = f'missing: pip install "asrkit[{extra}]"' if extra else "missing: pip install asrkit"
        lines.append((package, version))
    return lines
