"""Words in time as files for people and other programs: text, JSON, SRT, WebVTT, TextGrid, CTM."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from asrkit.decoding.timestamps import Word
from asrkit.inference.transcript import Transcript

SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "textgrid": ".TextGrid"}
"""Formats of transcripts, and what their files are called."""
LINE = 42
"""Characters of a subtitle's line; two lines make a cue, as broadcasters have it."""
PAUSE = 0.7
"""Seconds of silence that end a cue."""
LONGEST_CUE = 7.0
"""Seconds that a cue stays at most."""


@dataclass(frozen=True)
class Cue:
    """A subtitle."""

    start: float
    """Seconds."""
    end: float
    """Seconds, never behind the next cue's start."""
    lines: tuple[str, ...]
    """One or two lines."""


def render(transcript: Transcript, form: str, name: str) -> str:
    """Return a transcript in one of the formats of `SUFFIXES`, ending in a newline; ``name`` is the recording's."""
    if form == "json":
        return json.dumps(as_json(transcript, name), ensure_ascii=False) + "\n"
    if form == "srt":
        return srt(cues(transcript.words))
    if form == "vtt":
        return vtt(cues(transcript.words))
    if form == "textgrid":
        return textgrid({"words": transcript.words}, transcript.duration)
    return transcript.text + "\n"


def as_json(transcript: Transcript, name: str) -> dict[str, Any]:
    """Return a transcript as JSON can hold it; times are seconds."""
    words = [asdict(word) for word in transcript.words]
    return {"audio": name, "duration": round(transcript.duration, 3), "text": transcript.text, "words": words}


def cues(words: Sequence[Word]) -> list[Cue]:
    """Divide words into subtitles: at pauses, and where two lines are full or a cue would stay too long."""
    groups: list[list[Word]] = []
    for word in itertools.chain.from_iterable(map(_divide, words)):
        last = groups[-1] if groups else []
        if (
            not last
            or word.start - last[-1].end > PAUSE
            or word.end - last[0].start > LONGEST_CUE
            or len(_wrap([*last, word])) > 2
        ):
            groups.append([])
        groups[-1].append(word)
    return [Cue(group[0].start, group[-1].end, _wrap(group)) for group in groups]


def _divide(word: Word) -> list[Word]:
    """Return a word in even pieces, none too long for a line or a cue: some scripts have no spaces."""
    count = max(math.ceil(len(word.text) / LINE), math.ceil((word.end - word.start) / LONGEST_CUE))
    count = min(count, len(word.text))
    if count <= 1:
        return [word]
    ends = [len(word.text) * n // count for n in range(count + 1)]
    step = (word.end - word.start) / count
    return [
        replace(
            word, text=word.text[ends[n] : ends[n + 1]], start=word.start + n * step, end=word.start + (n + 1) * step
        )
        for n in range(count)
    ]


def _wrap(words: Sequence[Word]) -> tuple[str, ...]:
    """Return the words in as few lines as hold them."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word.text) <= LINE:
            lines[-1] += " " + word.text
        else:
            lines.append(word.text)
    return tuple(lines)


def srt(shown: Sequence[Cue]) -> str:
    """Return cues as SubRip text."""
    parts = (
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n" + "\n".join(cue.lines) + "\n"
        for number, cue in enumerate(shown, 1)
    )
    return "\n".join(parts)


def vtt(shown: Sequence[Cue]) -> str:
    """Return cues as WebVTT."""
    # In a cue's text these three would begin markup.
    table = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    parts = (
        f"\n{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n" + "\n".join(cue.lines).translate(table) + "\n"
        for cue in shown
    )
    return "WEBVTT\n" + "".join(parts)


def _clock(seconds: float, point: str) -> str:
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{thousandths:03d}"


def textgrid(tiers: Mapping[str, Sequence[Word]], duration: float) -> str:
    """Return interval tiers as Praat's TextGrid (long text format); what lies between words is an empty interval."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {duration:.6f}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, words) in enumerate(tiers.items(), 1):
        intervals = list(_intervals(words, duration))
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {duration:.6f}", f"        intervals: size = {len(intervals)}"]
        for place, (start, end, text) in enumerate(intervals, 1):
            quoted = text.replace('"', '""')
            lines += [
                f"        intervals [{place}]:",
                f"            xmin = {start:.6f}",
                f"            xmax = {end:.6f}",
            ]
            lines.append(f'            text = "{quoted}"')
    return "\n".join(lines) + "\n"


def _intervals(words: Sequence[Word], duration: float) -> Iterator[tuple[float, float, str]]:
    """Yield (start, end, text) without a gap from 0 to the end."""
    at = 0.0
    for word in words:
        # Praat refuses intervals of no length; rounding may have made one at the recording's end.
        start, end = max(at, word.start), min(word.end, duration)
        if end <= start:
            continue
        if start > at:
            yield at, start, ""
        yield start, end, word.text
        at = end
    if duration > at or not words:
        yield at, duration, ""


def ctm(name: str, words: Sequence[Word]) -> str:
    """Return NIST's time-marked lines: recording, channel, start, length, word, confidence; white space divides their fields."""
    name = "_".join(name.split())
    return "".join(
        f"{name} 1 {word.start:.3f} {word.end - word.start:.3f} {word.text} {word.confidence:.4f}\n" for word in words
    )
