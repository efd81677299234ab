"""What sets share that they should not: speakers, recordings and sentences.

Each prepared set keeps a small fingerprint beside its manifest, so that sets prepared in different runs are compared
too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asrkit.data.corpus import is_evaluation, is_test
from asrkit.errors import AsrkitError

FINGERPRINT = "fingerprint.npz"


@dataclass(frozen=True)
class Fingerprint:
    """What is compared of a set."""

    corpus: str
    """Speakers of different corpora are different people, whatever they are called."""
    speakers: frozenset[str]
    """The speakers' names."""
    recordings: np.ndarray
    """Content hashes of the audio files, uint64, sorted, each once."""
    sentences: np.ndarray
    """Hash of every utterance's transcript, int64."""

    def save(self, set_dir: Path) -> None:
        """Write the fingerprint into ``set_dir``."""
        with open(set_dir / FINGERPRINT, "wb") as file:
            np.savez(
                file,
                corpus=np.array(self.corpus),
                speakers=np.array(sorted(self.speakers), dtype=np.str_),
                recordings=self.recordings,
                sentences=self.sentences,
            )

    @classmethod
    def load(cls, set_dir: Path) -> Fingerprint:
        """Read a fingerprint back; raises AsrkitError when it is missing or damaged."""
        try:
            with np.load(set_dir / FINGERPRINT, allow_pickle=False) as kept:
                speakers = frozenset(str(name) for name in kept["speakers"])
                return cls(str(kept["corpus"]), speakers, kept["recordings"], kept["sentences"])
        except (OSError, ValueError, KeyError, EOFError) as error:
            mend = "run `asrkit prepare` again"
            raise AsrkitError(f"a damaged set: {error}", where=set_dir / FINGERPRINT, mend=mend) from None


def overlap_warnings(sets: Mapping[str, Fingerprint], about: Iterable[str]) -> list[str]:
    """Return a line for every pair of sets that share something, one of which is among ``about``.

    Compared are each dev or test set with every training set, and dev sets with test sets. Two parts of one training
    corpus may share what they like.
    """
    changed = set(about)
    lines: list[str] = []
    for held_out in sorted(name for name in sets if is_evaluation(name)):
        for other in sorted(sets):
            compared = not is_evaluation(other) or (_kind(held_out) == "test" and _kind(other) == "dev")
            if compared and changed & {held_out, other}:
                lines += _compare(held_out, sets[held_out], other, sets[other])
    return lines


def _kind(name: str) -> str:
    return "test" if is_test(name) else "dev"


def _compare(name: str, held_out: Fingerprint, other_name: str, other: Fingerprint) -> list[str]:
    lines: list[str] = []
    speakers = sorted(held_out.speakers & other.speakers) if held_out.corpus == other.corpus else []
    if speakers:
        lines.append(f"{name} and {other_name} share {_count(len(speakers), 'speaker')}, such as {speakers[0]}")
    recordings = len(np.intersect1d(held_out.recordings, other.recordings, assume_unique=True))
    if recordings:
        lines.append(f"{name} and {other_name} share {_count(recordings, 'recording')}")
    if len(held_out.sentences) and len(other.sentences):
        share = float(np.isin(held_out.sentences, other.sentences).mean())
        if share > 0:
            lines.append(f"{share:.1%} of {name}'s utterances have a sentence that is also in {other_name}")
    return lines


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
