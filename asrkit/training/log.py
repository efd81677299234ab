"""What a run says: metrics.jsonl, TensorBoard, train.log, and progress on the terminal."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from asrkit.errors import AsrkitError
from asrkit.files import Appender, write_text

log = logging.getLogger("asrkit")


@contextmanager
def logging_to(exp_dir: Path, console: Console, rank: int = 0) -> Iterator[None]:
    """Send asrkit's log lines to the terminal and to `train.log` as long as the context lasts.

    Only rank zero speaks; what the others have to warn of goes to `logs/rank_N.log`, which they make with the first warning.
    """
    to_file = _FileHandler(exp_dir / "train.log" if rank == 0 else exp_dir / "logs" / f"rank_{rank}.log")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [to_file]
    if rank == 0:
        to_file.open()
        handlers.append(_ConsoleHandler(console))
    else:
        to_file.setLevel(logging.WARNING)
    level, propagate = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(level)
        log.propagate = propagate


class _FileHandler(logging.Handler):
    """Appends lines to a file, later if there is no room now."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.file: Appender | None = None
        self.busy = False

    def open(self) -> Appender:
        """Open the file, where that has not been done."""
        if self.file is None:
            self.file = Appender(self.path)
        return self.file

    def emit(self, record: logging.LogRecord) -> None:
        try:
            file = self.open()
        except AsrkitError:  # a rank's own file, on a full disk: no reason to end its run
            return
        # A write that fails says so itself, in a line for this very file.
        file.waiting += f"{self.format(record)}\n".encode(errors="replace")
        if not self.busy:
            self.busy = True
            file.flush()
            self.busy = False

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        super().close()


class _ConsoleHandler(logging.Handler):
    """Prints through rich, so that log lines and the progress bar do not overwrite each other."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        colour = "yellow" if record.levelno >= logging.WARNING else "dim"
        self.console.print(record.getMessage(), style=colour, markup=False, highlight=False, soft_wrap=True)


class MetricLog:
    """Rows of figures, in `metrics.jsonl` and in TensorBoard; a full disk delays them and loses none."""

    def __init__(self, exp_dir: Path, restored_update: int, unwritten: str = "") -> None:
        """Open both for a run that goes on behind an update.

        Args:
            exp_dir: the experiment.
            restored_update: rows of later updates are dropped: they will be computed again.
            unwritten: what `unwritten` gave when the checkpoint was made.
        """
        self.path = exp_dir / "metrics.jsonl"
        self._cut(restored_update, unwritten)
        self.rows = Appender(self.path)
        self.board = _Board(exp_dir / "tensorboard", restored_update)

    def _cut(self, update: int, unwritten: str) -> None:
        if not self.path.is_file():
            return
        kept = []
        for line in (self.path.read_text(encoding="utf-8", errors="replace") + unwritten).splitlines():
            try:
                past = json.loads(line)["step"] <= update
            except (ValueError, TypeError, KeyError):  # a kill in mid-write leaves half a row
                continue
            if past:
                kept.append(line)
        write_text(self.path, "".join(line + "\n" for line in kept))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; its numbers go to TensorBoard too."""
        text = json.dumps({key: _storable(value) for key, value in row.items()})
        self.rows.write(text.encode() + b"\n")
        self.board.write(row)

    def unwritten(self) -> str:
        """Have all rows on the disk for a checkpoint that counts on them; return those for which there is no room."""
        self.rows.sync()
        return self.rows.waiting.decode()

    def close(self) -> None:
        """Flush and close."""
        self.rows.close()
        self.board.file.close()


class _Board:
    """TensorBoard's event file. Its own writer is a thread that ends at the first write without room."""

    def __init__(self, folder: Path, restored_update: int) -> None:
        self.file = Appender(folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}")
        self.records = RecordWriter(self.file)
        self._add(Event(file_version="brain.Event:2"))
        # Has TensorBoard forget what an earlier process wrote of the future that is computed again.
        self._add(Event(step=restored_update + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, row: Mapping[str, Any]) -> None:
        numbers = [(name, value) for name, value in row.items() if isinstance(value, (int, float)) and name != "step"]
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers]
        self._add(Event(step=row["step"], summary=Summary(value=values)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())


def _storable(value: Any) -> Any:
    """Eight significant digits: enough to compare runs, short enough to read. JSON has no word for NaN: null."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.8g}") if math.isfinite(value) else None


class _Bar(Progress):
    """A bar, and the newest figures on the lines below it, where they fit into any terminal."""

    figures = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        """Return what is drawn."""
        yield self.make_tasks_table(self.tasks)
        if self.figures:
            yield Text(self.figures, style="cyan")


class ProgressView:
    """A bar with losses, speed and time left on a terminal; plain lines where the output is a file."""

    def __init__(self, console: Console, enabled: bool) -> None:
        self.console = console
        self.enabled = enabled
        self.progress = _Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self.task: TaskID | None = None

    def start(self, phase: str, done: int, total: int) -> None:
        """Begin the bar of a phase."""
        self.progress.start()
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(phase, total=total, completed=done)

    def advance(self, done: int) -> None:
        """Move the bar."""
        if self.task is not None:
            self.progress.update(self.task, completed=done)

    def show(self, row: Mapping[str, Any]) -> None:
        """Show the newest figures below the bar, or as a line of their own."""
        shown = [text.format(_short(row[name])) for name, text in SHOWN.items() if name in row]
        if self.task is not None and not self.progress.disable:
            self.progress.figures = "  ".join(shown)
        elif self.enabled:
            place = f"{row['phase']} {row['phase_step']}/{row['phase_steps']}"
            left = f"  left {clock_text(row['seconds_left'])}"
            self.console.print(f"{place}  " + "  ".join(shown) + left, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """End the display."""
        self.progress.stop()


SHOWN = {
    "loss": "loss {}",
    "ctc": "ctc {}",
    "contrastive": "contrastive {}",
    "cross_entropy": "cross-entropy {}",
    "accuracy": "accuracy {}",
    "code_perplexity": "codes {}",
    "grad_norm": "gradient {}",
    "learning_rate": "rate {}",
    "audio_seconds_per_second": "speed {}x",
}
"""Figures for the terminal, in this order, and how they are written there; speed is in seconds of audio per second."""


DEV_SHOWN = ("loss", "accuracy", "code_perplexity", "wer", "cer", "per")
"""Figures of a validation for the terminal; metrics.jsonl has them all."""


def dev_text(figures: Mapping[str, float]) -> str:
    """Return a validation's figures in a line, such as ``loss 31.2  wer 0.231  cer 0.0712``."""
    return "  ".join(f"{name} {_short(figures[name])}" for name in DEV_SHOWN if name in figures)


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def clock_text(seconds: float) -> str:
    """Return seconds as ``M:SS``, or ``H:MM:SS`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
