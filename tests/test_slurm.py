"""The Slurm launcher, on a Slurm of four small scripts: what it asks for, and that a run it warns is saved and queued again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import assert_same, checkpoint, rows, settings, train, write_config

SCRIPT = Path(__file__).parents[1] / "scripts" / "slurm.sh"
FAKES = {
    "sbatch": '#!/bin/bash\nprintf "%s\\n" "$@" > "$FAKE/sbatch"\n',
    "scontrol": '#!/bin/bash\n[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> "$FAKE/requeued"\n',
    "srun": '#!/bin/bash\nshift\nexec setsid --wait "$@"\n',
    # As Slurm does: the signal goes to all processes of the step.
    "scancel": """#!/usr/bin/env python3
import os, signal
with open(os.environ["FAKE"] + "/warned", "a") as file:
    file.write("once\\n")
for name in filter(str.isdigit, os.listdir("/proc")):
    try:
        inside = f"SLURM_JOB_ID={os.environ['SLURM_JOB_ID']}".encode() in open(f"/proc/{name}/environ", "rb").read()
        words = open(f"/proc/{name}/cmdline", "rb").read().split(b"\\0")
    except OSError:
        continue
    # The script and this one are not in the step.
    if inside and b"--job" not in words and int(name) != os.getpid():
        os.kill(int(name), signal.SIGUSR1)
""",
}
STAND_IN = """#!{python}
import os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["FAKE"])
folder.joinpath("launched").write_text("\\n".join(sys.argv[1:]))
assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
if folder.joinpath("fails").exists():
    sys.exit(7)
if folder.joinpath("long").exists():
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))
    folder.joinpath("listens").touch()
    time.sleep(600)
"""


def fake_slurm(folder: Path, stand_in: bool = True) -> dict[str, str]:
    """Return an environment in which Slurm is a few scripts and, if wanted, torchrun too."""
    tools = folder / "bin"
    tools.mkdir()
    texts = {**FAKES, "python": STAND_IN.replace("{python}", sys.executable)} if stand_in else FAKES
    for name, text in texts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "1"}
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, **job, "PATH": path, "FAKE": str(folder), "ASRKIT_SLURM_PAUSE": "1"}


def job(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = ["bash", str(SCRIPT), "--job", "2", "3", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_what_sbatch_is_asked_for(tmp_path: Path) -> None:
    config = tmp_path / "a b.yaml"
    config.touch()
    options = [
        "--nodes",
        "3",
        "--gpus",
        "4",
        "--time",
        "2:00:00",
        "--sbatch",
        "--partition=gpu",
        "--log-dir",
        str(tmp_path),
    ]
    command = ["bash", str(SCRIPT), *options, "--", str(config), "exp_dir=e"]
    subprocess.run(command, env=fake_slurm(tmp_path), check=True)
    asked = (tmp_path / "sbatch").read_text().splitlines()
    for pair in (["--nodes", "3"], ["--gpus-per-node", "4"], ["--time", "2:00:00"], ["--signal", "B:USR1@300"]):
        assert asked[asked.index(pair[0]) + 1] == pair[1]
    assert {"--requeue", "--partition=gpu"} <= set(asked)
    assert asked[-6:] == [str(SCRIPT), "--job", "4", "3", str(config), "exp_dir=e"]


@pytest.mark.parametrize(
    "wrong", [["--nodes", "two", "--", "x"], ["--what", "1", "--", "x"], ["--nodes"], ["--", "gone.yaml"], []]
)
def test_mistakes_are_told_in_a_line(wrong: list[str]) -> None:
    done = subprocess.run(["bash", str(SCRIPT), *wrong], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("slurm.sh: ")


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_ends_by_itself_is_not_queued_again(tmp_path: Path, fails: bool) -> None:
    if fails:
        (tmp_path / "fails").touch()
    running = job(tmp_path, fake_slurm(tmp_path), "c.yaml", "exp_dir=e")
    said, _ = running.communicate()
    assert running.returncode == (7 if fails else 0), said
    launched = (tmp_path / "launched").read_text().split("\n")
    assert launched[:2] == ["-m", "torch.distributed.run"]
    assert launched[launched.index("--nproc-per-node") + 1] == "2"
    assert launched[launched.index("--max-restarts") + 1] == "3"
    assert launched[launched.index("--rdzv-endpoint") + 1].startswith("127.0.0.1:")
    assert launched[-5:] == ["--module", "asrkit", "train", "c.yaml", "exp_dir=e"]
    assert not (tmp_path / "requeued").exists()


def wait_for(*paths: Path) -> None:
    while not any(path.exists() for path in paths):
        time.sleep(0.05)


def test_a_warning_reaches_the_run_and_the_job_is_queued_again(tmp_path: Path) -> None:
    (tmp_path / "long").touch()
    running = job(tmp_path, fake_slurm(tmp_path), "c.yaml")
    wait_for(tmp_path / "listens")
    running.send_signal(signal.SIGUSR1)
    said, _ = running.communicate()
    assert running.returncode == 0, said
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"


@pytest.mark.slow
def test_two_processes_warned_in_mid_run_end_as_undisturbed_ones(speech: Path, tmp_path: Path) -> None:
    whole = settings("finetune", speech, finetune={"updates": 60}, training={"checkpoint_every": 100, "log_every": 1})
    config = write_config(tmp_path / "exp", whole)
    environment = {
        **fake_slurm(tmp_path, stand_in=False),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    running = job(tmp_path, environment, str(config), f"exp_dir={tmp_path / 'exp'}")
    wait_for(tmp_path / "exp" / "metrics.jsonl")
    running.send_signal(signal.SIGUSR1)
    said, _ = running.communicate()
    assert running.returncode == 0, said
    assert (tmp_path / "requeued").exists(), said
    assert 0 < checkpoint(tmp_path / "exp")["update"] < 60, said
    for name in ("exp", "undisturbed"):
        running = job(tmp_path, environment, str(config), f"exp_dir={tmp_path / name}")
        said, _ = running.communicate()
        assert running.returncode == 0, said
    assert rows(tmp_path / "exp") == rows(tmp_path / "undisturbed")
    assert_same(checkpoint(tmp_path / "exp"), checkpoint(tmp_path / "undisturbed"))
    assert train(tmp_path / "exp", whole) == 0
