"""`asrkit lm train`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `train`."""
    parser.add_argument(
        "text",
        nargs="*",
        type=Path,
        metavar="TEXT",
        help="a sentence per line; *.trans.txt: ID TEXT; *.gz, folders too",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="lm.arpa, or lm.arpa.gz")
    parser.add_argument("--order", type=int, default=4, metavar="N", help="longest n-grams (4)")
    parser.add_argument("--data", type=Path, metavar="DATA", help="prepared data, for --sets")
    parser.add_argument("--sets", nargs="+", default=[], metavar="SET", help="take these sets' transcripts")
    parser.add_argument("--units", type=Path, metavar="DIR", help="n-grams over these units instead of words")
    parser.add_argument("--case", choices=("upper", "lower", "keep"), default="keep", help="spelling of TEXT (keep)")
    parser.add_argument("--punctuation", choices=("strip", "keep"), default="keep", help="in TEXT (keep)")


def run(options: argparse.Namespace, console: Console) -> int:
    """Train a model and say what it is."""
    from asrkit.inference.language_model import LMConfig, train_lm
    from asrkit.text.normalise import TextConfig

    config = LMConfig(
        order=options.order,
        units=options.units,
        text=TextConfig(case=options.case, punctuation=options.punctuation),
    )
    summary = train_lm(options.text, options.output, config, data_dir=options.data, sets=options.sets)
    console.print(summary, markup=False, highlight=False, soft_wrap=True)
    return 0
