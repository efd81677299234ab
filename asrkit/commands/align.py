"""`asrkit align`: when known words are spoken."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from asrkit.commands.screen import print_error, print_plain
from asrkit.errors import AsrkitError
from asrkit.files import read_utf8, write_text

if TYPE_CHECKING:
    from asrkit.inference.align import Alignment
    from asrkit.inference.recogniser import Recogniser

FORMATS = ("json", "ctm", "textgrid")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options; the model's are the caller's."""
    parser.add_argument("--model", required=True, type=Path, metavar="EXP", help="an experiment folder")
    corpus = parser.add_argument_group("prepared sets")
    corpus.add_argument("--data", type=Path, metavar="DATA", help="prepared data")
    corpus.add_argument("--sets", nargs="+", default=[], metavar="SET", help="sets to align with their transcripts")
    single = parser.add_argument_group("one recording")
    single.add_argument("--audio", type=Path, metavar="FILE", help="a file that libsndfile reads")
    single.add_argument("--text", type=Path, metavar="FILE", help="what is said in it")
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, default=["json"], help="(json) words and characters; ctm: words only"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where files go (sets: EXP/align/SET)")
    parser.add_argument("--plot", type=int, default=0, metavar="N", help="draw the first N alignments")


def run(options: argparse.Namespace) -> int:
    """Align; return 2 if anything could not be."""
    from asrkit.inference.recogniser import load

    alone, sets = options.audio is not None and options.text is not None, options.data is not None and options.sets
    if bool(alone) == bool(sets) or (options.audio is None) != (options.text is None):
        raise AsrkitError("what is to be aligned?", mend="--data DATA --sets SET …, or --audio FILE --text FILE")
    recogniser = load(options.model, device=options.device, precision=options.precision, checkpoint=options.checkpoint)
    if alone:
        _recording(recogniser, options)
        return 0
    failed = sum(_set(recogniser, options, name) for name in options.sets)
    return 2 if failed else 0


def _recording(recogniser: Recogniser, options: argparse.Namespace) -> None:
    import numpy as np

    from asrkit.data.blocks import read_blocks
    from asrkit.inference.align import align_recording
    from asrkit.inference.alignment_plot import draw

    if options.plot and options.output is None:
        raise AsrkitError("--plot has no place to draw to", mend="add --output DIR")
    text = read_utf8(options.text)
    if not text.strip():
        raise AsrkitError("the text is empty", where=options.text)
    blocks = list(read_blocks(options.audio, recogniser.sample_rate))
    found, log_probs = align_recording(recogniser, blocks, text, options.audio.stem)
    if options.output is None:
        for form in options.format:
            print_plain(_render(found, form).rstrip("\n"))
        return
    written = _Files(options.output, found.id, options.format)
    written.add(found)
    written.finish()
    if options.plot:
        path = options.output / f"{found.id}.png"
        draw(path, found, np.concatenate(blocks), recogniser.sample_rate, log_probs, recogniser.units)
        print_plain(str(path))


def _set(recogniser: Recogniser, options: argparse.Namespace, name: str) -> int:
    """Align a set, return how many utterances could not be."""
    from asrkit.inference.align import align_set
    from asrkit.inference.alignment_plot import draw

    output = (options.output or options.model / "align") / name
    failures: list[AsrkitError] = []

    def failed(error: AsrkitError) -> None:
        failures.append(error)
        print_error(error)

    written = _Files(output, name, options.format)
    for number, (found, wave, log_probs) in enumerate(align_set(recogniser, options.data, name, failed), 1):
        written.add(found)
        if number <= options.plot:
            path = output / "plots" / f"{found.id}.png"
            draw(path, found, wave, recogniser.sample_rate, log_probs, recogniser.units)
    written.finish()
    return len(failures)


class _Files:
    """Alignments as files: JSON lines and CTM in one, sorted by id; a TextGrid for each."""

    def __init__(self, output: Path, name: str, forms: list[str]) -> None:
        self.output = output
        self.name = name
        # As text, which takes a third of the memory.
        self.shown: dict[str, dict[str, str]] = {form: {} for form in forms}

    def add(self, found: Alignment) -> None:
        for form, shown in self.shown.items():
            text = _render(found, form)
            if form == "textgrid":
                write_text(self.output / f"{found.id}.TextGrid", text)
            else:
                shown[found.id] = text

    def finish(self) -> None:
        for form, shown in self.shown.items():
            if form == "textgrid":
                print_plain(f"{self.output}/*.TextGrid")
                continue
            path = self.output / f"{self.name}.{'jsonl' if form == 'json' and len(shown) != 1 else form}"
            write_text(path, "".join(shown[name] for name in sorted(shown)))
            print_plain(str(path))


def _render(found: Alignment, form: str) -> str:
    from asrkit.inference.subtitles import ctm, textgrid

    if form == "ctm":
        return ctm(found.id, found.words)
    if form == "textgrid":
        return textgrid({"words": found.words, "characters": found.characters}, found.duration)
    return json.dumps(found.as_json(), ensure_ascii=False) + "\n"
