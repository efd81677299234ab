"""Alignments are the best of all paths, and their times lie in order inside the audio."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounded import RATE, bounded_recogniser, noise, with_pauses
from helpers import UNITS, sentence
from hypothesis import given
from hypothesis import strategies as st

from asrkit.errors import AsrkitError
from asrkit.inference import align as module
from asrkit.inference.align import align_recording, align_text, fit_text, stitched_log_probs
from asrkit.inference.alignment_plot import draw
from asrkit.text.units import Units


def random_scores(frames: int, units: int, seed: int) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).standard_normal((frames, units)).astype(np.float32)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


@given(seed=st.integers(0, 200))
def test_times_are_in_order_and_inside(seed: int) -> None:
    text = sentence(seed)
    log_probs = random_scores(2 * len(text) + seed % 30, len(UNITS), seed)
    duration = len(log_probs) * 0.04 - 0.01
    found = align_text(log_probs, text, UNITS, name="u", seconds_per_frame=0.04, duration=duration)
    assert [word.text for word in found.words] == text.split()
    assert [unit.text for unit in found.characters] == list(text.replace(" ", ""))
    for times in (found.words, found.characters):
        edges = [edge for word in times for edge in (word.start, word.end)]
        assert edges == sorted(edges)
        assert edges[0] >= 0
        assert edges[-1] <= duration + 1e-3
        assert all(word.start < word.end and 0 <= word.confidence <= 1 for word in times)
    letters = iter(found.characters)
    for word in found.words:
        inside = [next(letters) for _ in word.text]
        assert (inside[0].start, inside[-1].end) == (word.start, word.end)


def test_pieces_and_phones(tmp_path: Path) -> None:
    pieces = Units.train_bpe(["the cat sat on the mat", "a cat and a hat that sat"] * 3, 16)
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("CAT K AE T\nHAT HH AE T\n")
    for units, text in ((pieces, "the hat sat"), (Units.phones(lexicon), "HAT CAT CAT")):
        log_probs = random_scores(60, len(units), seed=1)
        found = align_text(log_probs, text, units, name="u", seconds_per_frame=0.02, duration=1.2)
        assert [word.text for word in found.words] == text.split()
        assert all(one.end <= other.start for one, other in itertools.pairwise(found.words))


def test_what_cannot_be_aligned() -> None:
    log_probs = random_scores(5, len(UNITS), seed=0)
    given_with: dict[str, Any] = {"name": "u-1", "seconds_per_frame": 0.04, "duration": 0.2}
    with pytest.raises(AsrkitError, match="u-1: 5 frames of audio are too few for 4 units"):
        align_text(log_probs, "AAAA", UNITS, **given_with)
    with pytest.raises(AsrkitError, match="u-1: characters not among the units: 'Z'"):
        align_text(log_probs, "AZ", UNITS, **given_with)
    assert align_text(log_probs, "", UNITS, **given_with).words == ()
    assert align_text(log_probs[:0], "", UNITS, **given_with).score == 0.0


def test_texts_are_brought_to_the_units_spelling() -> None:
    assert fit_text("A bad, cab!", UNITS) == "A BAD CAB"
    assert fit_text("A bad cab", Units.characters(["abcd"])) == "a bad cab"
    assert fit_text("A bad cab", Units.characters(["abcD"])) == "A bad cab"
    assert fit_text("\u6771 \u4eac", Units.characters(["\u6771\u4eac"])) == "\u6771 \u4eac"


@pytest.mark.parametrize("kind", ["logmel", "waveform"])
def test_long_recordings_are_stitched(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recogniser = bounded_recogniser(kind)
    monkeypatch.setattr(module, "longest_heard", lambda _: 30.0)
    text = " ".join(sentence(seed) for seed in range(6))
    wave = noise(9.0)
    whole, whole_scores = align_recording(recogniser, [wave], text.lower(), "u")
    monkeypatch.setattr(module, "longest_heard", lambda _: 2.0)
    stitched, scores = align_recording(recogniser, np.array_split(wave, 7), text, "u")
    np.testing.assert_allclose(scores, whole_scores, atol=1e-4)
    assert [(w.text, w.start, w.end) for w in stitched.words] == [(w.text, w.start, w.end) for w in whole.words]
    silent = with_pauses([1.8, 1.9, 1.7], 5.0)
    log_probs, samples = stitched_log_probs(recogniser, [silent])
    assert samples == len(silent)
    assert abs(len(log_probs) - len(silent) / recogniser.frame_samples) < 3
    np.testing.assert_allclose(np.logaddexp.reduce(log_probs, axis=1), 0, atol=1e-3)
    draw(tmp_path / "a.png", whole, wave, RATE, whole_scores, UNITS)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
