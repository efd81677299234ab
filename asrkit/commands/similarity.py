"""`asrkit similarity`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asrkit.errors import AsrkitError

if TYPE_CHECKING:
    from asrkit.analysis.similarity import Similarity, SimilarityConfig


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--a", type=Path, metavar="EXP", help="an experiment")
    parser.add_argument("--b", type=Path, metavar="EXP", help="another one")
    parser.add_argument(
        "--pair",
        action="append",
        default=[],
        metavar="NAME=EXP,EXP",
        help="instead of --a and --b, and as often as you like: pairs for one figure",
    )
    parser.add_argument("--data", type=Path, metavar="DATA", help="prepared data")
    parser.add_argument("--sets", nargs="+", default=[], metavar="SET", help="sets whose speech both models hear")
    parser.add_argument(
        "--layers", nargs="+", default=[], metavar="A[:B]", help="layers to compare (all, each with its like)"
    )
    parser.add_argument("--a-checkpoint", default="best", choices=("best", "last"), help="which weights of a (best)")
    parser.add_argument("--b-checkpoint", default="best", choices=("best", "last"), help="which weights of b (best)")
    parser.add_argument(
        "--with", nargs="+", dest="earlier", default=[], type=Path, metavar="FILE", help="add these similarity.json"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="for similarity.json and .png (B/similarity_A)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the figure elsewhere: png, pdf or svg")
    parser.add_argument("--cut-off", type=float, metavar="R", help="least share of the largest eigenvalue (1e-10)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:K")
    parser.add_argument("--precision", default="fp32", help="fp32 (the default), auto, bf16 or fp16")


def run(options: argparse.Namespace, console: Console) -> int:
    """Compare pairs of experiments; write and show what came out."""
    from asrkit.analysis import similarity
    from asrkit.analysis.similarity_figure import draw, picture_kind

    asked = _pairs(options)
    found = [pair for path in options.earlier for pair in similarity.read_similarities(path)]
    output = _output(options, asked, len(found))
    figure = options.plot or output / "similarity.png"
    picture_kind(figure)
    names = [pair.name for pair in found] + [name for name, _, _ in asked]
    if twice := [name for name in names if names.count(name) > 1]:
        raise AsrkitError(f"two pairs are called '{twice[0]}'", mend="name them apart: --pair NAME=EXP,EXP")
    if asked:
        config = _config(options)
        for name, a, b in asked:
            sides = similarity.Side(a, options.a_checkpoint), similarity.Side(b, options.b_checkpoint)
            found.append(similarity.compare_experiments(name, *sides, config, console))
    draw(found, figure)
    similarity.write_similarities(output / similarity.FILE, found)
    for table in _tables(found):
        console.print(table)
    for pair in found:
        if max(pair.noise) > similarity.NOISY:
            console.print(
                f"{pair.name}: {pair.frames} frames are few: even unrelated features would reach {max(pair.noise):.2f}; "
                "take more or larger sets",
                style="yellow",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    console.print(f"{output / similarity.FILE}, {figure}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _output(options: argparse.Namespace, asked: Sequence[tuple[str, Path, Path]], earlier: int) -> Path:
    """Return the folder for what is written."""
    if not asked and not earlier:
        raise AsrkitError("nothing to compare", mend="--a EXP --b EXP, or --pair NAME=EXP,EXP")
    if options.output is not None:
        return Path(options.output)
    if len(asked) != 1 or earlier:
        raise AsrkitError("several pairs have no folder of their own", mend="say where they go: --output DIR")
    _, a, b = asked[0]
    return b / f"similarity_{a.resolve().name}"


def _config(options: argparse.Namespace) -> SimilarityConfig:
    from asrkit.analysis.similarity import CUT_OFF, SimilarityConfig

    if options.data is None:
        raise AsrkitError("no speech to compare on", mend="--data DATA --sets dev-clean")
    return SimilarityConfig(
        data_dir=options.data,
        sets=tuple(options.sets),
        layers=tuple(_layer(text) for text in options.layers),
        cut_off=CUT_OFF if options.cut_off is None else options.cut_off,
        device=options.device,
        precision=options.precision,
    )


def _pairs(options: argparse.Namespace) -> list[tuple[str, Path, Path]]:
    """Return (name, a, b) of each pair that is asked for."""
    from asrkit.analysis.run import names

    pairs = []
    if (options.a is None) != (options.b is None):
        raise AsrkitError("one experiment has nothing to be compared with", mend="--a EXP --b EXP")
    if options.a is not None:
        pairs.append((" and ".join(names([options.a, options.b])), options.a, options.b))
    for text in options.pair:
        name, _, folders = text.partition("=")
        sides = folders.split(",")
        if not name or len(sides) != 2 or not all(sides):
            raise AsrkitError(f"--pair {text}", mend="NAME=EXP,EXP")
        pairs.append((name, Path(sides[0]), Path(sides[1])))
    return pairs


def _layer(text: str) -> tuple[int, int]:
    one, colon, other = text.partition(":")
    try:
        return int(one), int(other if colon else one)
    except ValueError:
        raise AsrkitError(f"--layers {text}", mend="numbers, such as 6, or 6:12 for different ones") from None


def _tables(pairs: Sequence[Similarity]) -> list[Table]:
    """Return a table for each list of layers, a column per pair."""
    tables = []
    for layers in dict.fromkeys(pair.layers for pair in pairs):
        alike = [pair for pair in pairs if pair.layers == layers]
        sets = dict.fromkeys(f"{'+'.join(pair.sets)} ({pair.corpus}), {pair.frames} frames" for pair in alike)
        table = Table(title=Text("symmetrised PWCCA, " + "; ".join(sets)))
        table.add_column("layer", justify="right")
        for pair in alike:
            table.add_column(Text(pair.name), justify="right")
        table.add_column("unrelated", justify="right", style="dim")
        for place, layer in enumerate(layers):
            noise = sorted({f"{pair.noise[place]:.3f}" for pair in alike})
            table.add_row(layer, *(f"{pair.pwcca[place]:.3f}" for pair in alike), "/".join(noise))
        tables.append(table)
    return tables
