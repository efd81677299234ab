"""Domains of the synthetic corpus: smaller corpora that differ in accent, tempo and noise, for training on several sources."""

from __future__ import annotations

from typing import Any

from asrkit.data.mini import MiniConfig

_SMALLER: dict[str, Any] = {
    "train_minutes": 24.0,
    "train_speakers": 48,
    "dev_minutes": 2.0,
    "dev_speakers": 10,
    "test_minutes": 4.0,
    "test_speakers": 16,
    "fold_minutes": 1.4,
    "fold_speakers": 3,
    "nine_hour_minutes": 6.0,
    "nine_hour_speakers": 18,
}

DOMAINS: dict[str, dict[str, Any]] = {
    "slow": {"seed": 11, "accents": ["en-us", "en-us-nyc"], "slowest": 8.0, "fastest": 10.0, "max_seconds": 6.0},
    "fast": {"seed": 12, "accents": ["en-gb-scotland", "en-gb-x-gbclan"], "slowest": 18.0, "fastest": 22.0},
    "noisy": {"seed": 13, "accents": ["en-029", "en-gb-x-gbcwmd"], "lowest_snr": 0.0, "highest_snr": 10.0},
}
"""What each domain sets differently from the whole corpus, beside being smaller. No domain shares an accent with another."""


def domain(name: str) -> MiniConfig:
    """Return the configuration of a domain in ``DOMAINS``."""
    return MiniConfig(**{**_SMALLER, **DOMAINS[name]})
