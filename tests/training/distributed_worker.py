"""One of several processes that torchrun starts for test_distributed: runs the jobs of FOLDER/jobs.json in turn."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from asrkit import cli
from asrkit.core.step import Accumulate
from asrkit.errors import AsrkitError
from asrkit.training import experiment
from asrkit.training.log import ProgressView

FOLDER = Path(sys.argv[1])
RANK = int(os.environ["RANK"])

state: dict[str, Any] = {"steps": 0, "signal": 0, "fault": ""}
told: dict[str, Any] = {"updates": 0, "statistics": 0, "unequal": [], "without": Counter(), "empty_shares": 0}

run_step, advance = Accumulate.run, ProgressView.advance


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def compare_gradients(self: Accumulate, method: Any, micro_batches: Any, *others: Any) -> None:
    if state["fault"] == "mistake" and RANK == 1:
        raise AsrkitError("broken by the test")
    if state["fault"] == "crash" and RANK == 1:
        raise ZeroDivisionError("broken")
    if state["fault"] == "hang" and RANK == 1 and state["steps"] == 2:
        time.sleep(3600)
    if state["fault"] == "death" and RANK == 1 and state["steps"] == 2 and not state["killed"].exists():
        state["killed"].touch()
        os.kill(os.getpid(), signal.SIGKILL)
    statistics = {name: value.clone() for name, value in method.named_buffers() if "running_" in name}
    run_step(self, method, micro_batches, *others)
    ids = [name for batches in micro_batches.values() for batch in batches for name in batch.ids]
    with open(FOLDER / f"{state['exp']}.{RANK}.ids", "a") as file:
        file.write(json.dumps([others[0].update, ids]) + "\n")
    mine = {name: None if p.grad is None else digest(p.grad) for name, p in method.named_parameters()}
    mine |= {name: digest(value) for name, value in statistics.items()}
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    told["updates"] += 1
    told["statistics"] += bool(statistics)
    told["unequal"] += [name for name in mine if len({one[name] for one in every}) > 1]
    told["without"].update(name for name, found in mine.items() if found is None)
    told["empty_shares"] += RANK == 1 and not any(micro_batches.values())


def signal_at(self: ProgressView, done: int) -> None:
    advance(self, done)
    state["steps"] += 1
    if state["steps"] == state["signal"] and RANK == 1:
        os.kill(os.getpid(), signal.SIGTERM)


Accumulate.run = compare_gradients  # type: ignore[method-assign]
ProgressView.advance = signal_at  # type: ignore[method-assign]
leave = experiment.leave
experiment.leave = lambda: None  # the jobs share one group

for job in json.loads((FOLDER / "jobs.json").read_text()):
    exp_dir = FOLDER / job["exp"]
    state.update(steps=0, signal=job.get("signal", 0), fault=job.get("fault", ""), exp=job["exp"])
    state["killed"] = exp_dir.with_suffix(".killed")
    status = cli.main(["train", f"{exp_dir}.yaml", f"exp_dir={exp_dir}"])
    if status != job["status"]:
        print(f"{job['exp']}: status {status}", file=sys.stderr)
        sys.exit(status or 1)
dist.barrier()
if RANK == 1:
    (FOLDER / "gradients.json").write_text(json.dumps(told))
dist.barrier()
leave()
