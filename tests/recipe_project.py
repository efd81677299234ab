"""A copy of the project whose `asrkit` only notes how it was called: the recipe's scripts find the project by their own place."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

STUB = r"""#!/bin/sh
# Notes its arguments and leaves what the real command would leave.
echo "$*" >>"$CALLS"
case $1 in "$INTERRUPT") kill -INT $PPID; exit "$STATUS" ;; "$FAIL") exit "$STATUS" ;; esac
case $1 in
prepare)
    while [ $# -gt 0 ]; do [ "$1" = --output-dir ] && data=$2; shift; done
    for set in train-clean-100 10min 1h 9h 10h dev-clean test-clean; do
        mkdir -p "$data/$set" && echo '{}' >"$data/$set/set.json"
    done ;;
train)
    for setting in "$@"; do case $setting in exp_dir=*) exp=${setting#exp_dir=} ;; esac; done
    mkdir -p "$exp/checkpoints" && echo step_1.pt >"$exp/checkpoints/last" && echo 'method: x' >"$exp/config.yaml" ;;
lm) while [ $# -gt 1 ]; do shift; done; mkdir -p "$(dirname "$1")" && echo '\data\' >"$1" ;;
decode)
    mkdir -p "$3/decode/dev-clean/greedy" && echo '{}' >"$3/decode/dev-clean/greedy/results.json" ;;
esac
"""

CONFIGURATIONS = [
    "model",
    "pretrain_mini",
    "finetune_mini",
    "finetune_mini_10min",
    "scratch_mini",
    "bl_just_mini",
    "heterogeneous_mini",
]
CONFIGURATIONS += ["wav2vec_s_mini", "wav2vec_s_scratch_mini", "supervised_mini", "finetune_mini_10h_paper"]

TORCHRUN = """#!/bin/sh
# Notes its own arguments, then does what it was to start.
echo "torchrun ${*%%--module*}" >>"$CALLS"
while [ "$1" != --module ]; do shift; done
shift
exec "$@"
"""

PYTHON = f"""#!/bin/sh
# Notes what is to be downloaded and leaves its folders and files; everything else is Python's, but what takes seconds.
case $1 in */check.py) [ -n "$CHECK" ] || exit 0 ;; esac
[ "$2" = asrkit.data.download ] || exec {sys.executable} "$@"
echo "$*" >>"$CALLS"
corpus=$4
shift 4
for part in "$@"; do
    case $part in
    lexicon) mkdir -p "$corpus/lm" && : >"$corpus/lm/librispeech-lexicon.txt" ;;
    4-gram) mkdir -p "$corpus/lm" && : >"$corpus/lm/4-gram.arpa.gz" ;;
    librispeech_finetuning) mkdir -p "$corpus/$part" ;;
    *) mkdir -p "$corpus/LibriSpeech/$part" ;;
    esac
done
"""


OWN = {
    "finetune": "finetune: {freeze_updates: 0}\n",
    "wav2vec_s": "wav2vec_s: {freeze_updates: 0, warmup_updates: 1}\n",
}
"""Settings that allow for a few updates."""


def write_configuration(path: Path) -> None:
    """Write what a stage's configuration must have at least; the method follows from the file's name."""
    method = re.split("_(mini|small)", path.stem)[0].removesuffix("_scratch")
    method = {"scratch": "finetune", "supervised": "finetune", "model": "pretrain"}.get(method, method)
    data = "data: {unlabelled: {sets: [train-clean-100]}, dev: [dev-clean]}"
    if method == "heterogeneous":
        data = "data: {sources: {near: {sets: [train-clean-100]}, far: {sets: [train-clean-100]}}, dev: [dev-clean]}"
    path.write_text(f"method: {method}\n{data}\n{OWN.get(method, '')}")


class Project:
    """A copy of the recipe with a stand-in for the command asrkit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "examples", folder / "examples")
        for config in ("mini", "librispeech"):
            (folder / "conf" / config).mkdir(parents=True)
            for name in CONFIGURATIONS:
                write_configuration(folder / "conf" / config / f"{name}.yaml")
        (folder / ".venv" / "bin").mkdir(parents=True)
        for name, content in (("asrkit", STUB), ("torchrun", TORCHRUN), ("python", PYTHON)):
            stub = folder / ".venv" / "bin" / name
            stub.write_text(content)
            stub.chmod(0o755)

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CALLS": str(self.folder / "calls"),
            **{"INTERRUPT": "-", "FAIL": "-", "STATUS": "1", **settings},
        }
        (self.folder / "calls").write_text("")
        script = self.folder / "examples" / "librispeech" / "run.sh"
        return subprocess.run(
            ["bash", str(script), *arguments],
            # Where the tests run in the background, Ctrl-C may be ignored, and a shell cannot undo that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        """What asrkit was asked for, with the project's folder left out."""
        return (self.folder / "calls").read_text().replace(f"{self.folder}/", "").splitlines()


def assert_refused(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


TRAIN_PRETRAIN = "train conf/mini/pretrain_mini.yaml exp_dir=exp/a/pretrain seed=1 data.dir=data/mini"

TRAIN_1H = (
    "train conf/mini/finetune_mini.yaml exp_dir=exp/a/finetune_1h seed=1 data.dir=data/mini "
    "init=exp/a/pretrain data.labelled.sets=[1h]"
)

ALL = ["--exp-dir", "exp/a", "--subset", "1h"]

LIBRISPEECH = ["--corpus", "librispeech", "--config", "mini", "--stop-stage", "0", "--corpus-dir", "c"]
