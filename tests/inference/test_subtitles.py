"""What is written parses back to the words and times that it was made of."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrkit.decoding.timestamps import Word
from asrkit.inference.subtitles import LINE, LONGEST_CUE, SUFFIXES, ctm, cues, render, textgrid
from asrkit.inference.transcript import Transcript

TEXTS = st.text(st.characters(categories=["Lu", "Ll", "Lo", "Po", "Sm"]), min_size=1, max_size=9)


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    words, at = [], 0.0
    for text in draw(st.lists(TEXTS, max_size=30)):
        start = round(at + draw(st.sampled_from([0.0, 0.04, 0.3, 2.0])), 3)
        at = round(start + draw(st.sampled_from([0.04, 0.5, 1.2])), 3)
        words.append(Word(text, start, at, 0.5))
    return Transcript(" ".join(word.text for word in words), tuple(words), round(at + draw(st.floats(0, 2)), 3))


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def read_cues(text: str, point: str) -> list[tuple[float, float, list[str]]]:
    found = []
    for block in re.split(r"\n\n", text.strip("\n")):
        lines = block.split("\n")
        place = next((n for n, line in enumerate(lines) if " --> " in line), None)
        if place is None:
            continue
        start, end = lines[place].split(" --> ")
        assert start[8] == end[8] == point
        found.append((seconds(start), seconds(end), lines[place + 1 :]))
    return found


@given(transcript=transcripts())
def test_subtitles_hold_every_word_in_time(transcript: Transcript) -> None:
    srt = read_cues(render(transcript, "srt", "x"), ",")
    vtt = read_cues(render(transcript, "vtt", "x"), ".")
    unescaped = [
        (start, end, [line.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for line in lines])
        for start, end, lines in vtt
    ]
    assert unescaped == srt
    assert " ".join(line for _, _, lines in srt for line in lines) == transcript.text
    edges = [edge for start, end, _ in srt for edge in (start, end)]
    assert edges == sorted(edges)
    for start, end, lines in srt:
        assert len(lines) <= 2
        assert all(len(line) <= LINE for line in lines)
        assert end - start <= LONGEST_CUE
        assert end <= transcript.duration + 0.001
    for n, cue in enumerate(cues(transcript.words), 1):
        assert f"{n}\n" in render(transcript, "srt", "x")
        assert cue.start in [word.start for word in transcript.words]


@given(letters=st.integers(1, 300), seconds=st.floats(0.01, 100))
def test_words_without_spaces_are_divided(letters: int, seconds: float) -> None:
    text = "".join(chr(0x4E00 + n) for n in range(letters))
    found = cues([Word(text, 1.0, 1.0 + seconds, 1.0)])
    assert "".join(line for cue in found for line in cue.lines) == text
    assert all(len(line) <= LINE for cue in found for line in cue.lines)
    assert (found[0].start, found[-1].end) == (1.0, pytest.approx(1.0 + seconds))
    if letters >= seconds / LONGEST_CUE:
        assert all(cue.end - cue.start <= LONGEST_CUE + 1e-6 for cue in found)


def test_fields_of_ctm_are_six() -> None:
    assert ctm("my  talk", [Word("HI", 0.5, 1.0, 0.25)]) == "my_talk 1 0.500 0.500 HI 0.2500\n"


def read_textgrid(text: str) -> dict[str, list[tuple[float, float, str]]]:
    tiers = {}
    for block in re.split(r"^ {4}item \[\d+\]:\n", text, flags=re.MULTILINE)[1:]:
        name = re.search(r'name = "(.*)"', block)
        count = re.search(r"intervals: size = (\d+)", block)
        found = re.findall(r'intervals \[\d+\]:\n +xmin = (\S+)\n +xmax = (\S+)\n +text = "((?:[^"]|"")*)"', block)
        assert name
        assert count
        assert int(count[1]) == len(found)
        tiers[name[1]] = [(float(a), float(b), word.replace('""', '"')) for a, b, word in found]
    return tiers


@given(transcript=transcripts())
def test_textgrids_tile_the_recording(transcript: Transcript) -> None:
    text = render(transcript, "textgrid", "x")
    assert text.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n')
    (intervals,) = read_textgrid(text).values()
    assert intervals[0][0] == 0
    assert intervals[-1][1] == pytest.approx(transcript.duration, abs=1e-6)
    assert all(one[1] == other[0] for one, other in pairwise(intervals))
    if transcript.duration > 0:
        assert all(start < end for start, end, _ in intervals)
    assert [word for word in intervals if word[2]] == [(w.start, w.end, w.text) for w in transcript.words]


def test_two_tiers_and_quotes() -> None:
    word = Word('say "x"', 0.5, 1.0, 1.0)
    tiers = read_textgrid(textgrid({"words": [word], "characters": []}, 2.0))
    assert tiers == {
        "words": [(0.0, 0.5, ""), (0.5, 1.0, 'say "x"'), (1.0, 2.0, "")],
        "characters": [(0.0, 2.0, "")],
    }


@given(transcript=transcripts())
def test_json_text_and_ctm(transcript: Transcript) -> None:
    found = json.loads(render(transcript, "json", "a b.wav"))
    assert found["audio"] == "a b.wav"
    assert [Word(**word) for word in found["words"]] == list(transcript.words)
    assert render(transcript, "text", "x") == transcript.text + "\n"
    lines = [line.split(" ") for line in ctm("id", transcript.words).splitlines()]
    assert [(line[0], line[1], line[4]) for line in lines] == [("id", "1", word.text) for word in transcript.words]
    for line, word in zip(lines, transcript.words, strict=True):
        assert float(line[2]) + float(line[3]) == pytest.approx(word.end, abs=0.0011)


def test_hours_and_every_format() -> None:
    late = Transcript("late", (Word("late", 3723.5, 3724.25, 1.0),), 4000.0)
    assert "01:02:03,500 --> 01:02:04,250\nlate\n" in render(late, "srt", "x")
    assert all(render(Transcript("", (), 0.0), form, "x").endswith("\n") or form == "srt" for form in SUFFIXES)
