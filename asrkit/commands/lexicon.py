"""`asrkit lexicon`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "text",
        nargs="*",
        type=Path,
        metavar="TEXT",
        help="a sentence per line; *.trans.txt: ID TEXT; *.gz, folders too",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the lexicon: a word and its phones")
    parser.add_argument("--voice", default="en-us", metavar="ACCENT", help="espeak-ng's name of a language (en-us)")
    parser.add_argument("--data", type=Path, metavar="DATA", help="prepared data, for --sets")
    parser.add_argument("--sets", nargs="+", default=[], metavar="SET", help="take the words of these transcripts")


def run(options: argparse.Namespace, console: Console) -> int:
    """Write a lexicon and say what is in it."""
    from asrkit.inference.pronunciation import write_lexicon

    summary = write_lexicon(options.text, options.output, options.voice, data_dir=options.data, sets=options.sets)
    console.print(summary, markup=False, highlight=False, soft_wrap=True)
    return 0
