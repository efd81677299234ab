"""Settings of wrong types and wild values, unknown keys, and files that are no YAML: given to `asrkit train`."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import torch
import yaml
from faults import Case, Random, cut_off, flip, one_line

from asrkit import cli
from asrkit.config import describe
from asrkit.methods.registry import METHODS
from asrkit.training.config import schema

WILD: tuple[Any, ...] = (
    -1, 0, 1, 2, 3, -0.5, 0.5, 0.999, 1.5, 1e-12, 1e12, -1e300, float("inf"), float("-inf"), float("nan"), True, None, "", "x",
    "auto",
    "010", "1e-3", "../..", "\x00", "é" * 300, [], [1], [[1]], ["x", "y"], [0, -1], {}, {"a": 1}, {"name": "x"},
    "${seed}", "${oc.env:NOWHERE}",
    "${data", "???",
)  # fmt: skip

SIZES = (
    "layers",
    "dim",
    "heads",
    "kernel",
    "bins",
    "channels",
    "entries",
    "groups",
    "updates",
    "epochs",
    "negatives",
    "cache",
    "size",
)
"""Keys that stand for how much there is of something: a huge value is a huge model, which is no mistake."""

NO_WAIT = {"training": {"log_every": 1, "validate_every": 100, "disk_patience_minutes": 0.0, "check_memory": "off"}}


@functools.cache
def corpus() -> Path:
    """Return a prepared folder with a few utterances."""
    return helpers.write_corpus(Path(tempfile.mkdtemp(prefix="asrkit-faults-")), train=5, dev=1)


def short(method: str) -> dict[str, Any]:
    """Return the settings of a run of two or three updates."""
    whole = helpers.merged(helpers.settings(method, corpus()), NO_WAIT)
    section = whole[method]
    if method in ("bl_just", "weighted_sum"):
        phases = {name: {"updates": 1} for name in ("exploration", "joint", "finetune") if name in section}
        return helpers.merged(whole, {method: {**phases, **({"outer_epochs": 1} if method == "bl_just" else {})}})
    lengths = {"updates": 2, "warmup_updates": 1, "freeze_updates": 1}
    return helpers.merged(whole, {method: {name: value for name, value in lengths.items() if name in section}})


def attempt(home: Path, *arguments: str) -> None:
    """Run `asrkit train`: it ends well with weights that are numbers, or with one line and status 2."""
    errors = io.StringIO()
    threads = torch.get_num_threads()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = cli.main(["train", *arguments, f"exp_dir={home / 'exp'}"])
    except SystemExit as left:
        status = int(left.code or 0)
    finally:
        torch.set_num_threads(threads)
        logging.getLogger("asrkit").handlers.clear()
    lines = [line for line in errors.getvalue().splitlines() if "error:" in line]
    if status == 0:
        assert not lines
        for name, weight in helpers.checkpoint(home / "exp")["model"].items():
            assert not weight.is_floating_point() or weight.isfinite().all(), f"{name} is not finite"
    else:
        assert status == 2, f"exit status {status}"
        assert len(lines) == 1, f"{len(lines)} lines"
        one_line(lines[0])


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value


def _value(home: Path, method: str, key: str, value: Any, override: bool) -> None:
    whole = short(method)
    if override:
        helpers.write_config(home / "exp", whole)
        text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
        attempt(home, str(home / "exp.yaml"), f"{key}={text}")
        return
    _set(whole, key, value)
    helpers.write_config(home / "exp", whole)
    attempt(home, str(home / "exp.yaml"))


BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 108)
)


def _file(home: Path, kind: int, random: Random) -> None:
    good = yaml.safe_dump(short("finetune")).encode()
    path = home / "exp.yaml"
    content = [
        b"",
        b"\x00\x01\x02",
        b"- a\n- b\n",
        b"just words\n",
        good.decode().encode("utf-16"),
        good + b"seed: 1\nseed: 2\n",
        good + b"\tseed: 1\n",
        good + b"extra: [1\n",
        good + b"nonsense: 1\n",
        good + b"base: exp.yaml\n",
        good + b"base: ../nowhere.yaml\n",
        good + b"seed: !!python/object/apply:os.system ['touch stolen']\n",
        good + b"seed: *nowhere\n",
        good + b"seed: ${seed}\n",
        good + b"? [a, b]\n: 1\n",
        good.replace(b"finetune", b"finetoon"),
        BOMB,
        b"a: " + b"[" * 3000,
        cut_off(good, random),
        flip(good, random, 3),
        flip(good, random, 1),
    ][kind % 21]
    path.write_bytes(content)
    attempt(home, str(path))


def _keys(method: str) -> list[tuple[str, str]]:
    apart = ("exp_dir", "method")
    return [(line.key, line.type) for line in describe(schema(method)) if line.key not in apart]


def cases(count: int, random: Random) -> Iterator[Case]:
    """Yield bad settings."""
    methods = sorted(METHODS)
    for number in range(count):
        if number % 5 == 4:
            seeded = random.spawn(1)[0]
            yield Case(f"file-{number // 5 % 21}", lambda home, k=number // 5, r=seeded: _file(home, k, r))
            continue
        method = methods[number % len(methods)]
        keys = _keys(method)
        key, _ = keys[int(random.integers(len(keys)))]
        value = WILD[int(random.integers(len(WILD)))]
        name = key.rpartition(".")[2]
        if isinstance(value, float) and math.isfinite(value) and value > 100 and any(part in name for part in SIZES):
            value = -value
        if number % 23 == 22:
            key = f"{key}s" if number % 2 else f"{method}.{key}"
        shown = f"{method} {key}={str(value)[:20]!r}"
        yield Case(shown, lambda home, m=method, k=key, v=value, o=number % 2 == 0: _value(home, m, k, v, o))
