"""Compiled blocks: the same numbers, and few compilations whatever comes."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from asrkit.errors import AsrkitError
from asrkit.nn.config import EncoderConfig
from asrkit.nn.encoder import Encoder
from asrkit.nn.logmel import LogMelConfig
from asrkit.training.compiled import compile_encoder

LENGTHS = [
    (4000, 2500),
    (6100, 6100),
    (3000, 2000, 2900),
    (9000, 8800),
    (12_000, 11_000, 2000),
    (5000,),
    (7000,),
    (8000, 7990),
]


def test_one_code_serves_all_blocks_and_lengths() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    encoder = Encoder(
        EncoderConfig(
            frontend="logmel",
            logmel=LogMelConfig(channels=8),
            layers=3,
            dim=8,
            ffn_dim=8,
            heads=2,
            positions="rotary",
        )
    ).eval()
    names = list(encoder.state_dict())
    waves = [(torch.randn(len(lengths), max(lengths)), torch.tensor(lengths), lengths) for lengths in LENGTHS]
    plain = [encoder(*one).states for one in waves]
    counter = CompileCounter()
    encoder.compile_blocks(counter)
    for one, expected in zip(waves, plain, strict=True):
        torch.testing.assert_close(encoder(*one).states, expected)
    assert list(encoder.state_dict()) == names
    # Padded or not, one row or several: not one for each length and block.
    assert 1 <= counter.frame_count <= 4


def test_every_way_to_call_a_block_is_compiled() -> None:
    """A frozen encoder, training, a teacher and validation, on batches of all kinds."""
    torch._dynamo.reset()
    config = EncoderConfig(
        frontend="logmel", logmel=LogMelConfig(channels=8), layers=2, dim=8, ffn_dim=8, heads=2, positions="rotary"
    )
    encoder = Encoder(config)
    counter = CompileCounter()
    encoder.compile_blocks(counter)
    compiled = []
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for _ in range(2):
            for training, mode in (
                (True, torch.no_grad),
                (True, torch.enable_grad),
                (False, torch.no_grad),
                (False, torch.inference_mode),
            ):
                encoder.train(training)
                for lengths in LENGTHS:
                    with mode():
                        encoder(torch.randn(len(lengths), max(lengths)), torch.tensor(lengths), lengths)
            compiled.append(counter.frame_count)
    assert compiled[0] == compiled[1]


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(AsrkitError, match="CXX=no-such-compiler is not there"):
        compile_encoder(Encoder(EncoderConfig(layers=1, dim=16, heads=1)), torch.device("cpu"))


def test_positions_in_tiles_are_refused() -> None:
    encoder = Encoder(EncoderConfig(blocks="conformer", positions="relative", layers=1, dim=16, heads=1))
    with pytest.raises(AsrkitError, match=r"encoder\.positions: relative"):
        compile_encoder(encoder, torch.device("cpu"))
