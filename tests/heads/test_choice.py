"""Which self-supervised head a run has is said by one option, and what belongs to another head is never ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asrkit import config as configuration
from asrkit.errors import AsrkitError
from asrkit.heads.best_rq import BestRQHead
from asrkit.heads.registry import SELF_SUPERVISED, self_supervised_head
from asrkit.heads.wav2vec2 import Wav2Vec2Head
from asrkit.nn.config import EncoderConfig
from asrkit.nn.encoder import Encoder
from asrkit.training.config import ExperimentConfig, schema

PLACES = {
    "pretrain": ("pretrain", "head"),
    "bl_just": ("bl_just.ssl", "name"),
    "weighted_sum": ("weighted_sum.ssl", "name"),
}


def read(method: str, *overrides: str) -> ExperimentConfig:
    return configuration.load(schema(method), None, [f"method={method}", *overrides])


def section(method: str, config: ExperimentConfig) -> Any:
    return config.options.ssl if method != "pretrain" else config.options


@pytest.mark.parametrize("method", PLACES)
def test_wav2vec2_is_the_default(method: str) -> None:
    found = section(method, read(method))
    assert found.wav2vec2.entries == 320
    assert found.best_rq is None


@pytest.mark.parametrize("method", PLACES)
def test_the_option_chooses(method: str, tmp_path: Path) -> None:
    place, key = PLACES[method]
    config = read(method, f"{place}.{key}=best_rq", f"{place}.best_rq.codebooks=3")
    found = section(method, config)
    assert found.wav2vec2 is None
    assert (found.best_rq.codebooks, found.best_rq.entries) == (3, 8192)
    configuration.save(config, tmp_path / "config.yaml")
    again = configuration.load(schema(method), tmp_path / "config.yaml")
    assert configuration.to_dict(again) == configuration.to_dict(config)


@pytest.mark.parametrize("method", PLACES)
def test_settings_of_another_head_are_refused(method: str) -> None:
    place, key = PLACES[method]
    with pytest.raises(AsrkitError, match="so that the settings of wav2vec2 mean nothing") as refused:
        read(method, f"{place}.{key}=best_rq", f"{place}.wav2vec2.entries=64")
    assert f"{place}.{key} is best_rq" in str(refused.value)
    assert "wav2vec2: null" in str(refused.value)
    with pytest.raises(AsrkitError, match="so that the settings of best_rq mean nothing"):
        read(method, f"{place}.best_rq.codebooks=2")
    found = section(
        method, read(method, f"{place}.wav2vec2.entries=64", f"{place}.wav2vec2=null", f"{place}.{key}=best_rq")
    )
    assert found.wav2vec2 is None
    with pytest.raises(AsrkitError, match="best_rq"):
        read(method, f"{place}.{key}=bestrq")


def test_the_registry_makes_what_is_chosen() -> None:
    encoder = Encoder(EncoderConfig(layers=0, dim=16, heads=2))
    kinds = {"wav2vec2": Wav2Vec2Head, "best_rq": BestRQHead}
    assert set(kinds) == set(SELF_SUPERVISED)
    for method in PLACES:
        place, key = PLACES[method]
        for name, kind in kinds.items():
            found = section(method, read(method, f"{place}.{key}={name}"))
            assert type(self_supervised_head(name, found, encoder)) is kind
