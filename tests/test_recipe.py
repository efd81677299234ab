"""The recipe's scripts: what they refuse, in which order they call the commands, and that they never mix settings.

The scripts find the project by their own place, so they run here in a copy whose `asrkit` only notes how it was called.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

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
# Notes what is to be downloaded and leaves its folders and files; everything else is Python's.
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


class Project:
    """A copy of the recipe with a stand-in for the command asrkit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "examples" / "librispeech", folder / "examples" / "librispeech")
        for config in ("mini", "librispeech"):
            (folder / "conf" / config).mkdir(parents=True)
            for name in CONFIGURATIONS:
                (folder / "conf" / config / f"{name}.yaml").write_text(
                    "data: {unlabelled: {sets: [train-clean-100]}, dev: [dev-clean]}\n"
                )
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


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--foo"], "unknown argument '--foo'"),
        (["optimiser.x=1"], "configuration goes behind --"),
        (["--stage"], "--stage needs a value"),
        (["--stage", "--seed"], "--stage needs a value"),
        (["--stage", "7"], "--stage 7: not one of 0 1"),
        (["--stop-stage", "x"], "--stop-stage x: not one of"),
        (["--stage", "4", "--stop-stage", "2"], "--stage 4 comes after --stop-stage 2"),
        (["--corpus", "timit"], "--corpus timit: not one of mini librispeech"),
        (["--config", "big"], "--config big: not one of librispeech mini"),
        (["--size", "huge"], "--size huge: not one of mini"),
        (["--subset", "3h"], "--subset 3h: not one of 10min"),
        (["--method", "wav2vec"], "--method wav2vec: not one of"),
        (["--method", "scratch"], "--method scratch: not one of"),
        (["--method", "wav2vec_s_scratch"], "--method wav2vec_s_scratch: not one of"),
        (["--method", "wav2vec_s", "--source", "3h"], "--source 3h: not one of 10min"),
        (["--method", "bl_just", "--source", "9h"], "the method bl_just has labels of --subset only"),
        (["--method", "bl_just", "--", "finetune.updates=5"], "this run has no stage of the method finetune"),
        (["--", "wav2vec_s.updates=5"], "this run has no stage of the method wav2vec_s"),
        (["--method", "pretrain"], "--method pretrain: not one of"),
        (["--method", "model"], "--method model: not one of"),
        (["--source", "100h"], "the method finetune has labels of --subset only"),
        (["--size", "large"], "--size large: not one of mini"),
        (["--seed", "one"], "--seed one: not a whole number"),
        (["--lm", "big"], "--lm big: not one of none train official"),
        (["--lm", "official"], "--lm official is made for LibriSpeech; for mini there is --lm train"),
        (["--nproc", "0"], "--nproc 0: at least 1"),
        (["--nnodes", "0"], "--nnodes 0: at least 1"),
        (["--nnodes", "2"], "--nnodes 2: which of them is this one? (--node-rank R, from 0)"),
        (["--nnodes", "2", "--node-rank", "1"], "--nnodes 2: how do the others reach the first one?"),
        (["--nnodes", "2", "--node-rank", "2", "--master", "a"], "--node-rank 2: not one of 0 to 1"),
        (["--nnodes", "2", "--node-rank", "0", "--master", "a:b"], "--master-port b: not a whole number"),
        (["--master", "a"], "--node-rank and --master are for several machines (--nnodes N)"),
        (["--follow", "me"], "--follow me: not one of fairseq paper"),
        (["--follow", "paper", "--subset", "1h"], "the paper's are for librispeech, base and large"),
        (["--follow", "paper", "--method", "bl_just"], "this run has no fine-tuning of a pre-trained model"),
        (["--follow", "paper", "--init", "scratch"], "this run has no fine-tuning of a pre-trained model"),
        (["--", "lr"], "'lr' behind -- is not KEY=VALUE"),
        (["--", "seed=2"], "'seed=2' behind --: use --seed"),
        (["--", "exp_dir=x"], "'exp_dir=x' behind --: use --exp-dir"),
        (["--", "data.dir=x"], "'data.dir=x' behind --: use --data-dir"),
        (["--", "data.labelled.sets=[1h]"], "use --subset"),
        (["--init", "scratch", "--", "pretrain.updates=5"], "this run has no stage of the method pretrain"),
        (["--config", "mini", "--corpus", "librispeech", "--corpus-dir", "nowhere"], "nowhere: no such folder"),
        (["--stage", "4"], "data/mini holds no prepared set 10h (run stage 1"),
        (["--stage", "5"], "holds no trained model (run stage 4)"),
        (["--stage", "6"], "holds no results (run stage 5)"),
    ],
)
def test_refuses_in_one_line(project: Project, arguments: Sequence[str], says: str) -> None:
    assert_refused(project.run(*arguments), says)
    assert project.calls() == []


def test_all_stages_in_order(project: Project) -> None:
    own = ["pretrain.updates=5", "finetune.updates=7", "finetune.mask.time_length=3"]
    done = project.run(*ALL, "--", own[0], "training.threads=1", *own[1:], "x.y=[1,2]")
    assert done.returncode == 0, done.stderr
    assert project.calls() == [
        "prepare mini --corpus-dir corpora/mini --output-dir data/mini",
        f"{TRAIN_PRETRAIN} {own[0]} training.threads=1 x.y=[1,2]",
        f"{TRAIN_1H} training.threads=1 {own[1]} {own[2]} x.y=[1,2]",
        "decode --model exp/a/finetune_1h --data data/mini --sets dev-clean test-clean",
        "score exp/a/finetune_1h/decode/dev-clean/greedy/ref.trans.txt "
        "exp/a/finetune_1h/decode/dev-clean/greedy/hyp.trans.txt --worst 0",
        "results exp/a/finetune_1h/decode --output exp/a/finetune_1h/results.txt",
        "report exp/a/finetune_1h exp/a/pretrain --output exp/a/finetune_1h/report.html",
    ]


def test_a_language_model_of_the_training_transcripts(project: Project) -> None:
    assert project.run(*ALL).returncode == 0
    done = project.run(*ALL, "--stage", "5", "--stop-stage", "5", "--lm", "train")
    assert done.returncode == 0, done.stderr
    model, sets = "exp/a/finetune_1h", "--sets dev-clean test-clean"
    arpa = f"{model}/lm/train_4gram.arpa"
    assert project.calls() == [
        f"decode --model {model} --data data/mini {sets}",
        f"lm train --data data/mini --sets 1h --order 4 --output {arpa}",
        f"decode --model {model} --data data/mini --lm {arpa} --tune-on dev-clean {sets}",
    ]


REFINE = ["--exp-dir", "exp/a", "--method", "wav2vec_s", "--source", "9h"]


def test_a_method_with_a_stage_of_its_own(project: Project) -> None:
    done = project.run(*REFINE, "--subset", "10min", "--", "wav2vec_s.updates=3", "finetune.updates=2", "x.y=1")
    assert done.returncode == 0, done.stderr
    common = "seed=1 data.dir=data/mini init=exp/a"
    tuned = "exp/a/wav2vec_s_9h_finetune_10min"
    assert project.calls()[1:5] == [
        f"{TRAIN_PRETRAIN} x.y=1",
        f"train conf/mini/wav2vec_s_mini.yaml exp_dir=exp/a/wav2vec_s_9h {common}/pretrain data.labelled.sets=[9h] "
        "wav2vec_s.updates=3 x.y=1",
        f"train conf/mini/finetune_mini_10min.yaml exp_dir={tuned} {common}/wav2vec_s_9h finetune.keep_head=true "
        "data.labelled.sets=[10min] finetune.updates=2 x.y=1",
        f"decode --model {tuned} --data data/mini --sets dev-clean test-clean",
    ]
    assert project.calls()[-1] == (f"report {tuned} exp/a/wav2vec_s_9h exp/a/pretrain --output {tuned}/report.html")


def test_a_stage_of_its_own_serves_several_subsets_and_is_never_mixed(project: Project) -> None:
    assert project.run(*REFINE, "--subset", "10min").returncode == 0
    stage = project.calls()[2]
    assert project.run(*REFINE, "--subset", "1h", "--stage", "3").returncode == 0
    assert project.calls()[0] == stage
    assert_refused(project.run(*REFINE, "--subset", "1h", "--stage", "4", "--seed", "2"), "seed '1', not '2'")
    assert_refused(project.run("--exp-dir", "exp/b", *REFINE[2:], "--stage", "4", "--subset", "1h"), "run stage 3)")


def test_the_control_is_the_same_with_labels_alone(project: Project) -> None:
    arguments = ["--exp-dir", "exp/a", "--method", "supervised", "--subset", "1h", "--"]
    done = project.run(*arguments, "supervised.updates=3", "finetune.updates=2")
    assert done.returncode == 0, done.stderr
    stage, last = project.calls()[2:4]
    # The mini corpus has no better source than its 9h.
    assert stage.startswith("train conf/mini/supervised_mini.yaml exp_dir=exp/a/supervised_9h ")
    assert stage.endswith("data.labelled.sets=[9h] finetune.updates=3")
    assert last.startswith("train conf/mini/finetune_mini.yaml exp_dir=exp/a/supervised_9h_finetune_1h ")
    assert last.endswith("finetune.keep_head=true data.labelled.sets=[1h] finetune.updates=2")


def test_the_stage_without_pre_training(project: Project) -> None:
    done = project.run(*REFINE, "--subset", "1h", "--init", "scratch")
    assert done.returncode == 0, done.stderr
    stage, last = project.calls()[1:3]
    assert stage == (
        "train conf/mini/wav2vec_s_scratch_mini.yaml exp_dir=exp/a/wav2vec_s_scratch_9h seed=1 data.dir=data/mini "
        "wav2vec_s.freeze_frontend=false data.labelled.sets=[9h]"
    )
    assert "init=exp/a/wav2vec_s_scratch_9h" in last
    assert project.run(*REFINE, "--subset", "1h").returncode == 0, "beside the run with pre-training"


def test_a_joint_method_is_one_stage(project: Project) -> None:
    done = project.run("--exp-dir", "exp/a", "--method", "bl_just", "--subset", "1h")
    assert done.returncode == 0, done.stderr
    assert project.calls()[1:3] == [
        "train conf/mini/bl_just_mini.yaml exp_dir=exp/a/bl_just_1h seed=1 data.dir=data/mini data.labelled.sets=[1h]",
        "decode --model exp/a/bl_just_1h --data data/mini --sets dev-clean test-clean",
    ]
    assert "Stage 2: skipped" in done.stdout
    assert "Stage 4: skipped" in done.stdout
    assert project.run("--exp-dir", "exp/b", "--subset", "1h", "--stop-stage", "2").returncode == 0
    init = ["--exp-dir", "exp/b", "--method", "bl_just", "--subset", "1h", "--init", "exp/b/pretrain"]
    assert project.run(*init).returncode == 0
    assert "init=exp/b/pretrain" in project.calls()[0]


def test_the_official_language_model_is_decoded_with_where_it_is_at_hand(project: Project) -> None:
    official = ["--corpus", "librispeech", "--config", "mini", "--subset", "100h", "--lm", "official"]
    for part in ("dev-clean", "test-clean", "train-clean-100"):
        (project.folder / "c/LibriSpeech" / part).mkdir(parents=True)
    where = ["--corpus-dir", "c", "--data-dir", "d", "--exp-dir", "exp/a"]
    missing = "c/lm/4-gram.arpa.gz is not there (--download fetches it)"
    assert_refused(project.run(*official, *where), missing)
    (project.folder / "c/lm").mkdir()
    arpa = project.folder / "c/lm/4-gram.arpa.gz"
    arpa.write_bytes(b"")
    done = project.run(*official, *where, "--stop-stage", "5")
    assert done.returncode == 0, done.stderr
    assert project.calls()[-1] == (
        "decode --model exp/a/finetune_100h --data d --lm c/lm/4-gram.arpa.gz --tune-on dev-clean "
        "--sets dev-clean test-clean"
    )
    arpa.unlink()
    refused = project.run(*official, *where, "--stage", "5", "--stop-stage", "5")
    assert_refused(refused, "c/lm/4-gram.arpa.gz is not there (stage 0 with --download fetches it)")


@pytest.mark.parametrize(
    ("stage", "calls"),
    [(0, 0), (1, 1), (2, 1), (3, 0), (4, 1), (5, 1), (6, 3)],
)
def test_each_stage_runs_alone(project: Project, stage: int, calls: int) -> None:
    assert project.run(*ALL).returncode == 0
    whole = project.calls()
    assert project.run(*ALL, "--stage", str(stage), "--stop-stage", str(stage)).returncode == 0
    assert len(project.calls()) == calls
    assert set(project.calls()) <= set(whole)


def test_a_subset_may_have_a_configuration_of_its_own(project: Project) -> None:
    assert project.run("--subset", "10min", "--exp-dir", "exp/a").returncode == 0
    assert project.calls()[2].startswith("train conf/mini/finetune_mini_10min.yaml ")


@pytest.mark.parametrize("subset", ["9h", "10h"])
def test_the_papers_settings_are_a_run_of_their_own(project: Project, subset: str) -> None:
    for follow, config, folder in (("fairseq", "", ""), ("paper", "_10h_paper", "_paper")):
        done = project.run("--subset", subset, "--exp-dir", "exp/a", "--follow", follow)
        assert done.returncode == 0, done.stderr
        trained = [call for call in project.calls() if call.startswith("train conf/mini/finetune")]
        start = f"train conf/mini/finetune_mini{config}.yaml exp_dir=exp/a/finetune_{subset}{folder} "
        assert [call.startswith(start) for call in trained] == [True]
    done = project.run("--exp-dir", "exp/a", "--method", "wav2vec_s", "--source", "9h", "--follow", "paper")
    assert done.returncode == 0, done.stderr
    stage, tuned = [call for call in project.calls() if call.startswith("train conf/mini/")][1:]
    assert stage.startswith("train conf/mini/wav2vec_s_mini.yaml ")
    assert tuned.startswith(
        "train conf/mini/finetune_mini_10h_paper.yaml exp_dir=exp/a/wav2vec_s_9h_finetune_10h_paper "
    )


def test_several_machines_train_together_and_one_does_the_rest(project: Project) -> None:
    several = ["--nnodes", "2", "--nproc", "4", "--master", "first:5000"]
    done = project.run(*REFINE, "--subset", "1h", *several, "--node-rank", "1")
    assert done.returncode == 0, done.stderr
    second = project.calls()
    # It came first, and asked for nothing that the first machine has yet to make.
    assert not (project.folder / "exp/a/pretrain/recipe.settings").exists()
    shutil.rmtree(project.folder / "exp")
    done = project.run(*REFINE, "--subset", "1h", *several, SLURM_NODEID="0")
    assert done.returncode == 0, done.stderr
    first = project.calls()
    torchrun = "torchrun --nnodes 2 --node-rank {} --nproc-per-node 4 --master-addr first --master-port {} "
    torchrun += "--rdzv-conf timeout=86400 "
    launched = [[call for call in calls if call.startswith("torchrun")] for calls in (first, second)]
    assert launched == [[torchrun.format(rank, 5000 + stage) for stage in (2, 3, 4)] for rank in (0, 1)]
    assert [call for call in second if not call.startswith("torchrun")] == [
        call for call in first if call.startswith("train")
    ]
    assert [call.split()[0] for call in first] == [
        "prepare", *("torchrun", "train") * 3, "decode", "score", "results", "report"
    ]  # fmt: skip


def test_init_takes_the_place_of_pre_training(project: Project) -> None:
    assert project.run(*ALL).returncode == 0
    done = project.run("--exp-dir", "exp/b", "--subset", "1h", "--init", "exp/a/pretrain")
    assert done.returncode == 0, done.stderr
    assert project.calls()[0] == TRAIN_1H.replace("exp_dir=exp/a", "exp_dir=exp/b")
    assert "Stage 2: skipped" in done.stdout
    refused = project.run("--exp-dir", "exp/c", "--subset", "1h", "--init", "exp/none")
    assert_refused(refused, "not an experiment folder")


def test_from_scratch_has_a_configuration_of_its_own(project: Project) -> None:
    assert project.run(*ALL, "--init", "scratch").returncode == 0
    assert project.calls()[1] == (
        "train conf/mini/scratch_mini.yaml exp_dir=exp/a/scratch_1h seed=1 data.dir=data/mini data.labelled.sets=[1h]"
    )


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (["--seed", "2"], "seed '1', not '2'"),
        (["--corpus-dir", "elsewhere"], "elsewhere'"),
        (["--stage", "2", "--data-dir", "data/other"], "data/other'"),
        (["--stage", "4", "--seed", "2"], "seed '1', not '2'"),
        (["--stage", "5", "--init", "scratch_"], "init '', not '"),
        (["--stage", "6", "--seed", "2"], "seed '1', not '2'"),
    ],
)
def test_outputs_of_different_settings_are_not_mixed(project: Project, changed: Sequence[str], names: str) -> None:
    assert project.run(*ALL).returncode == 0
    done = project.run(*ALL, *changed)
    assert_refused(done, names)
    assert "choose another" in done.stderr
    assert all(call.startswith("prepare") for call in project.calls())


def test_the_same_settings_go_on(project: Project) -> None:
    assert project.run(*ALL).returncode == 0
    first = project.calls()
    done = project.run(*ALL)
    assert done.returncode == 0
    assert "data/mini is prepared (--stage 1 does it again)" in done.stdout
    assert project.calls() == first[1:]
    assert project.run(*ALL, "--stage", "1").returncode == 0
    assert project.calls() == first


def test_a_corpus_that_has_grown_is_prepared_again(project: Project) -> None:
    assert project.run(*ALL, "--stop-stage", "1").returncode == 0
    (project.folder / "corpora/mini/LibriSpeech/train-clean-360").mkdir(parents=True)
    for count in (1, 0):
        assert project.run(*ALL, "--stop-stage", "1").returncode == 0
        assert len(project.calls()) == count


@pytest.mark.parametrize(
    ("settings", "status", "says"),
    [
        ({"INTERRUPT": "train", "STATUS": "130"}, 130, "interrupted in stage 2; the same command goes on from there"),
        ({"INTERRUPT": "decode", "STATUS": "0"}, 130, "interrupted in stage 5; the same command goes on from there"),
        ({"FAIL": "train", "STATUS": "130"}, 130, "interrupted in stage 2; the same command goes on from there"),
        (
            {"FAIL": "prepare", "STATUS": "1"},
            1,
            "stage 1 failed, see above; once that is mended, the same command goes",
        ),
        ({"FAIL": "train", "STATUS": "137"}, 137, "stage 2 was killed, perhaps for want of memory; the same command"),
    ],
)
def test_a_run_that_ends_early_says_how_to_go_on(
    project: Project, settings: dict[str, str], status: int, says: str
) -> None:
    done = project.run(*ALL, **settings)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert done.stderr.startswith(f"run.sh: {says}")
    stopped_in = settings.get("INTERRUPT", settings.get("FAIL", ""))
    assert project.calls()[-1].startswith(stopped_in)
    assert project.run(*ALL).returncode == 0


def test_a_stage_that_made_nothing_binds_nobody(project: Project) -> None:
    """A mistake in the first run's settings can be mended without removing anything."""
    assert project.run(*ALL, FAIL="train", STATUS="2").returncode == 2
    assert project.run(*ALL, "--seed", "2").returncode == 0


def test_two_runs_do_not_write_into_one_folder(project: Project) -> None:
    (project.folder / "exp/a/pretrain").mkdir(parents=True)
    descriptor = os.open(project.folder / "exp/a/pretrain/.run.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert_refused(project.run(*ALL), "another run is writing to")
    assert project.calls() == ["prepare mini --corpus-dir corpora/mini --output-dir data/mini"]
    os.close(descriptor)
    assert project.run(*ALL).returncode == 0


LIBRISPEECH = ["--corpus", "librispeech", "--config", "mini", "--stop-stage", "0", "--corpus-dir", "c"]


def test_corpus_is_checked_for_what_the_configuration_reads(project: Project) -> None:
    for arguments, part in (
        (["--subset", "1h"], "c/LibriSpeech/dev-clean"),
        (["--subset", "1h"], "c/librispeech_finetuning"),
        (["--subset", "1h"], "c/LibriSpeech/train-clean-100"),
        (["--subset", "1h"], "c/LibriSpeech/test-clean"),
        (["--subset", "960h"], "c/LibriSpeech/train-clean-360"),
        (["--subset", "960h"], "c/LibriSpeech/train-other-500"),
        (["--subset", "1h", "--", "data.dev=[dev-other]"], "c/LibriSpeech/dev-other"),
    ):
        (project.folder / "c" / "LibriSpeech").mkdir(parents=True, exist_ok=True)
        assert_refused(project.run(*LIBRISPEECH, *arguments), "has no folder")
        (project.folder / part).mkdir()
    for subset in ("1h", "100h", "960h"):
        done = project.run(*LIBRISPEECH, "--subset", subset)
        assert done.returncode == 0, done.stderr


def test_what_is_downloaded_is_what_the_run_reads(project: Project) -> None:
    tests = "dev-clean dev-other {}test-clean test-other"
    limited = tests.format("librispeech_finetuning ")
    for arguments, parts in (
        (["--subset", "1h"], f"{limited} train-clean-100"),
        (["--subset", "100h", "--lm", "official"], f"4-gram {tests.format('')} train-clean-100"),
        (["--subset", "960h"], f"{tests.format('')} train-clean-100 train-clean-360 train-other-500"),
        (
            ["--subset", "1h", "--", "units.kind=phone", "units.lexicon=c/lm/librispeech-lexicon.txt"],
            f"{limited.replace(' lib', ' lexicon lib')} train-clean-100",
        ),
    ):
        done = project.run(*LIBRISPEECH, "--download", *arguments)
        assert done.returncode == 0, done.stderr
        assert project.calls() == [f"-m asrkit.data.download --corpus-dir c {parts}"]


def test_a_broken_override_is_one_line(project: Project) -> None:
    (project.folder / "c").mkdir()
    assert_refused(project.run(*LIBRISPEECH, "--", "data.dev=[dev"), "data.dev")


def test_help_names_every_flag(project: Project) -> None:
    done = project.run("--help")
    assert done.returncode == 0
    for flag in (
        "stage",
        "stop-stage",
        "corpus",
        "domain",
        "pretraining",
        "corpus-dir",
        "download",
        "method",
        "config",
        "size",
        "source",
        "subset",
        "init",
        "lm",
        "seed",
        "data-dir",
        "exp-dir",
        "nproc",
        "follow",
        "nnodes",
        "node-rank",
        "master",
    ):
        assert f"--{flag} " in done.stdout or f"--{flag}, " in done.stdout


def test_quickstart_refuses_unknown_arguments() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "quickstart.sh"), "--fast"], capture_output=True, text=True, check=False
    )
    assert_refused(done, "unknown argument '--fast'")


def test_environment_without_a_python_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/env.sh", "scripts/install.sh", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(
        ["bash", "-c", ". scripts/env.sh || exit 7"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHON": "/no/python"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7
    assert (
        done.stderr == "install.sh: PYTHON=/no/python is not a working Python >= 3.10 with its venv and ssl modules\n"
    )
    assert not (tmp_path / ".venv").exists()


def test_another_method_of_pre_training(project: Project) -> None:
    done = project.run(*ALL, "--pretraining", "heterogeneous", "--", "heterogeneous.updates=5", "finetune.updates=6")
    assert done.returncode == 0, done.stderr
    trained = [line for line in project.calls() if line.startswith("train")]
    assert trained[0].startswith("train conf/mini/heterogeneous_mini.yaml exp_dir=exp/a/heterogeneous")
    assert trained[0].endswith("heterogeneous.updates=5")
    assert "init=exp/a/heterogeneous" in trained[1]
    assert trained[1].endswith("finetune.updates=6")
    # What is fine-tuned from one pre-training is not mixed with what is from another.
    assert_refused(project.run(*ALL), "was made with init 'heterogeneous', not ''")
    assert_refused(project.run("--method", "heterogeneous"), "--method heterogeneous: not one of")
    assert_refused(project.run(*ALL, "--", "heterogeneous.updates=5"), "no stage of the method heterogeneous")


def test_a_domain_is_a_corpus_of_its_own(project: Project) -> None:
    assert project.run("--domain", "slow", "--stop-stage", "1").returncode == 0
    assert project.calls() == ["prepare mini --domain slow --corpus-dir corpora/mini_slow --output-dir data/mini_slow"]
    refused = project.run("--domain", "fast", "--stop-stage", "1", "--data-dir", "data/mini_slow")
    assert_refused(refused, "was made with corpus 'mini_slow', not 'mini_fast'")
    assert_refused(project.run("--corpus", "librispeech", "--domain", "slow"), "only the corpus mini has domains")
