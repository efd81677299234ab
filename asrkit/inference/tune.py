"""The weights of language models, searched on a development set and kept beside the model.

What was found is stored with all that it holds for (decoder, language models, lexicon, checkpoint), so that it is applied to
other sets under the same conditions and under no others. Test sets are never searched on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from asrkit.data.corpus import is_test
from asrkit.decoding.config import BeamConfig
from asrkit.decoding.hypothesis import Hypothesis
from asrkit.errors import AsrkitError
from asrkit.files import write_text
from asrkit.inference.rescoring import rank
from asrkit.text.wer import ErrorCounts, count_errors

RANGES = {"lm_weight": (0.0, 5.0), "word_score": (-4.0, 4.0)}
"""Where weights are searched; the published ones for wav2vec 2.0 lie inside (Baevski et al. 2020, appendix B)."""
RESCORE_RANGE = (0.0, 3.0)


@dataclass(frozen=True)
class Conditions:
    """What tuned weights hold for."""

    decoder: str
    """greedy, beam or flashlight."""
    lm: str | None
    """Name of the n-gram."""
    lm_digest: str | None
    """Digest of its file."""
    lexicon_digest: str | None
    """Digest of the lexicon's file; `lm` where the n-gram's words are the lexicon."""
    rescore: str | None
    """Name of the neural language model."""
    update: int
    """Updates of the checkpoint."""

    @property
    def label(self) -> str:
        """A name for files: decoder, n-gram, neural model."""
        return "-".join(re.sub(r"[^\w.]+", "_", part) for part in (self.decoder, self.lm, self.rescore) if part)


@dataclass(frozen=True)
class Trial:
    """One setting, and what it gave on the set."""

    lm_weight: float
    word_score: float
    rescore_weight: float
    word_errors: int
    wer: float


@dataclass(frozen=True)
class Tuned:
    """The best weights, and how they were found."""

    conditions: Conditions
    set: str
    """Where they were searched."""
    corpus: str
    lm_weight: float
    word_score: float
    rescore_weight: float
    wer: float
    """On that set."""
    search: str
    """random or grid."""
    seed: int
    beam: int
    trials: tuple[Trial, ...]
    """All settings that were tried, the untuned one first."""


def settings(base: BeamConfig, weights: Sequence[str], trials: int, search: str, seed: int) -> list[BeamConfig]:
    """Return the settings to try: ``base`` itself, and then ``trials`` others.

    Args:
        base: where everything but the weights comes from.
        weights: which weights to vary, of `RANGES`.
        trials: how many; a grid over two weights takes the next smaller square.
        search: random (uniform in the ranges, a function of ``seed``) or grid (evenly spaced, ends included).
        seed: for random.

    Raises:
        AsrkitError: if there is nothing to vary or to try.
    """
    if not weights:
        raise AsrkitError("this decoder has no weights to tune", mend="give a language model: --lm FILE")
    if trials < 1:
        raise AsrkitError(f"{trials} trials", mend="1 or more")
    ranges = np.array([RANGES[name] for name in weights])
    if search == "random":
        drawn = np.random.default_rng(seed).uniform(ranges[:, 0], ranges[:, 1], size=(trials, len(weights)))
    else:
        steps = int(trials ** (1 / len(weights)) + 1e-9)
        axes = [np.linspace(low, high, steps) if steps > 1 else [(low + high) / 2] for low, high in ranges]
        drawn = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(weights))
    values = np.round(drawn, 4).tolist()
    return [base, *(replace(base, **dict(zip(weights, row, strict=True))) for row in values)]


def record(config: BeamConfig, errors: ErrorCounts, rescore_weight: float = 0.0) -> Trial:
    """Return a trial."""
    return Trial(config.lm_weight, config.word_score, rescore_weight, errors.word_errors, round(errors.wer, 6))


def rescoring_trials(
    nbest: Sequence[Sequence[Hypothesis]], references: Sequence[str], config: BeamConfig, trials: int
) -> list[Trial]:
    """Return what evenly spaced weights of a neural model give, 0 first; ``nbest`` has its scores."""
    found = []
    for weight in np.round(np.linspace(*RESCORE_RANGE, trials + 1), 4).tolist():
        texts = [rank(readings, weight)[0].text for readings in nbest]
        found.append(record(config, count_errors(references, texts), weight))
    return found


def best(trials: Iterable[Trial]) -> Trial:
    """Return the trial with the fewest word errors, of equal ones the first."""
    return min(trials, key=lambda trial: trial.word_errors)


def refuse_test_set(name: str) -> None:
    """Raise AsrkitError if weights must not be searched on a set of this name."""
    if is_test(name):
        raise AsrkitError(f"weights are never tuned on a test set, and '{name}' is one", mend="--tune-on a dev set")


def tuning_path(experiment: Path, conditions: Conditions) -> Path:
    """Return where weights are kept."""
    return experiment / "decode" / "tuning" / f"{conditions.label}.json"


def store(experiment: Path, tuned: Tuned) -> Path:
    """Write weights beside the model, and return where."""
    path = tuning_path(experiment, tuned.conditions)
    write_text(path, json.dumps(asdict(tuned), indent=1) + "\n")
    return path


def recall(experiment: Path, conditions: Conditions) -> Tuned | str | None:
    """Return the weights that were tuned under ``conditions``; or what differs, as a phrase; or None if there are none.

    Raises:
        AsrkitError: if the file is damaged.
    """
    path = tuning_path(experiment, conditions)
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name: stored[field.name] for field in fields(Tuned)}
        known["conditions"] = Conditions(**stored["conditions"])
        known["trials"] = tuple(Trial(**trial) for trial in stored["trials"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise AsrkitError("is not what tuning wrote", where=path, mend="remove it, and tune again") from None
    tuned = Tuned(**known)
    for field in fields(Conditions):
        if getattr(tuned.conditions, field.name) != getattr(conditions, field.name):
            what = field.name.replace("_digest", "").replace("lm", "language model").replace("update", "checkpoint")
            return f"{path} is for another {what}"
    return tuned


def digest(path: Path) -> str:
    """Return a digest of a file."""
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()
