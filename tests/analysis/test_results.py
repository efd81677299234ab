from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asrkit import cli
from asrkit.analysis.results import (
    BEGIN,
    END,
    HEADINGS,
    Result,
    cells,
    collect,
    markdown,
    read_result,
    rows,
    write_results,
)
from asrkit.errors import AsrkitError

VALUES = {
    "set": "test-clean",
    "corpus": "mini",
    "wer": 0.1,
    "cer": 0.05,
    "words": 100,
    "utterances": 10,
    "decoder": "greedy",
    "lm": None,
    "recipe": "pretrain+finetune",
    "method": "finetune",
    "source": None,
    "subset": "1h",
    "seed": 1,
    "hardware": "a machine",
}
TEST = ("mini", "test-clean", 10, 100)


def put(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    path.write_text(json.dumps(VALUES | changes), encoding="utf-8")
    return path


def test_seeds_become_a_mean_and_a_sample_deviation(tmp_path: Path) -> None:
    rates = [0.10, 0.13, 0.19]
    for seed, wer in enumerate(rates):
        put(tmp_path / str(seed), seed=seed, wer=wer)
    put(tmp_path / "beam", decoder="beam", lm="lm/4gram.arpa", wer=0.08)
    tests = rows(collect([tmp_path]))
    assert len(tests) == 1
    beam, greedy = tests["mini", "test-clean", 10, 100]
    assert (beam.mean("wer"), beam.spread("wer"), len(beam.results)) == (0.08, None, 1)
    mean = sum(rates) / 3
    assert math.isclose(greedy.mean("wer"), mean)
    assert math.isclose(greedy.spread("wer") or 0, math.sqrt(sum((rate - mean) ** 2 for rate in rates) / 2))
    text = markdown(collect([tmp_path]))
    assert "14.00 ± 4.58" in text
    assert "| 8.00 | 5.00 | 1 |" in text
    assert "4gram.arpa" in text


def test_corpora_sets_and_sizes_are_never_mixed(tmp_path: Path) -> None:
    put(tmp_path / "a", corpus="mini", seed=1)
    put(tmp_path / "b", corpus="librispeech", seed=2)
    put(tmp_path / "c", set="test-other", seed=3)
    put(tmp_path / "d", utterances=2620, words=52576, seed=4)
    tests = rows(collect([tmp_path]))
    assert len(tests) == 4
    assert all(len(systems) == 1 and len(systems[0].results) == 1 for systems in tests.values())
    text = markdown(collect([tmp_path]))
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## librispeech", "## mini"]
    assert text.count("### ") == 4


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": "finetune"},
        {"method": "x"},
        {"source": "100h"},
        {"subset": "10h"},
        {"decoder": "b"},
        {"lm": "l"},
        {"beam": 5},
        {"lexicon": "words.txt"},
        {"rescore": "gpt2"},
    ],
)
def test_whatever_differs_but_the_seed_is_a_row_of_its_own(tmp_path: Path, change: dict[str, str]) -> None:
    put(tmp_path / "a")
    put(tmp_path / "b", **({"seed": 2} | change))
    (systems,) = rows(collect([tmp_path])).values()
    assert len(systems) == 2


def test_the_decoders_row_names_language_model_weights_and_where_they_were_tuned(tmp_path: Path) -> None:
    searched = {"decoder": "beam", "lm": "lm/4gram.arpa", "beam": 50, "word_score": 0.5, "tuned_on": "dev-clean"}
    speed = {"audio_seconds": 300.0, "seconds": 2.0, "substitutions": 3}
    put(tmp_path / "1", **searched, **speed, lm_weight=1.5)
    put(tmp_path / "2", **searched, **(speed | {"seconds": 4.0, "substitutions": 4}), lm_weight=2.0, seed=2)
    put(tmp_path / "greedy", **speed)
    shown = {row.first.decoder: dict(zip(HEADINGS, cells(row), strict=True)) for row in rows(collect([tmp_path]))[TEST]}
    beam, greedy = shown["beam"], shown["greedy"]
    assert beam["decoder"] == "beam, width 50"
    assert beam["LM (weights; tuned on)"] == "4gram.arpa (1.5–2, 0.5; dev-clean)"
    assert (beam["n"], beam["sub"], beam["del"], beam["audio s/s"]) == ("2", "3.5", "–", "100")
    assert (greedy["decoder"], greedy["LM (weights; tuned on)"]) == ("greedy", "–")
    assert (greedy["sub"], greedy["audio s/s"]) == ("3", "150")


def test_the_terminal_has_a_table_per_corpus_with_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "a", set="dev-clean")
    put(tmp_path / "b", wer=0.1234)
    put(tmp_path / "c", corpus="real")
    kept = tmp_path / "results.txt"
    assert cli.main(["results", str(tmp_path), "--output", str(kept)]) == 0
    text = kept.read_text(encoding="utf-8")
    assert "mini: pretrain+finetune, labels 1h, seed 1" in text
    assert "real: pretrain+finetune" in text
    assert "12.34" in text
    assert "labels" not in text.replace(", labels 1h", ""), "what is alike stands in the title"
    assert capsys.readouterr().out == text


def test_a_copy_counts_once_and_a_contradiction_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "exp/a")
    shutil.copytree(tmp_path / "exp", tmp_path / "kept")
    (systems,) = rows(collect([tmp_path, tmp_path / "exp"])).values()
    assert len(systems[0].results) == 1
    put(tmp_path / "kept/a", wer=0.11)
    with pytest.raises(AsrkitError, match="another result of the same system"):
        rows(collect([tmp_path]))


def test_what_was_written_by_hand_stays_and_twice_is_once(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    begin, end = BEGIN.format(name="tables"), END.format(name="tables")
    path.write_text(f"# Mine\n\nBy hand.\n{begin}\nold\n{end}\nBelow.\n", encoding="utf-8")
    write_results(path, "| new |\n")
    once = path.read_text(encoding="utf-8")
    assert once == f"# Mine\n\nBy hand.\n{begin}\n\n| new |\n\n{end}\nBelow.\n"
    write_results(path, "| new |\n")
    assert path.read_text(encoding="utf-8") == once
    fresh = tmp_path / "new/RESULTS.md"
    write_results(fresh, "| x |")
    write_results(fresh, "| y |")
    assert "| y |" in fresh.read_text(encoding="utf-8")
    assert "| x |" not in fresh.read_text(encoding="utf-8")


def test_parts_of_other_names_live_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "R.md"
    write_results(path, "first")
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}{BEGIN.format(name='methods')}\n{END.format(name='methods')}\n", encoding="utf-8")
    write_results(path, "second", "methods")
    write_results(path, "third")
    text = path.read_text(encoding="utf-8")
    assert "third" in text
    assert "second" in text
    assert "first" not in text


def test_a_file_without_markers_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(AsrkitError, match="markers are missing"):
        write_results(path, "tables")
    assert path.read_text(encoding="utf-8") == "precious"


def test_markup_in_names_stays_text(tmp_path: Path) -> None:
    put(tmp_path, subset="a|b<script>", recipe="x_y_z")
    (line,) = (line for line in markdown(collect([tmp_path])).splitlines() if "script" in line)
    assert "a\\|b\\<script>" in line
    assert line.replace("\\|", "").count("|") == len(HEADINGS) + 1


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(AsrkitError, match=r"no results\.json"):
        collect([tmp_path])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(VALUES)), inner, max_size=14),
    max_leaves=15,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(list(VALUES)), JSON, max_size=3) | JSON)
def test_any_file_gives_a_result_or_one_line(tmp_path: Path, changes: Any) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(VALUES | changes if isinstance(changes, dict) else changes), encoding="utf-8")
    try:
        found = read_result(path)
    except AsrkitError:
        return
    assert isinstance(found, Result)
    assert "### " in markdown([found])
