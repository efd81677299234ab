"""What a run says: metrics.jsonl, TensorBoard, train.log, and progress on the terminal."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from asrkit.files import write_text

log = logging.getLogger("asrkit")


def configure_logging(exp_dir: Path | None, console: Console, first: bool = True) -> None:
    """Send asrkit's log lines to the terminal (rank zero) and to `train.log`."""
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    if not first:
        log.addHandler(logging.NullHandler())
        return
    log.addHandler(_ConsoleHandler(console))
    if exp_dir is not None:
        exp_dir.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(exp_dir / "train.log", encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(to_file)


class _ConsoleHandler(logging.Handler):
    """Prints through rich, so that log lines and the progress bar do not overwrite each other."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        colour = "yellow" if record.levelno >= logging.WARNING else "dim"
        self.console.print(record.getMessage(), style=colour, markup=False, highlight=False, soft_wrap=True)


class MetricLog:
    """Rows of figures, in `metrics.jsonl` and in TensorBoard."""

    def __init__(self, exp_dir: Path, restored_update: int) -> None:
        self.path = exp_dir / "metrics.jsonl"
        self._cut(restored_update)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self.board = SummaryWriter(str(exp_dir / "tensorboard"), purge_step=restored_update + 1)

    def _cut(self, update: int) -> None:
        """Drop the rows behind the restored update: they belong to a future that will be computed again."""
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # a kill in mid-write leaves half a row
                continue
            if row["step"] <= update:
                kept.append(line)
        write_text(self.path, "".join(line + "\n" for line in kept))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; its numbers go to TensorBoard too."""
        self.file.write(json.dumps({key: _rounded(value) for key, value in row.items()}) + "\n")
        self.file.flush()
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "step":
                self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush and close."""
        self.file.close()
        self.board.close()


def _rounded(value: Any) -> Any:
    """Eight significant digits: enough to compare runs, short enough to read."""
    return float(f"{value:.8g}") if isinstance(value, float) else value


class ProgressView:
    """A bar with loss, speed and time left on a terminal; plain lines where the output is a file."""

    def __init__(self, console: Console, enabled: bool) -> None:
        self.console = console
        self.enabled = enabled
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}"),
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
        self.task = self.progress.add_task(phase, total=total, completed=done, figures="")

    def advance(self, done: int) -> None:
        """Move the bar."""
        if self.task is not None:
            self.progress.update(self.task, completed=done)

    def show(self, row: Mapping[str, Any]) -> None:
        """Show the newest figures beside the bar, or as a line of their own."""
        shown = [f"{name} {_short(row[name])}" for name in row if name in SHOWN]
        if self.task is not None and self.progress.live.is_started and not self.progress.disable:
            self.progress.update(self.task, figures="  ".join(shown[:5]))
        elif self.enabled:
            left = f"  left {_clock(row['seconds_left'])}" if "seconds_left" in row else ""
            place = f"{row['phase']} {row['phase_step']}/{row['phase_steps']}"
            self.console.print(f"{place}  " + "  ".join(shown) + left, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """End the display."""
        self.progress.stop()


SHOWN = (
    "loss",
    "ctc",
    "contrastive",
    "accuracy",
    "code_perplexity",
    "dev/loss",
    "dev/wer",
    "dev/cer",
    "grad_norm",
    "learning_rate",
    "audio_seconds_per_second",
)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
