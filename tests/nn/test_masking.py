"""Laws of span masks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asrkit.errors import AsrkitError
from asrkit.nn.masking import MaskConfig, draw_mask, pack
from asrkit.randomness import utterance_keys


def keys(count: int) -> Tensor:
    return utterance_keys([f"utterance-{number}" for number in range(count)])


def runs(row: list[bool]) -> list[int]:
    """Lengths of the stretches of True."""
    return [len(run) for run in "".join("x" if value else " " for value in row).split()]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=5),
    st.floats(0.01, 1.0),
    st.integers(1, 12),
    st.integers(0, 4),
    st.integers(0, 2**40),
)
def test_time_masks(frames: list[int], probability: float, length: int, minimum: int, seed: int) -> None:
    config = MaskConfig(time_probability=probability, time_length=length, time_minimum=minimum)
    mask = draw_mask(config, keys(len(frames)), frames, 8, seed=seed, epoch=1)
    assert mask.time is not None
    assert mask.channels is None
    assert mask.time.shape == (len(frames), max(1, *frames))
    for row, count in zip(mask.time.tolist(), frames, strict=True):
        room = min(count // length, max(count - length + 1, 0))
        fewest = min(max(math.floor(count * probability / length - 1e-6), minimum), room)
        most = min(max(math.floor(count * probability / length + 1 + 1e-6), minimum), room)
        assert not any(row[count:])
        assert all(run >= length for run in runs(row))
        # Spans start at distinct places, so that n of them mask at least length + n - 1 frames.
        assert sum(row) >= (length + fewest - 1 if fewest else 0)
        assert sum(row) <= most * length
        assert sum(row) <= mask.most


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=2, max_size=5), st.integers(0, 2**40), st.integers(0, 9))
def test_a_row_depends_on_its_utterance_only(frames: list[int], seed: int, epoch: int) -> None:
    config = MaskConfig(channel_probability=0.5, channel_length=4)
    together = draw_mask(config, keys(len(frames)), frames, 32, seed=seed, epoch=epoch)
    assert together.time is not None
    assert together.channels is not None
    for row, count in enumerate(frames):
        alone = draw_mask(config, keys(len(frames))[row : row + 1], [count], 32, seed=seed, epoch=epoch)
        assert alone.time is not None
        assert alone.channels is not None
        assert torch.equal(alone.time[0], together.time[row, :count])
        assert torch.equal(alone.channels[0], together.channels[row])


def test_seed_epoch_and_utterance_each_make_another_mask() -> None:
    config = MaskConfig()
    first = draw_mask(config, keys(2), [400, 400], 8, seed=0, epoch=0).time
    assert first is not None
    assert not torch.equal(first[0], first[1])
    for seed, epoch in ((1, 0), (0, 1)):
        other = draw_mask(config, keys(2), [400, 400], 8, seed=seed, epoch=epoch).time
        assert other is not None
        assert not torch.equal(first, other)


def test_share_and_mean_span_of_the_published_setting() -> None:
    """The paper: about 49 % of all time steps are masked, in spans of 14.7 steps on average, for 15 s of audio."""
    mask = draw_mask(MaskConfig(), keys(400), [749] * 400, 8, seed=0, epoch=0).time
    assert mask is not None
    assert mask.float().mean().item() == pytest.approx(0.49, abs=0.01)
    lengths = [run for row in mask.tolist() for run in runs(row)]
    assert sum(lengths) / len(lengths) == pytest.approx(14.7, abs=0.7)


def test_every_place_is_masked_alike() -> None:
    mask = draw_mask(MaskConfig(time_length=4), keys(4000), [40] * 4000, 8, seed=0, epoch=0).time
    assert mask is not None
    middle = mask.float().mean(0)[3:-3]
    assert (middle.max() - middle.min()).item() < 0.06


def test_number_of_spans_is_rounded_without_bias() -> None:
    # 25 frames at 0.3 and one frame per span: 7.5 spans on average.
    config = MaskConfig(time_probability=0.3, time_length=1, time_minimum=0)
    mask = draw_mask(config, keys(4000), [25] * 4000, 8, seed=0, epoch=0).time
    assert mask is not None
    counts = mask.sum(1).float()
    assert set(counts.tolist()) == {7.0, 8.0}
    assert counts.mean().item() == pytest.approx(7.5, abs=0.05)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(12, 120), min_size=1, max_size=5), st.integers(0, 2**40))
def test_batch_minimum_leaves_each_row_the_least_count(frames: list[int], seed: int) -> None:
    free = draw_mask(MaskConfig(), keys(len(frames)), frames, 8, seed=seed, epoch=0).time
    config = MaskConfig(batch_minimum=True)
    cut = draw_mask(config, keys(len(frames)), frames, 8, seed=seed, epoch=0).time
    assert free is not None
    assert cut is not None
    assert set(cut.sum(1).tolist()) == {int(free.sum(1).min())}
    assert not (cut & ~free).any()


def test_channels_only() -> None:
    config = MaskConfig(time_probability=0, channel_probability=0.5, channel_length=8)
    mask = draw_mask(config, keys(500), [7] * 500, 64, seed=0, epoch=0)
    assert mask.time is None
    assert mask.channels is not None
    assert all(run >= 8 for row in mask.channels.tolist() for run in runs(row))
    assert 0.25 < mask.channels.float().mean().item() < 0.5


def test_pack_puts_masked_frames_first_and_in_order() -> None:
    mask = torch.rand(6, 30, generator=torch.Generator().manual_seed(0)) < 0.4
    most = int(mask.sum(1).max()) + 2
    places, valid = pack(mask, most)
    assert places.shape == valid.shape == (6, most)
    for row in range(6):
        assert places[row][valid[row]].tolist() == mask[row].nonzero()[:, 0].tolist()
        assert valid[row].tolist() == sorted(valid[row].tolist(), reverse=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"time_probability": 1.1},
        {"channel_probability": -0.1},
        {"time_length": 0},
        {"channel_length": 0},
        {"time_minimum": -1},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(AsrkitError, match=next(iter(wrong))):
        MaskConfig(**wrong)  # type: ignore[arg-type]
