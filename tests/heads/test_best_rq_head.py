"""The BEST-RQ head against plain computations, and its labels, which nothing that is trained can change."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    BEST_RQ,
    CLOCK,
    ENCODER,
    STILL,
    VARIANTS,
    WAVEFORM,
    checkpoint,
    make_batch,
    make_method,
    merged,
    train,
    variant,
)
from helpers import rows as log_rows
from torch import Tensor

from asrkit.config import from_dict
from asrkit.core.step import Accumulate, Totals
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.heads.best_rq import BestRQDraws, BestRQHead, BestRQHeadConfig
from asrkit.methods.common import encode, encoder_frames
from asrkit.methods.joint import JointMethod
from asrkit.methods.pretrain import Pretrain
from asrkit.nn.config import EncoderConfig
from asrkit.nn.encoder import Encoder
from asrkit.training.checkpoint import update_of
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine

ENGINE = TrainingEngine(torch.device("cpu"), "fp32", Ranks())
FRONTENDS: dict[str, dict[str, Any]] = {
    "logmel": merged(ENCODER, STILL),
    "waveform": merged(merged(ENCODER, STILL), WAVEFORM),
}
SEEDS = (3, 5, 1, 7)


def make(kind: str = "logmel", seed: int = 0, **settings: Any) -> tuple[Encoder, BestRQHead]:
    torch.manual_seed(seed)
    encoder = Encoder(from_dict(EncoderConfig, FRONTENDS[kind]))
    return encoder, BestRQHead(from_dict(BestRQHeadConfig, merged(BEST_RQ, settings)), encoder)


def all_labels(encoder: Encoder, head: BestRQHead, batch: Batch) -> list[Tensor]:
    """The labels (T, G) of every frame, utterance by utterance."""
    frames = encoder_frames(encoder, batch)
    places = torch.arange(max(frames)).expand(len(frames), -1)
    labels = head.quantiser(batch.waves, batch.wave_lengths, places, max(frames))
    return [row[:count] for row, count in zip(labels, frames, strict=True)]


def draw(encoder: Encoder, head: BestRQHead, batch: Batch) -> BestRQDraws:
    return head.draw(batch, encoder_frames(encoder, batch), CLOCK)


@pytest.mark.parametrize("kind", FRONTENDS)
def test_a_label_is_the_nearest_entry_to_the_projected_speech(kind: str) -> None:
    """By distances of unit vectors, an utterance, a frame and a codebook at a time, in double precision."""
    encoder, head = make(kind)
    quantiser, mel = head.quantiser, head.quantiser.mel
    for seed in SEEDS[:2]:
        batch = make_batch([seed])
        (found,) = all_labels(encoder, head, batch)
        samples = batch.host_lengths[0]
        energies = mel(batch.waves, torch.tensor([mel.frames(samples)]))[0].double()
        for frame in range(0, len(found), 3):
            window = energies[frame * quantiser.stack : (frame + 1) * quantiser.stack]
            filled = torch.zeros(quantiser.stack, mel.bins, dtype=torch.double)
            filled[: len(window)] = window
            for book in range(2):
                vector = filled.flatten() @ quantiser.projection[book].double()
                codes = quantiser.codes[book].double()
                distances = (codes / codes.norm(dim=1, keepdim=True) - vector / vector.norm()).norm(dim=1)
                nearest = distances.argmin()
                assert distances[found[frame, book]] <= distances[nearest] + 1e-5


@pytest.mark.parametrize("kind", FRONTENDS)
def test_the_labelled_speech_is_what_the_encoder_hears_in_that_frame(kind: str) -> None:
    encoder, head = make(kind)
    quantiser = head.quantiser
    assert quantiser.stack * quantiser.mel.hop == round(16_000 / encoder.frame_rate)
    assert abs(quantiser.mel.hop - 160) <= 80


def test_rows_padding_and_company_do_not_change_a_label() -> None:
    encoder, head = make()
    together = all_labels(encoder, head, make_batch(SEEDS))
    backwards = all_labels(encoder, head, make_batch(SEEDS[::-1]))[::-1]
    batch = make_batch(SEEDS)
    wider = replace(batch, waves=torch.nn.functional.pad(batch.waves, (0, 5000)))
    for row, seed in enumerate(SEEDS):
        (alone,) = all_labels(encoder, head, make_batch([seed]))
        assert torch.equal(alone, together[row])
        assert torch.equal(alone, backwards[row])
        assert torch.equal(alone, all_labels(encoder, head, wider)[row])


def test_labels_depend_on_nothing_that_is_trained() -> None:
    encoder, head = make()
    batch = make_batch(SEEDS)
    before = draw(encoder, head, batch)
    assert not list(head.quantiser.parameters())
    with torch.no_grad():
        for parameter in [*encoder.parameters(), *head.parameters()]:
            parameter.normal_()
    for mode in (True, False):
        encoder.train(mode)
        head.train(mode)
        after = draw(encoder, head, batch)
        assert torch.equal(before.labels, after.labels)
        assert torch.equal(before.places, after.places)


@pytest.mark.parametrize("name", ["pretrain, best_rq", "bl_just, best_rq, conditioned"])
def test_codes_stay_through_training_and_go_with_the_checkpoint(name: str, speech: Path, tmp_path: Path) -> None:
    whole = variant(name, speech, training={"checkpoint_every": 3})
    assert train(tmp_path / "exp", whole) == 0
    first, *_, last = sorted((tmp_path / "exp" / "checkpoints").glob("step_*.pt"), key=update_of)
    weights = [torch.load(path, weights_only=False)["model"] for path in (first, last)]
    frozen = {key for key in weights[0] if key.startswith("ssl.quantiser.")}
    assert frozen == {"ssl.quantiser.projection", "ssl.quantiser.codes"}
    for key in frozen:
        assert torch.equal(weights[0][key], weights[1][key])
    assert not torch.equal(weights[0]["ssl.project.weight"], weights[1]["ssl.project.weight"])
    # Whatever the generators stand at when the run is opened again, its labels are the same.
    method, section = VARIANTS[name]
    torch.manual_seed(99)
    again = make_method(method, encoder={"positions": "shaw", "attention_block": 6}, **{method: section})
    head = again.ssl
    assert isinstance(head, BestRQHead)
    other = all_labels(again.encoder, head, make_batch(SEEDS))
    again.load_state_dict(checkpoint(tmp_path / "exp")["model"])
    same = [all_labels(again.encoder, head, make_batch(SEEDS)) for _ in range(2)]
    assert all(torch.equal(one, two) for one, two in zip(*same, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(other, same[0], strict=True))


def test_the_seed_draws_the_codes() -> None:
    one, same, other = (make(seed=seed)[1].quantiser for seed in (1, 1, 2))
    assert torch.equal(one.codes, same.codes)
    assert torch.equal(one.projection, same.projection)
    assert not torch.equal(one.codes, other.codes)
    # Two codebooks are two projections, else they would say the same twice.
    assert not torch.equal(one.projection[0], one.projection[1])


def test_the_loss_is_the_mean_over_codebooks_of_masked_frames_cross_entropies() -> None:
    encoder, head = make()
    batch = make_batch(SEEDS)
    draws = draw(encoder, head, batch)
    encoded = encode(encoder, batch, draws.mask)
    losses = head.loss(encoded, batch, draws, CLOCK)
    labels = all_labels(encoder, head, batch)
    assert draws.mask.time is not None
    total, count, right = 0.0, 0, 0.0
    used = torch.zeros(2, 12)
    for row, of_row in enumerate(labels):
        for frame, pair in enumerate(of_row):
            if draws.mask.time[row, frame]:
                scores = head.project(encoded.states[row, frame]).double().view(2, 12)
                total += float(sum(-scores[book].log_softmax(-1)[pair[book]] for book in range(2))) / 2
                right += float(sum(scores[book].argmax() == pair[book] for book in range(2))) / 2
                count += 1
                for book in range(2):
                    used[book, pair[book]] += 1
    assert float(losses.terms["cross_entropy"].sum) == pytest.approx(total, rel=1e-5)
    assert float(head.counts(batch, draws)["cross_entropy"]) == count
    figures = {name: float(ratio.numerator) / float(ratio.denominator) for name, ratio in losses.metrics.items()}
    assert figures["accuracy"] == pytest.approx(right / count)
    share = used / used.sum(1, keepdim=True)
    entropies = [-sum(float(p) * math.log(float(p)) for p in book if p > 0) for book in share]
    assert figures["code_perplexity"] == pytest.approx(sum(map(math.exp, entropies)), rel=1e-4)
    assert figures["code_share"] == pytest.approx(float((used > 0).float().mean()))
    assert figures["mask_share"] == pytest.approx(count / sum(encoded.host_lengths))


def test_a_few_updates_lower_the_loss() -> None:
    method = make_method("pretrain", encoder=STILL, pretrain=VARIANTS["pretrain, best_rq"][1]).train()
    batch = make_batch(range(6))
    adam = torch.optim.Adam(method.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        totals = Totals({})
        Accumulate().run(method, {"unlabelled": [batch]}, CLOCK, ENGINE, totals)
        adam.step()
        adam.zero_grad()
        losses.append(float(totals.values["cross_entropy"][0]) / float(totals.values["cross_entropy"][1]))
    assert losses[0] == pytest.approx(math.log(12), rel=0.3)
    assert losses[-1] < 0.7 * losses[0]


def test_codes_in_use_are_logged_and_the_best_model_predicts_best(speech: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "exp", variant("pretrain, best_rq", speech)) == 0
    logged = [row for row in log_rows(tmp_path / "exp") if "code_perplexity" in row]
    assert logged
    assert all(2 <= row["code_perplexity"] <= 24 and 0 < row["code_share"] <= 1 for row in logged)
    validated = {row["step"]: row["dev/cross_entropy"] for row in log_rows(tmp_path / "exp") if "dev/loss" in row}
    assert checkpoint(tmp_path / "exp", "best")["update"] == min(validated, key=lambda step: validated[step])


def test_next_to_no_codes_end_the_run_with_what_to_do() -> None:
    method = make_method("pretrain", pretrain={**VARIANTS["pretrain, best_rq"][1], "collapse_patience": 2})
    assert isinstance(method, Pretrain)
    told = [method.health({"code_perplexity": value}, CLOCK) for value in (3.1, 2.9, 2.9)]
    assert [reason is not None for reason in told] == [False, False, True]
    assert "the random codes do not tell this speech apart" in str(told[-1])
    assert "pretrain.best_rq.codebooks=4" in str(told[-1])


def test_a_joint_run_takes_codes_and_head_of_a_pre_training() -> None:
    given = make_method("pretrain", pretrain=VARIANTS["pretrain, best_rq"][1])
    method, section = VARIANTS["bl_just, best_rq, conditioned"]
    joint = make_method(method, **{method: section})
    assert isinstance(joint, JointMethod)
    with torch.no_grad():
        for tensor in given.state_dict().values():
            tensor.add_(0.5)
    assert joint.inherit(given.state_dict(), keep_head=False) == ["encoder.", "ssl."]
    for name, tensor in joint.ssl.state_dict().items():
        assert torch.equal(tensor, given.state_dict()[f"ssl.{name}"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"codebooks": 0}, "best_rq.codebooks is 0"),
        ({"entries": 1}, "best_rq.entries is 1"),
        ({"code_dim": 0}, "best_rq.code_dim is 0"),
        ({"mask": {"time_probability": 0.0}}, "there would be nothing to predict"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(AsrkitError, match=told):
        from_dict(BestRQHeadConfig, settings)
