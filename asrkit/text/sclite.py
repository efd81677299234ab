"""Alignments as text, in the form of the `.pra` files that NIST's sclite writes, which many tools read."""

from __future__ import annotations

from collections.abc import Mapping

from rich.cells import cell_len

from asrkit.text.wer import Edit, Score, UtteranceScore

_MARKS = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}


def format_alignments(scored: Score, speakers: Mapping[str, str], system: str) -> str:
    """Return every utterance's alignment: its id, counts, and three lines with word under word.

    Words keep their spelling (sclite's are lower case with errors in capitals); gaps are asterisks.

    Args:
        scored: the errors.
        speakers: each utterance's speaker.
        system: the system's name in the heading.
    """
    names = list(dict.fromkeys(speakers[utterance.id] for utterance in scored.utterances))
    lines = [f"System name:   {system}", "", "Speakers: ", *(f"{n:5d}:  {name}" for n, name in enumerate(names))]
    for utterance in scored.utterances:
        lines += ["", *_utterance(utterance, speakers[utterance.id])]
    return "\n".join(lines) + "\n"


def _utterance(utterance: UtteranceScore, speaker: str) -> list[str]:
    counts = utterance.counts
    right = counts.words - counts.substitutions - counts.deletions
    numbers = f"{right} {counts.substitutions} {counts.deletions} {counts.insertions}"
    rows = [["REF: "], ["HYP: "], ["Eval:"]]
    for edit in utterance.alignment:
        for cells in _cells(edit):
            width = max(cell_len(cell) for cell in cells)
            for row, cell in zip(rows, cells, strict=True):
                row.append(cell + " " * (width - cell_len(cell)))
    return [
        f"Speaker: {speaker}",
        f"id: ({utterance.id})",
        f"Scores: (#C #S #D #I) {numbers}",
        *(" ".join(row).rstrip() for row in rows),
    ]


def _cells(edit: Edit) -> list[tuple[str, str, str]]:
    """Return reference, hypothesis and mark of each word of a stretch."""
    cells = []
    for n in range(edit.size):
        spoken = edit.reference[n] if edit.reference else "*" * max(1, cell_len(edit.hypothesis[n]))
        heard = edit.hypothesis[n] if edit.hypothesis else "*" * max(1, cell_len(edit.reference[n]))
        cells.append((spoken, heard, _MARKS[edit.kind]))
    return cells
