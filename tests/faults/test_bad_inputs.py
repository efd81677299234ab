"""A thousand bad inputs: none ends a run without a clear line, none is silently learnt from, none costs a good utterance.

Each is made from a fixed seed. The ordinary run tries every seventh, ``pytest -m slow tests/faults/test_bad_inputs.py`` all.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import bad_audio
import bad_checkpoints
import bad_configs
import bad_shards
import bad_tables
import bad_transcripts
import numpy as np
import pytest
from faults import Case, Random

KINDS: dict[str, tuple[Callable[[int, Random], Iterator[Case]], int]] = {
    "audio": (bad_audio.cases, 250),
    "manifests": (bad_tables.cases, 200),
    "transcripts": (bad_transcripts.cases, 140),
    "configs": (bad_configs.cases, 160),
    "checkpoints": (bad_checkpoints.cases, 130),
    "shards": (bad_shards.cases, 120),
}
"""Generators, and how many are taken of each."""


def attempt(kind: str, folder: Path, every: int) -> None:
    make, count = KINDS[kind]
    failures = []
    for number, case in enumerate(make(count, np.random.default_rng([7, len(kind), count]))):
        if number % every:
            continue
        home = folder / f"{kind}-{number}"
        home.mkdir()
        try:
            case.run(home)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            lines = " ".join(str(error).split())[:300]
            failures.append(f"{number} {case.name}: {type(error).__name__} {lines} ({where.filename}:{where.lineno})")
    if failures:
        pytest.fail(f"{len(failures)} of {kind}:\n" + "\n".join(failures[:40]), pytrace=False)


@pytest.mark.parametrize("kind", KINDS)
def test_every_seventh(kind: str, tmp_path: Path) -> None:
    attempt(kind, tmp_path, 7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all(kind: str, tmp_path: Path) -> None:
    attempt(kind, tmp_path, 1)
