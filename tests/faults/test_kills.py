"""A run that is killed at random moments ends as the one that was left alone; `killing.py` does it 50 times for each method."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("espeakng_loader")
KILLING = Path(__file__).with_name("killing.py")


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_runs_end_as_undisturbed_ones(kills: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(KILLING), "--kills", str(kills), "--updates", str(max(12, kills))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"killed {kills} times") == 3
