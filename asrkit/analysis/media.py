"""What a page needs to let an utterance be heard and seen: its audio, a spectrogram, the CTC posteriors.

Shapes: S samples, T frames, B frequency bins, V units (with blank).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from matplotlib import colormaps
from PIL import Image

from asrkit.data.audio import read
from asrkit.data.batch import SAMPLE_RATE
from asrkit.data.collate import Example, collate
from asrkit.data.index import SetIndex
from asrkit.errors import AsrkitError
from asrkit.inference.recogniser import Recogniser

LONGEST = 40.0
"""Seconds; a longer utterance is not embedded."""
_WINDOW, _HOP, _BINS = 400, 160, 128
_LEVELS = 16
_RANGE_DB = 70.0
_SEEN = 0.04
"""A smaller probability cannot be seen in the picture."""


@dataclass(frozen=True)
class Speech:
    """A prepared set, by utterance id."""

    index: SetIndex
    """The set."""
    rows: dict[str, int]
    """Row of each utterance."""
    speakers: dict[str, str]
    """Speaker of each utterance that has one."""

    @classmethod
    def open(cls, folder: Path) -> Speech:
        """Open a prepared set.

        Raises:
            AsrkitError: if it is not there, or damaged.
        """
        index = SetIndex.open(folder)
        rows, speakers = {}, {}
        for row, record in enumerate(index.records()):
            rows[record["id"]] = row
            supervisions = record.get("supervisions") or [{}]
            if supervisions[0].get("speaker"):
                speakers[record["id"]] = str(supervisions[0]["speaker"])
        return cls(index, rows, speakers)

    def seconds(self, utterance_id: str) -> float | None:
        """Return an utterance's length; None if the set does not have it."""
        row = self.rows.get(utterance_id)
        return None if row is None else round(float(self.index.durations[row]), 2)

    def wave(self, utterance_id: str) -> np.ndarray:
        """Return an utterance's audio, float32 (S,) at 16 kHz.

        Raises:
            AsrkitError: if it is not in the set, too long for a page, or unreadable.
        """
        row = self.rows.get(utterance_id)
        if row is None:
            raise AsrkitError("not in the prepared set any more", where=utterance_id)
        if self.index.durations[row] > LONGEST:
            raise AsrkitError(f"longer than {LONGEST:.0f} s", where=utterance_id)
        return read(self.index.read_cut(row), SAMPLE_RATE)


def audio_uri(wave: np.ndarray) -> str:
    """Return audio (S,) at 16 kHz as a data URI: MP3, which every browser plays, or FLAC where libsndfile has no MP3."""
    # A lossy encoder overshoots loud audio, and that would be clipped.
    wave = wave / max(1.0, float(np.abs(wave).max()) / 0.98)
    buffer = io.BytesIO()
    if "MP3" in soundfile.available_formats():
        soundfile.write(buffer, wave, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
        return _data_uri("audio/mpeg", buffer.getvalue())
    soundfile.write(buffer, wave, SAMPLE_RATE, format="FLAC")
    return _data_uri("audio/flac", buffer.getvalue())


def spectrogram_uri(wave: np.ndarray) -> str:
    """Return the spectrogram of audio (S,) at 16 kHz, 0 to 8 kHz from the bottom up, as a data URI of a PNG."""
    padded = torch.from_numpy(np.pad(wave, (0, max(0, _WINDOW - len(wave)))))
    window = torch.hann_window(_WINDOW)
    power = torch.stft(padded, 512, _HOP, _WINDOW, window, return_complex=True).abs().square()
    bins = power[1:].reshape(_BINS, -1, power.size(1)).mean(1).numpy()
    level = 10 * np.log10(bins + 1e-10)
    scaled = np.clip((level - level.max()) / _RANGE_DB + 1, 0, 1)
    palette = (np.array(colormaps["magma"](np.linspace(0, 1, _LEVELS)))[:, :3] * 255).round().astype(np.uint8)
    return _data_uri("image/png", _png(np.round(scaled[::-1] * (_LEVELS - 1)).astype(np.uint8), palette))


def _png(indices: np.ndarray, palette: np.ndarray) -> bytes:
    """Return a PNG of 4 bits a pixel: colours (16, 3) chosen by ``indices``, uint8 (rows, columns)."""
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=4, optimize=True)
    return buffer.getvalue()


def _data_uri(kind: str, body: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(body).decode('ascii')}"


def posteriors(recogniser: Recogniser, utterance_id: str, wave: np.ndarray) -> dict[str, Any]:
    """Return the CTC posteriors of an utterance (S,) as runs of frames in which a unit is seen.

    Returns:
        ``frames`` T, ``symbols`` seen, ``blank`` (place in ``symbols`` or -1), and ``runs`` of [place in ``symbols``,
        first frame, probabilities in percent].

    Raises:
        AsrkitError: if the experiment's method gives no scores per frame.
    """
    (scores,) = recogniser.log_probs(collate([Example(utterance_id, wave)], epoch=0))
    return posterior_runs(np.exp(scores), recogniser.units.symbols, recogniser.units.blank)


def posterior_runs(probabilities: np.ndarray, symbols: Sequence[str], blank: int) -> dict[str, Any]:
    """Return `posteriors` of probabilities (T, V)."""
    seen = probabilities >= _SEEN
    units = np.flatnonzero(seen.any(0)).tolist()
    runs = []
    for place, unit in enumerate(units):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], seen[:, unit], [False]])))
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            percents = np.round(100 * probabilities[start:end, unit]).astype(int).tolist()
            runs.append([place, start, percents])
    return {
        "frames": len(probabilities),
        "symbols": [symbols[unit] for unit in units],
        "blank": units.index(blank) if blank in units else -1,
        "runs": runs,
    }
