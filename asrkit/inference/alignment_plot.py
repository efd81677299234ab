"""An alignment as a picture: spectrogram above, the text's unit probabilities below, words between.

Shapes: S samples, T frames, V units (with blank).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from asrkit.files import atomic_path
from asrkit.inference.align import Alignment
from asrkit.text.units import Units

_INCHES_PER_SECOND, _NARROWEST, _WIDEST = 2.2, 6.0, 60.0
_BLUE = "#1f5fa8"


def draw(path: Path, found: Alignment, wave: np.ndarray, sample_rate: int, log_probs: np.ndarray, units: Units) -> None:
    """Write a PNG, atomically.

    Args:
        path: the file.
        found: the alignment.
        wave: the audio (S,).
        sample_rate: in Hz.
        log_probs: natural log-probabilities (T, V).
        units: what they are of.
    """
    width = float(np.clip(_INCHES_PER_SECOND * found.duration, _NARROWEST, _WIDEST))
    figure = Figure(figsize=(width, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.specgram(wave + 1e-9, NFFT=400, noverlap=240, Fs=sample_rate, cmap="Greys", vmin=-140)
    above.set_ylabel("Hz")
    above.set_title(f"{found.id}   mean log-probability {found.score:.2f}", fontsize=9)
    used = sorted({units.index[character.text] for character in found.characters})
    shown = [n for n in used if n != units.blank] or [units.blank]
    below.imshow(
        np.exp(log_probs[:, shown].T),
        aspect="auto",
        origin="lower",
        extent=(0, found.duration, -0.5, len(shown) - 0.5),
        cmap="Blues",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    below.set_yticks(range(len(shown)), [units.symbols[n] for n in shown], fontsize=7)
    below.set_xlabel("seconds")
    top = above.get_ylim()[1]
    for word in found.words:
        for axes in (above, below):
            axes.axvspan(word.start, word.end, color=_BLUE, alpha=0.12, linewidth=0)
            for edge in (word.start, word.end):
                axes.axvline(edge, color=_BLUE, linewidth=0.6)
        above.text((word.start + word.end) / 2, top * 0.97, word.text, ha="center", va="top", fontsize=8, rotation=30)
    above.set_xlim(0, found.duration)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
