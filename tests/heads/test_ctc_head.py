"""The CTC head: its term and count are the mean they claim, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from asrkit.core.clock import Clock
from asrkit.data.batch import Batch
from asrkit.errors import AsrkitError
from asrkit.heads.ctc import CTCHead, CTCHeadConfig
from asrkit.losses import ctc_loss
from asrkit.nn.encoder import Encoded
from asrkit.randomness import utterance_keys
from asrkit.text.units import Units

UNITS = Units(("a", "b", "<blank>", "c"), blank=2, boundary=None)
CLOCK = Clock(seed=0, update=0, phase="all", phase_update=0, phase_updates=1)
FRAMES = (9, 6, 4)
TARGETS = ([0, 0, 1], [3], [1, 1, 1])


def encoded(rows: slice = slice(None)) -> Encoded:
    lengths = FRAMES[rows]
    states = torch.randn(3, max(FRAMES), 8, generator=torch.Generator().manual_seed(0))[rows, : max(lengths)]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Encoded(states, states, states, torch.tensor(lengths), lengths, mask)


def batch(rows: slice = slice(None)) -> Batch:
    targets = TARGETS[rows]
    padded = torch.zeros(len(targets), max(len(target) for target in targets), dtype=torch.int64)
    for row, target in enumerate(targets):
        padded[row, : len(target)] = torch.tensor(target)
    lengths = tuple(len(target) for target in targets)
    ids = ("x", "y", "z")[rows]
    samples = tuple(160 * count for count in FRAMES[rows])
    waves = torch.zeros(len(targets), max(samples))
    return Batch(
        waves,
        torch.tensor(samples),
        samples,
        utterance_keys(ids),
        ids,
        0,
        padded,
        torch.tensor(lengths),
        lengths,
    )


def head(**settings: object) -> CTCHead:
    torch.manual_seed(0)
    return CTCHead(CTCHeadConfig(**settings), 8, UNITS)  # type: ignore[arg-type]


def objective(module: CTCHead, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    draws = module.draw(batch(rows), FRAMES[rows], CLOCK)
    return module.loss(encoded(rows), batch(rows), draws, CLOCK).terms["ctc"].sum, module.counts(batch(rows), draws)[
        "ctc"
    ]


@pytest.mark.parametrize(("normalise", "count"), [("utterances", 3), ("labels", 7), ("frames", 19)])
def test_sum_and_count(normalise: str, count: int) -> None:
    module = head(normalise=normalise)
    total, denominator = objective(module)
    losses = ctc_loss(module.logits(encoded().states), batch().targets, FRAMES, (3, 1, 3), blank=2, reduction="none")
    torch.testing.assert_close(total, losses.sum())
    assert denominator == count


@pytest.mark.parametrize("normalise", ["utterances", "labels", "frames"])
def test_micro_batches_add_up(normalise: str) -> None:
    module = head(normalise=normalise).eval()
    whole, parts = objective(module), [objective(module, slice(n, n + 1)) for n in range(3)]
    torch.testing.assert_close(sum(part[0] for part in parts), whole[0])
    torch.testing.assert_close(sum(part[1] for part in parts), whole[1])


def test_metrics_count_what_cannot_be_aligned() -> None:
    module = head()
    losses = module.loss(encoded(), batch(), module.draw(batch(), FRAMES, CLOCK), CLOCK)
    # Three labels of which two repeat need five frames; the third utterance has four.
    assert losses.metrics["infeasible"].numerator == 1
    assert losses.metrics["infeasible"].denominator == 3
    assert losses.metrics["ctc_per_label"].denominator == 7
    assert set(losses.terms) == set(module.terms)


def test_hypotheses_are_greedy_and_do_not_depend_on_padding() -> None:
    module = head().eval()
    every = module.hypotheses(encoded())
    assert every == [module.hypotheses(encoded(slice(n, n + 1)))[0] for n in range(3)]
    assert all(UNITS.blank not in row for row in every)
    with torch.no_grad():
        module.project.weight.zero_()
        module.project.bias.copy_(torch.tensor([0.0, 5.0, 0.0, 0.0]))
    assert module.hypotheses(encoded()) == [[1], [1], [1]]


def test_learns_its_transcripts() -> None:
    module = head()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        objective(module)[0].backward()
        optimiser.step()
    assert module.eval().hypotheses(encoded())[:2] == [list(target) for target in TARGETS[:2]]


def test_unlabelled_batches_are_refused() -> None:
    module = head()
    bare = Batch(torch.zeros(1, 9), torch.tensor([9]), (9,), utterance_keys(["x"]), ("x",), 0)
    with pytest.raises(AsrkitError, match="no transcripts"):
        module.counts(bare, module.draw(bare, (1,), CLOCK))


@pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"normalise": "words"}])
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(AsrkitError, match=f"ctc.{next(iter(wrong))}"):
        head(**wrong)
