"""How fast audio is read: asrkit's stream from FLAC, Opus and shards, beside torch's plain DataLoader and lhotse's default.

    python benchmarks/loader.py                               two minutes of rounds on utterances that are made for it
    python benchmarks/loader.py --audio recordings/ --workers 4

Each contender reads the same utterances, decodes them and pads them to batches of about the same size, with the same number of
worker processes. Told are seconds of audio per second and worker. asrkit's stream also plans epochs, checks what it reads, and
keeps a state that can be resumed; the plain DataLoader does none of that.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from harness import compare, ratio, report
from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler
from lhotse.dataset.input_strategies import AudioSamples
from lhotse.dataset.iterable_dataset import IterableDatasetWrapper
from torch.utils.data import DataLoader, Dataset

from asrkit.data.collate import pad_waves
from asrkit.data.config import DataConfig, StreamConfig
from asrkit.data.index import CUTS
from asrkit.data.prepare import PrepareConfig, prepare_audio
from asrkit.data.sharding import ShardConfig
from asrkit.data.stream import Stream

RATE = 16_000
BATCH_SECONDS = 80.0
TORCH = "torch DataLoader, FLAC files"


def synthesise(folder: Path, utterances: int, seconds: float) -> None:
    """Write FLAC files of modulated harmonics and a little noise, which compress about as speech does."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(utterances):
        time = np.arange(int(RATE * seconds * random.uniform(0.5, 1.5))) / RATE
        pitch = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * time + number)) / RATE
        wave = sum(np.sin(harmonic * pitch) / harmonic for harmonic in range(1, 20))
        wave = 0.1 * wave * (1 + np.sin(2 * np.pi * 4 * time)) + 0.002 * random.standard_normal(len(time))
        soundfile.write(folder / f"{number:05d}.flac", wave, RATE)


def to_opus(folder: Path, source: Path) -> None:
    """Write the same recordings as Opus files."""
    folder.mkdir()
    for path in sorted(source.rglob("*.flac")):
        samples, rate = soundfile.read(path)
        soundfile.write(folder / f"{path.stem}.opus", samples, rate, format="OGG", subtype="OPUS")


class Files(Dataset[np.ndarray]):
    """What a tutorial would write: a file per item."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.flac"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> np.ndarray:
        return soundfile.read(self.paths[place], dtype="float32")[0]


class Padded(torch.utils.data.Dataset[Any]):
    """lhotse's map-style dataset over batches of cuts."""

    def __init__(self) -> None:
        self.strategy = AudioSamples()

    def __getitem__(self, cuts: CutSet) -> tuple[torch.Tensor, torch.Tensor]:
        waves, lengths = self.strategy(cuts)[:2]
        return waves, lengths


def start(_: int) -> None:
    """Hold a worker to one thread, as asrkit's are."""
    torch.set_num_threads(1)


def stream(data: Path, workers: int) -> Callable[[], None]:
    """Return a call that reads one epoch of asrkit's stream; its workers go on from call to call."""
    config = StreamConfig(sets=["audio"], seconds_per_update=BATCH_SECONDS)
    reading = Stream(
        config, DataConfig(dir=str(data), batch_seconds=BATCH_SECONDS, workers=workers, prefetch=2), None, 1
    )

    def epoch() -> None:
        for _ in range(reading.updates_per_epoch):
            next(reading)
            reading.consumed()

    return epoch


def endless(loader: DataLoader[Any]) -> Callable[[], None]:
    """Return a call that reads one epoch of a DataLoader."""

    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def contenders(home: Path, audio: Path, workers: int) -> dict[str, Callable[[], None]]:
    """Prepare all forms of the recordings and return who reads them."""
    to_opus(home / "opus", audio)
    config = PrepareConfig(workers=1)
    for name, source in (("flac", audio), ("opus", home / "opus")):
        prepare_audio([f"audio={source}"], home / f"{name}-files", config)
    for form in ("flac", "opus"):
        shards = PrepareConfig(workers=1, shards=ShardConfig(format=form))
        prepare_audio([f"audio={audio}"], home / f"{form}-shards", shards)
    shards = PrepareConfig(workers=1, shards=ShardConfig(f"file://{home}/far"))
    prepare_audio([f"audio={audio}"], home / "flac-shards-url", shards)
    own = {
        "asrkit, FLAC files": "flac-files",
        "asrkit, Opus files": "opus-files",
        "asrkit, FLAC shards": "flac-shards",
        "asrkit, Opus shards": "opus-shards",
        "asrkit, FLAC shards by fsspec": "flac-shards-url",
    }
    found = {name: stream(home / place, workers) for name, place in own.items()}
    shared: dict[str, Any] = {"num_workers": workers}
    if workers:
        shared |= {"persistent_workers": True, "prefetch_factor": 2, "worker_init_fn": start}
    files = Files(audio)
    mean = statistics.mean(soundfile.info(path).duration for path in files.paths)
    size = max(1, int(BATCH_SECONDS / mean))
    found[TORCH] = endless(DataLoader(files, batch_size=size, shuffle=True, collate_fn=pad_waves, **shared))
    cuts = CutSet.from_jsonl_lazy(home / "flac-files/audio" / CUTS)
    sampler = DynamicBucketingSampler(cuts, max_duration=BATCH_SECONDS, shuffle=True, num_buckets=5)
    found["lhotse, FLAC files"] = endless(DataLoader(Padded(), sampler=sampler, batch_size=None, **shared))
    shar = CutSet.from_shar(in_dir=home / "flac-shards/audio/shards", shuffle_shards=True)
    sampler = DynamicBucketingSampler(shar, max_duration=BATCH_SECONDS, shuffle=True, num_buckets=5)
    wrapped = IterableDatasetWrapper(Padded(), sampler)
    found["lhotse, FLAC Shar"] = endless(DataLoader(wrapped, batch_size=None, **shared))
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, help="a folder of FLAC files below 35 s; none = made for the purpose")
    parser.add_argument("--utterances", type=int, default=120, help="how many are made")
    parser.add_argument("--seconds", type=float, default=12.0, help="their mean length")
    parser.add_argument("--workers", type=int, default=1, help="processes that read; 0 = the one that measures")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", type=Path, help="JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asrkit-loader-") as temporary:
        home = Path(temporary)
        audio = (options.audio or home / "audio").absolute()
        if options.audio is None:
            synthesise(audio, options.utterances, options.seconds)
        seconds = sum(soundfile.info(path).duration for path in sorted(audio.rglob("*.flac")))
        found = compare(
            contenders(home, audio, options.workers), device=torch.device("cpu"), rounds=options.rounds, warm_up=1
        )
        settings = {
            "audio seconds per call": round(seconds, 1),
            "workers": options.workers,
            "load average": os.getloadavg()[0],
        }
        per_second = seconds / max(1, options.workers)
        ratios = [ratio(found, name, [TORCH]) for name in _others(found)]
        report(
            "reading audio",
            settings,
            found,
            ratios,
            device=torch.device("cpu"),
            output=options.output,
            amount=per_second,
        )
    return 0


def _others(found: dict[str, Any]) -> Iterator[str]:
    return (name for name in found if name != TORCH)


if __name__ == "__main__":
    sys.exit(main())
