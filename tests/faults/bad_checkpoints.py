"""Checkpoints that are cut short, turned in some bits, foreign, or would run code."""

from __future__ import annotations

import builtins
import io
import logging
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults import Case, Lines, Random, cut_off, flip, one_line
from helpers import assert_same

from asrkit.errors import AsrkitError
from asrkit.training.checkpoint import Checkpoints, load


def state(update: int) -> dict[str, Any]:
    """Return something like a run's state."""
    random = torch.Generator().manual_seed(update)
    weights = {f"layer{number}.weight": torch.randn(8, 8, generator=random) for number in range(4)}
    return {"model": weights, "update": update, "ranks": [{"generators": {"cpu": torch.arange(16)}}], "best": 0.5}


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def _malice(home: Path, number: int) -> Any:
    witness = str(home / "stolen")
    return [
        Call(os.system, f"touch {witness}"),
        Call(builtins.eval, f"open({witness!r}, 'w')"),
        Call(builtins.exec, f"open({witness!r}, 'w')"),
        Call(builtins.open, witness, "w"),
        Call(os.mkdir, witness),
        Call(Path.write_text, home / "stolen", "x"),
        Call(torch.load, witness),
        Call(builtins.map, builtins.exec, [f"open({witness!r}, 'w')"]),
    ][number % 8]


def _malicious(home: Path, number: int) -> None:
    checkpoints = Checkpoints(home, keep=3)
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    content = {"format": 1, "model": _malice(home, number), "update": 2}
    path = checkpoints.path(2)
    if number // 8 % 3 == 0:
        torch.save(content, path)
    elif number // 8 % 3 == 1:
        path.write_bytes(pickle.dumps(content, protocol=number % 5))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=False)
    try:
        load(path)
    except AsrkitError as error:
        one_line(str(error))
    else:
        raise AssertionError("loaded")
    _falls_back(checkpoints)
    assert not (home / "stolen").exists(), "code from a checkpoint was run"


def _falls_back(checkpoints: Checkpoints) -> None:
    with Lines(logging.getLogger("asrkit.training")) as lines:
        found = checkpoints.newest()
    assert found is not None
    assert found["update"] == 1
    assert_same(found["model"], state(1)["model"])
    assert len(lines.found) == 1, "nothing is said"
    one_line(lines.found[0])


def _damaged(home: Path, kind: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    checkpoints = Checkpoints(home, keep=3)
    for update in (1, 2):
        checkpoints.save(update, state(update))
    path = checkpoints.path(2)
    data = path.read_bytes()
    if kind == 0:
        path.write_bytes(cut_off(data, random))
    elif kind == 1:
        path.write_bytes(flip(data, random, int(random.integers(1, 20))))
    elif kind == 2:
        start = int(random.integers(len(data)))
        path.write_bytes(data[:start] + bytes(300) + data[start + 300 :])
    elif kind == 3:
        path.write_bytes(_repacked(data, random))
    else:
        path.write_bytes(data[: len(data) // 2] + data)
    try:
        found = load(path)
    except AsrkitError as error:
        one_line(str(error))
        _falls_back(checkpoints)
    else:
        assert_same(found, {"format": 1, **state(2)})


def _repacked(data: bytes, random: Random) -> bytes:
    """Return the archive with one part left out; all checksums are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as new:
        names = [name for name in old.namelist() if "data" in name]
        missing = names[int(random.integers(len(names)))]
        for name in old.namelist():
            if name != missing:
                new.writestr(name, old.read(name))
    return buffer.getvalue()


FOREIGN: tuple[Callable[[], Any], ...] = (
    lambda: [1, 2],
    lambda: {"format": 99, "model": {}},
    lambda: {"format": "1", "model": {}},
    lambda: {"format": True},
    lambda: {"model": {"weight": torch.ones(2)}},
    lambda: {"args": None, "model": {}},
    lambda: torch.ones(3),
    lambda: None,
    lambda: "checkpoint",
    lambda: {},
)


def _foreign(home: Path, number: int) -> None:
    checkpoints = Checkpoints(home, keep=3)
    for update in (1, 2):
        checkpoints.save(update, state(update))
    torch.save(FOREIGN[number % len(FOREIGN)](), checkpoints.path(2))
    try:
        load(checkpoints.path(2))
    except AsrkitError as error:
        one_line(str(error))
    else:
        raise AssertionError("loaded")
    _falls_back(checkpoints)


def _pointer(home: Path, number: int) -> None:
    """What `last` says leads nowhere: the newest that can be read is used."""
    checkpoints = Checkpoints(home, keep=3)
    for update in (1, 2):
        checkpoints.save(update, state(update))
    wild = [
        b"",
        b"\n",
        b"step_9.pt\n",
        b"../../etc/passwd",
        b"\xff\xfe",
        b"\x00",
        b"x" * 5000,
        b"/",
        b".",
        b"step_1.pt\nstep_2.pt\n",
    ]
    (checkpoints.folder / "last").write_bytes(wild[number % len(wild)])
    found = checkpoints.newest()
    assert found is not None
    assert_same(found, {"format": 1, **state(found["update"])})


def cases(count: int, random: Random) -> Iterator[Case]:
    """Yield bad checkpoints."""
    for number in range(count):
        seed = int(random.integers(1 << 30))
        part, n = number % 8, number // 8
        if part == 0:
            yield Case(f"malicious-{n}", lambda home, n=n: _malicious(home, n))
        elif part == 1:
            yield Case(f"foreign-{n}", lambda home, n=n: _foreign(home, n))
        elif part == 2:
            yield Case(f"pointer-{n}", lambda home, n=n: _pointer(home, n))
        else:
            yield Case(f"damaged-{part - 3}", lambda home, k=part - 3, s=seed: _damaged(home, k, s))
