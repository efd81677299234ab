"""Set the results of full-size runs beside the published ones: `python full_size.py [--exp-dir DIR …] [--output FILE]`.

What is to be run, and what was published, is in full_size.yaml. Runs are looked for where the commands on the page put them,
in DIR/full_SIZE_seedN; those that are not there are listed as not run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asrkit import config as configuration
from asrkit.analysis.results import Result, collect, markdown_table, write_results
from asrkit.errors import AsrkitError

HOME = Path(__file__).resolve().parent
ROOT = HOME.parents[1]
LM_FILES = {"no LM": None, "4-gram": "4-gram.arpa.gz"}
"""What asrkit decodes with, by the name of the column."""
NOT_RUN = "not run"
SEEDS = "1 2 3"


@dataclass
class Checkpoint:
    """A model to start from."""

    source: str
    """What `asrkit import` takes."""
    speech: str
    """What it was pre-trained on."""


@dataclass
class Run:
    """A recipe of run.sh."""

    folder: str
    """The model's folder in the experiment's; {subset} stands for the labels."""
    arguments: str
    """Of run.sh, beside those that all runs have."""
    subsets: list[str] = field(default_factory=lambda: ["10min", "1h", "10h", "100h", "960h"])
    """Labels that it is run with."""
    from_checkpoint: bool = True
    """Whether it starts from the checkpoint rather than from random weights."""
    published: bool = False
    """Whether the published figures are of this recipe."""


@dataclass
class Plan:
    """full_size.yaml."""

    sets: dict[str, int]
    """Utterances of each set."""
    checkpoints: dict[str, Checkpoint]
    """By size."""
    published: dict[str, dict[str, dict[str, list[float]]]]
    """Word error rates in percent on the sets, by size, subset and decoding."""
    weights: dict[str, dict[str, list[float]]]
    """Published weights of the language models and word scores, by subset and decoding."""
    runs: dict[str, Run]
    """By title."""


def page(plan: Plan, roots: Sequence[Path]) -> str:
    """Return the tables and commands in Markdown."""
    order = " / ".join(plan.sets)
    parts = [f"Word error rates in percent on {order}; of asrkit the mean over n seeds.\n"]
    for size, checkpoint in plan.checkpoints.items():
        published = size in plan.published
        parts.append(
            f"## {size}\n\nFine-tuning starts from `{checkpoint.source}`, pre-trained on {checkpoint.speech}.\n"
        )
        if not published:
            parts.append("Of this size no published figures stand here: the tables could not be checked.\n")
        headings = ["labels", "recipe"]
        for decoding in LM_FILES:
            headings += [f"{decoding}, published"] * published + [f"{decoding}, asrkit"]
        lines = []
        for subset in dict.fromkeys(subset for run in plan.runs.values() for subset in run.subsets):
            for title, run in plan.runs.items():
                if subset in run.subsets:
                    lines.append([subset, title, *_figures(plan, size, subset, run, roots)])
        parts += [markdown_table(headings, lines), _commands(plan, size)]
    parts.append(_decoding(plan))
    return "\n".join(parts)


def _figures(plan: Plan, size: str, subset: str, run: Run, roots: Sequence[Path]) -> list[str]:
    """Return a line's figures, published and ours, for each decoding."""
    cells = []
    for decoding, lm in LM_FILES.items():
        if size in plan.published:
            cells.append(_listed(plan.published[size][subset][decoding]) if run.published else "–")
        cells.append(_ours(plan, size, run.folder.format(subset=subset), lm, roots))
    return cells


def _listed(rates: Sequence[float | None]) -> str:
    return " / ".join("–" if rate is None else f"{rate:.1f}" for rate in rates)


def _ours(plan: Plan, size: str, folder: str, lm: str | None, roots: Sequence[Path]) -> str:
    """Return a run's mean rates on the sets, or that there are none.

    Raises:
        AsrkitError: if a set is an excerpt, or was decoded in several ways.
    """
    decoded = [path for root in roots for path in sorted(root.glob(f"full_{size}_seed*/{folder}/decode"))]
    found: dict[str, dict[int, Result]] = {}
    for result in collect(decoded) if decoded else []:
        searched = result.decoder != "greedy" if lm else result.decoder == "greedy"
        if result.set not in plan.sets or result.lm != lm or result.values.get("rescore") or not searched:
            continue
        if result.utterances != plan.sets[result.set]:
            what = f"{result.set} has {result.utterances} utterances, LibriSpeech's has {plan.sets[result.set]}"
            raise AsrkitError(what, where=result.path)
        other = found.setdefault(result.set, {}).setdefault(result.seed, result)
        if other is not result:
            raise AsrkitError(
                f"another result of the same model, set and language model than {other.path}", where=result.path
            )
    if not found:
        return NOT_RUN
    means = [
        100 * statistics.fmean(one.wer for one in found[name].values()) if name in found else None for name in plan.sets
    ]
    return f"{_listed(means)} (n = {min(len(seeds) for seeds in found.values())})"


def _commands(plan: Plan, size: str) -> str:
    """Return the commands that fill a size's table."""
    start = f"exp/{size}_checkpoint"
    lines = [
        f"asrkit import {plan.checkpoints[size].source} --output {start}",
        "recipe() {",
        "    examples/librispeech/run.sh --corpus librispeech --corpus-dir /data/speech --lm official --nproc 8 \\",
        f'        --size {size} --subset "$1" --seed "$2" --exp-dir "exp/full_{size}_seed$2" "${{@:3}}"',
        "}",
        f"for seed in {SEEDS}; do",
    ]
    by_subsets: dict[str, list[str]] = {}
    for run in plan.runs.values():
        options = [f"--init {start}"] * run.from_checkpoint + [run.arguments] * bool(run.arguments)
        call = " ".join(['        recipe "$subset" "$seed"', *options])
        by_subsets.setdefault(" ".join(run.subsets), []).append(call)
    for subsets, calls in by_subsets.items():
        lines += [f"    for subset in {subsets}; do", *calls, "    done"]
    return "\n".join(["```bash", *lines, "done", "python examples/librispeech/full_size.py", "```\n"])


def _decoding(plan: Plan) -> str:
    """Return what was published of decoding."""
    headings = [
        "labels",
        "4-gram: LM weight, word score",
        "Transformer LM: LM weight, word score",
        "WER with the Transformer LM",
    ]
    lines = []
    for subset, weights in plan.weights.items():
        pairs = [", ".join(f"{value:.2f}" for value in weights[name]) for name in ("4-gram", "Transformer LM")]
        lines.append([subset, *pairs, _listed(plan.published["base"][subset]["Transformer LM"])])
    return "\n".join(["## Published decoding of BASE\n", markdown_table(headings, lines)])


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp-dir", type=Path, nargs="+", default=[ROOT / "exp"], help="where the runs are")
    parser.add_argument("--output", type=Path, default=HOME / "RESULTS.md", help="the page")
    options = parser.parse_args()
    try:
        plan = configuration.load(Plan, HOME / "full_size.yaml")
        write_results(options.output, page(plan, options.exp_dir), "full_size")
    except AsrkitError as error:
        print(f"full_size.py: {error}", file=sys.stderr)
        return 2
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
