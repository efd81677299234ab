"""The FLOP formula agrees with torch's own counter, and a utilisation is what it says."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from asrkit.nn.config import EncoderConfig
from asrkit.nn.encoder import Encoder
from asrkit.nn.waveform import WaveformConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from flops import Work, peak, update_operations

TOLERANCE = 0.005
"""What the formula may be off by: beside it the counter has windows' covariances and frames between utterances, and of the first
convolution no gradient for the wave."""
# torch's counter takes the weight's gradient of a grouped convolution for that of a full one, so there is one group.
SHAPE = EncoderConfig(
    waveform=WaveformConfig(layers=[[64, 10, 5], [64, 3, 2], [64, 3, 2]]),
    layers=3,
    dim=96,
    ffn_dim=256,
    heads=4,
    conv_position_kernel=9,
    conv_position_groups=1,
    dropout=0.0,
    attention_dropout=0.0,
    layer_drop=0.0,
)
ROWS, SAMPLES = 3, 4_000


def product(_: torch.Size, left: torch.Size, right: torch.Size, out_shape: torch.Size, **__: object) -> int:
    return 2 * left[0] * left[1] * right[1]


def counted(shape: EncoderConfig, frozen: bool, backward: bool = True) -> float:
    torch.manual_seed(0)
    encoder = Encoder(shape).train()
    encoder.frontend.requires_grad_(not frozen)
    waves, lengths = torch.randn(ROWS, SAMPLES), torch.full((ROWS,), SAMPLES)
    # The counter knows attention's products only where they are products of matrices, and addition to a product not in place.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product})
    # What the plain convolution takes is meant, not asrkit's shorter way.
    plain = mock.patch("asrkit.nn.grouped_convolution.calculates_here", return_value=False)
    with sdpa_kernel(SDPBackend.MATH), plain, counter:
        states = encoder(waves, lengths, (SAMPLES,) * ROWS, frontend_gradient_scale=0.0 if frozen else 1.0).states
        if backward:
            states.sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("frozen", [False, True])
def test_the_formula_agrees_with_the_counter(frozen: bool) -> None:
    formula = update_operations(SHAPE, [SAMPLES] * ROWS, frozen_frontend=frozen)
    assert formula == pytest.approx(counted(SHAPE, frozen), rel=TOLERANCE)


def test_a_forward_pass_is_a_third_and_groups_of_positions_count() -> None:
    shape = replace(SHAPE, conv_position_groups=4, conv_position_kernel=65)
    formula = update_operations(shape, [SAMPLES] * ROWS)
    assert formula / 3 == pytest.approx(counted(shape, frozen=False, backward=False), rel=TOLERANCE)
    assert formula < update_operations(replace(shape, conv_position_groups=1), [SAMPLES] * ROWS) * (1 - TOLERANCE)


def test_padding_does_not_count_and_skipped_blocks_do_not() -> None:
    alone = [update_operations(SHAPE, [samples]) for samples in (SAMPLES, SAMPLES // 2)]
    assert update_operations(SHAPE, [SAMPLES, SAMPLES // 2]) == pytest.approx(sum(alone))
    none, half = (update_operations(replace(SHAPE, layer_drop=p), [SAMPLES]) for p in (0.0, 0.5))
    assert half == pytest.approx((none + update_operations(replace(SHAPE, layers=0), [SAMPLES])) / 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_product_of_matrices_at_the_peak_is_fully_utilised(precision: str) -> None:
    best = peak(torch.device("cpu"), precision, side=64, rounds=3)
    assert Work(2.0 * 64**3, best).utilisation(2.0 * 64**3 / best) == pytest.approx(1.0)
