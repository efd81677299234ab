"""Whose utterances are whose, and the errors of each speaker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from asrkit.errors import AsrkitError
from asrkit.text.wer import ErrorCounts, Score, read_transcripts


def guess_speakers(ids: Iterable[str]) -> dict[str, str]:
    """Return each utterance's speaker: what stands before the first ``-`` of its id, as in LibriSpeech; else the id."""
    return {utterance_id: utterance_id.partition("-")[0] or utterance_id for utterance_id in ids}


def read_speakers(path: Path, ids: Iterable[str]) -> dict[str, str]:
    """Read lines ``ID SPEAKER`` (Kaldi's utt2spk) and return the speakers of ``ids``.

    Raises:
        AsrkitError: the file cannot be read, or an utterance has no speaker in it.
    """
    found = read_transcripts(path)
    speakers = {utterance_id: found.get(utterance_id, "") for utterance_id in ids}
    if missing := [utterance_id for utterance_id, speaker in speakers.items() if not speaker]:
        raise AsrkitError(f"{len(missing)} utterances have no speaker, first '{missing[0]}'", where=path)
    return speakers


def by_speaker(scored: Score, speakers: Mapping[str, str]) -> dict[str, ErrorCounts]:
    """Return each speaker's totals, in the order in which the speakers first appear; who has none is left out."""
    totals: dict[str, ErrorCounts] = {}
    for utterance in scored.utterances:
        speaker = speakers.get(utterance.id)
        if speaker is not None:
            totals[speaker] = totals.get(speaker, ErrorCounts()) + utterance.counts
    return totals
