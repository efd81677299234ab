"""compare.sh: it searches on dev alone, runs every seed once, and writes its tables from what it kept.

The real run.sh runs, with a stand-in for the command asrkit whose models make errors that depend on their settings.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from recipe_project import write_configuration

ROOT = Path(__file__).parents[1]
HOME = ROOT / "examples" / "librispeech"
sys.path.insert(0, str(HOME))

from study import load, points, slug  # noqa: E402

STUB = r"""
import json, os, signal, sys, time
from pathlib import Path
with open(os.environ["CALLS"], "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\n")
command, settings = sys.argv[1], dict(word.split("=", 1) for word in sys.argv[2:] if "=" in word)
if command == "prepare":
    data = Path(sys.argv[sys.argv.index("--output-dir") + 1])
    for name in ("1h", "9h", "10min", "dev-clean", "test-clean"):
        (data / name).mkdir(parents=True, exist_ok=True)
        (data / name / "set.json").write_text("{}")
if command == "train":
    exp = Path(settings["exp_dir"])
    (exp / "checkpoints").mkdir(parents=True, exist_ok=True)
    (exp / "checkpoints" / "last").write_text("step_1.pt")
    (exp / "config.yaml").write_text("method: x")
    rows = [{"step": 10, "seconds": 30.0}, {"step": 10, "seconds": 31.0, "dev/wer": 0.9}, {"step": 20, "seconds": 60.0}]
    rows.append({"step": 20, "seconds": 60.0, "dev/wer": 0.2 * int(settings["seed"])})
    (exp / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (exp / "settings.json").write_text(json.dumps(settings))
    if os.environ.get("FAIL", "no such folder") in str(exp):
        sys.exit(1)
    if os.environ.get("INTERRUPT", "no such folder") in str(exp):
        # As Ctrl-C at a terminal: all processes of the group hear it.
        os.killpg(0, signal.SIGINT)
        time.sleep(60)
if command == "decode":
    exp = Path(sys.argv[sys.argv.index("--model") + 1])
    settings = json.loads((exp / "settings.json").read_text())
    rate = float(settings.get("finetune.schedule.learning_rate", 0.003))
    for name in ("dev-clean", "test-clean"):
        folder = exp / "decode" / name / "greedy"
        folder.mkdir(parents=True, exist_ok=True)
        # On dev the higher rate is better, on test the lower; a stage of its own helps.
        wrong = (4 if (rate > 0.0015) == (name == "test-clean") else 2) - ("init=" in " ".join(sys.argv))
        wrong -= "wav2vec_s" in str(exp)
        wrong += int(settings["seed"]) - 1
        ref = {f"{speaker}-{n}": "A B C D" for speaker in (11, 12, 13) for n in range(4)}
        hyp = {key: "A B C X" if n < 3 * wrong and n % 2 else "A B C D" for n, key in enumerate(ref)}
        for kind, texts in (("ref", ref), ("hyp", hyp)):
            (folder / f"{kind}.trans.txt").write_text("".join(f"{k} {v}\n" for k, v in texts.items()))
        errors = sum(text.endswith("X") for text in hyp.values())
        result = {"set": name, "corpus": "mini", "wer": errors / 48, "cer": errors / 96, "words": 48, "utterances": 12}
        result |= {"substitutions": errors, "deletions": 0, "insertions": 0, "decoder": "greedy", "lm": None}
        result |= {"recipe": "pretrain+finetune", "method": "finetune", "source": None, "subset": "1h", "updates": 3}
        result |= {"model": str(exp), "seed": int(settings["seed"]), "seconds": 1.0, "audio_seconds": 9.0}
        result |= {"hardware": "abacus", "commit": "c0ffee"}
        (folder / "results.json").write_text(json.dumps(result))
"""

STUDY = {
    "title": "A study",
    "arguments": ["--corpus", "mini", "--config", "mini", "--size", "mini"],
    "pretraining": ["pretrain.updates=9"],
    "subsets": ["10min", "1h"],
    "sets": ["dev-clean", "test-clean"],
    "search": {
        "set": "dev-clean",
        "grid": [
            ["STAGE.schedule.learning_rate=1e-3", "STAGE.schedule.learning_rate=2e-3"],
            ["STAGE.a=1 STAGE.b=2"],
        ],
    },
    "pairs": [["wav2vec-S", "plain"]],
    "recipes": {
        "plain": {"stage": "finetune", "seeds": [1, 2], "arguments": ["--method", "finetune"]},
        "wav2vec-S": {"stage": "wav2vec_s", "seeds": [1, 2], "arguments": ["--method", "wav2vec_s", "--source", "9h"]},
        "ablated": {
            "settings_of": "plain",
            "seeds": [1],
            "arguments": ["--method", "finetune", "--init", "scratch"],
            "overrides": ["finetune.c=3"],
        },
    },
}


class Project:
    """A copy of the examples with a stand-in for asrkit, and a study."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "examples", folder / "examples")
        self.kept = folder / "examples" / "librispeech" / "results" / "study"
        shutil.rmtree(self.kept.parent, ignore_errors=True)
        (folder / "conf" / "mini").mkdir(parents=True)
        for name in ("pretrain", "heterogeneous", "finetune", "scratch", "wav2vec_s"):
            write_configuration(folder / "conf" / "mini" / f"{name}_mini.yaml")
        stub = folder / ".venv" / "bin" / "asrkit"
        stub.parent.mkdir(parents=True)
        stub.write_text(f"#!{sys.executable}\n{STUB}")
        stub.chmod(0o755)
        # Reading configurations takes seconds, and has a test of its own.
        python = stub.with_name("python")
        python.write_text(f'#!/bin/sh\ncase $1 in */check.py) exit 0 ;; esac\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        self.write(STUDY)
        (folder / "RESULTS.md").write_text(
            "# Ours\n\nbefore\n\n<!-- asrkit results study: begin; what stands between these two lines is overwritten -->\n"
            "<!-- asrkit results study: end -->\n\nafter\n"
        )

    def write(self, study: dict[str, object]) -> None:
        path = self.folder / "examples" / "librispeech" / "studies" / "study.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))

    def run(self, *arguments: str, study: str = "study", **settings: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "calls").write_text("")
        return subprocess.run(
            ["bash", str(self.folder / "examples" / "librispeech" / "compare.sh"), *filter(None, [study]), *arguments],
            cwd=self.folder,
            env={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "CALLS": str(self.folder / "calls"),
                **settings,
            },
            # A group of its own, which Ctrl-C reaches; a shell in the background may have been told to pass over it.
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            capture_output=True,
            text=True,
            check=False,
        )

    def trained(self) -> list[str]:
        """The experiments that were trained, in order."""
        lines = (self.folder / "calls").read_text().splitlines()
        found = [
            word for line in lines if line.startswith("train") for word in line.split() if word.startswith("exp_dir=")
        ]
        return [word.removeprefix(f"exp_dir={self.folder}/exp/study/") for word in found]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("study"))
    finished = project.run("--jobs", "2")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return project


def test_every_recipe_searches_by_the_same_grid_on_dev(done: Project) -> None:
    for recipe, stage in (("plain", "finetune"), ("wav2vec_s", "wav2vec_s")):
        report = json.loads((done.kept / recipe / "search.json").read_text())
        assert (report["set"], report["subset"]) == ("dev-clean", "10min")
        assert [point["settings"] for point in report["tried"]] == [
            [f"{stage}.schedule.learning_rate={rate}", f"{stage}.a=1", f"{stage}.b=2"] for rate in ("1e-3", "2e-3")
        ]
    plain = json.loads((done.kept / "plain" / "search.json").read_text())
    # On test, the first would have been better.
    assert plain["chosen"] == 1
    assert plain["tried"][0]["wer"] > plain["tried"][1]["wer"]
    assert not (done.kept / "ablated" / "search.json").exists()


def test_each_run_is_made_once_with_what_was_chosen(done: Project) -> None:
    trained = done.trained()
    assert trained[0] == "shared/pretrain"
    assert sum("plain/point0" in name for name in trained) == 1, "the search alone"
    assert {name for name in trained if "plain/point1" in name} == {
        f"plain/point1_seed{seed}/finetune_{subset}" for seed in (1, 2) for subset in ("10min", "1h")
    }
    calls = (done.folder / "calls").read_text()
    ablated = next(line for line in calls.splitlines() if "ablated/point1_seed1/scratch_1h" in line)
    assert ablated.endswith("finetune.schedule.learning_rate=2e-3 finetune.a=1 finetune.b=2 finetune.c=3")
    assert "init=" not in ablated
    assert f"init={done.folder}/exp/study/shared/pretrain" in calls


def test_results_are_kept_small_and_without_machine_paths(done: Project) -> None:
    kept = sorted(str(path.relative_to(done.kept)) for path in done.kept.rglob("results.json"))
    assert len(kept) == 2 * 2 * (2 + 2 + 1)
    assert "plain/1h/seed2/test-clean/results.json" in kept
    for path in done.kept.rglob("*.json"):
        assert str(done.folder) not in path.read_text()
    speakers = (done.kept / "plain/1h/seed1/dev-clean/speakers.tsv").read_text().splitlines()
    assert [line.split("\t")[::2] for line in speakers] == [
        ["speaker", "words"],
        ["11", "16"],
        ["12", "16"],
        ["13", "16"],
    ]


def test_the_tables_come_from_the_kept_results_alone(done: Project, tmp_path: Path) -> None:
    text = (done.folder / "RESULTS.md").read_text()
    assert text.startswith("# Ours\n\nbefore\n")
    assert text.endswith("after\n")
    assert "### test-clean, labels 1h" in text
    assert "abacus" in text
    assert text.count("*wav2vec-S* against *plain*: ") == 4
    row = next(line for line in text.split("### test-clean, labels 1h")[1].splitlines() if line.startswith("| plain"))
    rates = [
        json.loads((done.kept / f"plain/1h/seed{seed}/test-clean/results.json").read_text())["wer"] for seed in (1, 2)
    ]
    assert f"{100 * sum(rates) / 2:.2f} ± " in row
    assert row.rstrip(" |").endswith("1.0"), "minutes"
    assert (done.kept / "plot.png").read_bytes().startswith(b"\x89PNG")
    shutil.rmtree(done.folder / "exp")
    again = done.run("--tables")
    assert again.returncode == 0, again.stderr
    assert (done.folder / "RESULTS.md").read_text() == text
    assert done.trained() == []
    write = done.folder / "RESULTS.md"
    write.write_text(text.replace("abacus", "slide rule"))
    every = done.run("--tables", study="")
    assert every.returncode == 0, every.stderr
    assert write.read_text() == text
    # The plot may be drawn from what was kept in another way.
    done.write({**STUDY, "plot": "minutes"})
    curves = done.run("--tables")
    assert curves.returncode == 0, curves.stderr
    assert "Word error rates on dev over minutes of training" in write.read_text()
    assert "compare.sh needs a study" in done.run("--jobs", "2", study="").stderr


def test_what_is_finished_is_skipped_and_a_failure_is_told_in_one_line(tmp_path: Path) -> None:
    project = Project(tmp_path)
    failed = project.run(FAIL="wav2vec_s")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert ".log: " in failed.stderr
    assert "plain/point0_seed1/finetune_10min" in project.trained()
    assert project.run().returncode == 0
    assert "plain/point0_seed1/finetune_10min" not in project.trained()
    assert project.run().returncode == 0
    assert project.trained() == ["shared/pretrain"], "which says itself that it is complete"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipes": {"x": {"stage": "finetune"}}}, "the recipe 'x' needs seeds"),
        ({"recipes": {"x": {"stage": "a", "seeds": [1], "settings_of": "y"}}}, "takes its settings of 'y'"),
        ({"recipes": {}}, "a study needs recipes"),
        ({"colour": "red"}, "colour"),
        ({"plot": "pie"}, "plot is 'pie'"),
        ({"pairs": [["plain", "unknown"]]}, "pairs holds lists of two"),
    ],
)
def test_a_wrong_study_is_one_line(tmp_path: Path, change: dict[str, object], says: str) -> None:
    project = Project(tmp_path)
    project.write({**STUDY, **change})
    done = project.run()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert says in done.stderr
    assert project.trained() == []


CONDITIONS = {
    **STUDY,
    "arguments": [*STUDY["arguments"], "--pretraining", "heterogeneous"],  # type: ignore[misc]
    "pretraining": ["heterogeneous.updates=9", "data.sources.far.dir=DATA/far"],
    "pretraining_per_seed": True,
    "overrides": ["training.validate_every=10"],
    "subsets": ["1h"],
    "search": {},
    "pairs": [["own start", "plain"]],
    "axis": "place",
    "target_wer": 30,
    "plot": "all_updates",
    "conditions": {
        "near": {"data": "near", "arguments": ["--domain", "slow"]},
        "far": {"data": "far", "arguments": ["--domain", "fast"], "overrides": ["finetune.c=4"]},
    },
    "recipes": {
        "plain": {"stage": "finetune", "seeds": [1, 2], "arguments": ["--method", "finetune"]},
        "own start": {
            "stage": "wav2vec_s",
            "seeds": [1, 2],
            "arguments": ["--method", "wav2vec_s", "--source", "9h"],
            "pretraining": ["heterogeneous.inner.steps=3"],
        },
        "scratch": {"stage": "finetune", "seeds": [1], "arguments": ["--method", "finetune", "--init", "scratch"]},
    },
}


@pytest.fixture(scope="module")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("conditions"))
    project.write(CONDITIONS)
    finished = project.run("--jobs", "2", "--", "--nnodes", "1")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return project


def test_every_condition_has_its_data_and_recipes_their_pre_trainings(conditions: Project) -> None:
    trained = conditions.trained()
    starts = [name for name in trained if name.startswith("shared")]
    assert sorted(starts) == [
        "shared_own_start_seed1/heterogeneous",
        "shared_own_start_seed2/heterogeneous",
        "shared_seed1/heterogeneous",
        "shared_seed2/heterogeneous",
    ]
    # The stage of its own and the fine-tuning.
    assert len(trained) == 4 + 2 * 2 + 2 * 2 * 2 + 2
    calls = (conditions.folder / "calls").read_text().splitlines()
    data = f"{conditions.folder}/data/study"
    prepared = [line for line in calls if line.startswith("prepare")]
    assert ["--domain slow" in line and f"{data}/near" in line for line in prepared] == [True, False]
    assert "--domain fast" in prepared[1]
    (start,) = (line for line in calls if "exp_dir=" in line and "shared_own_start_seed2/heterogeneous seed" in line)
    assert f"seed=2 data.dir={data}/near heterogeneous.updates=9 data.sources.far.dir={data}/far" in start
    assert start.endswith("heterogeneous.inner.steps=3")
    (run,) = (
        line
        for line in calls
        if "own_start/far/point0_seed2/wav2vec_s_9h_finetune_1h" in line and line.startswith("train")
    )
    assert run.endswith("training.validate_every=10 finetune.c=4")
    (stage,) = (line for line in calls if "own_start/far/point0_seed2/wav2vec_s_9h seed=2" in line)
    assert f"init={conditions.folder}/exp/study/shared_own_start_seed2/heterogeneous" in stage
    assert f"data.dir={data}/far" in stage


def test_sets_that_a_condition_names_are_looked_for_at_first(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (tmp_path / "conf" / "librispeech").mkdir()
    for name in ("pretrain", "finetune"):
        write_configuration(tmp_path / "conf" / "librispeech" / f"{name}_small.yaml")
    for part in ("train-clean-100", "dev-clean", "test-clean"):
        (tmp_path / "c" / "LibriSpeech" / part).mkdir(parents=True)
    (tmp_path / "c" / "librispeech_finetuning").mkdir()
    more = {"pretraining": ["data.unlabelled.sets=[train-clean-100,train-clean-360]"]}
    study = {**CONDITIONS, "arguments": ["--corpus", "librispeech", "--size", "small"], "pretraining": []}
    project.write({**study, "conditions": {"100 h": {}, "460 h": more}})
    refused = project.run("--corpus-dir", str(tmp_path / "c"))
    assert refused.returncode == 2
    assert "has no folder train-clean-360" in (tmp_path / "exp" / "study" / "logs" / "data.log").read_text()
    assert project.trained() == []


def test_a_study_with_conditions_has_one_table_and_curves(conditions: Project) -> None:
    text = (conditions.folder / "RESULTS.md").read_text()
    table = text.split("### test-clean, labels 1h")[1]
    rows = {
        (cells[0], cells[1]): cells[2:]
        for cells in (
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if " | " in line
        )
    }
    assert list(rows)[2:] == [(c, r) for c in ("near", "far") for r in ("plain", "own start", "scratch")]
    # WER, n, updates to the target, with pre-training, all updates, minutes of either.
    assert rows["far", "plain"][1:] == ["2", "20 (1 of 2)", "40 (1 of 2)", "20", "1.0", "1.0"]
    assert rows["near", "own start"][1:] == ["2", "20 (1 of 2)", "40 (1 of 2)", "40", "2.0", "1.0"]
    assert rows["near", "scratch"][1:] == ["1", "20", "20", "20", "1.0", "0.0"]
    compared = re.findall(r"\*(\w+), own start\* against \*plain\*: .* % interval (\S+) to (\S+) points", table)
    assert [place for place, *_ in compared] == ["near", "far"]
    assert all(float(low) <= float(high) for _, low, high in compared)
    curve = (conditions.kept / "own_start" / "far" / "1h" / "seed1" / "curve.tsv").read_text().splitlines()
    assert curve == [
        "updates\tseconds\twer",
        "10\t31.0\t0.90000",
        "20\t60.0\t0.20000",
        "30\t91.0\t0.90000",
        "40\t120.0\t0.20000",
    ]
    assert (conditions.kept / "plot.png").read_bytes().startswith(b"\x89PNG")
    shutil.rmtree(conditions.folder / "exp")
    again = conditions.run("--tables")
    assert again.returncode == 0, again.stderr
    assert (conditions.folder / "RESULTS.md").read_text() == text


@pytest.mark.parametrize("chosen_on", ["", "test-clean"])
def test_nothing_is_chosen_on_test(tmp_path: Path, chosen_on: str) -> None:
    project = Project(tmp_path)
    project.write({**STUDY, "search": {**STUDY["search"], "set": chosen_on}})
    refused = project.run()
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"search.set is '{chosen_on}'" in refused.stderr


def test_a_recipe_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    project = Project(tmp_path)
    refused = project.run("--only", "wav2vecS")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--only wav2vecS: no such recipe (plain, wav2vec-S, ablated)" in refused.stderr
    assert (tmp_path / "calls").read_text() == ""
    assert project.run("--prepare", "--exp-dir", str(tmp_path / "calls")).stderr.count("\n") == 1
    assert "--tables" in project.run("--help").stdout


def test_after_an_interruption_nothing_begins(tmp_path: Path) -> None:
    project = Project(tmp_path)
    stopped = project.run(INTERRUPT="plain/point0_seed1")
    assert stopped.returncode == 130
    assert stopped.stderr == "compare.sh: interrupted; the same command goes on\n"
    assert [name for name in project.trained() if not name.startswith("shared")] == [
        "plain/point0_seed1/finetune_10min"
    ]


def test_a_choice_among_other_settings_is_not_taken_over(tmp_path: Path) -> None:
    project = Project(tmp_path)
    file = project.kept / "plain" / "search.json"
    file.parent.mkdir(parents=True)
    tried = [{"settings": ["finetune.schedule.learning_rate=5e-3"], "wer": 0.1}]
    file.write_text(json.dumps({"set": "dev-clean", "subset": "10min", "tried": tried, "chosen": 0}))
    refused = project.run()
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"{file}: chose among other settings" in refused.stderr
    assert project.trained() == []


def test_what_is_kept_was_chosen_among_the_settings_of_its_study() -> None:
    kept = sorted((HOME / "results").glob("*/*/search.json"))
    assert kept
    for file in kept:
        study = load(file.parents[1].name, HOME)[1]
        (name,) = (name for name in study.recipes if slug(name) == file.parent.name)
        recipe = study.recipes[name]
        settings = [[*point, *study.overrides, *recipe.overrides] for point in points(study, recipe.stage)]
        assert [point["settings"] for point in json.loads(file.read_text())["tried"]] == settings


def test_parts_are_the_whole_and_leave_the_tables_alone(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write(CONDITIONS)
    before = (tmp_path / "RESULTS.md").read_text()
    assert project.run("--prepare").returncode == 0
    assert project.trained() == []
    trained: list[str] = []
    seeds = []
    for part in (1, 2, 3):
        done = project.run("--part", f"{part}/3")
        assert done.returncode == 0, done.stderr
        mine = [name for name in project.trained() if not name.startswith("shared")]
        trained += mine
        seeds.append({name.split("_seed")[1][0] for name in mine})
    assert seeds == [{"1"}, {"2"}, set()], "what shares a pre-training is one part"
    assert len(trained) == len(set(trained)) == 2 * 2 + 2 * 2 * 2 + 2
    assert (tmp_path / "RESULTS.md").read_text() == before
    assert project.run().returncode == 0
    assert not [name for name in project.trained() if not name.startswith("shared")], "nothing is left to do"
    for wrong in ("0/3", "4/3", "x", "1"):
        assert "--part" in project.run("--part", wrong).stderr
    project.write(STUDY)
    refused = project.run("--part", "1/2")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "searches first" in refused.stderr
