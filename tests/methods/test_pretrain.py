"""`pretrain`: the watch over collapse, gradients into the frontend, unquantised targets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import CLOCK, STILL, WAVEFORM, checkpoint, make_batch, make_method, rows, settings, train

from asrkit.core.step import Accumulate, Totals
from asrkit.errors import AsrkitError
from asrkit.methods.pretrain import Pretrain, PretrainConfig
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine

ENGINE = TrainingEngine(torch.device("cpu"), "fp32", Ranks())


def test_a_collapse_stops_the_run_with_its_reason(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one entry per codebook, nothing can be told apart."""
    broken = {"collapse_patience": 3, "wav2vec2": {"entries": 1}}
    whole = settings("pretrain", speech, pretrain=broken, training={"log_every": 2})
    assert train(tmp_path / "exp", whole) == 2
    said = capsys.readouterr().err
    assert "stopped at step 6: the code perplexity has been as low as 2.00 for 3 rows" in said
    assert "pretrain.schedule.learning_rate" in said
    assert said.count("\n") == 1
    assert checkpoint(tmp_path / "exp")["update"] == 6
    # The same command does not run on as if nothing had been.
    assert train(tmp_path / "exp", whole) == 2
    assert "stopped at step 8" in capsys.readouterr().err


def test_health_counts_rows_on_the_floor_in_a_row_per_codebook() -> None:
    method = make_method("pretrain", pretrain={"collapse_patience": 3, "wav2vec2": {"groups": 4}})
    assert isinstance(method, Pretrain)
    told = [method.health({"code_perplexity": value}, CLOCK) for value in (5.9, 6.0, 6.1, 5.0, 4.0, 4.5)]
    assert [reason is not None for reason in told] == [False] * 5 + [True]
    other = make_method("pretrain", pretrain={"collapse_patience": 3})
    other.load_extra_state(method.extra_state())
    assert other.health({"code_perplexity": 1.0}, CLOCK) is not None
    assert other.health({"code_perplexity": float("nan")}, CLOCK) is None
    assert other.health({"loss": 1.0}, CLOCK) is None


def test_unquantised_targets(speech: Path, tmp_path: Path) -> None:
    whole = settings("pretrain", speech, pretrain={"wav2vec2": {"quantise_targets": False}})
    assert train(tmp_path / "exp", whole) == 0
    assert "code_perplexity" not in rows(tmp_path / "exp")[-2]
    assert rows(tmp_path / "exp")[-2]["accuracy"] > 0


def test_the_frontends_gradient_is_scaled() -> None:
    gradients = []
    for scale in (1.0, 0.1):
        options = {"frontend_gradient_scale": scale, "wav2vec2": {"features_dropout": 0.0}}
        method = make_method("pretrain", encoder={**WAVEFORM, **STILL}, pretrain=options).train()
        Accumulate().run(method, {"unlabelled": [make_batch([1, 2])]}, CLOCK, ENGINE, Totals({}))
        gradients.append({name: p.grad for name, p in method.named_parameters() if p.grad is not None})
    whole, scaled = gradients
    assert sorted(whole) == sorted(scaled)
    for name, gradient in whole.items():
        factor = 0.1 if name.startswith("encoder.frontend.") else 1.0
        torch.testing.assert_close(scaled[name], factor * gradient, rtol=1e-4, atol=1e-7)


def test_a_few_updates_lower_the_loss() -> None:
    method = make_method("pretrain", encoder=STILL, pretrain={"wav2vec2": {"features_dropout": 0.0}}).train()
    batch = make_batch(range(6))
    adam = torch.optim.Adam(method.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        totals = Totals({})
        Accumulate().run(method, {"unlabelled": [batch]}, CLOCK, ENGINE, totals)
        adam.step()
        adam.zero_grad()
        losses.append(float(totals.values["contrastive"][0]) / float(totals.values["contrastive"][1]))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"updates": 0}, "pretrain.updates"),
        ({"frontend_gradient_scale": -1.0}, "pretrain.frontend_gradient_scale"),
        ({"collapse_patience": 0}, "pretrain.collapse_patience"),
        ({"min_code_perplexity": -1.0}, "pretrain.min_code_perplexity"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, float], named: str) -> None:
    with pytest.raises(AsrkitError, match=named):
        PretrainConfig(**changes)  # type: ignore[arg-type]
