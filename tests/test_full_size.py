"""The page of full-size runs: what is not run says so, what is run stands beside what was published."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "librispeech"
PAGE = EXAMPLE / "RESULTS.md"
COUNTS = yaml.safe_load((EXAMPLE / "full_size.yaml").read_text(encoding="utf-8"))["sets"]


def make(exp: Path, output: Path) -> subprocess.CompletedProcess[str]:
    output.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, str(EXAMPLE / "full_size.py"), "--exp-dir", str(exp), "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write_result(exp: Path, seed: int, wer: float, **changes: Any) -> None:
    values: dict[str, Any] = {
        "set": "test-clean", "corpus": "librispeech", "wer": wer, "cer": 0.1, "words": 50_000, "decoder": "greedy", "lm": None,
        "recipe": "wav2vec2_base+finetune", "method": "finetune", "source": None, "subset": "10h", "seed": seed,
        "utterances": COUNTS["test-clean"], **changes,
    }  # fmt: skip
    folder = exp / f"full_base_seed{seed}/finetune_10h/decode/{values['set']}/{values['decoder']}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(values), encoding="utf-8")


def test_the_page_is_up_to_date_and_nothing_of_it_was_run(tmp_path: Path) -> None:
    assert make(tmp_path, tmp_path / "page.md").returncode == 0
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page == PAGE.read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| (10min|1h|10h|100h|960h) \| [^\d-]", line)]
    assert len(rows) == 2 * (3 * 4 + 2 * 2 + 2)
    assert all(cell.strip(" |") == "not run" for row in rows for cell in row[3 if len(row) > 4 else 2 :: 2])


def test_what_was_run_is_a_mean_over_seeds(tmp_path: Path) -> None:
    for seed, wer in ((1, 0.10), (2, 0.12)):
        write_result(tmp_path, seed, wer)
        write_result(tmp_path, seed, 0.5, decoder="flashlight", lm="other.arpa")
        write_result(tmp_path, seed, wer / 2, decoder="beam", lm="4-gram.arpa.gz", beam=500)
    assert make(tmp_path, tmp_path / "page.md").returncode == 0
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| 10h | fine-tuning, fairseq's settings"))
    assert "| 10.9 / 17.4 / 11.1 / 17.6 | – / – / 11.0 / – (n = 2) |" in row
    assert "| 3.8 / 9.1 / 4.3 / 9.5 | – / – / 5.5 / – (n = 2) |" in row


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"utterances": 208}, "test-clean has 208 utterances, LibriSpeech's has 2620"),
        ({"lm": "4-gram.arpa.gz", "decoder": "beam"}, "another result of the same model, set and language model"),
    ],
)
def test_excerpts_and_doubtful_results_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    write_result(tmp_path, 1, 0.1, decoder="flashlight", lm="4-gram.arpa.gz")
    write_result(tmp_path, 1, 0.2, **changes)
    done = make(tmp_path, tmp_path / "page.md")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert says in done.stderr
    assert "not run" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_its_commands_are_accepted_by_the_recipe(tmp_path: Path) -> None:
    """Each call of run.sh, up to the corpus that is not there."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    calls = set()
    for block in blocks[:2]:
        # The loops run with a stand-in for the recipe, which notes how it would be called.
        noted = re.sub(r"examples/librispeech/run\.sh", "echo", block)
        noted = re.sub(r"^(asrkit|python) .*$", "", noted, flags=re.MULTILINE)
        done = subprocess.run(["bash", "-euc", noted], capture_output=True, text=True, check=True)
        calls |= {line for line in done.stdout.splitlines() if " --seed 1 " in line}
    assert len(calls) == 2 * (2 * 5 + 2 * 3 + 2)
    for call in sorted(calls)[::3]:
        arguments = shlex.split(call.replace("/data/speech", str(tmp_path / "none")))
        done = subprocess.run(
            ["bash", str(EXAMPLE / "run.sh"), *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.stderr.endswith("none: no such folder (--download fetches the corpus into it)\n"), call
