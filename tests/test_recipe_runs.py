"""examples/librispeech/run.sh with the real commands: every method from audio to error rates in a few updates each.

On a small synthetic corpus, or on an excerpt of the speech that ASRKIT_REAL_SPEECH names (see test_real_speech.py).
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import assert_same, checkpoint
from helpers import rows as metrics

ROOT = Path(__file__).parents[1]
REAL = os.environ.get("ASRKIT_REAL_SPEECH", "")
COMMON = [
    "device=cpu",
    "training.precision=fp32",
    "training.log_every=1",
    "training.validate_every=100",
    "data.workers=0",
    "data.labelled.seconds_per_update=30",
    "data.unlabelled.seconds_per_update=30",
]
FEW = {
    "pretrain": ["pretrain.updates=3"],
    "finetune": ["finetune.updates=3", "finetune.freeze_updates=1"],
    "wav2vec_s": ["wav2vec_s.updates=4", "wav2vec_s.warmup_updates=2", "wav2vec_s.freeze_updates=1"],
    "supervised": ["supervised.updates=3", "supervised.freeze_updates=1"],
    "bl_just": [f"bl_just.{key}=1" for key in ("exploration.updates", "joint.updates", "finetune.updates")],
    "weighted_sum": ["weighted_sum.joint.updates=2"],
}
FEW["bl_just"].append("bl_just.outer_epochs=2")
STAGES = {
    "finetune": ["pretrain", "finetune"],
    "wav2vec_s": ["pretrain", "wav2vec_s", "finetune"],
    "supervised": ["pretrain", "supervised", "finetune"],
    "bl_just": ["bl_just"],
    "weighted_sum": ["weighted_sum"],
}
RAN = {
    "finetune": [0, 2, 4, 5, 6],
    "wav2vec_s": [0, 2, 3, 4, 5, 6],
    "supervised": [0, 2, 3, 4, 5, 6],
    "bl_just": [0, 3, 5, 6],
    "weighted_sum": [0, 3, 5, 6],
}
"""The stages that each method runs, beside stage 1, which only the first of them runs."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a minute or two of speech in LibriSpeech's layout, the limited sets beside it."""
    folder = tmp_path_factory.mktemp("corpus")
    if REAL:
        for text in sorted(Path(REAL).glob("*/**/*.trans.txt")):
            shorten(text, folder / text.relative_to(REAL))
        return folder
    pytest.importorskip("espeakng_loader")
    from asrkit.data.mini import MiniConfig, synthesise

    minutes = {"train_minutes": 2.0, "dev_minutes": 0.2, "test_minutes": 0.2, "fold_minutes": 0.1}
    speakers = {"train_speakers": 9, "dev_speakers": 2, "test_speakers": 2, "fold_speakers": 1}
    synthesise(MiniConfig(**minutes, **speakers, nine_hour_minutes=0.3, nine_hour_speakers=2), folder)
    return folder


def shorten(source: Path, target: Path) -> None:
    """Link the first two utterances of a chapter."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = source.read_text(encoding="utf-8").splitlines()[:2]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for line in lines:
        name = f"{line.split()[0]}.flac"
        (target.parent / name).symlink_to(source.parent / name)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all methods share the prepared data and the pre-trained model."""
    return tmp_path_factory.mktemp("work")


def command(corpus: Path, data: Path, exp: Path, *arguments: str) -> list[str]:
    script = str(ROOT / "examples" / "librispeech" / "run.sh")
    folders = ["--corpus-dir", str(corpus), "--data-dir", str(data), "--exp-dir", str(exp)]
    return ["bash", script, "--corpus", "librispeech", "--size", "mini", *folders, *arguments]


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Ctrl-C reaches a whole group; in the background a shell would ignore it.
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(arguments: Sequence[str], status: int = 0) -> str:
    """Run the recipe and return what it says."""
    process = start(arguments)
    said = process.communicate()[0]
    assert process.returncode == status, said
    return said


def own(method: str) -> list[str]:
    return [setting for stage in STAGES[method] for setting in FEW[stage]]


@pytest.mark.parametrize("subset", ["1h", "10h"])
@pytest.mark.parametrize("method", STAGES)
def test_from_audio_to_error_rates(method: str, subset: str, corpus: Path, work: Path) -> None:
    source = ["--source", "9h"] if method in ("wav2vec_s", "supervised") else []
    arguments = ["--method", method, *source, "--subset", subset, "--", *COMMON, *own(method)]
    said = run(command(corpus, work / "data", work / "exp", *arguments))
    tuned = work / "exp" / (f"{method}_9h_finetune_{subset}" if source else f"{method}_{subset}")
    recipe = "+".join(STAGES[method]).replace("supervised", "finetune")
    for name in ("dev-clean", "test-clean"):
        result = json.loads((tuned / f"decode/{name}/greedy/results.json").read_text(encoding="utf-8"))
        assert (result["recipe"], result["subset"], result["source"]) == (recipe, subset, "9h" if source else None)
        assert result["words"] > 0
    assert "WER %" in (tuned / "results.txt").read_text(encoding="utf-8")
    assert (tuned / "report.html").is_file()
    ran = [int(stage) for stage in re.findall(r"stage (\d) took", said)]
    assert [stage for stage in ran if stage != 1] == RAN[method]


def test_a_complete_run_is_left_as_it_is_and_never_mixed(corpus: Path, work: Path) -> None:
    mine = ["--subset", "1h", "--stop-stage", "4", "--", *COMMON, *own("finetune")]
    run(command(corpus, work / "data", work / "exp", *mine))
    folder = work / "exp" / "finetune_1h"
    before = {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    assert run(command(corpus, work / "data", work / "exp", *mine)).count("nothing to do") == 2
    assert {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == before
    for changed, says in (
        (["--seed", "2", *mine], "was made with seed '1', not '2'"),
        (["--stage", "4", *mine, "finetune.schedule.learning_rate=1.0e-4"], "finetune.schedule.learning_rate"),
        (["--stage", "4", *mine, "data.labelled.seconds_per_update=31"], "data.labelled.seconds_per_update"),
    ):
        assert says in run(command(corpus, work / "data", work / "exp", *changed), status=2)
        assert {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == before


@pytest.mark.parametrize("to_all", [True, False])
def test_an_interrupted_stage_goes_on_as_if_nothing_had_happened(
    corpus: Path, work: Path, tmp_path: Path, to_all: bool
) -> None:
    long = ["--subset", "1h", "--init", "scratch", "--stop-stage", "4", "--", *COMMON, "finetune.updates=30"]
    undisturbed = tmp_path / "undisturbed" / "scratch_1h"
    run(command(corpus, work / "data", undisturbed.parent, *long))
    disturbed = tmp_path / "disturbed" / "scratch_1h"
    process = start(command(corpus, work / "data", disturbed.parent, *long))
    while not ((disturbed / "metrics.jsonl").is_file() and metrics(disturbed)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    if to_all:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()  # the script alone: as a scheduler does, or `kill`
    said = process.communicate()[0]
    assert process.returncode == (130 if to_all else -signal.SIGTERM), said
    assert "interrupted in stage 4; the same command goes on from there" in said
    assert metrics(disturbed)[-1]["step"] < 30
    run(command(corpus, work / "data", disturbed.parent, *long))
    assert_same(checkpoint(disturbed)["model"], checkpoint(undisturbed)["model"])
    assert metrics(disturbed) == metrics(undisturbed)


def free_ports() -> int:
    """Return a port of which the second, third and fourth after it are free."""
    for port in range(20_000 + os.getpid() % 10_000, 60_000, 10):
        try:
            for further in (2, 3, 4):
                with socket.socket() as server:
                    server.bind(("127.0.0.1", port + further))
        except OSError:
            continue
        return port
    raise AssertionError("no free ports")


def test_two_machines_are_two_processes(corpus: Path, tmp_path: Path) -> None:
    """Two runs that meet over the network, the second one started first, learn what two processes of one run learn."""
    mine = ["--subset", "1h", "--", *COMMON, *own("finetune")]
    run(command(corpus, tmp_path / "data", tmp_path / "one", "--nproc", "2", "--stop-stage", "4", *mine))
    several = ["--nnodes", "2", "--master", f"127.0.0.1:{free_ports()}", "--node-rank"]
    machines = [
        start(command(corpus, tmp_path / "other", tmp_path / "two", *several, rank, *mine)) for rank in ("1", "0")
    ]
    said = [machine.communicate()[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(said)
    for stage in ("pretrain", "finetune_1h"):
        assert_same(checkpoint(tmp_path / "one" / stage)["model"], checkpoint(tmp_path / "two" / stage)["model"])
    assert (tmp_path / "two" / "finetune_1h" / "results.txt").is_file()
    assert "Stage 5" not in said[0]
