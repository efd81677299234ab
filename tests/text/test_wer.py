from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from asrkit.errors import AsrkitError
from asrkit.text.wer import ErrorCounts, count_errors, read_transcripts, score, table, write_transcripts

PROPERTY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.lists(st.sampled_from(["a", "b", "ab", "\u6771\u4eac", "o'b"]), max_size=6).map(" ".join)
IDS = st.text(min_size=1, max_size=6).filter(lambda name: name.split() == [name] and name.isprintable())


def distance(reference: tuple[str, ...], hypothesis: tuple[str, ...]) -> int:
    """Levenshtein distance by its recursive definition."""

    @cache
    def edits(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        swap = edits(i - 1, j - 1) + (reference[i - 1] != hypothesis[j - 1])
        return min(swap, edits(i - 1, j) + 1, edits(i, j - 1) + 1)

    return edits(len(reference), len(hypothesis))


@PROPERTY
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_scores_are_edit_distances(pairs: list[tuple[str, str]]) -> None:
    result = score({str(n): pair[0] for n, pair in enumerate(pairs)}, {str(n): pair[1] for n, pair in enumerate(pairs)})
    for utterance, (reference, hypothesis) in zip(result.utterances, pairs, strict=True):
        words, heard = tuple(reference.split()), tuple(hypothesis.split())
        assert utterance.counts.word_errors == distance(words, heard)
        assert utterance.counts.character_errors == distance(tuple(reference), tuple(hypothesis))
        assert (utterance.counts.words, utterance.counts.characters) == (len(words), len(reference))
        assert tuple(word for edit in utterance.alignment for word in edit.reference) == words
        assert tuple(word for edit in utterance.alignment for word in edit.hypothesis) == heard
        for edit in utterance.alignment:
            assert (edit.reference == edit.hypothesis) == (edit.kind == "equal")
    total = sum((u.counts for u in result.utterances), ErrorCounts())
    assert result.total == total == count_errors(*zip(*pairs, strict=True))
    assert total.wer == total.word_errors / max(total.words, 1)


def test_kinds_of_errors_and_corpus_rates() -> None:
    result = score({"u": "a b c d", "v": "e f"}, {"u": "a x c", "v": "e f g"})
    assert result.total == ErrorCounts(2, 6, 1, 1, 1, 10, 5)
    assert (result.total.wer, result.total.cer) == (0.5, 0.5)


def test_white_space_and_order_of_ids_do_not_matter() -> None:
    straight = score({"u": "a b", "v": "c"}, {"u": "a b", "v": "d"})
    assert score({"u": " a\tb ", "v": "c\u00a0"}, {"v": "d", "u": "a  b"}) == straight


def test_empty_texts() -> None:
    result = score({"u": "", "v": "a", "w": ""}, {"u": "x y", "v": "", "w": ""})
    assert result.total == ErrorCounts(3, 1, 0, 1, 2, 1, 4)
    assert (result.total.wer, ErrorCounts().wer, ErrorCounts().cer) == (3.0, 0.0, 0.0)
    assert [u.id for u in result.worst(9)] == ["u", "v"]


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ("u v w", "w", "2 of 3 references have no hypothesis, first 'u' (score files of the same set)"),
        ("u", "u v", "1 of 2 hypotheses have no reference, first 'v' (score files of the same set)"),
        ("u", "v", "1 of 1 references have no hypothesis, first 'u'; 1 of 1 hypotheses have no reference, first 'v'"),
        ("", "", "there are no utterances to score"),
    ],
)
def test_sets_that_do_not_match(references: str, hypotheses: str, message: str) -> None:
    with pytest.raises(AsrkitError) as caught:
        score(dict.fromkeys(references.split(), "a"), dict.fromkeys(hypotheses.split(), "a"))
    assert str(caught.value).startswith(message)


@PROPERTY
@given(transcripts=st.dictionaries(IDS, TEXTS | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)))
def test_transcripts_are_read_as_written(transcripts: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "hyp.trans.txt"
    write_transcripts(path, transcripts)
    assert read_transcripts(path) == {name: " ".join(text.split()) for name, text in transcripts.items()}


def test_librispeech_lines(tmp_path: Path) -> None:
    path = tmp_path / "84-121123.trans.txt"
    path.write_bytes(
        b"\xef\xbb\xbf84-121123-0000 GO DO YOU HEAR\r\n\n84-121123-0001\n84-121123-0002\tIT'S \xe2\x80\xa8\n"
    )
    assert read_transcripts(path) == {
        "84-121123-0000": "GO DO YOU HEAR",
        "84-121123-0001": "",
        "84-121123-0002": "IT'S",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"u a\n\nu b\n", r"t\.txt:3: utterance 'u' comes twice"), (b"u \xff\n", r"t\.txt: not UTF-8 at byte 2")],
)
def test_malformed_transcripts(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(AsrkitError, match=message):
        read_transcripts(path)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(AsrkitError, match="cannot be read: No such file"):
        read_transcripts(tmp_path / "none.txt")
    for name in ("", "a b", "a\n"):
        with pytest.raises(AsrkitError, match="empty or has white space"):
            write_transcripts(tmp_path / "t.txt", {name: "text"})


@PROPERTY
@given(content=st.binary(max_size=40))
def test_any_file_is_transcripts_or_a_complaint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.txt"
    path.write_bytes(content)
    said = None
    try:
        assert all(name.split() == [name] for name in read_transcripts(path))
    except AsrkitError as error:
        said = str(error)
    assert said is None or "any.txt" in said


def test_table_shows_rates_and_the_worst_utterances_word_under_word() -> None:
    result = score({"u-1": "the cat [sat] \u6771\u4eac", "u-2": "a"}, {"u-1": "the hat [sat]", "u-2": "a"})
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(result, title="test-clean"))
    shown = console.export_text()
    assert "test-clean" in shown
    assert "40.00%" in shown
    assert "u-2" not in shown
    lines = [line.rstrip() for line in shown.splitlines()]
    assert "REF  the cat [sat] \u6771\u4eac" in lines
    assert "HYP  the hat [sat] ****" in lines
