"""Domains of the synthetic corpus: what tells them apart, and that corpora made before there were any stay what they are."""

from __future__ import annotations

import dataclasses
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from asrkit import cli
from asrkit.data.mini import MiniConfig, synthesise
from asrkit.data.mini_domains import DOMAINS, domain
from asrkit.data.mini_voice import ACCENTS, draw_voice
from asrkit.errors import AsrkitError


def test_domains_differ_in_accent_tempo_and_noise() -> None:
    whole = MiniConfig()
    for one, other in combinations(DOMAINS, 2):
        assert not set(domain(one).accents) & set(domain(other).accents)
        assert domain(one).seed != domain(other).seed
    for name in DOMAINS:
        assert set(domain(name).accents) < set(ACCENTS)
        assert domain(name).train_minutes < whole.train_minutes
    assert domain("slow").fastest < whole.slowest <= whole.fastest < domain("fast").slowest
    assert domain("noisy").highest_snr < whole.lowest_snr == domain("slow").lowest_snr


def test_noise_is_drawn_within_its_limits_and_changes_nothing_else() -> None:
    for seed in range(20):
        quiet, noisy = (
            draw_voice(np.random.default_rng(seed), "en", "m1", "M", (13.0, 14.0), snr)
            for snr in ((20.0, 40.0), (0.0, 10.0))
        )
        assert 0 <= noisy.snr_db <= 10 < 20 <= quiet.snr_db <= 40
        assert dataclasses.replace(noisy, snr_db=quiet.snr_db) == quiet


def test_a_corpus_that_was_noted_before_a_setting_existed_is_known_again(tmp_path: Path) -> None:
    noted = dataclasses.asdict(MiniConfig(seed=4))
    del noted["lowest_snr"], noted["highest_snr"]
    (tmp_path / "mini.json").write_text(json.dumps(noted))
    assert synthesise(MiniConfig(seed=4), tmp_path) == tmp_path
    for other in (MiniConfig(seed=5), MiniConfig(seed=4, lowest_snr=10.0)):
        with pytest.raises(AsrkitError, match="is not this corpus"):
            synthesise(other, tmp_path)
    (tmp_path / "mini.json").write_text("{")
    with pytest.raises(AsrkitError, match="is not this corpus"):
        synthesise(MiniConfig(seed=4), tmp_path)


def test_impossible_noise_and_unknown_domains_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AsrkitError, match="highest_snr"):
        MiniConfig(lowest_snr=10.0, highest_snr=5.0)
    assert cli.main(["prepare", "mini", "--domain", "slo", "--output-dir", str(tmp_path / "data")]) == 2
    said = capsys.readouterr().err
    assert "no domain 'slo'" in said
    assert "slow" in said
