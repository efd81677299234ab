"""BENCHMARKS.md says what the files say, and what has not been measured."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import pretrain_step
import write_benchmarks

ONE: dict[str, Any] = {
    "title": pretrain_step.TITLE,
    "command": "python benchmarks/pretrain_step.py --batch 2",
    "commit": "0123456789ab",
    "settings": {"precision": "bf16"},
    "machine": {
        "device": "cpu",
        "processor": "Some CPU",
        "threads": "2",
        "cores": "4",
        "torch": "2.9.1",
        "cuda": "12.8",
    },
    "contenders": {
        "asrkit": {
            "median": 0.5,
            "quartiles": [0.4, 0.6],
            "peak_bytes": 3 << 20,
            "audio_seconds_per_second": 40.0,
            "mfu": 0.25,
        },
        "transformers": {
            "median": 1.0,
            "quartiles": [0.9, 1.1],
            "peak_bytes": 6 << 20,
            "audio_seconds_per_second": 20.0,
            "mfu": 0.125,
        },
    },
    "absent": {"fairseq2": "the comparison needs fairseq2"},
    "ratios": [{"name": "time of transformers / asrkit", "median": 2.0, "spread": [1.9, 2.1], "limit": None}],
    "notes": ["Something to know."],
}


def write(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: object) -> tuple[int, Path]:
    results, output = folder / "results", folder / "BENCHMARKS.md"
    results.mkdir(exist_ok=True)
    for name, content in files.items():
        (results / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["write", "--results", str(results), "--output", str(output)])
    return write_benchmarks.main(), output


def sections(text: str) -> dict[str, str]:
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in text.split("\n## ")[1:]}


def test_figures_come_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = copy.deepcopy(ONE)
    gpu["machine"] |= {"device": "A GPU"}
    gpu["notes"] += ["Only here."]
    gpu["contenders"]["asrkit"]["median"] = 0.0125
    other = copy.deepcopy(ONE) | {"title": "Something else", "absent": {}, "notes": []}
    for contender in other["contenders"].values():
        del contender["mfu"]
    status, output = write(tmp_path, monkeypatch, a=ONE, b=gpu, c=other)
    assert status == 0
    found = sections(output.read_text(encoding="utf-8"))
    # Benchmarks that always have a section come first, in their order.
    assert list(found) == [*write_benchmarks.COMPARISONS, "Something else"]
    both = found[pretrain_step.TITLE]
    assert "Not measured" not in both
    assert both.index("### A GPU") < both.index("### Some CPU, 2 of 4 cores")
    assert "| asrkit | 12.5 | 400 to 600 | 3.0 | 40.0 | 25.0 % |" in both
    assert "| asrkit | 500 | 400 to 600 | 3.0 | 40.0 | 25.0 % |" in both
    assert "| transformers | 1000 | 900 to 1100 | 6.0 | 20.0 | 12.5 % |" in both
    assert "| time of transformers / asrkit | 2.000 | 1.900 to 2.100 | – |" in both
    assert "fairseq2 is absent: the comparison needs fairseq2." in both
    assert "`python benchmarks/pretrain_step.py --batch 2`, commit 0123456789ab" in both
    assert "Versions: torch 2.9.1, cuda 12.8." in both
    assert "Versions: torch 2.9.1.\n" in both
    # What holds of all of a section stands at its end, once; what holds of one measurement stands with it.
    assert both.count("Something to know.") == 1
    assert both.index("Only here.") < both.index("### Some CPU") < both.index("Something to know.")
    assert "MFU" not in found["Something else"]
    assert "Not measured on a GPU.\n" in found["Something else"]


def test_what_is_not_measured_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, output = write(tmp_path, monkeypatch, only=ONE)
    assert status == 0
    found = sections(output.read_text(encoding="utf-8"))
    for title, command in write_benchmarks.COMPARISONS.items():
        nowhere = "Not measured on a GPU" if title == pretrain_step.TITLE else "Not measured on a GPU or a CPU"
        assert f"{nowhere}: `{command}`." in found[title]


WITHOUT_RATIOS = {key: value for key, value in ONE.items() if key != "ratios"}


@pytest.mark.parametrize(("content", "complaint"), [([], "lacks 'title'"), (WITHOUT_RATIOS, "lacks 'ratios'")])
def test_a_file_that_is_no_measurement_is_named(
    content: object,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, output = write(tmp_path, monkeypatch)
    before = output.read_text(encoding="utf-8")
    assert write(tmp_path, monkeypatch, wrong=content)[0] == 2
    said = capsys.readouterr().err
    assert "wrong.json" in said
    assert complaint in said
    assert said.count("\n") == 1
    assert output.read_text(encoding="utf-8") == before
