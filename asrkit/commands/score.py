"""`asrkit score`: error rates, their certainty, and what the errors are."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from asrkit.commands.flags import count
from asrkit.commands.screen import console, print_plain
from asrkit.errors import AsrkitError

if TYPE_CHECKING:
    from asrkit.text.confusion import Confusions
    from asrkit.text.significance import Comparison, Interval
    from asrkit.text.wer import ErrorCounts, Score

REFERENCE, HYPOTHESIS = "ref.trans.txt", "hyp.trans.txt"
"""What `asrkit decode` calls its files."""


@dataclass(frozen=True)
class Scored:
    """One set as the command shows it; what was not asked for is None."""

    name: str
    score: Score
    speakers: dict[str, str]
    drawn: str
    interval: Interval | None
    by_speaker: dict[str, ErrorCounts] | None
    confusions: Confusions | None
    comparison: Comparison | None


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="REF.txt HYP.txt",
        help="lines of `ID TEXT`, references then hypotheses, once per set; or folders, such as EXP/decode",
    )
    parser.add_argument("--worst", type=count, default=5, metavar="N", help="how many of the worst utterances to show")
    parser.add_argument("--confusions", type=count, metavar="N", help="show the N most frequent errors of each kind")
    parser.add_argument("--speakers", action="store_true", help="show the errors of each speaker")
    parser.add_argument(
        "--speaker-map",
        type=Path,
        metavar="FILE",
        help="lines of `ID SPEAKER` (without: what stands before the id's first -)",
    )
    parser.add_argument(
        "--bootstrap",
        nargs="?",
        type=int,
        const=10_000,
        metavar="N",
        help="95 %% interval of the WER from N draws of speakers (10000)",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        type=Path,
        metavar="HYP2.txt",
        help="another system's hypotheses, once per set, or a folder: is the difference more than chance?",
    )
    parser.add_argument("--alignments", type=Path, metavar="FILE", help="write alignments as sclite does (.pra)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Score, print, and write the alignments if asked."""
    from asrkit.text.sclite import format_alignments

    pairs = find_pairs(options.inputs)
    others: dict[str, Path | None] = dict.fromkeys(pairs)
    if options.compare:
        others |= find_others(options.compare, pairs)
    sets = [score_set(name, *pair, others[name], options) for name, pair in pairs.items()]
    if options.json:
        print_plain(
            json.dumps({"sets": [as_json(scored, options.worst) for scored in sets]}, ensure_ascii=False, indent=1)
        )
    else:
        console.print(report(sets, options.worst))
    if options.alignments:
        from asrkit.files import write_text

        parts = (format_alignments(scored.score, scored.speakers, scored.name) for scored in sets)
        write_text(options.alignments, "\n".join(parts))
    return 0


def find_pairs(inputs: Sequence[Path]) -> dict[str, tuple[Path, Path]]:
    """Return (references, hypotheses) by set name.

    Raises:
        AsrkitError: an odd number of files, a folder without results, or two sets of one name.
    """
    pairs: dict[str, tuple[Path, Path]] = {}
    files = [path for path in inputs if not path.is_dir()]
    if len(files) % 2:
        raise AsrkitError(f"{len(files)} files are not pairs of references and hypotheses", mend="REF.txt HYP.txt …")
    for reference, hypothesis in zip(files[::2], files[1::2], strict=True):
        # asrkit decode's own names say nothing; its folders do: decode/SET/DECODER.
        name = "/".join(hypothesis.parts[-3:-1]) if hypothesis.name == HYPOTHESIS else hypothesis.name.split(".")[0]
        if name in pairs:
            name = str(hypothesis)
        pairs[name] = reference, hypothesis
    for folder in (path for path in inputs if path.is_dir()):
        found = sorted(path for path in folder.rglob(HYPOTHESIS) if path.with_name(REFERENCE).is_file())
        if not found:
            raise AsrkitError(
                f"holds no {REFERENCE} with a {HYPOTHESIS}", where=folder, mend="asrkit decode writes them"
            )
        for path in found:
            name = path.parent.relative_to(folder).as_posix()
            pairs[name if name not in ("", ".") and name not in pairs else str(path.parent)] = (
                path.with_name(REFERENCE),
                path,
            )
    return pairs


def find_others(inputs: Sequence[Path], pairs: dict[str, tuple[Path, Path]]) -> dict[str, Path]:
    """Return the other system's hypotheses for each set.

    Raises:
        AsrkitError: there are not as many as sets, or a folder lacks a set.
    """
    if len(inputs) == 1 and inputs[0].is_dir():
        found = {name: path for name, (_, path) in find_pairs(inputs).items()}
        if len(found) == len(pairs) == 1:
            return dict(zip(pairs, found.values(), strict=True))
        if missing := [name for name in pairs if name not in found]:
            raise AsrkitError(f"has no hypotheses for {missing[0]}", where=inputs[0], mend="name the files")
        return {name: found[name] for name in pairs}
    if len(inputs) != len(pairs):
        raise AsrkitError(f"--compare names {len(inputs)} files for {len(pairs)} sets", mend="one per set")
    return dict(zip(pairs, inputs, strict=True))


def score_set(name: str, reference: Path, hypothesis: Path, other: Path | None, options: argparse.Namespace) -> Scored:
    """Score one set as the options ask."""
    from asrkit.text.confusion import confusions
    from asrkit.text.significance import DRAWS, compare, wer_interval
    from asrkit.text.speakers import by_speaker, guess_speakers, read_speakers
    from asrkit.text.wer import read_transcripts, score

    references = read_transcripts(reference)
    scored = score(references, read_transcripts(hypothesis))
    speakers = read_speakers(options.speaker_map, references) if options.speaker_map else guess_speakers(references)
    totals = by_speaker(scored, speakers)
    # One speaker says nothing about others; then utterances are all there is to draw from.
    drawn = speakers if len(totals) > 1 else {utterance_id: utterance_id for utterance_id in references}
    interval = comparison = None
    if options.bootstrap is not None:
        interval = wer_interval(list(by_speaker(scored, drawn).values()), draws=options.bootstrap)
    if other is not None:
        second = score(references, read_transcripts(other))
        comparison = compare(scored, second, drawn, draws=options.bootstrap or DRAWS)
    return Scored(
        name,
        scored,
        speakers,
        "speakers" if drawn is speakers else "utterances",
        interval,
        totals if options.speakers else None,
        confusions(scored, options.confusions) if options.confusions is not None else None,
        comparison,
    )


def as_json(scored: Scored, worst: int) -> dict[str, Any]:
    """Return a set's figures as JSON can hold them; rates are fractions."""
    entry: dict[str, Any] = {"set": scored.name, **_rates(scored.score.total)}
    if scored.interval:
        entry["interval"] = asdict(scored.interval)
    if scored.comparison:
        entry["comparison"] = asdict(scored.comparison)
    if scored.by_speaker is not None:
        entry["speakers"] = {speaker: _rates(counts) for speaker, counts in scored.by_speaker.items()}
    if scored.confusions:
        entry["confusions"] = asdict(scored.confusions)
    entry["worst"] = [
        {"id": u.id, **_rates(u.counts), "alignment": [asdict(edit) for edit in u.alignment]}
        for u in scored.score.worst(worst)
    ]
    return entry


def _rates(counts: ErrorCounts) -> dict[str, float]:
    return {"wer": counts.wer, "cer": counts.cer, **asdict(counts)}


def report(sets: Sequence[Scored], worst: int) -> Group:
    """Return everything for `rich.console.Console.print`."""
    from asrkit.text.wer import table

    parts: list[RenderableType] = []
    for scored in sets:
        parts.append(table(scored.score, title=scored.name if len(sets) > 1 else None, worst=worst))
        if scored.interval:
            i = scored.interval
            bounds = f"{i.low:.2%} to {i.high:.2%}"
            parts.append(f"\nWER {i.level:.0%} interval {bounds} ({i.groups} {scored.drawn} drawn {i.draws:,} times)")
        if scored.comparison:
            parts.append(_comparison(scored.comparison, scored.drawn))
        if scored.by_speaker is not None:
            parts.append(_speakers(scored.by_speaker))
        if scored.confusions:
            parts += ["", *_confusions(scored.confusions)]
    return Group(*parts)


def _comparison(found: Comparison, drawn: str) -> str:
    i, pairs, size = found.interval, found.matched_pairs, abs(found.difference)
    verdict = f"{size:.2%} absolute {'lower' if found.difference < 0 else 'higher'}" if size else "the same"
    return (
        f"\nthe other system's WER is {verdict}, {i.level:.0%} interval {i.low:+.2%} to {i.high:+.2%}\n"
        f"paired bootstrap p = {found.p:.4f} ({i.groups} {drawn} drawn {i.draws:,} times)\n"
        f"matched pairs (MAPSSWE) p = {pairs.p:.4f} ({pairs.segments:,} segments)"
    )


def _speakers(totals: dict[str, ErrorCounts]) -> Table:
    shown = Table()
    for name in ("speaker", "WER", "CER", "words", "sub", "del", "ins", "utterances"):
        shown.add_column(name, justify="left" if name == "speaker" else "right")
    for speaker, counts in sorted(totals.items(), key=lambda item: (-item[1].wer, item[0])):
        whole = (counts.words, counts.substitutions, counts.deletions, counts.insertions, counts.utterances)
        shown.add_row(Text(speaker), f"{counts.wer:.2%}", f"{counts.cer:.2%}", *(f"{n:,}" for n in whole))
    return shown


def _confusions(found: Confusions) -> list[Table]:
    tables = []
    for title, rows in (
        ("taken for", [(f"{spoken} > {heard}", times) for spoken, heard, times in found.substituted]),
        ("left out", found.deleted),
        ("put in", found.inserted),
    ):
        shown = Table(title=title)
        shown.add_column("word")
        shown.add_column("times", justify="right")
        for word, times in rows:
            shown.add_row(Text(word), str(times))
        tables.append(shown)
    return tables
