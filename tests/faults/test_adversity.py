"""What shared machines do to a run: the corpus goes away for a while, the clock jumps. (Full disks: training/test_saving.py)"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import assert_same, checkpoint, rows, settings, train, write_corpus

from asrkit.data import stream
from asrkit.training.log import ProgressView


@contextmanager
def at_update(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Do something once, when so many updates have stepped."""
    advance, count = ProgressView.advance, itertools.count(1)

    def acting(view: ProgressView, done: int) -> None:
        advance(view, done)
        if next(count) == number:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressView, "advance", acting)
        yield


def assert_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    for name in ("last", "best"):
        assert_same(checkpoint(one, name), checkpoint(other, name))


@pytest.mark.parametrize("method", ["pretrain", "wav2vec_s", "bl_just"])
def test_a_corpus_that_goes_away_stops_the_run_in_a_line_and_it_goes_on_when_it_is_back(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As many as a whole update of this small corpus has at least, in the place of two hundred.
    monkeypatch.setattr(stream, "_HOPELESS", 2)
    data = write_corpus(tmp_path)
    whole = settings(method, data, training={"checkpoint_every": 1})
    assert train(tmp_path / "whole", whole) == 0
    audio = tmp_path / "audio"
    capsys.readouterr()
    with at_update(4, lambda: audio.rename(tmp_path / "unmounted")):
        assert train(tmp_path / "exp", whole) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "could not be read" in said.err
    assert "is the corpus still where it was" in said.err
    assert checkpoint(tmp_path / "exp")["update"] == 4
    # Nothing has been trained without its audio: the run is the one that it would have been.
    (tmp_path / "unmounted").rename(audio)
    assert train(tmp_path / "exp", whole) == 0
    assert_same_run(tmp_path / "exp", tmp_path / "whole")


def test_a_clock_that_jumps_changes_nothing(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = settings("finetune", speech, training={"checkpoint_every": 2, "log_every": 1})
    assert train(tmp_path / "whole", whole) == 0
    now, jumps = time.time(), itertools.cycle([0.0, 3e8, -3e8, -1.0, 1e7])
    monkeypatch.setattr(time, "time", lambda: now + next(jumps))
    with at_update(5, lambda: (_ for _ in ()).throw(KeyboardInterrupt)):
        assert train(tmp_path / "exp", whole) == 130
    assert train(tmp_path / "exp", whole) == 0
    assert_same_run(tmp_path / "exp", tmp_path / "whole")
