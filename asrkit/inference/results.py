"""What decoding a set leaves behind: `results.json`, and the best readings."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import asrkit
from asrkit.decoding.hypothesis import Hypothesis
from asrkit.files import write_text


@dataclass(frozen=True)
class Result:
    """`results.json`: rates are fractions of corpus totals."""

    set: str
    corpus: str
    wer: float
    cer: float
    words: int
    substitutions: int
    deletions: int
    insertions: int
    utterances: int
    decoder: str
    lm: str | None
    """File name of the n-gram."""
    model: str
    recipe: str
    method: str
    source: str | None
    subset: str
    seed: int
    updates: int
    seconds: float
    """Wall time of decoding: the encoder, the search and the rescoring."""
    audio_seconds: float
    """Audio decoded."""
    hardware: str
    commit: str
    beam: int | None = None
    """Width of the search; null for greedy, as are the weights."""
    lm_weight: float | None = None
    word_score: float | None = None
    lexicon: str | None = None
    """The file with the only words allowed, or `lm` for the n-gram's."""
    rescore: str | None = None
    """The neural language model."""
    rescore_weight: float | None = None
    tuned_on: str | None = None
    """The set on which the weights were searched; null for weights that were given."""


def write_nbest(path: Path, ids: Sequence[str], nbest: Sequence[Sequence[Hypothesis]], limit: int) -> None:
    """Write a JSON line per utterance: its id, and its ``limit`` best readings with scores and word times."""
    lines = []
    for utterance_id, readings in zip(ids, nbest, strict=True):
        listed = []
        for reading in readings[:limit]:
            values = asdict(reading)
            del values["units"], values["spans"]
            listed.append(values)
        lines.append(json.dumps({"id": utterance_id, "hypotheses": listed}, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def hardware(device: torch.device) -> str:
    """Name the device a result was made on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {torch.get_num_threads()} threads"


def commit() -> str:
    """Return the commit of the checkout that asrkit runs from, with `+` if it has changes; else the version."""
    root = Path(asrkit.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return f"asrkit {asrkit.__version__}"
    try:
        run = ["git", "-C", str(root)]
        name = subprocess.run([*run, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*run, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"asrkit {asrkit.__version__}"
    return name.stdout.strip() + ("+" if dirty.stdout.strip() else "")
