"""Which words are taken for which, left out, or put in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from asrkit.text.wer import Score


@dataclass(frozen=True)
class Confusions:
    """A corpus' word errors by word, the most frequent first, those of equal number in alphabetical order."""

    substituted: list[tuple[str, str, int]]
    """(reference, hypothesis, times)."""
    deleted: list[tuple[str, int]]
    """(reference, times)."""
    inserted: list[tuple[str, int]]
    """(hypothesis, times)."""


def confusions(scored: Score, most: int | None = None) -> Confusions:
    """Return the ``most`` frequent errors of each kind; None returns all."""
    pairs: Counter[tuple[str, str]] = Counter()
    missing: Counter[str] = Counter()
    extra: Counter[str] = Counter()
    for utterance in scored.utterances:
        for edit in utterance.alignment:
            if edit.kind == "substitute":
                pairs.update(zip(edit.reference, edit.hypothesis, strict=True))
            elif edit.kind == "delete":
                missing.update(edit.reference)
            elif edit.kind == "insert":
                extra.update(edit.hypothesis)
    # Sorted, not Counter.most_common: ties must not depend on the order of the utterances.
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:most]
    return Confusions(
        [(spoken, heard, times) for (spoken, heard), times in ranked],
        sorted(missing.items(), key=lambda item: (-item[1], item[0]))[:most],
        sorted(extra.items(), key=lambda item: (-item[1], item[0]))[:most],
    )
