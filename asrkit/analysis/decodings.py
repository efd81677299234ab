"""A decoded set as the report shows it: texts, errors, operations per utterance, and how far the rate may be off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asrkit.analysis.results import FILE, Result, read_result
from asrkit.text.significance import wer_interval
from asrkit.text.speakers import by_speaker
from asrkit.text.wer import Edit, Score, read_transcripts, score

_LETTERS = {"equal": "=", "substitute": "s", "delete": "d", "insert": "i"}


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


def bounds(scored: Score, speakers: Mapping[str, str]) -> tuple[float, float] | None:
    """Return the 95 % interval of the word error rate over speakers.

    None where an utterance's speaker is unknown, or where there is one speaker only, who says nothing about others.
    """
    if any(utterance.id not in speakers for utterance in scored.utterances) or len(set(speakers.values())) < 2:
        return None
    found = wer_interval(list(by_speaker(scored, speakers).values()))
    return found.low, found.high
