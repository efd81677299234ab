from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from experiments import add_decoding, make_experiment, prepared_set
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.analysis.gallery import Cache
from asrkit.analysis.page import embed, render
from asrkit.analysis.report import ReportConfig, report, watch
from asrkit.analysis.run import Run, names
from asrkit.errors import AsrkitError

CONFIG = ReportConfig(device="cpu")
REFERENCES = {"1-1-1": "FOUR RED BOATS", "1-1-2": "LEAVE NEAR SEVEN", "2-1-1": "RED GARDENS"}
HYPOTHESES = {"1-1-1": "FOUR RED BOATS", "1-1-2": "LEAVE SEVEN", "2-1-1": "READ GARDENS BOATS"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&<!--"


class Elements(HTMLParser):
    """Every tag with its attributes, and the JSON blocks."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: dict[str, Any] = {}
        self.open: str | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = dict(attrs).get("id") if dict(attrs).get("type") == "application/json" else None

    def handle_data(self, data: str) -> None:
        if self.open is not None:
            self.blocks[self.open] = json.loads(data)
            self.open = None


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    prepared_set(tmp_path / "data" / "test", REFERENCES, {i: f"speaker {i[0]}" for i in REFERENCES})
    folder = make_experiment(tmp_path / "exp", tmp_path / "data")
    add_decoding(folder, "test", REFERENCES, HYPOTHESES)
    return folder


def test_the_page_holds_what_the_experiment_does(experiment: Path) -> None:
    found = Elements(report([experiment], CONFIG)).blocks
    page = found["page"]
    (own,) = page["experiments"]
    assert own["best"] == {"name": "wer", "value": 0.01, "step": 100}
    assert own["status"]["phase_step"] == 100
    assert own["config"]["encoder.dim"] == "16"
    assert own["environment"]["processes"] == "1"
    assert "it runs" in own["log"]
    (test,) = page["tests"]
    assert test["results"][0]["wer"] == 3 / 8
    assert test["results"][0]["interval"] == pytest.approx([1 / 6, 1.0])
    (decoding,) = page["decodings"]
    assert decoding["substituted"] == [["RED", "READ", 1]]
    assert decoding["deleted"] == [["NEAR", 1]]
    assert decoding["inserted"] == [["BOATS", 1]]
    assert decoding["speakers"] == [["speaker 2", 2, 2], ["speaker 1", 1, 6]]
    assert decoding["note"] == ""
    texts, data = found[decoding["texts"]], found[decoding["data"]]
    assert dict(zip(texts["ids"], texts["references"], strict=True)) == REFERENCES
    assert data["hypotheses"] == [None, "LEAVE SEVEN", "READ GARDENS BOATS"]
    assert sorted(texts["media"]) == sorted(data["posteriors"]) == ["1", "2"]
    media = found[texts["media"]["1"]]
    assert media["seconds"] == 0.7
    assert media["audio"].startswith("data:audio/")
    assert media["spectrogram"].startswith("data:image/png")


def test_two_experiments_share_a_sets_texts_and_audio(tmp_path: Path, experiment: Path) -> None:
    other = make_experiment(tmp_path / "other", tmp_path / "data", seed=2)
    add_decoding(other, "test", REFERENCES, REFERENCES | {"1-1-2": "X"}, seed=2)
    alone = Elements(report([experiment], CONFIG)).blocks
    found = Elements(report([experiment, other, experiment], CONFIG)).blocks
    page = found["page"]
    assert [own["name"] for own in page["experiments"]] == ["exp", "other"]
    assert page["decodings"][0]["texts"] == page["decodings"][1]["texts"]
    assert sum(name.startswith("media-") for name in found) == sum(name.startswith("media-") for name in alone)
    ((row,),) = (test["seeds"] for test in page["tests"])
    assert row[[heading["name"] for heading in page["headings"]].index("n")] == "2"
    assert row[6].startswith("37.50 ± 0.00")


def test_copies_of_the_data_are_one_set(tmp_path: Path, experiment: Path) -> None:
    prepared_set(tmp_path / "copy" / "test", REFERENCES)
    other = make_experiment(tmp_path / "other", tmp_path / "copy", seed=2)
    gone = make_experiment(tmp_path / "gone", tmp_path / "nowhere", seed=3, weights=False)
    add_decoding(other, "test", REFERENCES, REFERENCES | {"1-1-1": "X"}, seed=2)
    add_decoding(gone, "test", REFERENCES, HYPOTHESES, seed=3)
    for folders in ([experiment, other, gone], [gone, other, experiment]):
        found = Elements(report(folders, CONFIG)).blocks
        assert len({decoding["texts"] for decoding in found["page"]["decodings"]}) == 1
        texts = found[found["page"]["decodings"][0]["texts"]]
        assert sorted(texts["media"]) == ["0", "1", "2"]
        assert texts["seconds"] == [0.7, 0.7, 0.7]


def test_without_data_or_weights_the_page_says_so(tmp_path: Path) -> None:
    gone = make_experiment(tmp_path / "gone", tmp_path / "nowhere", weights=False)
    add_decoding(gone, "test", REFERENCES, HYPOTHESES)
    found = Elements(report([gone], CONFIG)).blocks
    decoding = found["page"]["decodings"][0]
    assert decoding["note"].startswith("No audio")
    assert "gone" in found[decoding["texts"]]["silence"]
    prepared_set(tmp_path / "nowhere" / "test", REFERENCES)
    found = Elements(report([gone], CONFIG)).blocks
    decoding = found["page"]["decodings"][0]
    assert decoding["note"].startswith("No posteriors")
    assert len(found[decoding["texts"]]["media"]) == 2


def test_a_bare_experiment_and_a_broken_decoding_make_a_page(tmp_path: Path) -> None:
    bare = make_experiment(tmp_path / "bare", tmp_path, weights=False)
    (bare / "metrics.jsonl").unlink()
    (bare / "decode/test/greedy").mkdir(parents=True)
    (bare / "decode/test/greedy/results.json").write_text("{", encoding="utf-8")
    page = Elements(report([bare], CONFIG)).blocks["page"]
    assert page["decodings"] == []
    assert "not JSON" in page["experiments"][0]["notes"][0]
    with pytest.raises(AsrkitError, match="not an experiment"):
        report([tmp_path / "none"], CONFIG)


def test_audio_stays_within_its_bound(experiment: Path) -> None:
    found = Elements(report([experiment], ReportConfig(device="cpu", megabytes=0.001))).blocks
    decoding = found["page"]["decodings"][0]
    assert found[decoding["texts"]]["media"] == {}
    assert "too large" in decoding["note"]
    none = Elements(report([experiment], ReportConfig(device="cpu", utterances=0))).blocks
    assert none[none["page"]["decodings"][0]["texts"]]["media"] == {}
    with pytest.raises(AsrkitError, match="--utterances"):
        ReportConfig(utterances=-1)


def test_hostile_names_texts_and_settings_stay_text(tmp_path: Path) -> None:
    name = HOSTILE.split()[0].replace("/", "\u2215")
    folder = make_experiment(tmp_path / name, tmp_path / "data", weights=False)
    evil = HOSTILE.replace(" ", "/")
    add_decoding(folder, "test", {evil: HOSTILE}, {evil: f"{HOSTILE} x"}, decoder="x", recipe=HOSTILE, subset=HOSTILE)
    with open(folder / "config.yaml", "a", encoding="utf-8") as config:
        config.write(f"evil: {json.dumps(HOSTILE)}\n")
    (folder / "train.log").write_text(HOSTILE, encoding="utf-8")
    row = {"step": 1, "phase": HOSTILE, HOSTILE: 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    harmless = make_experiment(tmp_path / "harmless", tmp_path / "data", weights=False)
    add_decoding(harmless, "test", {"a": "A"}, {"a": "B"})
    tags, expected = (
        [(tag, set(attributes)) for tag, attributes in Elements(report([own], CONFIG)).tags]
        for own in (folder, harmless)
    )
    assert tags == expected
    found = Elements(report([folder], ReportConfig(title=HOSTILE, device="cpu"))).blocks
    assert found["page"]["title"] == HOSTILE
    assert found[found["page"]["decodings"][0]["texts"]]["references"] == [" ".join(HOSTILE.split())]


def test_the_page_loads_nothing_and_runs_its_own_script_only() -> None:
    page = render("t", {"page": {}})
    policy = Elements(page).tags[[t for t, _ in Elements(page).tags].index("meta") + 1][1]["content"] or ""
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#|data:)", page)
    assert 'http-equiv="refresh"' not in page
    assert 'content="5"' in render("t", {"page": {}}, refresh=5)


@settings(deadline=None)
@given(value=st.recursive(st.text() | st.integers() | st.none(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_embedded_json_is_itself_and_no_markup(value: Any) -> None:
    text = embed(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


def test_watching_writes_when_something_changed(tmp_path: Path, experiment: Path) -> None:
    output, pages = tmp_path / "report.html", []

    def wait(seconds: float) -> None:
        assert seconds == 0.5
        pages.append(output.read_text(encoding="utf-8") if output.exists() else None)
        output.unlink(missing_ok=True)
        if len(pages) == 1:
            with open(experiment / "metrics.jsonl", "a", encoding="utf-8") as metrics:
                metrics.write('{"step": 4242, "phase": "finetune", "ctc": 1.0}\n')
        if len(pages) == 3:
            raise KeyboardInterrupt

    watch([experiment], output, CONFIG, 0.5, wait)
    first, second, third = pages
    assert first is not None
    assert second is not None
    assert third is None, "nothing had changed"
    assert Elements(first).blocks["page"]["refresh"] == 0.5
    assert Elements(second).blocks["page"]["experiments"][0]["status"]["step"] == 4242
    assert 'http-equiv="refresh"' in second
    last = output.read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in last
    assert list(tmp_path.glob("*.part")) == []


def test_similarities_are_shown_where_they_are_whole(experiment: Path) -> None:
    (experiment / "similarity.json").write_text('{"a": "x", "b": "y", "layers": [0, 1], "pwcca": [1, 0.5]}', "utf-8")
    (experiment / "units/similarity.json").write_text('{"layers": [0], "pwcca": [7]}', "utf-8")
    assert Run.open(experiment).similarities() == [{"title": "x and y", "layers": ["0", "1"], "values": [1.0, 0.5]}]


def test_names_tell_folders_apart() -> None:
    assert names([Path("a/x"), Path("b/y")]) == ["x", "y"]
    assert names([Path("a/x"), Path("b/x")]) == ["a/x", "b/x"]


def test_cache_makes_once_and_forgets_what_is_unused() -> None:
    cache, made = Cache(), []

    def make() -> int:
        made.append(1)
        return len(made)

    assert (cache.get("a", make), cache.get("a", make)) == (1, 1)
    cache.sweep()
    assert cache.get("a", make) == 1
    cache.sweep()
    cache.sweep()
    assert cache.get("a", make) == 2
