"""decoders.sh: one model read in several ways, kept small and without the paths of this machine, tables in one command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "analysis"))

from experiments import make_experiment, prepared_set  # noqa: E402

TEXTS = {"1-1-1": "FOUR RED BOATS", "1-1-2": "SEVEN RED GARDENS", "2-1-1": "BOATS LEAVE NEAR SEVEN GARDENS"}


def script(folder: Path, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(folder / "examples" / "librispeech" / name), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_model_is_read_in_every_way_and_the_tables_say_so(tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    results = tmp_path / "examples" / "librispeech" / "results"
    shutil.rmtree(results)
    for name in ("train", "dev-clean", "test-clean"):
        prepared_set(tmp_path / "data" / name, TEXTS)
    exp = make_experiment(tmp_path / "model", tmp_path / "data")
    done = script(
        tmp_path,
        "decoders.sh",
        "toy",
        "--model",
        exp,
        "--data",
        tmp_path / "data",
        "--lm-sets",
        "train",
        "--order",
        "2",
    )
    assert done.returncode == 0, done.stderr
    kept = {path.relative_to(results / "decoding" / "toy"): path for path in results.rglob("results.json")}
    assert {path.parts[0] for path in kept} == {"dev-clean", "test-clean"}
    found = [json.loads(path.read_text()) for path in kept.values()]
    assert sorted((one["decoder"], one["lm"] or "") for one in found if one["set"] == "test-clean") == [
        ("flashlight", ""),
        ("flashlight", "2gram.arpa"),
        ("greedy", ""),
    ]
    assert all(one["tuned_on"] == ("dev-clean" if one["lm"] else None) for one in found)
    assert all(str(tmp_path) not in path.read_text() for path in kept.values())
    tables = script(tmp_path, "compare.sh", "--tables", "--output", tmp_path / "OURS.md")
    assert tables.returncode == 0, tables.stderr
    assert (tmp_path / "OURS.md").read_text().count("2gram.arpa") == 2
    wrong = script(
        tmp_path, "decoders.sh", "toy", "--model", tmp_path / "none", "--data", tmp_path, "--lm-sets", "train"
    )
    assert wrong.returncode == 2
