"""Run a study; called by compare.sh, which says how."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

from keeping import CURVE, keep, keep_curve
from study import Pretraining, Run, Study, load, points, pretraining_of, slug
from study_tables import write_tables

from asrkit.analysis.results import collect, markdown, write_results
from asrkit.errors import AsrkitError
from asrkit.files import write_text

HOME = Path(__file__).resolve().parent
ROOT = HOME.parents[1]


class Runner:
    """Calls run.sh and keeps what it leaves."""

    def __init__(self, study: Study, options: argparse.Namespace) -> None:
        self.study, self.recipes, self.options = study, study.recipes, options
        self.results: Path = options.results_dir

    def everything(self) -> None:
        """Prepare, pre-train, search, then run all seeds."""
        chosen = [name for name in self.recipes if self.options.only in name]
        if not chosen:
            raise AsrkitError(f"--only {self.options.only}: no such recipe", mend=", ".join(self.recipes))
        searching = bool(self.study.search.grid)
        if searching and self.options.part != (1, 1):
            raise AsrkitError("--part: this study searches first, which parts cannot share")
        owners = dict.fromkeys(self.recipes[name].settings_of or name for name in chosen) if searching else {}
        self._prepare()
        if self.options.prepare:
            return
        tried = [run for name in owners for run in self._searched(name)]
        # Seed by seed, so that an early stop leaves all recipes with about as many.
        conditions = self.study.conditions
        plan = [(name, here, seed) for name in chosen for here in conditions for seed in self.recipes[name].seeds]
        plan.sort(key=lambda one: one[2])
        part, parts = self.options.part
        # Conditions and seeds that share a pre-training belong to one part.
        groups = {(condition, seed): self._shared_by(condition, seed) for _, condition, seed in plan}
        mine = list(dict.fromkeys(groups.values()))[part - 1 :: parts]
        plan = [one for one in plan if groups[one[1:]] in mine]
        self._pretrain([run.pretraining for run in [*tried, *(self._run(*one[:2], 0, one[2]) for one in plan)]])
        if searching:
            self._all(tried, self.study.subsets[:1], "search")
        for name in owners:
            self._choose(name)
        runs = [self._run(name, condition, self._chosen(name), seed) for name, condition, seed in plan]
        self._all(runs, self.study.subsets, "runs")

    def _shared_by(self, condition: str, seed: int) -> tuple[str, ...]:
        """Return the pre-trainings that a condition's runs with a seed start from; the two themselves without any."""
        starts = (self._run(name, condition, 0, seed).pretraining for name in self.recipes)
        folders = sorted({start.folder for start in starts if start is not None})
        return tuple(folders) or (condition, str(seed))

    def _prepare(self) -> None:
        """Fetch or look for, and prepare, the data of all conditions: also the sets that only one of them names."""
        wanted: dict[tuple[str, ...], str] = {}
        for key, one in self.study.conditions.items():
            wanted.setdefault((one.data, *(word for word in one.pretraining if ".sets=" in word)), key)
        for (name, *sets), condition in wanted.items():
            shared = ["--stop-stage", "1", "--exp-dir", str(self.options.exp_dir / "shared"), "--", *sets]
            self._call([*self.study.arguments, *shared], f"data {name}".strip(), condition)

    def _pretrain(self, wanted: Iterable[Pretraining | None]) -> None:
        """Do the pre-trainings that runs start from."""
        calls = []
        for one in dict.fromkeys(one for one in wanted if one is not None):
            stage = ["--stage", "2", "--stop-stage", "2", "--seed", str(one.seed)]
            place = ["--exp-dir", str(self.options.exp_dir / one.folder), "--", *one.overrides]
            calls.append(partial(self._call, [*self.study.arguments, *stage, *place], one.folder, one.condition))
        self._at_once(calls)

    def _run(self, name: str, condition: str, point: int, seed: int) -> Run:
        recipe = self.recipes[name]
        stage = (self.recipes[recipe.settings_of] if recipe.settings_of else recipe).stage
        here = self.study.conditions[condition].overrides
        overrides = (*points(self.study, stage)[point], *self.study.overrides, *recipe.overrides, *here)
        start = None if "--init" in recipe.arguments else pretraining_of(self.study, name, condition, seed)
        return Run(name, condition, point, seed, start, tuple(recipe.arguments), overrides)

    def _searched(self, name: str) -> list[Run]:
        """Return the runs of a search that has not chosen yet."""
        choices = points(self.study, self.recipes[name].stage)
        first = next(iter(self.study.conditions))
        runs = [self._run(name, first, point, self.recipes[name].seeds[0]) for point in range(len(choices))]
        file = self._search_file(name)
        if not file.is_file():
            return runs
        if [tuple(point["settings"]) for point in json.loads(file.read_text())["tried"]] != [r.overrides for r in runs]:
            raise AsrkitError("chose among other settings than the study's", where=file, mend="remove it and the runs")
        return []

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
        if not self.study.search.grid:
            return 0
        owner = self.recipes[name].settings_of or name
        return int(json.loads(self._search_file(owner).read_text())["chosen"])

    def _decoded(self, run: Run, subset: str, name: str) -> Path:
        folders = sorted((self.options.exp_dir / run.folder).glob(f"*_{subset}/decode/{name}/greedy/results.json"))
        if len(folders) != 1:
            raise AsrkitError(f"no results of {name}", where=self.options.exp_dir / run.folder, mend="see its log")
        return folders[0]

    def _kept(self, run: Run, subset: str, name: str) -> Path:
        return self.results / run.cell / subset / f"seed{run.seed}" / name / "results.json"

    def _all(self, runs: Sequence[Run], subsets: Sequence[str], what: str) -> None:
        """Run what is not finished."""
        open_runs = [run for run in runs if not self._finished(run, subsets, what)]
        print(f"{what}: {len(runs)}, of which finished {len(runs) - len(open_runs)}", flush=True)
        self._at_once([partial(self._carry_out, run, subsets, what) for run in open_runs])

    def _at_once(self, calls: Sequence[Callable[[], None]]) -> None:
        """Do several things at a time; a failure or an interruption lets those that run end, and no other begin."""
        pool = ThreadPoolExecutor(self.options.jobs)
        futures = [pool.submit(call) for call in calls]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)
        for future in futures:
            if not future.cancelled():
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
            pretrained = self._pretrained(run)
            if pretrained is not None:
                arguments += ["--init", str(pretrained)]
            arguments += ["--stage", "3", "--stop-stage", "5", "--exp-dir", str(folder), "--", *run.overrides]
            self._call(arguments, f"{run.folder}, {subset}", run.condition)
            if what == "runs":
                self._keep(run, subset)

    def _pretrained(self, run: Run) -> Path | None:
        """Return the experiment that stage 2 made for a run; its name is that of the method."""
        if run.pretraining is None:
            return None
        folders = sorted((self.options.exp_dir / run.pretraining.folder).glob("*/checkpoints/last"))
        if len(folders) != 1:
            raise AsrkitError(
                "no pre-trained model", where=self.options.exp_dir / run.pretraining.folder, mend="see its log"
            )
        return folders[0].parents[1]

    def _call(self, arguments: Sequence[str], title: str, condition: str) -> None:
        log = self.options.exp_dir / "logs" / f"{slug(title)}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        here = self.study.conditions[condition]
        split = arguments.index("--") if "--" in arguments else len(arguments)
        command = ["bash", str(HOME / "run.sh"), *arguments[:split], *here.arguments, *self.options.run_arguments]
        command += ["--data-dir", str(self.options.data_dir / here.data)]
        if self.options.corpus_dir is not None:
            command += ["--corpus-dir", str(self.options.corpus_dir.absolute() / here.data)]
        overrides = [word.replace("DATA/", f"{self.options.data_dir}/") for word in arguments[split:]]
        threads = str(max(1, len(os.sched_getaffinity(0)) // self.options.jobs))
        with open(log, "a", encoding="utf-8") as file:
            file.write(" ".join(command) + "\n")
            file.flush()
            done = subprocess.run(
                [*command, *overrides], stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": threads}
            )
        if done.returncode:
            raise AsrkitError(f"run.sh ended with status {done.returncode}", where=log, mend="see the end of that file")
        print(f"  done: {title}", flush=True)

    def _keep(self, run: Run, subset: str) -> None:
        """Keep a run's results, and how it came there."""
        folder = self.options.exp_dir / run.folder
        last = self._decoded(run, subset, self.study.sets[0]).parents[3]
        others = [
            path.parent
            for path in folder.glob("*/metrics.jsonl")
            if not _is_last_stage(path.parent, self.study.subsets)
        ]
        stages = [*sorted(others), last]
        for name in self.study.sets:
            target = self._kept(run, subset, name)
            # Without a curve a run is not finished yet, so it comes before the results.
            keep_curve(stages, target.parents[1] / CURVE)
            keep(run, self._decoded(run, subset, name).parent, target, stages, self._pretrained(run))


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


def _part(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise AsrkitError(f"--part {text}: such as 2/9, the second of nine")


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="compare.sh", add_help=False)
    parser.add_argument("study", nargs="?")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="")
    for name in ("--corpus-dir", "--data-dir", "--exp-dir", "--results-dir", "--output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--part", default="1/1")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:split])
    options.run_arguments = sys.argv[split + 1 :]
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
        options.part = _part(options.part)
        if not options.tables:
            Runner(study, options).everything()
        if options.prepare or (options.part != (1, 1) and not options.tables):
            return 0
        write_tables(name, study, options.results_dir, options.output or ROOT / "RESULTS.md")
    except (AsrkitError, OSError) as error:
        print(f"compare.sh: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("compare.sh: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
