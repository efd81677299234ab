"""Write BENCHMARKS.md from what the benchmarks' `--output` wrote.

    python benchmarks/write_benchmarks.py                       benchmarks/results/*.json to BENCHMARKS.md

A section per benchmark, the comparisons with other toolkits first; each measurement with its hardware, versions and command. What
has not been measured is said to be so. All figures are those of the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import best_rq_step
import block_attention
import blocks
import ctc
import finetune_step
import joint_step
import pretrain_step
import wav2vec_s_step

from asrkit.errors import AsrkitError
from asrkit.files import write_text

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Benchmarks

`python benchmarks/write_benchmarks.py` makes this page of the files in `benchmarks/results`: what benchmarks wrote by `--output`.
Contenders take turns within one process; a row's median and quartiles are those of its rounds, a ratio's those of the ratios within
each round. Memory is what one call holds at its peak above what was there before it: weights and the optimiser's moments are not
in it.
"""
COMPARISONS = {
    ctc.TITLE: "python benchmarks/ctc.py",
    **{blocks.title(kind): f"python benchmarks/blocks.py --block {kind}" for kind in blocks.SHAPES},
    pretrain_step.TITLE: "python benchmarks/pretrain_step.py",
    finetune_step.TITLE: "python benchmarks/finetune_step.py",
    wav2vec_s_step.TITLE: "python benchmarks/wav2vec_s_step.py",
    joint_step.TITLE: "python benchmarks/joint_step.py",
    best_rq_step.TITLE: "python benchmarks/best_rq_step.py",
    block_attention.TITLE: "python benchmarks/block_attention.py",
}
"""Benchmarks that have a section whether or not they have been run, with the command that runs them."""
KEYS = ("title", "command", "commit", "settings", "machine", "contenders", "absent", "ratios", "notes")
VERSIONS = ("asrkit", "python", "torch", "cuda", "torchaudio", "transformers", "fairseq2")


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the measurements below a folder by title, in the order of their files' names.

    Raises:
        AsrkitError: naming a file that is no measurement.
    """
    found: dict[str, list[dict[str, Any]]] = {title: [] for title in COMPARISONS}
    for path in sorted(folder.rglob("*.json")):
        try:
            one = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise AsrkitError(f"is no JSON: {error}", where=path) from None
        missing = [key for key in KEYS if not isinstance(one, dict) or key not in one]
        if missing:
            raise AsrkitError(f"is no measurement: it lacks '{missing[0]}'", where=path, mend="measure again")
        found.setdefault(one["title"], []).append(one)
    return found


def page(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the page."""
    return "\n".join([HEAD, *(line for title, several in found.items() for line in _section(title, several))])


def _milliseconds(seconds: float) -> str:
    """Return four digits, and no exponent where there are more."""
    return f"{1e3 * seconds:.0f}" if seconds >= 10 else f"{1e3 * seconds:.4g}"


def _section(title: str, several: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"## {title}\n"
    lacking = [
        name for name, gpu in (("a GPU", True), ("a CPU", False)) if not any(_on_gpu(one) == gpu for one in several)
    ]
    if lacking:
        command = f": `{COMPARISONS[title]}`" if title in COMPARISONS else ""
        yield f"Not measured on {' or '.join(lacking)}{command}.\n"
    shared = [note for note in (several[0]["notes"] if several else []) if all(note in one["notes"] for one in several)]
    for one in sorted(several, key=_on_gpu, reverse=True):
        yield from _measurement(one)
        yield from (note + "\n" for note in one["notes"] if note not in shared)
    yield from (note + "\n" for note in shared)


def _on_gpu(one: Mapping[str, Any]) -> bool:
    return bool(one["machine"]["device"] != "cpu")


def _measurement(one: Mapping[str, Any]) -> Iterator[str]:
    machine = one["machine"]
    threads = f"{machine['threads']} of {machine['cores']} cores"
    hardware = machine["device"] if _on_gpu(one) else f"{machine.get('processor', 'CPU')}, {threads}"
    yield f"### {hardware}\n"
    yield f"`{one['command']}`, commit {one['commit']}\n"
    yield "; ".join(f"{name}: {value}" for name, value in one["settings"].items()) + ".\n"
    versions = ", ".join(
        f"{name} {machine[name]}" for name in VERSIONS if name in machine and (name != "cuda" or _on_gpu(one))
    )
    yield f"Versions: {versions}.\n"
    contenders = one["contenders"]
    figures = {
        "median ms": lambda each: _milliseconds(each["median"]),
        "quartiles ms": lambda each: " to ".join(map(_milliseconds, each["quartiles"])),
        "peak memory MiB": lambda each: f"{each['peak_bytes'] / 2**20:.1f}",
    }
    if all("audio_seconds_per_second" in each for each in contenders.values()):
        figures["audio s per s"] = lambda each: f"{each['audio_seconds_per_second']:.1f}"
    if all("mfu" in each for each in contenders.values()):
        figures["MFU"] = lambda each: f"{100 * each['mfu']:.1f} %"
    yield from _table(
        ["", *figures], [[name, *(show(each) for show in figures.values())] for name, each in contenders.items()]
    )
    for name, reason in one["absent"].items():
        yield f"{name} is absent: {reason}.\n"
    ratios = [
        [
            each["name"],
            f"{each['median']:.3f}",
            " to ".join(f"{value:.3f}" for value in each["spread"]),
            "–" if each["limit"] is None else f"{each['limit']:g}",
        ]
        for each in one["ratios"]
    ]
    if ratios:
        yield from _table(["ratio", "median", "quartiles", "at most"], ratios)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "| --- |" + " ---: |" * (len(head) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def main() -> int:
    """Read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results", help="a folder with JSON")
    parser.add_argument("--output", type=Path, default=ROOT / "BENCHMARKS.md")
    options = parser.parse_args()
    try:
        write_text(options.output, page(read(options.results)).rstrip("\n") + "\n")
    except AsrkitError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
