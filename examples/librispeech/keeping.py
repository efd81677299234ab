"""What is kept of a run of a study: its results, each speaker's errors, and how its WER on dev went down."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from study import Run

from asrkit.files import write_text
from asrkit.text.speakers import by_speaker, guess_speakers
from asrkit.text.wer import read_transcripts, score

CURVE = "curve.tsv"
COLUMNS = ("updates", "seconds", "wer")


def keep(run: Run, source: Path, target: Path, stages: Iterable[Path], pretraining: Path | None) -> None:
    """Copy a run's results on a set, and each speaker's errors, which the intervals are drawn from.

    Args:
        run: the run.
        source: folder of the decoding.
        target: the results' new place.
        stages: the experiments that the run is made of, in order, the pre-training apart.
        pretraining: the pre-training's experiment, if there was one.
    """
    hypotheses = read_transcripts(source / "hyp.trans.txt")
    scored = score(read_transcripts(source / "ref.trans.txt"), hypotheses)
    totals = by_speaker(scored, guess_speakers(hypotheses))
    lines = [f"{speaker}\t{counts.word_errors}\t{counts.words}\n" for speaker, counts in sorted(totals.items())]
    write_text(target.with_name("speakers.tsv"), "speaker\terrors\twords\n" + "".join(lines))
    result = json.loads((source / "results.json").read_text(encoding="utf-8"))
    # The folder says nothing to anyone else.
    result["model"] = run.folder
    spent = [_spent(stage) for stage in stages]
    result["training_seconds"] = round(sum(seconds for _, seconds in spent), 1)
    updates, seconds = _spent(pretraining) if pretraining is not None else (0, 0.0)
    result |= {"pretraining_updates": updates, "pretraining_seconds": round(seconds, 1)}
    write_text(target, json.dumps(result, indent=1) + "\n")


def keep_curve(stages: Iterable[Path], target: Path) -> None:
    """Write WER on dev over updates and seconds of training through a run's stages, the pre-training apart."""
    lines = ["\t".join(COLUMNS) + "\n"]
    updates, seconds = 0, 0.0
    for stage in stages:
        for row in _rows(stage):
            if "dev/wer" in row:
                at = (updates + row["step"], f"{seconds + row.get('seconds', 0.0):.1f}", f"{row['dev/wer']:.5f}")
                lines.append("\t".join(map(str, at)) + "\n")
        done, took = _spent(stage)
        updates, seconds = updates + done, seconds + took
    write_text(target, "".join(lines))


def _spent(experiment: Path) -> tuple[int, float]:
    """Return the updates of an experiment and the seconds that they took."""
    rows = _rows(experiment)
    return max((row.get("step", 0) for row in rows), default=0), max(
        (row.get("seconds", 0.0) for row in rows), default=0.0
    )


def _rows(experiment: Path) -> list[dict[str, Any]]:
    path = experiment / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
