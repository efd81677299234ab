"""`finetune`: which parameters learn when, SpecAugment, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLOCK, STILL, WAVEFORM, checkpoint, make_batch, make_method, rows, settings, train

from asrkit.core.step import Accumulate, Totals
from asrkit.errors import AsrkitError
from asrkit.methods.finetune import Finetune, FinetuneConfig
from asrkit.nn.spec_augment import SpecAugmentConfig
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine
from asrkit.training.optimiser import Optimiser, OptimiserConfig

ENGINE = TrainingEngine(torch.device("cpu"), "fp32", Ranks())
SPEC = {"bands": 2, "band_width": 6, "stretches": 2, "stretch_share": 0.3}


def learning(method: Finetune, phase: int) -> set[str]:
    """Return the groups that have a gradient after an update of a phase."""
    optimiser = Optimiser(method, OptimiserConfig())
    optimiser.enter(method.phases()[phase])
    clock = type(CLOCK)(3, 2, method.phases()[phase].name, 2, 10)
    Accumulate().run(method, {"labelled": [make_batch([1, 2])]}, clock, ENGINE, Totals({}))
    return {name for name, group in method.groups().items() if any(p.grad is not None for p in group)}


@pytest.mark.parametrize("kind", [{}, WAVEFORM])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_head_learns_first(kind: dict[str, Any], frozen: bool) -> None:
    method = make_method("finetune", encoder={**kind, "layer_drop": 0.0}, finetune={"freeze_frontend": frozen}).train()
    assert isinstance(method, Finetune)
    assert [phase.length for phase in method.phases()] == [4, 6]
    assert learning(method, 0) == {"ctc"}
    assert learning(method, 1) == {"encoder", "ctc"} | (set() if frozen else {"frontend"})


@pytest.mark.parametrize("name", ["finetune", "wav2vec_s"])
def test_the_head_learns_in_half_precision_what_it_learns_in_full(name: str) -> None:
    """With intermediate CTC the head has been used without gradients, by the same autocast, before its loss is taken."""
    gradients = []
    for precision in ("bf16", "fp32"):
        method = make_method(name, encoder=STILL, **{name: {"ctc": {"intermediate": [1]}}}).train()
        Optimiser(method, OptimiserConfig()).enter(method.phases()[0])
        clock = type(CLOCK)(3, 0, "head", 0, 10)
        engine = TrainingEngine(torch.device("cpu"), precision, Ranks())
        Accumulate().run(method, {"labelled": [make_batch([1, 2])]}, clock, engine, Totals({}))
        gradients.append(method.ctc.project.weight.grad)
    assert all(gradient is not None for gradient in gradients)
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 0.05


def test_the_rate_goes_on_where_the_heads_phase_ended() -> None:
    first, second = make_method("finetune").phases()
    rates = [first.schedules["ctc"].rate(update) for update in range(4)]
    rates += [second.schedules["encoder"].rate(update) for update in range(6)]
    assert rates == pytest.approx([1e-4, 5.05e-3, 1e-2, 1e-2, 1e-2, 1e-2, *(1e-2 * 0.05 ** (n / 4) for n in range(4))])


def test_a_frontend_without_parameters_is_no_group(speech: Path, tmp_path: Path) -> None:
    for name in ("finetune", "pretrain"):
        whole = settings(name, speech, encoder={"logmel": {"subsampling": 1}})
        whole[name]["updates"] = 5
        assert train(tmp_path / name, whole) == 0
        assert "learning_rate/frontend" not in rows(tmp_path / name)[-2]


def test_a_run_may_be_the_head_alone(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = settings("finetune", speech, finetune={"updates": 3, "freeze_updates": 3})
    assert train(tmp_path / "exp", whole) == 0
    assert {row["phase"] for row in rows(tmp_path / "exp")} == {"head"}
    assert train(tmp_path / "exp", whole) == 0
    assert "complete at step 3, nothing to do" in capsys.readouterr().out


def test_models_are_ranked_by_words_and_letters() -> None:
    method = make_method("finetune", encoder=STILL)
    figures = [
        {"wer": 0.05, "cer": 0.01},
        {"wer": 0.06, "cer": 0.01},
        {"wer": 1.0, "cer": 0.4},
        {"wer": 0.95, "cer": 0.6},
        {"wer": 1.1, "cer": 0.6},
        {"wer": 1.0, "cer": 1.0},  # says nothing
    ]
    assert sorted(figures, key=method.selection_value) == figures


def test_spec_augment_blanks_out_what_was_drawn() -> None:
    method = make_method("finetune", encoder=STILL, finetune={"spec_augment": SPEC})
    batch = make_batch([1, 2, 3])
    draws = method.prepare("labelled", batch, CLOCK).draws
    seen = []
    method.encoder.frontend.convolutions[0].register_forward_hook(lambda module, given, result: seen.append(given[0]))
    method.train()
    method.losses("labelled", batch, draws, CLOCK)
    energies = seen[0][:, 0]
    blank = draws.spec_mask.frames[:, :, None] | draws.spec_mask.bins[:, None, :]
    assert 0.1 < blank.float().mean() < 0.9
    assert not energies[blank].any()
    assert energies[~blank].ne(0).float().mean() > 0.5
    method.eval()
    with torch.no_grad():
        method.validate(batch, CLOCK)
    assert seen[1][:, 0][blank].any(), "not in validation"


def test_spec_augment_in_a_run(speech: Path, tmp_path: Path) -> None:
    plain, blanked = settings("finetune", speech), settings("finetune", speech, finetune={"spec_augment": SPEC})
    assert train(tmp_path / "plain", plain) == 0
    assert train(tmp_path / "blanked", blanked) == 0
    assert rows(tmp_path / "plain")[0]["loss"] != rows(tmp_path / "blanked")[0]["loss"]


def test_spec_augment_needs_a_spectrogram(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = settings("finetune", speech, encoder=WAVEFORM, finetune={"spec_augment": SPEC})
    assert train(tmp_path / "exp", whole) == 2
    said = capsys.readouterr().err
    assert "finetune.spec_augment" in said
    assert "encoder.frontend is waveform" in said
    assert said.count("\n") == 1
    raw = settings("finetune", speech, encoder={"logmel": {"normalisation": "none"}}, finetune={"spec_augment": SPEC})
    assert train(tmp_path / "raw", raw) == 2
    assert "encoder.logmel.normalisation is none" in capsys.readouterr().err
    encoder = make_method("finetune", encoder=WAVEFORM).encoder
    mask = make_method("finetune", finetune={"spec_augment": SPEC}).prepare("labelled", make_batch([1]), CLOCK)
    batch = make_batch([1])
    with pytest.raises(AsrkitError, match="logmel"):
        encoder(batch.waves, batch.wave_lengths, batch.host_lengths, spec_mask=mask.draws.spec_mask)


def test_a_few_updates_lower_the_loss(speech: Path, tmp_path: Path) -> None:
    calm = {"updates": 60, "freeze_updates": 0, "mask": {"time_probability": 0.0, "channel_probability": 0.0}}
    whole = settings("finetune", speech, encoder=STILL, finetune=calm, optimiser={"clip_norm": 5.0})
    assert train(tmp_path / "exp", whole) == 0
    found = [row["loss"] for row in rows(tmp_path / "exp") if "loss" in row]
    assert found[-1] < 0.5 * found[0]
    assert checkpoint(tmp_path / "exp")["finished"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"updates": 0}, "finetune.updates"),
        ({"freeze_updates": -1}, "finetune.freeze_updates"),
        ({"updates": 10, "freeze_updates": 11}, "finetune.freeze_updates"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(AsrkitError, match=named):
        FinetuneConfig(**changes)


def test_spec_augment_is_off_unless_asked_for() -> None:
    assert not FinetuneConfig().spec_augment.active
    assert make_method("finetune").prepare("labelled", make_batch([1]), CLOCK).draws.spec_mask is None
    assert SpecAugmentConfig(**SPEC).active
