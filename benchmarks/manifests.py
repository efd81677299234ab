"""How long a set of millions of utterances takes to open, and how much memory.

    python benchmarks/manifests.py                            ten million utterances, some 24,000 hours; 3 GB of disk
    python benchmarks/manifests.py --utterances 100000

A set is generated whose utterances are stretches of one recording, with its manifest and index. A fresh process then opens it,
plans an epoch, makes the first batch of a stream with transcripts, and goes to the middle of a later epoch,
as a run that is resumed does. Limits: 10 s to open the set, 30 s to the first batch, 1 GiB of memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from asrkit.data.config import DataConfig, StreamConfig
from asrkit.data.index import CUTS, INDEX, INDEX_DTYPE, SET, SetIndex
from asrkit.data.stream import Stream
from asrkit.files import write_text
from asrkit.text.units import Units

RATE = 16_000
TEXT = "A LINE OF SOME TWENTY TO FORTY LETTERS"
LIMITS = {"open_seconds": 10.0, "first_batch_seconds": 30.0, "memory_mib": 1024.0}
_BLOCK = 100_000


def generate(folder: Path, utterances: int) -> Path:
    """Write a recording, and the set `train` of stretches of it; return the prepared folder."""
    audio = folder / "noise.flac"
    soundfile.write(audio, np.random.default_rng(0).uniform(-0.1, 0.1, 16 * RATE), RATE)
    data = folder / "data"
    (data / "train").mkdir(parents=True)
    random = np.random.default_rng(1)
    blocks = []
    offset = 0
    with open(data / "train" / CUTS, "wb") as manifest:
        for first in range(0, utterances, _BLOCK):
            samples = random.integers(RATE, 16 * RATE, min(_BLOCK, utterances - first))
            names = [f"utterance-{first + number:09d}" for number in range(len(samples))]
            lines = [_line(name, int(count), str(audio)) for name, count in zip(names, samples, strict=True)]
            rows = np.zeros(len(samples), dtype=INDEX_DTYPE)
            sizes = np.fromiter(map(len, lines), dtype=np.int64, count=len(lines))
            rows["offset"] = offset + np.cumsum(sizes) - sizes
            rows["duration"] = samples / RATE
            digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
            rows["key"] = np.frombuffer(digests, "<i8")
            rows["units"] = len(TEXT)
            offset += int(sizes.sum())
            blocks.append(rows)
            manifest.write(b"".join(lines))
    np.save(data / "train" / INDEX, np.concatenate(blocks))
    alphabet = "".join(sorted(set(TEXT) - {" "}))
    (data / "train" / SET).write_text(json.dumps({"name": "train", "labelled": True, "alphabet": alphabet}))
    return data


def _line(name: str, samples: int, audio: str) -> bytes:
    seconds = samples / RATE
    return (
        f'{{"id":"{name}","start":0,"duration":{seconds},"channel":0,"supervisions":[{{"id":"{name}","recording_id":"r",'
        f'"start":0,"duration":{seconds},"channel":0,"text":"{TEXT}"}}],"recording":{{"id":"r","sources":[{{"type":"file",'
        f'"channels":[0],"source":"{audio}"}}],"sampling_rate":{RATE},"num_samples":{16 * RATE},"duration":16.0}},'
        f'"type":"MonoCut"}}\n'
    ).encode()


def measure(data: Path) -> dict[str, float]:
    """Open the set in this process and return seconds and MiB."""
    before = _memory_mib()
    began, busy = time.perf_counter(), time.process_time()
    SetIndex.open(data / "train")
    opened = time.perf_counter()
    config = StreamConfig(sets=["train"], seconds_per_update=400.0)
    units = Units.characters([TEXT])
    stream = Stream(config, DataConfig(dir=str(data), workers=0), units, seed=1)
    next(stream)
    first, cpu = time.perf_counter(), time.process_time() - busy
    stream.consumed()
    stream.load_state_dict({"epoch": 3, "update": stream.updates_per_epoch // 2})
    next(stream)
    return {
        "utterances": len(stream),
        "hours": stream.seconds_per_epoch / 3600,
        "open_seconds": opened - began,
        "first_batch_seconds": first - began,
        "first_batch_cpu_seconds": cpu,
        "resumed_batch_seconds": time.perf_counter() - first,
        "memory_before_mib": before,
        "memory_mib": _memory_mib(),
    }


def _memory_mib() -> float:
    """Return the most memory that this process has had, mapped files included."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> int:
    """Generate, measure, print, and fail where a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the set is made (and left); none = a temporary one")
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--measure", type=Path, metavar="DATA", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    with tempfile.TemporaryDirectory(prefix="asrkit-manifests-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "data" if (folder / "data").is_dir() else generate(folder, options.utterances)
        command = [sys.executable, __file__, "--measure", str(data)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    kept = True
    for name, value in found.items():
        limit = LIMITS.get(name)
        kept &= limit is None or value <= limit
        verdict = "" if limit is None else f"   limit {limit:g}: {'kept' if value <= limit else 'EXCEEDED'}"
        print(f"{name:24} {value:14,.1f}{verdict}")
    if options.output is not None:
        write_text(options.output, json.dumps({**found, "limits": LIMITS}, indent=1) + "\n")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
