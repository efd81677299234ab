"""The commands on real speech in LibriSpeech's layout, with the recipe's CPU configuration cut to a few updates.

ASRKIT_REAL_SPEECH names the folder that holds LibriSpeech/ and librispeech_finetuning/; without it there is nothing to test.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from asrkit import cli
from asrkit.data.index import SetIndex

ROOT = Path(__file__).parents[1]
CORPUS = os.environ.get("ASRKIT_REAL_SPEECH", "")
QUICK = ["data.workers=0", "data.dev=[]", "training.log_every=1", "seed=1"]

pytestmark = pytest.mark.skipif(not CORPUS, reason="ASRKIT_REAL_SPEECH is not set")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "data"
    assert cli.main(["prepare", "librispeech", "--corpus-dir", CORPUS, "--output-dir", str(folder)]) == 0
    return folder


def ids(data: Path, name: str) -> set[str]:
    index = SetIndex.open(data / name)
    return {str(record["id"]) for record in index.records()}


def test_every_recording_is_usable_and_the_limited_sets_nest(data: Path) -> None:
    files = {path.stem for path in Path(CORPUS).glob("LibriSpeech/train-clean-100/**/*.flac")}
    assert ids(data, "train-clean-100") == files
    assert ids(data, "10min") < ids(data, "1h") < ids(data, "10h")
    assert ids(data, "10h") == ids(data, "1h") | ids(data, "9h")
    assert not ids(data, "10h") & (ids(data, "dev-clean") | ids(data, "test-clean"))


def test_from_audio_to_a_transcript(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf, settings = ROOT / "conf" / "librispeech", [f"data.dir={data}", *QUICK]
    pretrain, finetune = tmp_path / "pretrain", tmp_path / "finetune"
    own = ["pretrain.updates=2", "data.unlabelled.seconds_per_update=20"]
    assert cli.main(["train", f"{conf}/pretrain_mini.yaml", f"exp_dir={pretrain}", *settings, *own]) == 0
    own = ["finetune.updates=2", "finetune.freeze_updates=1", "data.labelled.seconds_per_update=20", f"init={pretrain}"]
    assert cli.main(["train", f"{conf}/finetune_mini.yaml", f"exp_dir={finetune}", *settings, *own]) == 0
    for folder, loss in ((pretrain, "contrastive"), (finetune, "ctc")):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert len(rows) == 2
        assert all(math.isfinite(row[loss]) and row[loss] > 0 for row in rows)
    path = next(Path(CORPUS).glob("LibriSpeech/test-clean/**/*.flac"))
    capsys.readouterr()
    assert cli.main(["transcribe", "--model", str(finetune), str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}\t")
