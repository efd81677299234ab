"""Run a study; called by compare.sh, which says how."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from study import Run, Study, load, points, slug
from study_tables import write_tables

from asrkit.analysis.results import collect, markdown, write_results
from asrkit.errors import AsrkitError
from asrkit.files import write_text
from asrkit.text.speakers import by_speaker, guess_speakers
from asrkit.text.wer import read_transcripts, score

HOME = Path(__file__).resolve().parent
ROOT = HOME.parents[1]


class Runner:
    """Calls run.sh and keeps what it leaves."""

    def __init__(self, study: Study, options: argparse.Namespace) -> None:
        self.study, self.recipes, self.options = study, study.recipes, options
        self.results: Path = options.results_dir

    def everything(self) -> None:
        """Search, then run all seeds."""
        chosen = [name for name in self.recipes if self.options.only in name]
        self._prepare(chosen)
        owners = dict.fromkeys(self.recipes[name].settings_of or name for name in chosen)
        self._all([run for name in owners for run in self._searched(name)], self.study.subsets[:1], "search")
        for name in owners:
            self._choose(name)
        runs = [self._run(name, self._chosen(name), seed) for name in chosen for seed in self.recipes[name].seeds]
        # Seed by seed, so that an early stop leaves all recipes with about as many.
        runs.sort(key=lambda run: run.seed)
        self._all(runs, self.study.subsets, "runs")

    def _prepare(self, names: Sequence[str]) -> None:
        """Prepare the data, and pre-train once for all recipes that start from it, and for each that has its own."""
        starting = [self.recipes[name] for name in names if "--init" not in self.recipes[name].arguments]
        pretrain = any(not recipe.pretraining for recipe in starting)
        shared = ["--stop-stage", "2" if pretrain else "1", "--exp-dir", str(self.options.exp_dir / "shared")]
        self._call([*self.study.arguments, *shared, "--", *self.study.pretraining], "shared")
        own = [name for name in names if self.recipes[name].pretraining]
        with ThreadPoolExecutor(self.options.jobs) as pool:
            list(pool.map(self._pretrain, own))

    def _pretrain(self, name: str) -> None:
        only = ["--stage", "2", "--stop-stage", "2", "--exp-dir", str(self._start(name).parent)]
        overrides = [*self.study.pretraining, *self.recipes[name].pretraining]
        self._call([*self.study.arguments, *only, "--", *overrides], f"{slug(name)}, pre-training")

    def _start(self, name: str) -> Path:
        """Return the pre-trained model that a recipe starts from."""
        return self.options.exp_dir / (slug(name) if self.recipes[name].pretraining else "shared") / "pretrain"

    def _run(self, name: str, point: int, seed: int) -> Run:
        recipe = self.recipes[name]
        stage = (self.recipes[recipe.settings_of] if recipe.settings_of else recipe).stage
        overrides = (*points(self.study, stage)[point], *recipe.overrides)
        arguments = list(recipe.arguments)
        if "--init" not in arguments:
            arguments += ["--init", str(self._start(name))]
        return Run(name, point, seed, tuple(arguments), overrides)

    def _searched(self, name: str) -> list[Run]:
        if self._search_file(name).is_file():
            return []
        choices = points(self.study, self.recipes[name].stage)
        return [self._run(name, point, self.recipes[name].seeds[0]) for point in range(len(choices))]

    def _search_file(self, name: str) -> Path:
        return self.results / slug(name) / "search.json"

    def _choose(self, name: str) -> None:
        """Write down which point of the grid has the lowest WER on dev."""
        if self._search_file(name).is_file():
            return
        tried = []
        for run in self._searched(name):
            result = self._decoded(run, self.study.subsets[0], self.study.search.set or self.study.sets[0])
            tried.append({"settings": list(run.overrides), "wer": json.loads(result.read_text())["wer"]})
        best = min(range(len(tried)), key=lambda point: tried[point]["wer"])
        report = {"set": self.study.search.set, "subset": self.study.subsets[0], "tried": tried, "chosen": best}
        write_text(self._search_file(name), json.dumps(report, indent=1) + "\n")

    def _chosen(self, name: str) -> int:
        owner = self.recipes[name].settings_of or name
        return int(json.loads(self._search_file(owner).read_text())["chosen"])

    def _decoded(self, run: Run, subset: str, name: str) -> Path:
        folders = sorted((self.options.exp_dir / run.folder).glob(f"*_{subset}/decode/{name}/greedy/results.json"))
        if len(folders) != 1:
            raise AsrkitError(f"no results of {name}", where=self.options.exp_dir / run.folder, mend="see its log")
        return folders[0]

    def _kept(self, run: Run, subset: str, name: str) -> Path:
        return self.results / slug(run.recipe) / subset / f"seed{run.seed}" / name / "results.json"

    def _all(self, runs: Sequence[Run], subsets: Sequence[str], what: str) -> None:
        """Run what is not finished, several at a time; the first failure lets those that run end, and no other begin."""
        open_runs = [run for run in runs if not self._finished(run, subsets, what)]
        print(f"{what}: {len(runs)}, of which finished {len(runs) - len(open_runs)}", flush=True)
        with ThreadPoolExecutor(self.options.jobs) as pool:
            futures = [pool.submit(self._carry_out, run, subsets, what) for run in open_runs]
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done() and future.exception() is not None:
                    pool.shutdown(cancel_futures=True)
                    future.result()

    def _finished(self, run: Run, subsets: Sequence[str], what: str) -> bool:
        if what == "search":
            folder = self.options.exp_dir / run.folder
            return any(folder.glob(f"*_{subsets[0]}/decode/{self.study.search.set}/greedy/results.json"))
        return all(self._kept(run, subset, name).is_file() for subset in subsets for name in self.study.sets)

    def _carry_out(self, run: Run, subsets: Iterable[str], what: str) -> None:
        for subset in subsets:
            folder = self.options.exp_dir / run.folder
            arguments = [*self.study.arguments, *run.arguments, "--subset", subset, "--seed", str(run.seed)]
            arguments += ["--stage", "3", "--stop-stage", "5", "--exp-dir", str(folder), "--", *run.overrides]
            self._call(arguments, f"{run.folder}, {subset}")
            if what == "runs":
                for name in self.study.sets:
                    self._keep(run, subset, name)

    def _call(self, arguments: Sequence[str], title: str) -> None:
        log = self.options.exp_dir / "logs" / f"{slug(title)}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        split = arguments.index("--") if "--" in arguments else len(arguments)
        command = ["bash", str(HOME / "run.sh"), *arguments[:split], "--data-dir", str(self.options.data_dir)]
        if self.options.corpus_dir is not None:
            command += ["--corpus-dir", str(self.options.corpus_dir.absolute())]
        threads = str(max(1, len(os.sched_getaffinity(0)) // self.options.jobs))
        with open(log, "a", encoding="utf-8") as file:
            file.write(" ".join(command) + "\n")
            file.flush()
            done = subprocess.run(
                [*command, *arguments[split:]], stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": threads}
            )
        if done.returncode:
            raise AsrkitError(f"run.sh ended with status {done.returncode}", where=log, mend="see the end of that file")
        print(f"  done: {title}", flush=True)

    def _keep(self, run: Run, subset: str, name: str) -> None:
        """Copy a run's results, and each speaker's errors, which the intervals are drawn from."""
        source = self._decoded(run, subset, name).parent
        target = self._kept(run, subset, name)
        hypotheses = read_transcripts(source / "hyp.trans.txt")
        scored = score(read_transcripts(source / "ref.trans.txt"), hypotheses)
        totals = by_speaker(scored, guess_speakers(hypotheses))
        lines = [f"{speaker}\t{counts.word_errors}\t{counts.words}\n" for speaker, counts in sorted(totals.items())]
        write_text(target.with_name("speakers.tsv"), "speaker\terrors\twords\n" + "".join(lines))
        result = json.loads((source / "results.json").read_text(encoding="utf-8"))
        # The folder says nothing to anyone else.
        result["model"] = run.folder
        result["training_seconds"] = self._training_seconds(run, subset)
        write_text(target, json.dumps(result, indent=1) + "\n")

    def _training_seconds(self, run: Run, subset: str) -> float:
        """Return what the run's stages took, as their logs say; the shared pre-training apart."""
        total = 0.0
        for metrics in (self.options.exp_dir / run.folder).glob("*/metrics.jsonl"):
            if metrics.parent.name.endswith(f"_{subset}") or not _is_last_stage(metrics.parent, self.study.subsets):
                rows: list[dict[str, Any]] = [json.loads(line) for line in metrics.read_text().splitlines()]
                total += max((row.get("seconds", 0.0) for row in rows), default=0.0)
        return round(total, 1)


def _is_last_stage(folder: Path, subsets: Iterable[str]) -> bool:
    return any(folder.name.endswith(f"_{subset}") for subset in subsets) and (folder / "decode").is_dir()


def every_table(options: argparse.Namespace) -> None:
    """Write the tables of all studies that have results, and of what decoders.sh kept."""
    others = {name: getattr(options, name) for name in ("only", "corpus_dir", "data_dir", "exp_dir", "results_dir")}
    if not options.tables or any(others.values()):
        raise AsrkitError("compare.sh needs a study", mend="without one it takes --tables and --output alone")
    output = options.output or ROOT / "RESULTS.md"
    for path in sorted((HOME / "studies").glob("*.yaml")):
        name, study = load(str(path), HOME)
        if any((HOME / "results" / name).rglob("results.json")):
            write_tables(name, study, HOME / "results" / name, output)
    if (HOME / "results" / "decoding").is_dir():
        write_results(output, markdown(collect([HOME / "results" / "decoding"])))


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="compare.sh", add_help=False)
    parser.add_argument("study", nargs="?")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="")
    for name in ("--corpus-dir", "--data-dir", "--exp-dir", "--results-dir", "--output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    try:
        if options.study is None:
            every_table(options)
            return 0
        name, study = load(options.study, HOME)
        options.data_dir = (options.data_dir or ROOT / "data" / name).absolute()
        options.exp_dir = (options.exp_dir or ROOT / "exp" / name).absolute()
        options.results_dir = (options.results_dir or HOME / "results" / name).absolute()
        if options.jobs < 1:
            raise AsrkitError(f"--jobs {options.jobs}: at least 1")
        if shutil.which("asrkit") is None and not options.tables:
            raise AsrkitError("the command asrkit is not installed", mend="bash scripts/install.sh")
        if not options.tables:
            Runner(study, options).everything()
        write_tables(name, study, options.results_dir, options.output or ROOT / "RESULTS.md")
    except AsrkitError as error:
        print(f"compare.sh: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
