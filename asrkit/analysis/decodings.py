"""A decoded set as the report shows it: operations per utterance, confusions, speakers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asrkit.analysis.bootstrap import interval
from asrkit.analysis.results import FILE, Result, read_result
from asrkit.text.wer import Edit, Score, read_transcripts, score

_LETTERS = {"equal": "=", "substitute": "s", "delete": "d", "insert": "i"}
_LIBRISPEECH = re.compile(r"(\d+)-\d+-\d+")


@dataclass(frozen=True)
class Decoding:
    """A folder decode/SET/DECODER of an experiment, read and scored."""

    folder: Path
    """Where it lies."""
    result: Result
    """Its results.json."""
    references: Mapping[str, str]
    """Text by utterance."""
    hypotheses: Mapping[str, str]
    """Text by utterance."""
    scored: Score
    """Errors, recomputed from the two."""

    @property
    def worst(self) -> list[str]:
        """Ids of the utterances with errors, those with the most first."""
        return [utterance.id for utterance in self.scored.worst(len(self.references))]


def read_decoding(folder: Path) -> Decoding:
    """Read and score a decoded set.

    Raises:
        AsrkitError: if a file is missing or broken.
    """
    result = read_result(folder / FILE)
    references = read_transcripts(folder / "ref.trans.txt")
    hypotheses = read_transcripts(folder / "hyp.trans.txt")
    return Decoding(folder, result, references, hypotheses, score(references, hypotheses))


def operations(alignment: Sequence[Edit]) -> str:
    """Return an alignment as counts and letters: ``4=1s2d1i`` is four right words, a wrong one, two missing, one extra."""
    return "".join(f"{edit.size}{_LETTERS[edit.kind]}" for edit in alignment)


@dataclass(frozen=True)
class Confusions:
    """Which words are mistaken for which, the most frequent first."""

    substituted: list[tuple[str, str, int]]
    """(reference, hypothesis, times)."""
    deleted: list[tuple[str, int]]
    """(reference, times)."""
    inserted: list[tuple[str, int]]
    """(hypothesis, times)."""


def confusions(scored: Score, most: int = 50) -> Confusions:
    """Return the ``most`` frequent errors of each kind."""
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
    return Confusions(
        [(spoken, heard, times) for (spoken, heard), times in pairs.most_common(most)],
        missing.most_common(most),
        extra.most_common(most),
    )


def guess_speakers(ids: Sequence[str]) -> dict[str, str]:
    """Return the speakers that LibriSpeech's ids (SPEAKER-CHAPTER-NUMBER) name; empty if any id is of another kind."""
    matches = [_LIBRISPEECH.fullmatch(utterance_id) for utterance_id in ids]
    if not all(matches):
        return {}
    return {match.string: match.group(1) for match in matches if match}


def speaker_errors(scored: Score, speakers: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Return word errors and reference words of each speaker; utterances without a known one are left out."""
    totals: dict[str, tuple[int, int]] = {}
    for utterance in scored.utterances:
        speaker = speakers.get(utterance.id)
        if speaker is not None:
            errors, words = totals.get(speaker, (0, 0))
            totals[speaker] = errors + utterance.counts.word_errors, words + utterance.counts.words
    return totals


def wer_interval(scored: Score, speakers: Mapping[str, str]) -> tuple[float, float] | None:
    """Return the 95 % interval of the word error rate over speakers; None where an utterance's speaker is unknown."""
    if any(utterance.id not in speakers for utterance in scored.utterances):
        return None
    return interval(speaker_errors(scored, speakers))
