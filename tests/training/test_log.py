"""What a run says on a terminal, in a file, and in metrics.jsonl."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

from asrkit.errors import AsrkitError
from asrkit.training.distributed import Ranks, ranks_of_environment
from asrkit.training.engine import choose_device
from asrkit.training.log import MetricLog, ProgressView, logging_to

ROW = {
    "step": 10, "phase": "pretrain", "phase_step": 10, "phase_steps": 40, "loss": 4.321, "contrastive": 4.2,
    "code_perplexity": 321.4, "learning_rate": 5e-4, "grad_norm": 1.5, "audio_seconds_per_second": 98.76,
    "seconds_left": 3725.0, "unshown": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_shows_losses_speed_and_time_left(width: int) -> None:
    terminal = io.StringIO()
    view = ProgressView(Console(file=terminal, force_terminal=True, width=width, color_system=None), True)
    view.start("pretrain", 0, 40)
    view.advance(10)
    view.show(ROW)
    view.stop()
    shown = " ".join(terminal.getvalue().split())  # a line may break between a word and its figure
    for part in (
        "pretrain",
        "10/40",
        "left",
        "loss 4.32",
        "contrastive 4.2",
        "codes 321",
        "rate 0.0005",
        "speed 98.8x",
    ):
        assert part in shown
    assert "unshown" not in shown


def test_a_file_gets_a_line_per_row() -> None:
    file = io.StringIO()
    view = ProgressView(Console(file=file, width=60), True)
    view.start("pretrain", 0, 40)
    view.advance(10)
    view.show(ROW)
    view.stop()
    assert file.getvalue().strip() == (
        "pretrain 10/40  loss 4.32  contrastive 4.2  codes 321  gradient 1.5  rate 0.0005  speed 98.8x  left 1:02:05"
    )


def test_other_ranks_are_silent_but_for_a_file_of_their_warnings(tmp_path: Path) -> None:
    file = io.StringIO()
    console = Console(file=file)
    view = ProgressView(console, False)
    with logging_to(tmp_path / "exp", console, rank=3):
        logging.getLogger("asrkit.training").info("not to be heard")
        view.start("pretrain", 0, 40)
        view.show(ROW)
        view.stop()
        assert not (tmp_path / "exp").exists()
        logging.getLogger("asrkit.data").warning("utterance skipped")
    assert file.getvalue() == ""
    assert [path.name for path in (tmp_path / "exp").rglob("*.log")] == ["rank_3.log"]
    assert (tmp_path / "exp" / "logs" / "rank_3.log").read_text().endswith("WARNING utterance skipped\n")


def test_logging_ends_with_its_context(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = io.StringIO()
    with logging_to(tmp_path, Console(file=file, width=200)):
        logging.getLogger("asrkit.data").warning("inside [bold]")
    logging.getLogger("asrkit.data").warning("outside")
    assert file.getvalue() == "inside [bold]\n"
    assert "WARNING inside [bold]" in (tmp_path / "train.log").read_text()
    assert "outside" not in (tmp_path / "train.log").read_text()
    assert caplog.messages == ["outside"]


def test_metrics_begin_again_behind_the_restored_update(tmp_path: Path) -> None:
    metrics = MetricLog(tmp_path, 0)
    for step in (5, 10, 15):
        metrics.write({"step": step, "loss": 1 / 3, "rate": float("nan"), "phase": "all"})
    metrics.close()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 20, "lo\n\x00\xff\n[1]\n{"loss": 1}\n')
    MetricLog(tmp_path, 10).close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == [f'{{"step": {step}, "loss": 0.33333333, "rate": null, "phase": "all"}}' for step in (5, 10)]
    assert all(json.loads(line) for line in lines)


def test_the_environment_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks_of_environment() == Ranks()
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert ranks_of_environment() == Ranks(3, 4, 1)
    with pytest.raises(AsrkitError, match=r"cuda:0|no GPU"):
        choose_device("cuda:0", Ranks(3, 4, 1))
    monkeypatch.delenv("RANK")
    with pytest.raises(AsrkitError, match="RANK is amiss"):
        ranks_of_environment()
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(AsrkitError, match="torchrun"):
        ranks_of_environment()
