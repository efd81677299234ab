"""Checkpoints are written behind the training's back: in order, as they were, and in the end all of them."""

from __future__ import annotations

import errno
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same, checkpoint, rows, settings, train
from hypothesis import given
from hypothesis import strategies as st

from asrkit.errors import AsrkitError
from asrkit.files import Appender
from asrkit.training.checkpoint import Checkpoints, load, update_of
from asrkit.training.distributed import Ranks
from asrkit.training.log import MetricLog, ProgressView
from asrkit.training.saving import CheckpointWriter, snapshot


def state(update: int) -> dict[str, Any]:
    return {"model": {"weight": torch.full((3,), float(update))}, "update": update}


def no_room() -> AsrkitError:
    error = AsrkitError("cannot be written: No space left on device")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


def name(exp_dir: Path, pointer: str) -> str:
    return (exp_dir / "checkpoints" / pointer).read_text().strip()


def test_what_is_written_is_what_was_there_when_it_was_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on, and changes its weights in place, while the file is written."""
    released, save = threading.Event(), Checkpoints.save

    def slow(self: Checkpoints, *arguments: Any, **options: Any) -> Path:
        assert released.wait(30)
        return save(self, *arguments, **options)

    monkeypatch.setattr(Checkpoints, "save", slow)
    weights = torch.ones(4)
    with CheckpointWriter(Checkpoints(tmp_path), Ranks(), 0) as writer:
        writer.submit(1, {"model": {"weight": weights}, "moments": [{"step": weights[:2]}]}, best=False)
        weights += 1
        assert not writer.behind
        released.set()
    written = load(tmp_path / "checkpoints" / "step_1.pt")
    assert_same(written, {"format": 1, "model": {"weight": torch.ones(4)}, "moments": [{"step": torch.ones(2)}]})


def test_a_snapshot_shares_nothing() -> None:
    whole = {"a": [torch.zeros(2), (torch.zeros(1), "text")], "b": {"c": 1.5, "d": None}}
    copied = snapshot(whole)
    assert_same(copied, whole)
    whole["a"][0] += 1
    whole["a"][1][0].fill_(2)
    assert copied["a"][0].sum() == 0
    assert copied["a"][1][0].item() == 0


@given(steps=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_whatever_fails_the_newest_and_the_best_are_there_in_the_end(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, bool]]
) -> None:
    exp_dir = tmp_path_factory.mktemp("run")
    failing, seen, save = {"now": False}, [], Checkpoints.save

    def failing_save(self: Checkpoints, update: int, *arguments: Any, **options: Any) -> Path:
        if failing["now"]:
            raise no_room()
        path = save(self, update, *arguments, **options)
        seen.append(update)
        assert name(exp_dir, "last") == path.name
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", failing_save)
        patch.setattr("asrkit.training.saving._PAUSE_SECONDS", 0.0)
        with CheckpointWriter(Checkpoints(exp_dir), Ranks(), 30) as writer:
            for update, (best, fails) in enumerate(steps, 1):
                writer.submit(update, state(update), best=best)
                writer._unwritten()
                failing["now"] = fails
            failing["now"] = False
    assert seen == sorted(seen)
    assert name(exp_dir, "last") == f"step_{len(steps)}.pt"
    bests = [update for update, (best, _) in enumerate(steps, 1) if best]
    assert (exp_dir / "checkpoints" / "best").exists() == bool(bests)
    if bests:
        assert name(exp_dir, "best") == f"step_{bests[-1]}.pt"
        assert load(exp_dir / "checkpoints" / name(exp_dir, "best"))["update"] == bests[-1]


def test_older_checkpoints_make_room_for_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints, save = Checkpoints(tmp_path, keep=4), Checkpoints.save

    def cramped(self: Checkpoints, *arguments: Any, **options: Any) -> Path:
        if len(list(self.folder.glob("step_*.pt"))) > 2:
            raise no_room()
        return save(self, *arguments, **options)

    with CheckpointWriter(checkpoints, Ranks(), 0) as writer:
        for update in range(1, 5):
            writer.submit(update, state(update), best=update == 2)
            writer._unwritten()
        monkeypatch.setattr(Checkpoints, "save", cramped)
        writer.submit(5, state(5), best=False)
    assert sorted(path.name for path in checkpoints.folder.glob("*.pt")) == ["step_2.pt", "step_4.pt", "step_5.pt"]
    assert "all checkpoints but `last` and `best` are removed" in caplog.text


def test_a_mistake_of_the_program_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(AttributeError), CheckpointWriter(Checkpoints(tmp_path), Ranks(), 0) as writer:
        writer.submit(1, {"model": {}, "odd": lambda: None}, best=False)


@contextmanager
def full_from(first: int, last: int, size: int) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes between two updates."""
    advance, limits = ProgressView.advance, resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(view: ProgressView, done: int) -> None:
        advance(view, done)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size if first <= done < last else limits[0], limits[1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressView, "advance", filling)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_slow_updates_are_saved_by_the_clock_and_that_changes_nothing(speech: Path, tmp_path: Path) -> None:
    whole = settings("finetune", speech, training={"keep_checkpoints": 100})
    steps = []
    for minutes in (0.0, 1e-9):
        exp_dir = tmp_path / str(minutes)
        assert train(exp_dir, whole, f"training.checkpoint_minutes={minutes}") == 0
        steps.append(sorted(update_of(path) for path in (exp_dir / "checkpoints").glob("step_*.pt")))
    assert steps[1] == list(range(1, 11))
    assert set(steps[0]) < set(steps[1])
    assert rows(tmp_path / "0.0") == rows(tmp_path / "1e-09")
    assert_same(checkpoint(tmp_path / "0.0"), checkpoint(tmp_path / "1e-09"))


def test_a_disk_that_is_full_for_a_while_changes_nothing(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints, rows, lines and events wait for room; a dev set's best falls into the time without."""
    whole = settings("pretrain", speech, training={"checkpoint_every": 2, "log_every": 1})
    assert train(tmp_path / "whole", whole) == 0
    with full_from(4, 8, 300):
        assert train(tmp_path / "exp", whole) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.count("is not saved, training goes on and tries again") == 1
    assert said.out.count("checkpoints can be written again") == 1
    assert said.out.count("metrics.jsonl: cannot be written for now: File too large") == 1
    assert rows(tmp_path / "exp") == rows(tmp_path / "whole")
    assert_same(checkpoint(tmp_path / "exp"), checkpoint(tmp_path / "whole"))
    assert_same(checkpoint(tmp_path / "exp", "best"), checkpoint(tmp_path / "whole", "best"))
    assert (tmp_path / "exp" / "train.log").read_text().count("best so far") == said.out.count("best so far") / 2
    assert list((tmp_path / "exp" / "checkpoints").glob(".*")) == []


def test_a_disk_that_stays_full_ends_the_run_in_one_line_and_the_next_goes_on(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = settings("pretrain", speech, training={"checkpoint_every": 2})
    assert train(tmp_path / "whole", whole) == 0
    capsys.readouterr()
    with full_from(5, 1000, 300):
        assert train(tmp_path / "exp", whole, "training.disk_patience_minutes=0") == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "cannot be written: File too large" in said.err
    assert name(tmp_path / "exp", "last") == "step_4.pt"
    assert train(tmp_path / "exp", whole) == 0
    assert "resumed from step 4" in capsys.readouterr().out
    assert rows(tmp_path / "exp") == rows(tmp_path / "whole")
    assert_same(checkpoint(tmp_path / "exp"), checkpoint(tmp_path / "whole"))


def test_rows_without_room_travel_in_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = MetricLog(tmp_path, 0)
    metrics.write({"step": 1, "loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(Appender, "flush", lambda self: None)
        metrics.write({"step": 2, "loss": 2.0})
        unwritten = metrics.unwritten()
    del metrics  # killed
    MetricLog(tmp_path, 2, unwritten).close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


@given(pieces=st.lists(st.binary(max_size=5), max_size=6), room=st.lists(st.integers(0, 7), max_size=12))
def test_an_appender_loses_and_doubles_nothing(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], room: list[int]
) -> None:
    """Writes that are cut short anywhere, and refused anywhere."""
    appender = Appender(tmp_path_factory.mktemp("file") / "rows")
    whole = appender._file

    class Cramped:
        def write(self, data: bytes) -> int:
            if not room:
                return whole.write(data)
            free = room.pop()
            if free == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return whole.write(data[:free])

        def close(self) -> None:
            whole.close()

    appender._file = Cramped()  # type: ignore[assignment]
    for piece in pieces:
        appender.write(piece)
    room.clear()
    appender.close()
    assert appender.path.read_bytes() == b"".join(pieces)


def test_what_a_killed_process_left_is_removed(speech: Path, tmp_path: Path) -> None:
    whole = settings("pretrain", speech)
    assert train(tmp_path / "exp", whole, "pretrain.updates=2") == 0
    left = [tmp_path / "exp" / ".config.yaml.7.part", tmp_path / "exp" / "checkpoints" / ".step_9.pt.7.part"]
    for path in left:
        path.write_text("half")
    assert train(tmp_path / "exp", whole, "pretrain.updates=2") == 0
    assert not any(path.exists() for path in left)
