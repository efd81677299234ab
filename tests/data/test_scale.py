"""What a stream keeps in memory does not grow with its sets: four bytes per utterance for an epoch's order, no more."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType

import pytest

from asrkit.data.config import DataConfig, StreamConfig
from asrkit.data.index import SetIndex
from asrkit.data.stream import Stream
from asrkit.text.units import Units


def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks/manifests.py"
    specification = importlib.util.spec_from_file_location("manifests", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["manifests"] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("scale")
    made = []
    for count in (30_000, 90_000):
        (home / str(count)).mkdir()
        made.append(benchmark().generate(home / str(count), count))
    return made


def memory(data: Path, labelled: bool, **settings) -> tuple[int, int]:
    """Return the bytes that are held at most, and in the end, from opening a set to the first batch."""
    units = Units.characters([benchmark().TEXT]) if labelled else None
    # An update per hundred utterances or so: what is kept of each update is counted too.
    config = StreamConfig(sets=["train"], seconds_per_update=850.0, **settings)
    tracemalloc.start()
    try:
        stream = Stream(config, DataConfig(dir=str(data), batch_seconds=20.0, workers=0), units, seed=1)
        stream.plan(0)
        assert len(stream.costliest()) == 2
        held, most = tracemalloc.get_traced_memory()
        return most, held
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"crop_seconds": 5.0, "speed_factors": [0.9, 1.1]}, {"max_seconds": 15.0}], ids=str
)
def test_memory_per_utterance(sets: list[Path], labelled: bool, settings, monkeypatch: pytest.MonkeyPatch) -> None:
    if labelled and "crop_seconds" in settings:
        settings = {"speed_factors": settings["speed_factors"]}
    for module in ("plan", "utterances"):
        monkeypatch.setattr(f"asrkit.data.{module}._BLOCK", 1000)
    (small_most, small_held), (most, held) = (memory(data, labelled, **settings) for data in sets)
    # Rows that are left out cost four bytes of each that is not; a plan's updates cost some bytes per hundred.
    allowed = 4.0 + (4.0 if "max_seconds" in settings else 0.0) + 1.0
    assert (held - small_held) / 60_000 < allowed
    # Choosing rows joins blocks: they are there twice for a moment.
    assert (most - small_most) / 60_000 < 2 * allowed


@pytest.mark.slow
def test_ten_million_utterances(tmp_path: Path) -> None:
    module = benchmark()
    data = module.generate(tmp_path, 10_000_000)
    command = [sys.executable, str(Path(__file__).parents[2] / "benchmarks/manifests.py"), "--measure", str(data)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["utterances"] == 10_000_000
    # Of the processor's seconds, so that what else the machine does is of no account.
    assert found["first_batch_cpu_seconds"] <= module.LIMITS["first_batch_seconds"]
    assert found["memory_mib"] <= module.LIMITS["memory_mib"]


def test_opening_reads_no_line_of_the_manifest(sets: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SetIndex, "read_record", lambda self, row: pytest.fail("a line was read"))
    stream = Stream(
        StreamConfig(sets=["train"]),
        DataConfig(dir=str(sets[0]), workers=0),
        Units.characters([benchmark().TEXT]),
        seed=1,
    )
    assert len(stream) == 30_000
    assert stream.plan(0).updates == stream.updates_per_epoch
