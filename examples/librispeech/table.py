"""Print the results of an experiment as one table, and keep it as results.txt: `python table.py EXP`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from asrkit.files import write_text


def results_table(folder: Path) -> Table:
    """Return a row per decoded set and decoder, from decode/SET/DECODER/results.json."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("decode/*/*/results.json"))]
    first = results[0]
    title = "{corpus}: {recipe}, labels {subset}, seed {seed}, model of update {updates}".format(**first)
    table = Table(title=title, title_justify="left")
    table.add_column("set")
    table.add_column("decoder")
    for heading in ("WER %", "CER %", "words", "sub", "del", "ins", "utterances", "decoded in s"):
        table.add_column(heading, justify="right")
    for result in results:
        rates = [f"{100 * result[key]:.2f}" for key in ("wer", "cer")]
        counts = [str(result[key]) for key in ("words", "substitutions", "deletions", "insertions", "utterances")]
        table.add_row(result["set"], result["decoder"], *rates, *counts, f"{result['seconds']:.1f}")
    return table


def main() -> None:
    """Read the experiment named on the command line."""
    folder = Path(sys.argv[1])
    console = Console(record=True, width=110)
    console.print(results_table(folder))
    write_text(folder / "results.txt", console.export_text())


if __name__ == "__main__":
    main()
