"""The picture of `asrkit similarity`: a line per pair of experiments, layers from left to right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asrkit.analysis.similarity import Similarity
from asrkit.errors import AsrkitError
from asrkit.files import atomic_path

_COLOURS = ("#1a56a6", "#b8480b", "#17745a", "#8431a8", "#a11d4f", "#6a6310", "#3d4a9c", "#5a5148")
_MARKERS = "osD^vP*X"
_QUIET = "#5b5f66"


def picture_kind(path: Path) -> str:
    """Return the kind of picture that a file's ending stands for: png, pdf, svg, ….

    Raises:
        AsrkitError: if matplotlib writes no such kind.
    """
    kind = path.suffix.removeprefix(".").lower()
    known = FigureCanvasAgg.get_supported_filetypes()
    if kind not in known:
        raise AsrkitError(f"no picture of kind '{kind}'", where=path, mend="known: " + ", ".join(sorted(known)))
    return kind


def draw(pairs: Sequence[Similarity], path: Path) -> None:
    """Draw pairs into a file, whose ending says its kind.

    Raises:
        AsrkitError: as `picture_kind`, and if the file cannot be written.
    """
    kind = picture_kind(path)
    figure = Figure(figsize=(7.2, 4.4), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    lines = []
    for place, pair in enumerate(pairs):
        (unrelated,) = axes.plot(pair.layers, pair.noise, color=_QUIET, linestyle=":", linewidth=1.2)
        colour = _COLOURS[place % len(_COLOURS)]
        marker = _MARKERS[(place + place // len(_COLOURS)) % len(_MARKERS)]
        lines += axes.plot(pair.layers, pair.pwcca, color=colour, marker=marker, markersize=5, linewidth=1.8)
    lowest = min(min(pair.pwcca) for pair in pairs)
    # The level of noise is seen where it is near, and never squeezes the lines.
    axes.set_ylim(max(0.0, math.floor(10 * lowest - 0.5) / 10), 1.01)
    axes.set_xlabel("layer (0: the input of the blocks)")
    axes.set_ylabel("similarity (symmetrised PWCCA)")
    axes.grid(axis="y", color="#e3e1da", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_QUIET)
    axes.tick_params(colors=_QUIET)
    names = [pair.name for pair in pairs]
    if axes.get_ylim()[0] < max(max(pair.noise) for pair in pairs):
        lines.append(unrelated)
        names.append("features without any relation")
    legend = figure.legend(lines, names, loc="outside upper left", ncols=3, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=kind)
