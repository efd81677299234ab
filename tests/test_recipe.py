"""The recipe's scripts: in which order they call the commands, and with what."""

from __future__ import annotations

import shutil

import pytest
from recipe_project import ALL, LIBRISPEECH, TRAIN_1H, TRAIN_PRETRAIN, Project, assert_refused


def test_all_stages_in_order(project: Project) -> None:
    own = ["pretrain.updates=5", "finetune.updates=7", "finetune.mask.time_length=3"]
    done = project.run(*ALL, "--", own[0], "training.threads=1", *own[1:], "data.dev=[a,b]")
    assert done.returncode == 0, done.stderr
    assert project.calls() == [
        "prepare mini --corpus-dir corpora/mini --output-dir data/mini",
        f"{TRAIN_PRETRAIN} {own[0]} training.threads=1 data.dev=[a,b]",
        f"{TRAIN_1H} training.threads=1 {own[1]} {own[2]} data.dev=[a,b]",
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
    done = project.run(
        *REFINE, "--subset", "10min", "--", "wav2vec_s.updates=3", "finetune.updates=2", "training.log_every=7"
    )
    assert done.returncode == 0, done.stderr
    common = "seed=1 data.dir=data/mini init=exp/a"
    tuned = "exp/a/wav2vec_s_9h_finetune_10min"
    assert project.calls()[1:5] == [
        f"{TRAIN_PRETRAIN} training.log_every=7",
        f"train conf/mini/wav2vec_s_mini.yaml exp_dir=exp/a/wav2vec_s_9h {common}/pretrain data.labelled.sets=[9h] "
        "wav2vec_s.updates=3 training.log_every=7",
        f"train conf/mini/finetune_mini_10min.yaml exp_dir={tuned} {common}/wav2vec_s_9h finetune.keep_head=true "
        "data.labelled.sets=[10min] finetune.updates=2 training.log_every=7",
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
        "wav2vec_s.freeze_frontend=false wav2vec_s.freeze_updates=0 data.labelled.sets=[9h]"
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
