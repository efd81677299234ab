"""`heterogeneous`: sources by name, what they are to a run, and that it learns."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLOCK, STILL, checkpoint, make_batch, make_method, rows, settings, train

from asrkit import cli
from asrkit.core.inner import Inner, InnerConfig
from asrkit.core.step import Accumulate, Totals
from asrkit.errors import AsrkitError
from asrkit.methods.heterogeneous import Heterogeneous, HeterogeneousConfig
from asrkit.training.config import load_experiment_config
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine

ENGINE = TrainingEngine(torch.device("cpu"), "fp32", Ranks())
PLAIN = {"wav2vec2": {"features_dropout": 0.0}}


def test_every_source_is_a_stream_of_each_update(speech: Path, tmp_path: Path) -> None:
    more = {"sets": ["dev"], "seconds_per_update": 2.0}
    whole = settings("heterogeneous", speech, data={"sources": {"third": more}}, training={"log_every": 1})
    assert train(tmp_path / "exp", whole) == 0
    trained = [row for row in rows(tmp_path / "exp") if "loss" in row]
    assert len(trained) == 10
    for row in trained:
        assert row["loss"] == pytest.approx(sum(row[f"loss/{name}"] for name in ("plain", "slow", "third")) / 3)
        assert row["loss_before_inner"] > 0
    assert sorted(checkpoint(tmp_path / "exp")["streams"]) == ["plain", "slow", "third"]


def test_sources_go_through_their_audio_in_orders_of_their_own(speech: Path, tmp_path: Path) -> None:
    """Two sources of the same sets are not in step, and a further one changes nothing about the others."""
    orders = {}
    prepare = Heterogeneous.prepare
    same = {"sets": ["train"], "seconds_per_update": 4.0, "crop_seconds": 0.0, "speed_factors": []}
    for name, sources in (("two", ["plain", "slow"]), ("three", ["third", "plain", "slow"])):
        seen: dict[str, list[str]] = {}

        def noted(method: Any, stream: str, batch: Any, clock: Any, seen: Any = seen) -> Any:
            seen.setdefault(stream, []).extend(sorted(batch.ids))
            return prepare(method, stream, batch, clock)

        whole = settings("heterogeneous", speech, heterogeneous={"updates": 2, "inner": {"steps": 0}})
        whole["data"] = {**whole["data"], "sources": dict.fromkeys(sources, same), "dev": []}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Heterogeneous, "prepare", noted)
            assert train(tmp_path / name, whole) == 0
        orders[name] = seen
    assert orders["two"] == {name: orders["three"][name] for name in ("plain", "slow")}
    assert len({tuple(order) for order in orders["three"].values()}) == 3


def test_without_inner_steps_an_update_is_that_of_a_mixture() -> None:
    """The gradient of the sources' mean loss, as `pretrain` would have it from each."""
    streams = {"a": [make_batch([1, 2])], "b": [make_batch([3]), make_batch([4])]}
    gradients = []
    for name, step in (("heterogeneous", Inner(InnerConfig(steps=0))), ("pretrain", Accumulate())):
        method = make_method(name, encoder=STILL, **{name: PLAIN}).train()
        step.run(method, streams, CLOCK, ENGINE, Totals({}))
        gradients.append({key: p.grad for key, p in method.named_parameters() if p.grad is not None})
    mixed, summed = gradients
    assert sorted(mixed) == sorted(summed)
    for key, gradient in mixed.items():
        torch.testing.assert_close(gradient, summed[key] / 2, rtol=1e-6, atol=1e-9)


def test_inner_steps_lower_the_loss_on_their_source() -> None:
    """On the same audio: the loss behind the steps is below the one before."""
    method = make_method("heterogeneous", encoder=STILL, heterogeneous=PLAIN).train()
    losses = []
    for steps in (0, 8):
        totals = Totals({})
        # One utterance again and again, under other keys, so that every share holds the same audio.
        batch = make_batch([5] * 9)
        batch = type(batch)(**{**batch.__dict__, "keys": batch.keys[:1] + torch.arange(9)})
        Inner(InnerConfig(steps=steps, rate=0.1)).run(method, {"a": [batch]}, CLOCK, ENGINE, totals)
        above, below = totals.values["loss/a"]
        losses.append(float(above) / float(below))
    assert losses[-1] < 0.95 * losses[0]


def test_a_few_updates_lower_the_loss() -> None:
    method = make_method("heterogeneous", encoder=STILL, heterogeneous=PLAIN).train()
    adam = torch.optim.Adam(method.parameters(), 3e-3)
    streams = {"a": [make_batch(range(4))], "b": [make_batch(range(4, 8))]}
    losses = []
    for _ in range(40):
        totals = Totals({})
        Inner(InnerConfig(steps=1, rate=0.01)).run(method, streams, CLOCK, ENGINE, totals)
        adam.step()
        adam.zero_grad()
        losses.append(float(totals.values["contrastive"][0]) / float(totals.values["contrastive"][1]))
    assert losses[-1] < 0.8 * losses[0]


def test_it_is_what_fine_tuning_starts_from(speech: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "before", settings("heterogeneous", speech, heterogeneous={"updates": 2})) == 0
    tuned = settings("finetune", speech, finetune={"updates": 2, "freeze_updates": 0}, init=str(tmp_path / "before"))
    assert train(tmp_path / "exp", tuned) == 0
    assert (tmp_path / "exp" / "recipe").read_text().startswith("heterogeneous+finetune\n")


def test_paths_of_sources_are_kept_absolute_and_may_move(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(speech, tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    whole = settings("heterogeneous", speech, heterogeneous={"updates": 1}, data={"sources": {"slow": {"dir": "one"}}})
    assert train(tmp_path / "exp", whole) == 0
    kept = load_experiment_config(tmp_path / "exp" / "config.yaml", [])
    assert kept.data.sources["slow"].dir == str(tmp_path / "one")
    assert kept.data.sources["plain"].dir == ""
    # Another folder is another run as long as the old one is there.
    os.symlink(speech, tmp_path / "two")
    assert train(tmp_path / "exp", whole, "data.sources.slow.dir=two") == 2
    assert "data.sources.slow.dir is" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "one")
    assert train(tmp_path / "exp", whole, "data.sources.slow.dir=two") == 0


def test_a_dry_run_knows_the_sources(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "exp", settings("heterogeneous", speech), "--dry-run") == 0
    said = capsys.readouterr().out
    assert "plain" in said
    assert "slow" in said


def test_every_setting_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help-config", "heterogeneous"]) == 0
    said = capsys.readouterr().out
    for key in ("inner.steps", "inner.rate", "inner.rule", "inner.clip_norm", "schedule.learning_rate"):
        assert f"heterogeneous.{key} (" in said
    assert "data.sources (dict[str, StreamConfig])" in said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sources": {}}, "heterogeneous needs data.sources, which is empty"),
        ({"sources": {"radio": {"sets": []}}}, "data.sources.radio.sets is empty"),
        ({"sources": {"labelled": {"sets": ["train"]}}}, "data.sources has the name 'labelled'"),
        ({"sources": {"a.b": {"sets": ["train"]}}}, "data.sources has the name 'a.b'"),
        ({"sources": {"radio": {"set": ["train"]}}}, "data.sources.radio.set"),
    ],
)
def test_wrong_sources_are_one_line(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], says: str
) -> None:
    whole = settings("heterogeneous", speech)
    whole["data"] = {**whole["data"], **changes}
    assert train(tmp_path / "exp", whole) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(AsrkitError, match=r"heterogeneous\.updates"):
        HeterogeneousConfig(updates=0)
