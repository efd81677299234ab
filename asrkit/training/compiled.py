"""Compiling a run's encoder."""

from __future__ import annotations

import os
import shutil

import torch

from asrkit.errors import AsrkitError
from asrkit.nn.encoder import Encoder

_COMPILERS = {"cuda": ("CC", ("gcc", "clang", "cc")), "cpu": ("CXX", ("g++", "clang++", "c++"))}
"""What torch's compiler starts on a device's behalf (Triton for its launchers): a variable that names it, else the first found."""


def compile_encoder(encoder: Encoder, device: torch.device) -> None:
    """Compile the blocks when they are first called.

    Raises:
        AsrkitError: where no C compiler is found, or the encoder's positions are made in tiles, whose number is not the code's.
    """
    if encoder.config.positions in ("relative", "shaw"):
        what = f"training.compile does not go with encoder.positions: {encoder.config.positions}"
        raise AsrkitError(what, mend="training.compile=false")
    variable, names = _COMPILERS[device.type]
    named = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([named] if named else names)):
        missing = f"{variable}={named} is not there" if named else f"none of {', '.join(names)} is there"
        raise AsrkitError(
            f"training.compile needs a C compiler, and {missing}", mend="training.compile=false, or install one"
        )
    encoder.compile_blocks()
