"""`asrkit transcribe`: the text of recordings."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from asrkit.commands.screen import console, print_error, print_plain
from asrkit.errors import AsrkitError

if TYPE_CHECKING:
    from asrkit.inference.recogniser import Recogniser
    from asrkit.inference.streaming import Update
    from asrkit.inference.transcribe import Source
    from asrkit.inference.transcript import Transcript

STDIN = "-"
FORMATS = ("text", "json", "srt", "vtt", "textgrid")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options; the model's are the caller's."""
    parser.add_argument("--model", required=True, type=Path, metavar="EXP", help="an experiment folder")
    parser.add_argument(
        "audio", nargs="+", type=Path, metavar="AUDIO", help="files, folders of them, or - for standard input"
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="(text) all others have times")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write a file for each recording there")
    parser.add_argument("--raw", action="store_true", help="the audio is raw: 16 kHz, one channel, s16le")
    size = parser.add_argument_group("size")
    size.add_argument("--batch-seconds", type=float, metavar="S", help="audio recognised at once (cpu 60, cuda 480)")
    size.add_argument(
        "--chunk-seconds",
        type=float,
        metavar="S",
        help="longer recordings are divided, at pauses if there are any (as training had, at most 30)",
    )
    stream = parser.add_argument_group("streaming")
    stream.add_argument(
        "--stream",
        action="store_true",
        help="results as speech comes in: all words since the last pause are recognised again every --interval, words "
        "that stay are kept, and a pause makes them final; a partial result is about 2 intervals late, a final one the "
        "length of a pause",
    )
    stream.add_argument("--interval", type=float, default=0.5, metavar="S", help="seconds between results (0.5)")


def run(options: argparse.Namespace) -> int:
    """Transcribe; return 2 if anything could not be read."""
    from asrkit.inference.recogniser import load

    recogniser = load(options.model, device=options.device, precision=options.precision, checkpoint=options.checkpoint)
    if options.stream:
        return _stream(recogniser, options)
    return _files(recogniser, options)


def _files(recogniser: Recogniser, options: argparse.Namespace) -> int:
    from asrkit.inference.subtitles import SUFFIXES, render
    from asrkit.inference.transcribe import transcribe

    failed = 0
    with _spooled(options.audio) as spool:
        sources, places = _sources(options, recogniser.sample_rate, spool)
        if options.output is None and options.format not in ("text", "json") and len(sources) > 1:
            raise AsrkitError(f"{len(sources)} recordings as {options.format}", mend="say where with --output DIR")
        limits = {"batch_seconds": options.batch_seconds, "chunk_seconds": options.chunk_seconds}
        for name, found in transcribe(recogniser, sources, **limits):
            try:
                if isinstance(found, AsrkitError):
                    raise found
                if options.output is None:
                    _print(found, options.format, name)
                else:
                    path = options.output / (places[name] + SUFFIXES[options.format])
                    _write(path, render(found, options.format, name))
            except AsrkitError as error:
                failed += 1
                print_error(error)
    return 2 if failed else 0


def _print(found: Transcript, form: str, name: str) -> None:
    from asrkit.inference.subtitles import render

    shown = render(found, form, name).rstrip("\n")
    print_plain(f"{name}\t{shown}" if form == "text" else shown)


def _write(path: Path, text: str) -> None:
    from asrkit.files import write_text

    write_text(path, text)
    print_plain(str(path))


@contextmanager
def _spooled(audio: Sequence[Path]) -> Iterator[Path | None]:
    """Give a temporary file with what comes through standard input, if that is asked for."""
    if Path(STDIN) not in audio:
        yield None
        return
    with tempfile.NamedTemporaryFile(prefix="asrkit-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield Path(file.name)


def _sources(options: argparse.Namespace, sample_rate: int, spool: Path | None) -> tuple[list[Source], dict[str, str]]:
    """Return the recordings, and for each name where its file goes below --output, without a suffix."""
    from asrkit.inference.sources import failed_source, file_source, find_audio

    sources: list[Source] = []
    places: dict[str, str] = {}
    taken: set[str] = set()
    for given in options.audio:
        if given == Path(STDIN) and spool is not None:
            sources.append(file_source(spool, sample_rate, raw=options.raw, name="standard input"))
            places["standard input"] = "stdin"
            continue
        for path, problem in find_audio([given]):
            if str(path) in places:
                continue
            below = path.relative_to(given) if given.is_dir() and path != given else Path(path.name)
            # Recordings that differ in the suffix only keep it.
            place = str(below.with_suffix(""))
            place = str(below) if place in taken else place
            while place in taken:
                place += "_"
            taken.add(place)
            places[str(path)] = place
            sources.append(failed_source(path, problem) if problem else file_source(path, sample_rate, raw=options.raw))
    return sources, places


def _stream(recogniser: Recogniser, options: argparse.Namespace) -> int:
    from asrkit.data.blocks import PipeFile, read_blocks
    from asrkit.inference.streaming import Streamer

    if len(options.audio) != 1 or options.audio[0].is_dir():
        raise AsrkitError("--stream takes one recording", mend="- for standard input")
    if options.output is not None or options.format not in ("text", "json"):
        raise AsrkitError("--stream prints text or JSON lines", mend="leave out --output and other formats")
    if options.batch_seconds is not None or options.chunk_seconds is not None:
        raise AsrkitError("--stream recognises what comes in", mend="leave out --batch-seconds and --chunk-seconds")
    streamer = Streamer.of(recogniser, interval=options.interval)
    live = options.audio[0] == Path(STDIN)
    source = PipeFile(sys.stdin.buffer) if live else options.audio[0]
    show = _JsonLines() if options.format == "json" else _Lines()
    name = "standard input" if live else None
    for block in read_blocks(source, recogniser.sample_rate, options.interval, raw=options.raw, name=name):
        for update in streamer.push(block):
            show(update)
    for update in streamer.finish():
        show(update)
    return 0


class _JsonLines:
    """Prints an object per update."""

    def __call__(self, update: Update) -> None:
        print(json.dumps(asdict(update), ensure_ascii=False), flush=True)


class _Lines:
    """Prints final texts as lines; partial ones are rewritten in place on a terminal, and lines of their own elsewhere."""

    def __call__(self, update: Update) -> None:
        kind = "final" if update.final else "partial"
        if not console.is_terminal:
            print(f"{kind}\t{update.start:.2f}\t{update.end:.2f}\t{update.text}", flush=True)
            return
        # A line wider than the terminal could not be taken back: its tail is what is new.
        shown = update.text if update.final else update.text[-(console.width - 1) :]
        print(f"\r\x1b[K{shown}", end="\n" if update.final else "", flush=True)
