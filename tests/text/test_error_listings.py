"""Confusions, speakers and sclite's alignments add up to the scores they are made from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.errors import AsrkitError
from asrkit.text.confusion import confusions
from asrkit.text.sclite import format_alignments
from asrkit.text.speakers import by_speaker, guess_speakers, read_speakers
from asrkit.text.wer import ErrorCounts, score

TEXTS = st.lists(st.sampled_from(["a", "bb", "\u6771\u4eac"]), max_size=6).map(" ".join)
CORPUS = st.dictionaries(st.sampled_from(["s-1", "s-2", "t-1", "u"]), st.tuples(TEXTS, TEXTS), min_size=1)


@settings(deadline=None, max_examples=100)
@given(corpus=CORPUS)
def test_listings_add_up(corpus: dict[str, tuple[str, str]]) -> None:
    scored = score({i: pair[0] for i, pair in corpus.items()}, {i: pair[1] for i, pair in corpus.items()})
    found = confusions(scored)
    assert sum(row[-1] for row in found.substituted) == scored.total.substitutions
    assert sum(row[-1] for row in found.deleted) == scored.total.deletions
    assert sum(row[-1] for row in found.inserted) == scored.total.insertions
    assert all(spoken != heard for spoken, heard, _ in found.substituted)
    speakers = guess_speakers(corpus)
    totals = by_speaker(scored, speakers)
    assert set(totals) == {i[0] for i in corpus}
    assert sum(totals.values(), ErrorCounts()) == scored.total
    text = format_alignments(scored, speakers, "hyp")
    counts = [[int(n) for n in row] for row in re.findall(r"\(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)", text)]
    total = scored.total
    right = total.words - total.substitutions - total.deletions
    assert [sum(column) for column in zip(*counts, strict=True)] == [
        right,
        total.substitutions,
        total.deletions,
        total.insertions,
    ]
    for label, side in (("REF:", 0), ("HYP:", 1)):
        lines = re.findall(rf"^{label}(.*)$", text, re.MULTILINE)
        words = [" ".join(w for w in line.split() if set(w) != {"*"}) for line in lines]
        assert words == [pair[side] for pair in corpus.values()]


def test_most_frequent_first_and_ties_by_word() -> None:
    scored = score({"u": "a b a c d", "v": "e"}, {"u": "x b x c", "v": "f g"})
    assert confusions(scored, 2).substituted == [("a", "x", 2), ("e", "g", 1)]
    assert confusions(scored).deleted == [("d", 1)]
    assert confusions(scored).inserted == [("f", 1)]


def test_words_stand_under_words() -> None:
    scored = score({"s-1": "the cat sat"}, {"s-1": "the hat"})
    lines = format_alignments(scored, {"s-1": "s"}, "sys").splitlines()
    assert lines[-5:] == [
        "id: (s-1)",
        "Scores: (#C #S #D #I) 1 1 1 0",
        "REF:  the cat sat",
        "HYP:  the hat ***",
        "Eval:     S   D",
    ]


def test_speaker_maps(tmp_path: Path) -> None:
    path = tmp_path / "utt2spk"
    path.write_text("u anna\nv bert\nw anna\n")
    assert read_speakers(path, ["w", "v"]) == {"w": "anna", "v": "bert"}
    with pytest.raises(AsrkitError, match=r"utt2spk: 1 utterances have no speaker, first 'x'"):
        read_speakers(path, ["u", "x"])
    assert guess_speakers(["84-1-2", "plain", "-x"]) == {"84-1-2": "84", "plain": "plain", "-x": "-x"}
