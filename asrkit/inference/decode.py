"""Decode prepared sets with an experiment, and write hypotheses, references and `results.json`."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import asrkit
from asrkit.data.index import SetIndex
from asrkit.data.stream import evaluation_batches
from asrkit.errors import AsrkitError
from asrkit.files import write_text
from asrkit.inference.recogniser import Recogniser
from asrkit.text.wer import Score, score, write_transcripts


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
    model: str
    recipe: str
    method: str
    source: str | None
    subset: str
    seed: int
    updates: int
    seconds: float
    """Wall time of decoding."""
    audio_seconds: float
    """Audio decoded."""
    hardware: str
    commit: str


def decode_set(recogniser: Recogniser, data_dir: Path, name: str) -> tuple[Result, Score]:
    """Decode one prepared set greedily and write `decode/<set>/greedy/` in the experiment.

    Raises:
        AsrkitError: if the set is missing or has no transcripts.
    """
    folder = data_dir / name
    index = SetIndex.open(folder)
    if not index.labelled:
        raise AsrkitError("the set has no transcripts to score against", where=folder, mend="use asrkit transcribe")
    references: dict[str, str] = {}
    hypotheses: dict[str, str] = {}
    config = recogniser.experiment.config
    began, audio = time.perf_counter(), 0.0
    for batch in evaluation_batches([folder], None, config.data, 0, 1):
        audio += batch.seconds
        texts = recogniser.texts(batch)
        hypotheses.update(zip(batch.ids, texts, strict=True))
        references.update(zip(batch.ids, batch.texts or (), strict=True))
    seconds = time.perf_counter() - began
    scored = score(references, hypotheses)
    labelled = config.data.labelled.sets
    result = Result(
        set=name,
        corpus=str(index.info["corpus"]),
        wer=scored.total.wer,
        cer=scored.total.cer,
        words=scored.total.words,
        substitutions=scored.total.substitutions,
        deletions=scored.total.deletions,
        insertions=scored.total.insertions,
        utterances=len(references),
        decoder="greedy",
        lm=None,
        model=str(recogniser.experiment.folder),
        recipe=recogniser.experiment.recipe,
        method=config.method,
        source=None,
        subset="+".join(labelled),
        seed=config.seed,
        updates=recogniser.update,
        seconds=round(seconds, 3),
        audio_seconds=round(audio, 3),
        hardware=hardware(recogniser.device),
        commit=commit(),
    )
    output = recogniser.experiment.folder / "decode" / name / "greedy"
    write_transcripts(output / "ref.trans.txt", references)
    write_transcripts(output / "hyp.trans.txt", hypotheses)
    write_text(output / "results.json", json.dumps(asdict(result), indent=1) + "\n")
    return result, scored


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
