"""Trains a tiny model on a small mini corpus, kills it again and again, and compares it with the run that was left alone.

    python tests/faults/killing.py                  50 kills of each of three methods: some minutes
    python tests/faults/killing.py --kills 4 --methods pretrain --seed 7

Each kill is a SIGKILL at a random place: at any moment of the start, of an update, of a validation, in the middle of a
checkpoint's write, before or after a file takes its name, in the middle of a row of metrics.jsonl. Then the same command starts
again. In the end checkpoints and metrics must be those of the undisturbed run to the last bit, wall time apart. Exit status 1 if
they are not.

The processes are forks of this one, which has imported everything but computed nothing: a start takes a moment, not seconds.
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import assert_same, checkpoint, rows  # noqa: E402

from asrkit import cli, files  # noqa: E402
from asrkit.data.mini import MiniConfig, synthesise  # noqa: E402
from asrkit.data.prepare import PrepareConfig, prepare_librispeech  # noqa: E402
from asrkit.training import checkpoint as checkpoints  # noqa: E402
from asrkit.training.loop import Trainer  # noqa: E402

MODULES = Path(tempfile.gettempdir()) / f"asrkit-faults-{os.getpid()}.modules"
"""What a finished run had imported: this process does so too, before the next forks."""
METHODS = ("pretrain", "wav2vec_s", "bl_just")
KINDS = ("start", "moment", "moment", "moment", "write", "write", "rename", "renamed", "row")
"""Where a kill strikes; those that come more than once are drawn more often."""
CORPUS = MiniConfig(
    train_minutes=1.5,
    dev_minutes=0.1,
    test_minutes=0.1,
    fold_minutes=0.04,
    nine_hour_minutes=0.4,
    train_speakers=10,
    dev_speakers=1,
    test_speakers=1,
    fold_speakers=1,
    nine_hour_speakers=4,
)
TINY = {
    "device": "cpu",
    "encoder.logmel.channels": 8,
    "encoder.layers": 2,
    "encoder.dim": 16,
    "encoder.ffn_dim": 16,
    "encoder.heads": 2,
    "encoder.dropout": 0.1,
    "encoder.layer_drop": 0.2,
    "data.batch_seconds": 10,
    "data.workers": 0,
    "training.precision": "fp32",
    "training.threads": 1,
    "training.log_every": 2,
    "training.validate_every": 7,
    "training.checkpoint_every": 3,
    "training.keep_checkpoints": 2,
}


def lengths(method: str, updates: int) -> dict[str, Any]:
    """Return what makes a run of a method so many updates long."""
    if method == "pretrain":
        return {"pretrain.updates": updates, "data.unlabelled.seconds_per_update": 10}
    streams = {"data.labelled.seconds_per_update": 6, "data.unlabelled.seconds_per_update": 8}
    if method == "wav2vec_s":
        streams["wav2vec_s.freeze_frontend"] = "false"
        warm = {"wav2vec_s.freeze_updates": updates // 6, "wav2vec_s.warmup_updates": updates // 3}
        # A model that knows nothing yet is sure of nothing: its labels count all the same. The cache is a state too.
        pseudo = {"confidence": 0.0, "teacher": "ema", "cache": 20}
        return {
            **streams,
            "wav2vec_s.updates": updates,
            **warm,
            **{f"wav2vec_s.pseudo.{k}": v for k, v in pseudo.items()},
        }
    outer = max(1, updates // 8)
    stages = {"exploration": 2, "joint": 4, "finetune": updates - 6 * outer}
    return {**streams, "bl_just.outer_epochs": outer, **{f"bl_just.{name}.updates": n for name, n in stages.items()}}


@dataclass(frozen=True)
class Blow:
    """A kill: what is hit, and from which update on."""

    kind: str
    update: int
    share: float
    """How far into the start, the update, the file or the row; between 0 and 1."""


def plan(random_state: random.Random, kills: int, updates: int) -> list[Blow]:
    """Return kills in the order of the updates that they wait for."""
    # The last updates are spared: a run that is complete before it is struck proves nothing.
    starts = sorted(random_state.randrange(updates - 4) for _ in range(kills))
    # Every kind comes as soon as there are enough kills.
    kinds = [*dict.fromkeys(KINDS), *random_state.choices(KINDS, k=kills)][:kills]
    random_state.shuffle(kinds)
    return [Blow(kind, update, random_state.random()) for kind, update in zip(kinds, starts, strict=True)]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Victim:
    """What a forked process changes of itself, so that it tells where it is and dies where it should."""

    def __init__(self, blow: Blow | None, report: Callable[[], object]) -> None:
        self.blow = blow
        self.report = report
        self.armed = False

    def prepare(self) -> None:
        step, replace, write = Trainer.step, os.replace, files.Appender.write

        def stepping(trainer: Trainer, *arguments: Any) -> Any:
            self.armed = self.blow is not None and trainer.update >= self.blow.update
            if self.armed or (self.blow is not None and self.blow.kind == "start"):
                self.report()
            return step(trainer, *arguments)

        def replacing(source: Any, target: Any) -> None:
            if self.hits("rename"):
                die()
            replace(source, target)
            if self.hits("renamed"):
                die()

        def writing(appender: files.Appender, data: bytes) -> None:
            if self.hits("row") and appender.path.name == "metrics.jsonl":
                write(appender, data[: int(self.share * len(data))])
                die()
            write(appender, data)

        Trainer.step = stepping  # type: ignore[method-assign]
        os.replace = replacing  # type: ignore[assignment]
        files.Appender.write = writing  # type: ignore[method-assign]
        checkpoints.open = self.open  # type: ignore[attr-defined]

    def hits(self, kind: str) -> bool:
        return self.armed and self.blow is not None and self.blow.kind == kind

    @property
    def share(self) -> float:
        return self.blow.share if self.blow is not None else 0.0

    def open(self, path: Path, mode: str) -> Any:
        return _Fatal(path, self) if self.hits("write") else builtins.open(path, mode)


class _Fatal:
    """A checkpoint that is cut off somewhere: what was written before lies on the disk."""

    SIZE = 200_000
    """About a checkpoint's size; shares of it that are not reached fall to the end of the write."""

    def __init__(self, path: Path, victim: Victim) -> None:
        self.file = builtins.open(path, "wb")  # noqa: SIM115 - nobody is left to close it
        self.left = int(victim.share * self.SIZE)

    def __enter__(self) -> _Fatal:
        return self

    def __exit__(self, *_: object) -> None:
        self._cut()

    def write(self, data: bytes) -> int:
        size = memoryview(data).nbytes
        if size > self.left:
            self.file.write(memoryview(data).cast("B")[: self.left])
            self._cut()
        self.left -= size
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def _cut(self) -> None:
        self.file.flush()
        die()


def attempt(arguments: list[str], blow: Blow | None, output: Path, pace: float) -> int:
    """Run a command in a fork, kill it as ``blow`` says; return its exit status, negative for a signal."""
    listen, speak = os.pipe()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.close(listen)
            with open(output, "a") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            Victim(blow, lambda: os.write(speak, b".")).prepare()
            status = cli.main(arguments)
            MODULES.write_text("\n".join(sys.modules))
        finally:
            os._exit(status)
    os.close(speak)
    if blow is not None and blow.kind == "start":
        select.select([listen], [], [], blow.share * 10 * pace)  # the first update at the latest
        os.kill(child, signal.SIGKILL)
    elif blow is not None and blow.kind == "moment" and os.read(listen, 1):
        time.sleep(2 * blow.share * pace)
        os.kill(child, signal.SIGKILL)  # nobody has waited for it yet: if it has ended, this hits nothing else
    _, code = os.waitpid(child, 0)
    os.close(listen)
    return os.waitstatus_to_exitcode(code)


def harass(method: str, data: Path, folder: Path, kills: int, updates: int, seed: int) -> Counter[str]:
    """Run a method undisturbed and killed; return how often each kind of kill struck.

    Raises:
        AssertionError: if the results differ, or a process ends otherwise than killed.
    """
    settings = {**TINY, **lengths(method, updates), "data.dir": data}
    command = [
        "train",
        str(ROOT / f"conf/mini/{method}_mini.yaml"),
        *(f"{key}={value}" for key, value in settings.items()),
    ]
    whole, killed = folder / f"{method}_whole", folder / f"{method}_killed"
    began = time.monotonic()
    assert attempt([*command, f"exp_dir={whole}"], None, folder / "said", 0) == 0, (folder / "said").read_text()
    pace = (time.monotonic() - began) / updates / 2  # about a half of it went into the start
    for module in MODULES.read_text().split():
        with suppress(ImportError):
            importlib.import_module(module)
    struck: Counter[str] = Counter()
    for blow in plan(random.Random(f"{method} {seed}"), kills, updates):
        status = attempt([*command, f"exp_dir={killed}"], blow, folder / "said", pace)
        assert status == -signal.SIGKILL, f"{method}, {blow}: status {status}\n{(folder / 'said').read_text()}"
        struck[blow.kind] += 1
    status = attempt([*command, f"exp_dir={killed}"], None, folder / "said", pace)
    assert status == 0, (folder / "said").read_text()
    compare(whole, killed)
    return struck


def compare(whole: Path, killed: Path) -> None:
    """Hold a run to another: weights, optimiser, everything in the checkpoints, and every row of figures."""
    assert rows(whole) == rows(killed)
    for name in ("last", "best"):
        assert (whole / "checkpoints" / name).read_text() == (killed / "checkpoints" / name).read_text()
        assert_same(checkpoint(whole, name), checkpoint(killed, name))
    names = [sorted(path.name for path in (exp / "checkpoints").iterdir()) for exp in (whole, killed)]
    assert names[0] == names[1], names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each method (50)")
    parser.add_argument("--updates", type=int, default=0, help="of each run (24, or one per kill)")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seed", type=int, default=1, help="decides where the kills strike")
    options = parser.parse_args()
    updates = options.updates or max(24, options.kills)
    with tempfile.TemporaryDirectory(prefix="asrkit-faults-") as name:
        folder = Path(name)
        # In a fork too: this process must not begin to compute.
        child = os.fork()
        if child == 0:
            synthesise(CORPUS, folder / "corpus", workers=1)
            prepare_librispeech(folder / "corpus", folder / "data", None, PrepareConfig(workers=1), corpus="mini")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, "the corpus could not be made"
        for method in options.methods:
            began = time.monotonic()
            try:
                struck = harass(method, folder / "data", folder, options.kills, updates, options.seed)
            except AssertionError as error:
                print(f"{method}: {error}", file=sys.stderr)
                return 1
            told = ", ".join(f"{count} {kind}" for kind, count in sorted(struck.items()))
            print(f"{method}: {updates} updates, killed {struck.total()} times ({told}), the same in the end", end="")
            print(f"; {time.monotonic() - began:.0f} s", flush=True)
            MODULES.unlink()
            shutil.rmtree(folder / f"{method}_whole")
            shutil.rmtree(folder / f"{method}_killed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
