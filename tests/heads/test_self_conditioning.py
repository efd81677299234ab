"""Self-conditioned CTC: what is read between blocks, what the next block hears of it, and what learns from which loss."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLOCK, ENCODER, STILL, UNITS, VARIANTS, make_batch, make_method, merged, train, variant
from torch import Tensor

from asrkit import config as configuration
from asrkit.config import from_dict
from asrkit.core.clock import Clock
from asrkit.core.method import Method
from asrkit.core.step import Accumulate, Totals
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.heads.ctc import CTCHead, CTCHeadConfig
from asrkit.inference.recogniser import load
from asrkit.inference.streaming import Streamer
from asrkit.methods.supervised import Supervised
from asrkit.methods.wav2vec_s import SEMI, Wav2VecS
from asrkit.nn.config import EncoderConfig
from asrkit.nn.encoder import Encoded, Encoder
from asrkit.training.config import schema
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine

ENGINE = TrainingEngine(torch.device("cpu"), "fp32", Ranks())
CONDITIONED = [name for name in VARIANTS if name.endswith("conditioned")]
SHAPES: dict[str, dict[str, Any]] = {
    "conformer": {},
    "norm after": {"outer_norm": "after"},
    "pre-norm": {"blocks": "transformer", "positions": "conv", "conv_position_kernel": 8, "conv_position_groups": 2}
    | {"pre_norm": True},
}


def make(shape: str = "conformer", intermediate: list[int] | None = None, **settings: Any) -> tuple[Encoder, CTCHead]:
    torch.manual_seed(4)
    encoder = Encoder(from_dict(EncoderConfig, merged(merged(ENCODER, STILL), {"layers": 4} | SHAPES[shape])))
    head = CTCHead(CTCHeadConfig(intermediate=intermediate or [], **settings), encoder.dim, UNITS)
    if head.feed_back is not None:
        torch.nn.init.normal_(head.feed_back.weight)
        torch.nn.init.normal_(head.feed_back.bias)
    return encoder, head


def condition(encoder: Encoder, head: CTCHead, batch: Batch, **options: Any) -> Encoded:
    return head.condition(encoder, partial(encoder, batch.waves, batch.wave_lengths, batch.host_lengths, **options))


def by_hand(encoder: Encoder, head: CTCHead, batch: Batch, at: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Feed what the head makes of a prefix of the blocks into the rest, one intermediate block after the other."""
    assert head.feed_back is not None
    added: dict[int, Tensor] = {}
    read = []
    for number in at:
        hooks = {place - 1: partial(torch.add, value) for place, value in added.items()}
        kept = encoder(batch.waves, batch.wave_lengths, batch.host_lengths, after_layer=hooks, keep_layers=True).layers
        states = encoder.norm(kept[number]) if encoder.norm_is_last else kept[number]
        read.append(states)
        scores = states @ head.project.weight.t() + head.project.bias
        added[number] = scores.softmax(-1) @ head.feed_back.weight.t() + head.feed_back.bias
    hooks = {place - 1: partial(torch.add, value) for place, value in added.items()}
    return encoder(batch.waves, batch.wave_lengths, batch.host_lengths, after_layer=hooks).states, read


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("at", [[2], [1, 3]])
@torch.no_grad()
def test_the_next_block_hears_what_the_head_has_read(shape: str, at: list[int]) -> None:
    encoder, head = make(shape, at)
    batch = make_batch([3, 5, 1])
    encoded = condition(encoder, head, batch)
    states, read = by_hand(encoder, head, batch, at)
    valid = encoded.frame_mask
    torch.testing.assert_close(encoded.states[valid], states[valid], atol=1e-5, rtol=1e-5)
    assert encoded.intermediate is not None
    for mine, other in zip(encoded.intermediate, read, strict=True):
        torch.testing.assert_close(mine[valid], other[valid], atol=1e-5, rtol=1e-5)
    bare = encoder(batch.waves, batch.wave_lengths, batch.host_lengths).states
    assert not torch.allclose(encoded.states, bare, atol=1e-2)


@torch.no_grad()
def test_a_fresh_head_leaves_the_encoder_as_it_was() -> None:
    encoder, _ = make()
    head = CTCHead(CTCHeadConfig(intermediate=[2]), encoder.dim, UNITS)
    batch = make_batch([3, 5])
    assert torch.equal(
        condition(encoder, head, batch).states, encoder(batch.waves, batch.wave_lengths, batch.host_lengths).states
    )


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_loss_is_shared_between_depths(share: float) -> None:
    encoder, head = make(intermediate=[1, 3], intermediate_weight=share)
    batch = make_batch([3, 5, 1])
    encoded = condition(encoder, head, batch)
    draws = head.draw(batch, encoded.host_lengths, CLOCK)
    terms = head.loss(encoded, batch, draws, CLOCK).terms
    assert tuple(terms) == head.terms == tuple(head.counts(batch, draws))
    _, plain = make()
    plain.load_state_dict({name: value for name, value in head.state_dict().items() if "project" in name})

    def alone(states: Tensor) -> Tensor:
        bare = Encoded(states, states, states, encoded.lengths, encoded.host_lengths, encoded.frame_mask)
        return plain.loss(bare, batch, draws, CLOCK).terms["ctc"].sum

    assert encoded.intermediate is not None
    behind = sum(alone(states) for states in encoded.intermediate) / 2
    torch.testing.assert_close(terms["ctc"].sum, alone(encoded.states))
    torch.testing.assert_close(terms["intermediate_ctc"].sum, behind)
    whole = sum(term.weight * term.sum for term in terms.values())
    torch.testing.assert_close(whole, (1 - share) * alone(encoded.states) + share * behind)


def test_a_block_that_is_left_out_is_not_read() -> None:
    encoder, head = make(intermediate=[1, 3])
    batch = make_batch([3, 5])
    encoded = condition(encoder, head, batch, drops=[True, False, False, False])
    assert encoded.intermediate is not None
    assert len(encoded.intermediate) == 1
    nothing = condition(encoder, head, batch, drops=[True, False, True, False])
    draws = head.draw(batch, nothing.host_lengths, CLOCK)
    terms = head.loss(nothing, batch, draws, CLOCK).terms
    assert float(terms["intermediate_ctc"].sum) == 0.0
    assert terms["ctc"].weight == 1.0, "what is not read behind does not weaken the rest"


def test_a_pass_that_the_head_has_no_part_in_is_not_taken_for_one() -> None:
    encoder, head = make(intermediate=[1])
    batch = make_batch([3])
    bare = encoder(batch.waves, batch.wave_lengths, batch.host_lengths)
    with pytest.raises(AssertionError, match="condition"):
        head.loss(bare, batch, head.draw(batch, bare.host_lengths, CLOCK), CLOCK)


def conditioned(name: str) -> Supervised:
    method, section = VARIANTS[name]
    made = make_method(method, encoder=STILL, **{method: section})
    assert isinstance(made, Supervised)
    assert made.ctc.feed_back is not None
    torch.nn.init.normal_(made.ctc.feed_back.weight)
    return made


@pytest.mark.parametrize("name", CONDITIONED)
@torch.no_grad()
def test_every_method_recognises_with_it(name: str) -> None:
    method, batch = conditioned(name).eval(), make_batch([3, 5, 1])
    states, _ = by_hand(method.encoder, method.ctc, batch, [1])
    scores = (states @ method.ctc.project.weight.t() + method.ctc.project.bias).log_softmax(-1)
    found, frames = method.log_probs(batch)
    layers = method.encode(batch, keep_layers=True).layers
    assert layers is not None
    for row, count in enumerate(frames):
        torch.testing.assert_close(found[row, :count], scores[row, :count], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layers[-1][row, :count], states[row, :count], atol=1e-5, rtol=1e-5)
    best = [row[:count].argmax(-1).tolist() for row, count in zip(found, frames, strict=True)]
    assert [len(row) for row in best] == list(frames)
    assert {"ctc", "intermediate_ctc", "loss"} <= set(method.validate(batch, CLOCK))


def test_files_and_streams_are_heard_with_it(speech: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "exp", variant("finetune, conditioned", speech)) == 0
    recogniser = load(tmp_path / "exp", precision="fp32", checkpoint="last")
    method = recogniser.method
    assert isinstance(method, Supervised)
    assert method.ctc.feed_back is not None
    assert method.ctc.feed_back.weight.any()
    batch = make_batch([3, 5])
    with torch.no_grad():
        # Loud enough to be told from a model without it, and no blank: there is always something to write.
        method.ctc.feed_back.weight.normal_()
        method.ctc.project.bias[UNITS.blank] -= 50.0
        states, _ = by_hand(method.encoder, method.ctc, batch, [1])
        expected = (states @ method.ctc.project.weight.t() + method.ctc.project.bias).log_softmax(-1)
    for row, scores in enumerate(recogniser.log_probs(batch)):
        torch.testing.assert_close(torch.from_numpy(scores), expected[row, : len(scores)], atol=1e-4, rtol=1e-4)
    wave = batch.waves[0, : batch.host_lengths[0]].numpy()
    assert recogniser.transcribe(wave, 16_000)
    streamer = Streamer.of(recogniser)
    assert any(update.text for update in [*streamer.push(wave), *streamer.finish()])


@torch.no_grad()
def test_the_teacher_hears_with_it() -> None:
    method = conditioned("wav2vec_s, conditioned")
    assert isinstance(method, Wav2VecS)
    assert method.average is not None
    method.average.begin({"encoder": method.encoder, "ctc": method.ctc})
    batch, clock = make_batch([3, 5, 1]), Clock(1, 4, SEMI, 1, 7)
    before = method.prepare("unlabelled", batch, clock)
    assert sorted(before.counts) == ["pseudo_ctc", "pseudo_intermediate_ctc"] == sorted(method.terms("unlabelled"))
    labels, _ = method._label(batch, clock)
    assert [list(label.units) for label in labels] == method.eval().hypotheses(batch)


def gradients(method: Method, stream: str, clock: Clock) -> dict[str, Tensor]:
    method.train().zero_grad(set_to_none=True)
    Accumulate().run(method, {stream: [make_batch([3, 5])]}, clock, ENGINE, Totals({}))
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def test_both_losses_reach_the_heads_own_weights_and_the_way_back() -> None:
    found = gradients(conditioned("finetune, conditioned"), "labelled", CLOCK)
    assert {"ctc.project.weight", "ctc.feed_back.weight", "encoder.blocks.0.norm.weight"} <= set(found)
    assert float(found["ctc.feed_back.weight"].abs().max()) > 0


def test_in_the_heads_phase_the_head_learns_alone() -> None:
    clock = Clock(3, 0, "head", 0, 4)
    found = gradients(conditioned("finetune, conditioned"), "labelled", clock)
    assert sorted(found) == ["ctc.project.bias", "ctc.project.weight"]


@pytest.mark.parametrize("name", [name for name in CONDITIONED if "best_rq" in name])
def test_the_lower_level_knows_nothing_of_it(name: str) -> None:
    """L_unsup is a function of encoder and self-supervised head: φ has no gradient of it, and does not change it."""
    method = conditioned(name)
    clock = Clock(3, 0, "joint", 0, 4)
    found = gradients(method, "unlabelled", clock)
    assert not any(key.startswith("ctc.") for key in found)
    batch = make_batch([3, 5])

    @torch.no_grad()
    def loss() -> float:
        draws = method.prepare("unlabelled", batch, clock).draws
        return float(method.losses("unlabelled", batch, draws, clock).terms["cross_entropy"].sum)

    before = loss()
    with torch.no_grad():
        for parameter in method.ctc.parameters():
            parameter.normal_()
    assert loss() == before


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["finetune.ctc.intermediate=[0]"], "finetune.ctc.intermediate is [0]"),
        (["finetune.ctc.intermediate=[2,1]"], "in order"),
        (
            ["finetune.ctc.intermediate=[1]", "finetune.ctc.intermediate_weight=1"],
            "finetune.ctc.intermediate_weight is 1",
        ),
        (["finetune.ctc.intermediate_weight=0.3"], "finetune.ctc.intermediate names no block"),
    ],
)
def test_impossible_settings_are_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(AsrkitError) as refused:
        configuration.load(schema("finetune"), None, ["method=finetune", *overrides])
    assert told in str(refused.value)


@pytest.mark.parametrize("block", [2, 5])
def test_blocks_that_are_not_there_are_refused(block: int) -> None:
    with pytest.raises(AsrkitError, match=r"finetune\.ctc\.intermediate is .* the last one .*numbers below 2"):
        make_method("finetune", finetune={"ctc": {"intermediate": [block]}})
