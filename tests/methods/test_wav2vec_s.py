"""`wav2vec_s`: what the teacher is, what the student learns from, and when a run is called lost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLOCK, STILL, UNITS, WAVEFORM, make_batch, make_method, merged, rows, settings, train
from torch import nn

from asrkit.core.clock import Clock
from asrkit.core.step import Accumulate, Totals
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.methods import wav2vec_s
from asrkit.methods.pseudo_labels import (
    LabelCache,
    PseudoLabel,
    PseudoLabelConfig,
    collapse,
    labelled_with,
    loops,
    read_off,
)
from asrkit.methods.teacher import MovingAverage, evaluating
from asrkit.methods.wav2vec_s import Wav2VecS, Wav2VecSConfig
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine

ENGINE = TrainingEngine(torch.device("cpu"), "fp32", Ranks())
SEMI = replace(CLOCK, phase="semi")
SELF: dict[str, Any] = {"teacher": "self", "cache": 0, "ramp_updates": 0, "confidence": 0.0}
SEEDS = (3, 5, 1, 7)


def make(encoder: Mapping[str, Any] = STILL, pseudo: Mapping[str, Any] = SELF, **options: Any) -> Wav2VecS:
    method = make_method("wav2vec_s", encoder=encoder, wav2vec_s={"pseudo": pseudo, **options})
    assert isinstance(method, Wav2VecS)
    # Untrained scores are all but equal; this makes labels of several units.
    with torch.no_grad():
        method.ctc.project.weight.mul_(8)
    return method


def unlabelled(seeds: tuple[int, ...] = SEEDS, epoch: int = 2) -> Batch:
    return replace(make_batch(seeds, epoch), targets=None, target_lengths=None, host_target_lengths=None)


def learn(method: Wav2VecS, clock: Clock = SEMI, **batches: Batch) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Return the figures and gradients of an update."""
    totals = Totals({})
    method.zero_grad(set_to_none=True)
    Accumulate().run(method, {name: [batch] for name, batch in batches.items()}, clock, ENGINE, totals)
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return {name: float(above) / float(below) for name, (above, below) in totals.values.items() if below}, gradients


def texts(batch: Batch) -> tuple[tuple[int, ...], ...]:
    assert batch.targets is not None
    assert batch.host_target_lengths is not None
    return tuple(tuple(row[:n].tolist()) for row, n in zip(batch.targets, batch.host_target_lengths, strict=True))


# The teacher


@pytest.mark.parametrize("encoder", [{}, WAVEFORM], ids=["conformer", "transformer"])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("teacher", ["self", "ema"])
def test_the_teacher_hears_without_masks_dropout_or_gradient(
    encoder: Mapping[str, Any], frozen: bool, teacher: str
) -> None:
    method = make({**encoder, "layer_drop": 0.5}, {**SELF, "teacher": teacher}, freeze_frontend=frozen).train()
    batch = unlabelled()
    with torch.inference_mode(), evaluating(method):
        plain = method.hypotheses(batch)
    draws = method.prepare("unlabelled", batch, SEMI).draws
    assert method.training
    assert all(part.training for part in method.modules())
    kept = [units for units in plain if units]
    assert len(kept) >= 2
    assert [list(units) for units in texts(draws.batch)] == kept
    assert draws.masks.mask.time.any()
    assert (draws.extracted is not None) == frozen
    assert draws.extracted is None or not draws.extracted.extracted.requires_grad
    assert all(p.grad is None for p in method.parameters())


def test_a_moving_average_has_no_gradient_and_is_no_parameter() -> None:
    method = make(pseudo={**SELF, "teacher": "ema"}).train()
    before = sorted(method.state_dict())
    method.after_update(SEMI, ENGINE)
    learn(method, unlabelled=unlabelled())
    assert method.average is not None
    copies = [p for kept in method.average.copies.values() for p in kept.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in copies)
    assert sorted(method.state_dict()) == before
    assert {id(p) for p in copies}.isdisjoint(id(p) for p in method.parameters())


def test_the_average_begins_with_the_first_update_on_both_streams_and_labels_by_itself() -> None:
    method = make(pseudo={**SELF, "teacher": "ema", "ema_decay": 1.0}).train()
    method.after_update(replace(CLOCK, phase="warmup"), ENGINE)
    assert method.average is not None
    assert not method.average.begun
    method.after_update(SEMI, ENGINE)
    batch = unlabelled()
    first = texts(method.prepare("unlabelled", batch, SEMI).draws.batch)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter))
    method.after_update(SEMI, ENGINE)
    assert texts(method.prepare("unlabelled", batch, SEMI).draws.batch) == first
    other = make(pseudo=SELF).train()
    other.load_state_dict(method.state_dict())
    draws = other.prepare("unlabelled", batch, SEMI).draws
    assert draws.batch is None or texts(draws.batch) != first


def test_the_average_is_exact_over_ten_thousand_updates() -> None:
    torch.manual_seed(0)
    student = nn.Linear(7, 3)
    average = MovingAverage({"head": student}, decay=0.9995)
    exact = student.weight.detach().double().clone()
    for _ in range(10_000):
        with torch.no_grad():
            student.weight.add_(1e-3 * torch.randn_like(student.weight))
        average.follow({"head": student})
        exact = 0.9995 * exact + 0.0005 * student.weight.detach().double()
    kept = average.copies["head"].weight
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept.double(), exact, rtol=1e-5, atol=1e-6)


def test_the_average_stays_in_float32() -> None:
    student = nn.Linear(2, 2).bfloat16()
    average = MovingAverage({"head": student}, decay=0.5)
    average.follow({"head": student})
    assert {p.dtype for p in average.copies["head"].parameters()} == {torch.float32}


# Labels


def test_labels_and_confidence_by_their_definition() -> None:
    torch.manual_seed(1)
    log_probs = (3 * torch.randn(5, 9, 4)).log_softmax(-1)
    lengths = torch.tensor([9, 4, 1, 7, 9])
    log_probs[2, 0] = torch.tensor([0.97, 0.01, 0.01, 0.01]).log()  # a blank alone
    for row, label in enumerate(read_off(log_probs, lengths, blank=0)):
        best = [max(range(4), key=lambda v, t=t: log_probs[row, t, v]) for t in range(lengths[row])]
        merged_units = [v for t, v in enumerate(best) if v and (t == 0 or best[t - 1] != v)]
        sure = [float(log_probs[row, t, v]) for t, v in enumerate(best) if v]
        assert label.units == tuple(merged_units)
        assert label.confidence == pytest.approx(math.exp(sum(sure) / len(sure)) if sure else 0.0, rel=1e-6)


def test_padding_changes_no_label() -> None:
    method = make().train()
    together = method.prepare("unlabelled", unlabelled(), SEMI).draws
    apart = [method.prepare("unlabelled", unlabelled((seed,)), SEMI).draws for seed in SEEDS]
    singles = [text for draws in apart if draws.batch is not None for text in texts(draws.batch)]
    assert list(texts(together.batch)) == singles


def test_the_filter_keeps_what_is_sure_and_says_something() -> None:
    assert PseudoLabel((1, 2), 0.8).passes(0.8)
    assert not PseudoLabel((1, 2), 0.79).passes(0.8)
    assert not PseudoLabel((), 1.0).passes(0.0)
    method = make().train()
    batch = unlabelled()
    labels, _ = method._label(batch, SEMI)
    threshold = sorted(label.confidence for label in labels)[2]
    method.config.pseudo.confidence = threshold
    draws = method.prepare("unlabelled", batch, SEMI).draws
    sure = [
        name for name, label in zip(batch.ids, labels, strict=True) if label.units and label.confidence >= threshold
    ]
    assert 0 < len(sure) < len(batch.ids)
    assert list(draws.batch.ids) == sure
    assert float(draws.figures["pseudo_kept"].numerator) == len(sure)


def test_loops() -> None:
    assert loops([1, 2, 3] * 8)
    assert loops([4] * 16)
    assert not loops([1, 2, 3] * 5)
    assert not loops(range(40))


# Losses


@pytest.mark.parametrize("frozen", [True, False])
def test_on_perfect_labels_the_student_learns_what_supervision_teaches(
    frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make({**STILL, "layer_drop": 0.3}, freeze_frontend=frozen).train()
    labelled = make_batch(SEEDS)
    perfect = [PseudoLabel(units, 1.0) for units in texts(labelled)]
    monkeypatch.setattr(wav2vec_s, "read_off", lambda *_: perfect)
    supervised, gradients = learn(method, labelled=labelled)
    pseudo, others = learn(method, unlabelled=unlabelled())
    assert pseudo["pseudo_ctc"] == pytest.approx(supervised["ctc"], rel=1e-6)
    assert pseudo["loss"] == pytest.approx(supervised["loss"], rel=1e-6)
    assert pseudo["pseudo_cer"] == 0
    assert sorted(gradients) == sorted(others)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalise", ["utterances", "labels", "frames"])
def test_one_losses_utterances_do_not_count_in_the_other(normalise: str) -> None:
    method = make(ctc={"normalise": normalise}).train()
    labelled, unheard = make_batch((2, 4)), unlabelled()
    alone, first = learn(method, labelled=labelled)
    pseudo, second = learn(method, unlabelled=unheard)
    both, sum_ = learn(method, labelled=labelled, unlabelled=unheard)
    assert both["ctc"] == pytest.approx(alone["ctc"], rel=1e-6)
    assert both["pseudo_ctc"] == pytest.approx(pseudo["pseudo_ctc"], rel=1e-6)
    assert both["loss"] == pytest.approx(alone["ctc"] + pseudo["pseudo_ctc"], rel=1e-6)
    for name, gradient in sum_.items():
        torch.testing.assert_close(gradient, first[name] + second[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", ["all", "kept"])
def test_what_the_loss_on_pseudo_labels_is_divided_by(count: str) -> None:
    method = make(pseudo={**SELF, "count": count}).train()
    labels, _ = method._label(unlabelled(), SEMI)
    method.config.pseudo.confidence = sorted(label.confidence for label in labels)[1]
    ready = method.prepare("unlabelled", unlabelled(), SEMI)
    expected = len(SEEDS) if count == "all" else len(ready.draws.batch.ids)
    assert float(ready.counts["pseudo_ctc"]) == expected
    assert len(ready.draws.batch.ids) < len(SEEDS)


def test_nothing_kept_is_nothing_learnt() -> None:
    method = make(pseudo={**SELF, "confidence": 1.0}).train()
    figures, gradients = learn(method, unlabelled=unlabelled())
    assert figures["loss"] == 0
    assert figures["pseudo_kept"] == 0
    assert not gradients


@pytest.mark.parametrize("teacher", ["self", "ema"])
def test_a_rehearsal_learns_from_every_row_and_holds_the_average(teacher: str) -> None:
    method = make(pseudo={**SELF, "teacher": teacher, "confidence": 1.0}).train()
    with torch.no_grad():
        method.ctc.project.bias[method.units.blank] = 100.0
    method.rehearse()
    figures, gradients = learn(method, unlabelled=unlabelled())
    assert figures["pseudo_kept"] == 1
    assert 0 < figures["pseudo_ctc"] < math.inf
    assert gradients
    assert method.average is None or method.average.begun


def test_the_ramp() -> None:
    method = make(pseudo={**SELF, "weight": 0.6, "ramp_updates": 4}).train()
    weights = [
        method.prepare("unlabelled", unlabelled(), replace(SEMI, phase_update=update)).draws.weight
        for update in (0, 1, 3, 4, 9)
    ]
    assert weights == pytest.approx([0.15, 0.3, 0.6, 0.6, 0.6])
    light, heavy = (learn(method, replace(SEMI, phase_update=update), unlabelled=unlabelled()) for update in (0, 9))
    for name, gradient in light[1].items():
        torch.testing.assert_close(4 * gradient, heavy[1][name], rtol=1e-4, atol=1e-6)


def test_phases_and_what_learns_in_each() -> None:
    method = make(freeze_frontend=True)
    phases = method.phases()
    assert [(phase.name, phase.length) for phase in phases] == [("head", 1), ("warmup", 2), ("semi", 7)]
    assert [phase.streams for phase in phases] == [("labelled",), ("labelled",), ("labelled", "unlabelled")]
    assert [set(phase.schedules) for phase in phases] == [{"ctc"}, {"encoder", "ctc"}, {"encoder", "ctc"}]
    rates = [phase.schedules["ctc"].rate(0) for phase in phases]
    whole = phases[0].schedules["ctc"]
    assert rates == [whole.rate(0), whole.rate(1), whole.rate(3)]
    _, gradients = learn(method.train(), replace(CLOCK, phase="head"), labelled=make_batch(SEEDS))
    assert {name.split(".")[0] for name in gradients} == {"ctc"}


def test_the_student_may_have_spec_augment_of_its_own() -> None:
    spec = {"bands": 2, "band_width": 4}
    method = make(student_spec_augment=spec, freeze_frontend=True).train()
    draws = method.prepare("unlabelled", unlabelled(), SEMI).draws
    assert draws.extracted is None
    assert draws.masks.spec_mask.bins.any()
    assert method.prepare("labelled", make_batch(SEEDS), SEMI).draws.masks.spec_mask is None


# The cache


def test_the_cache_by_its_definition() -> None:
    cache = LabelCache(3, renewal=0.0)
    batch = unlabelled()
    assert cache.find(batch, seed=1) == {}
    made = [PseudoLabel((row,), 0.5) for row in range(4)]
    cache.note(batch.ids, made)
    assert cache.find(batch, seed=1) == {}, "what an update makes is known from the next on"
    cache.take([cache.fresh])
    # The first in the order of names left: there is room for three.
    gone = sorted(batch.ids)[0]
    assert cache.find(batch, seed=1) == {row: made[row] for row, name in enumerate(batch.ids) if name != gone}
    cache.note(["new"], [PseudoLabel((9,), 0.9)])
    cache.take([cache.fresh])
    assert list(cache.entries) == [*sorted(batch.ids)[2:], "new"]
    other = LabelCache(3, renewal=0.0)
    other.load_state_dict(cache.state_dict())
    assert list(other.entries.items()) == list(cache.entries.items())
    assert LabelCache(0, renewal=0.0).find(batch, seed=1) == {}


def test_the_cache_is_renewed_at_its_rate() -> None:
    cache = LabelCache(10, renewal=0.3)
    batch = unlabelled()
    cache.take([dict.fromkeys(batch.ids, PseudoLabel((1,), 1.0))])
    found = [len(cache.find(replace(batch, epoch=epoch), seed=1)) for epoch in range(500)]
    assert sum(found) / (500 * len(batch.ids)) == pytest.approx(0.7, abs=0.03)
    assert found == [len(cache.find(replace(batch, epoch=epoch), seed=1)) for epoch in range(500)]


def test_the_cache_is_the_same_whichever_rank_made_a_label() -> None:
    labels = {f"u{n}": PseudoLabel((n,), 0.5) for n in range(6)}
    halves = [{k: v for k, v in labels.items() if int(k[1]) % 2 == part} for part in (0, 1)]
    caches = [LabelCache(4, 0.1) for _ in range(3)]
    for cache, shares in zip(caches, ([labels], halves, halves[::-1]), strict=True):
        cache.take(shares)
    assert list(caches[0].entries.items()) == list(caches[1].entries.items()) == list(caches[2].entries.items())


def test_remembered_labels_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(pseudo={**SELF, "cache": 4, "cache_renewal": 0.0}).train()
    first = method.prepare("unlabelled", unlabelled(), SEMI).draws
    method.after_update(SEMI, ENGINE)
    monkeypatch.setattr(wav2vec_s, "read_off", lambda *_: pytest.fail("the teacher was asked"))
    second = method.prepare("unlabelled", unlabelled(epoch=3), SEMI).draws
    assert texts(second.batch) == texts(first.batch)


def test_a_cache_and_crops_do_not_go_together(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = settings("wav2vec_s", speech, data={"unlabelled": {"crop_seconds": 1.0}})
    assert train(tmp_path / "exp", whole) == 2
    assert "wav2vec_s.pseudo.cache" in capsys.readouterr().err
    assert not (tmp_path / "exp").exists()


# Health, and whole runs


@pytest.mark.parametrize(
    ("metrics", "word"),
    [
        ({"pseudo_empty": 0.51}, "blanks"),
        ({"pseudo_length_ratio": 0.32}, "blanks"),
        ({"pseudo_looping": 0.4, "labelled_looping": 0.1}, "loops"),
        ({"pseudo_empty": 0.5, "pseudo_length_ratio": 0.33, "pseudo_looping": 0.4, "labelled_looping": 0.2}, None),
        ({"loss": 1.0}, None),
    ],
)
def test_collapse(metrics: dict[str, float], word: str | None) -> None:
    reason = collapse(metrics)
    assert (reason is None) == (word is None)
    assert word is None or word in str(reason)


def test_a_collapse_is_warned_of_at_once_and_ends_the_run_later(caplog: pytest.LogCaptureFixture) -> None:
    method = make(collapse_patience=3)
    told = [method.health({"pseudo_empty": value}, SEMI) for value in (0.9, 0.1, 0.9, 0.9)]
    assert told == [None] * 4
    assert len(caplog.records) == 2
    assert "collapsing to blanks" in caplog.text
    other = make(collapse_patience=3)
    other.load_extra_state(method.extra_state())
    # The same command once more does not get further either.
    assert all("collapsing" in str(other.health({"pseudo_empty": 0.9}, SEMI)) for _ in range(2))
    patient = make(collapse_patience=0)
    assert [patient.health({"pseudo_empty": 0.9}, SEMI) for _ in range(40)] == [None] * 40


def test_a_filter_that_nothing_passes_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    method = make(pseudo={**SELF, "confidence": 0.8})
    for kept in (0.0, 0.01, 0.5, 0.0, 0.0):
        assert method.health({"pseudo_kept": kept, "pseudo_confidence": 0.44}, SEMI) is None
    assert not caplog.records
    for _ in range(5):
        assert method.health({"loss": 1.0}, SEMI) is None
        assert method.health({"pseudo_kept": 0.0, "pseudo_confidence": 0.44}, SEMI) is None
    assert caplog.text.count("passes wav2vec_s.pseudo.confidence=0.8 (theirs is 0.44") == len(caplog.records) == 1


def test_what_a_run_logs(speech: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "exp", settings("wav2vec_s", speech)) == 0
    log = rows(tmp_path / "exp")
    trained = [row for row in log if row["phase"] == "semi" and "loss" in row]
    wanted = {"kept", "confidence", "empty", "looping", "units_per_second", "cer", "weight"}
    assert trained
    for row in trained:
        assert {f"pseudo_{name}" for name in wanted} <= set(row)
    validated = [row for row in log if row["phase"] == "semi" and "dev/wer" in row]
    assert {"dev/pseudo_kept", "dev/pseudo_cer", "dev/pseudo_confidence"} <= set(validated[-1])
    assert not any(name.startswith("pseudo") for row in log if row["phase"] != "semi" for name in row)


def test_figures_on_dev_are_those_of_the_teacher() -> None:
    method = make(pseudo={**SELF, "confidence": 0.0}).eval()
    batch = make_batch(SEEDS)
    with torch.inference_mode():
        figures = method.validate(batch, SEMI)
    assert float(figures["pseudo_cer"].numerator) == float(figures["cer"].numerator)


def test_transcripts_of_the_unlabelled_stream_change_nothing_but_the_log() -> None:
    method = make(merged(STILL, {"layer_drop": 0.3})).train()
    batch = unlabelled()
    told, gradients = learn(method, unlabelled=batch)
    others, same = learn(method, unlabelled=replace(batch, texts=None))
    assert "pseudo_cer" in told
    assert "pseudo_cer" not in others
    assert all(torch.equal(gradient, same[name]) for name, gradient in gradients.items())


def test_its_head_serves_fine_tuning(speech: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "stage", settings("wav2vec_s", speech)) == 0
    last = {"init": str(tmp_path / "stage"), "finetune": {"updates": 2, "freeze_updates": 0, "keep_head": True}}
    assert train(tmp_path / "exp", settings("finetune", speech, **last)) == 0
    assert (tmp_path / "exp" / "recipe").read_text().splitlines() == ["wav2vec_s+finetune", "train"]


def test_labelled_with_puts_labels_into_a_batch() -> None:
    labels = [PseudoLabel((1, 2, 3), 1.0), PseudoLabel((), 0.0), PseudoLabel((4,), 1.0), PseudoLabel((2, 2), 1.0)]
    batch = labelled_with(unlabelled(), labels)
    assert texts(batch) == tuple(label.units for label in labels)
    assert batch.host_target_lengths == (3, 0, 1, 2)
    assert len(UNITS) > 4


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Wav2VecSConfig(updates=0), "updates"),
        (lambda: Wav2VecSConfig(updates=10, warmup_updates=11), "warmup_updates"),
        (lambda: Wav2VecSConfig(warmup_updates=5, freeze_updates=6), "freeze_updates"),
        (lambda: Wav2VecSConfig(collapse_patience=-1), "collapse_patience"),
        (lambda: PseudoLabelConfig(teacher="other"), "teacher"),
        (lambda: PseudoLabelConfig(count="some"), "count"),
        (lambda: PseudoLabelConfig(confidence=1.1), "confidence"),
        (lambda: PseudoLabelConfig(ema_decay=-0.1), "ema_decay"),
        (lambda: PseudoLabelConfig(cache=-1), "cache"),
    ],
)
def test_impossible_settings_are_refused(build: Any, named: str) -> None:
    with pytest.raises(AsrkitError, match=named):
        build()
