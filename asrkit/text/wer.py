"""Word and character error rates of a corpus, and the transcript files that they are computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import jiwer
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from asrkit.errors import AsrkitError
from asrkit.files import read_utf8, write_text

_KINDS = ("substitute", "delete", "insert")


@dataclass(frozen=True)
class ErrorCounts:
    """Totals over utterances; two of them add up."""

    utterances: int = 0
    """Utterances scored."""
    words: int = 0
    """Words in the references."""
    substitutions: int = 0
    """Words replaced."""
    deletions: int = 0
    """Reference words that are missing from the hypotheses."""
    insertions: int = 0
    """Hypothesis words that no reference has."""
    characters: int = 0
    """Characters in the references, spaces between words counted."""
    character_errors: int = 0
    """Characters replaced, missing or too many."""

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def word_errors(self) -> int:
        """Word errors of all three kinds."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Word errors by reference words, a fraction that may exceed 1; references without a word count as one word."""
        return self.word_errors / max(self.words, 1)

    @property
    def cer(self) -> float:
        """Character errors by reference characters, likewise."""
        return self.character_errors / max(self.characters, 1)


@dataclass(frozen=True)
class Edit:
    """A stretch of an alignment."""

    kind: str
    """equal, substitute, delete or insert."""
    reference: tuple[str, ...]
    """Reference words; none for an insertion."""
    hypothesis: tuple[str, ...]
    """Hypothesis words; none for a deletion."""

    @property
    def size(self) -> int:
        """Words of the stretch, errors unless it is equal."""
        return max(len(self.reference), len(self.hypothesis))


@dataclass(frozen=True)
class UtteranceScore:
    """One utterance's errors."""

    id: str
    """Utterance id."""
    counts: ErrorCounts
    """Its errors."""
    alignment: tuple[Edit, ...]
    """How the hypothesis' words are matched to the reference's, in order."""


@dataclass(frozen=True)
class Score:
    """A corpus' errors."""

    total: ErrorCounts
    """Totals."""
    utterances: tuple[UtteranceScore, ...]
    """Every utterance in the references' order."""

    def worst(self, count: int) -> list[UtteranceScore]:
        """Return the utterances with errors, those with the most word errors first, at most ``count``."""
        wrong = [u for u in self.utterances if u.counts.word_errors]
        return sorted(wrong, key=lambda u: (-u.counts.word_errors, -u.counts.wer, u.id))[:count]


def score(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> Score:
    """Compare hypotheses with references by utterance id. Words are what white space separates; spelling is as given.

    Raises:
        AsrkitError: the two do not hold the same utterances, or none at all.
    """
    _same_ids(references, hypotheses)
    spoken, heard = list(references.values()), [hypotheses[i] for i in references]
    words, letters = _align(spoken, heard)
    scored = []
    for n, utterance_id in enumerate(references):
        alignment = tuple(_edits(words.references[n], words.hypotheses[n], words.alignments[n]))
        wrong = {kind: sum(e.size for e in alignment if e.kind == kind) for kind in _KINDS}
        characters = _edits(letters.references[n], letters.hypotheses[n], letters.alignments[n])
        counts = ErrorCounts(
            utterances=1,
            words=len(words.references[n]),
            substitutions=wrong["substitute"],
            deletions=wrong["delete"],
            insertions=wrong["insert"],
            characters=len(letters.references[n]),
            character_errors=sum(e.size for e in characters if e.kind != "equal"),
        )
        scored.append(UtteranceScore(utterance_id, counts, alignment))
    return Score(_totals(words, letters), tuple(scored))


def count_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Return the totals of pairs of texts, without the utterances' own scores: for a batch in validation."""
    return _totals(*_align(references, hypotheses))


def _align(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[jiwer.WordOutput, jiwer.CharacterOutput]:
    """Align words and characters; jiwer separates words by single spaces only, hence the joining."""
    spoken, heard = ([" ".join(text.split()) for text in texts] for texts in (references, hypotheses))
    return jiwer.process_words(spoken, heard), jiwer.process_characters(spoken, heard)


def _totals(words: jiwer.WordOutput, letters: jiwer.CharacterOutput) -> ErrorCounts:
    return ErrorCounts(
        utterances=len(words.references),
        words=sum(len(reference) for reference in words.references),
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        characters=sum(len(reference) for reference in letters.references),
        character_errors=letters.substitutions + letters.deletions + letters.insertions,
    )


def _edits(
    reference: Sequence[str], hypothesis: Sequence[str], chunks: Sequence[jiwer.AlignmentChunk]
) -> Iterator[Edit]:
    for c in chunks:
        spoken, heard = reference[c.ref_start_idx : c.ref_end_idx], hypothesis[c.hyp_start_idx : c.hyp_end_idx]
        yield Edit(c.type, tuple(spoken), tuple(heard))


def _same_ids(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> None:
    missing = [i for i in references if i not in hypotheses]
    extra = [i for i in hypotheses if i not in references]
    parts = [] if references or hypotheses else ["there are no utterances to score"]
    if missing:
        parts.append(f"{len(missing)} of {len(references)} references have no hypothesis, first '{missing[0]}'")
    if extra:
        parts.append(f"{len(extra)} of {len(hypotheses)} hypotheses have no reference, first '{extra[0]}'")
    if parts:
        raise AsrkitError("; ".join(parts), mend="score files of the same set")


def read_transcripts(path: Path) -> dict[str, str]:
    """Read lines ``ID TEXT`` (LibriSpeech's ``*.trans.txt``); an id alone has an empty text, blank lines are skipped.

    Raises:
        AsrkitError: the file cannot be read, or an id comes twice.
    """
    text = read_utf8(path)
    found: dict[str, str] = {}
    # Not splitlines: some transcripts hold U+2028 and its like, which end no line.
    for number, line in enumerate(text.split("\n"), 1):
        parts = line.split(maxsplit=1)
        if not parts:
            continue
        if parts[0] in found:
            raise AsrkitError(f"utterance '{parts[0]}' comes twice", where=f"{path}:{number}", mend="keep one line")
        found[parts[0]] = parts[1].rstrip() if len(parts) > 1 else ""
    return found


def write_transcripts(path: Path, transcripts: Mapping[str, str]) -> None:
    """Write lines ``ID TEXT``, atomically, white space within a text reduced to single spaces.

    Raises:
        AsrkitError: an id is empty or holds white space, and could not be read back.
    """
    for utterance_id in transcripts:
        if utterance_id.split() != [utterance_id]:
            raise AsrkitError(f"utterance id '{utterance_id}' is empty or has white space", where=path)
    lines = (" ".join([utterance_id, *text.split()]) for utterance_id, text in transcripts.items())
    write_text(path, "".join(f"{line}\n" for line in lines))


def table(result: Score, *, title: str | None = None, worst: int = 5) -> Group:
    """Return totals and the ``worst`` utterances, aligned, for `rich.console.Console.print`."""
    counts = result.total
    totals = Table(title=title)
    for name in ("WER", "CER", "words", "sub", "del", "ins", "chars", "utterances"):
        totals.add_column(name, justify="right")
    whole = (counts.words, counts.substitutions, counts.deletions, counts.insertions, counts.characters)
    totals.add_row(f"{counts.wer:.2%}", f"{counts.cer:.2%}", *(f"{n:,}" for n in (*whole, counts.utterances)))
    parts: list[Table | Text] = [totals]
    for utterance in result.worst(worst):
        errors = f"{utterance.counts.word_errors} errors in {utterance.counts.words} words"
        parts.append(Text(f"\n{utterance.id}  {errors}", style="bold"))
        parts.extend(_aligned(utterance.alignment))
    return Group(*parts)


def _aligned(alignment: Sequence[Edit]) -> list[Text]:
    """Return reference and hypothesis as two lines, word under word, errors in colour and gaps as asterisks."""
    styles = {"equal": "", "substitute": "yellow", "delete": "red", "insert": "cyan"}
    lines = [Text("REF  ", no_wrap=True, overflow="fold"), Text("HYP  ", no_wrap=True, overflow="fold")]
    for edit in alignment:
        for n in range(edit.size):
            pair = [side[n] if n < len(side) else "" for side in (edit.reference, edit.hypothesis)]
            width = max(cell_len(word) for word in pair)
            for line, word in zip(lines, pair, strict=True):
                line.append(
                    (word or "*" * width) + " " * (width - cell_len(word) + 1 if word else 1), styles[edit.kind]
                )
    return lines
