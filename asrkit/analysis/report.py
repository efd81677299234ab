"""`asrkit report`: experiments as one HTML page that needs no server and no network."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import asrkit
from asrkit.analysis import results
from asrkit.analysis.decodings import Decoding, bounds, operations, read_decoding
from asrkit.analysis.gallery import Cache, Gallery
from asrkit.analysis.page import render
from asrkit.analysis.run import Run, names, stamp
from asrkit.errors import AsrkitError
from asrkit.files import write_text
from asrkit.text.confusion import confusions
from asrkit.text.speakers import by_speaker, guess_speakers

_CONFUSIONS = 50


@dataclass(frozen=True)
class ReportConfig:
    """What goes onto a page."""

    title: str = ""
    """The page's title; empty names the experiments."""
    utterances: int = 20
    """Worst utterances of each decoding that can be heard and seen."""
    megabytes: float = 24.0
    """Most that audio and spectrograms may add to the page."""
    device: str = "auto"
    """Where posteriors are computed."""

    def __post_init__(self) -> None:
        for name in ("utterances", "megabytes"):
            if getattr(self, name) < 0:
                raise AsrkitError(f"--{name} is {getattr(self, name)}", mend="0 or more")


@dataclass
class _Page:
    """The page while it is put together."""

    blocks: dict[str, Any] = field(default_factory=dict)
    """JSON by element id, beside ``page``."""
    decodings: list[dict[str, Any]] = field(default_factory=list)
    """What the page lists of each decoding."""
    results: list[tuple[results.Result, dict[str, Any]]] = field(default_factory=list)
    """Every result with its line of a table."""
    sets: dict[tuple[Any, ...], str] = field(default_factory=dict)
    """Element id of a set's texts by what makes it the same set."""


def report(
    folders: Sequence[Path], config: ReportConfig, refresh: float | None = None, cache: Cache | None = None
) -> str:
    """Return the page of some experiments.

    Args:
        folders: experiment folders.
        config: what goes onto it.
        refresh: seconds after which the page loads itself again; None for never.
        cache: what an earlier call made and this one may use.

    Raises:
        AsrkitError: if a folder is not an experiment. Other faults are told on the page.
    """
    cache = cache or Cache()
    runs = [Run.open(folder) for folder in _each_once(folders)]
    titles = names([run.folder for run in runs])
    experiments = [run.describe(name) for run, name in zip(runs, titles, strict=True)]
    gallery = Gallery(cache, config.utterances, config.device)
    page = _Page()
    total = sum(len(run.decodings) for run in runs)
    budget = int(config.megabytes * 1e6 / max(1, total))
    for place, run in enumerate(runs):
        for folder in run.decodings:
            try:
                _add_decoding(page, place, run, folder, gallery, budget)
            except AsrkitError as error:
                experiments[place]["notes"].append(f"A decoding is not shown: {error}")
    _embed_media(page, gallery)
    cache.sweep()
    made = f"Made {datetime.now().astimezone():%d %B %Y, %H:%M %Z} by asrkit {asrkit.__version__}."
    title = config.title or ", ".join(titles)
    page.blocks["page"] = {
        "title": title,
        "made": made,
        "refresh": refresh,
        "experiments": experiments,
        "tests": _tests(page),
        "headings": [{"name": column.heading, "right": column.right} for column in results.COLUMNS],
        "decodings": page.decodings,
        "similarity": [found for run in runs for found in run.similarities()],
    }
    return render(title, page.blocks, refresh)


def _each_once(folders: Sequence[Path]) -> list[Path]:
    return list({folder.resolve(): folder for folder in folders}.values())


def _add_decoding(page: _Page, place: int, run: Run, folder: Path, gallery: Gallery, budget: int) -> None:
    """Put a decoding's result, errors and utterances onto the page.

    Raises:
        AsrkitError: if its files are broken.
    """
    parts = tuple(stamp(folder / name) for name in (results.FILE, "ref.trans.txt", "hyp.trans.txt"))
    decoding: Decoding = gallery.cache.get(("decoding", parts), lambda: read_decoding(folder))
    ids = list(decoding.references)
    texts = _texts(page, run, decoding, gallery)
    known = zip(ids, page.blocks[texts]["speakers"], strict=True)
    speakers = {utterance_id: speaker for utterance_id, speaker in known if speaker is not None}
    shown, note = gallery.add(run, decoding, texts, budget)
    total = decoding.scored.total
    interval = gallery.cache.get(("interval", parts), lambda: bounds(decoding.scored, speakers))
    page.results.append((decoding.result, {"experiment": place, "interval": interval, **_figures(decoding)}))
    own = f"decoding-{len(page.decodings)}"
    places = {utterance_id: number for number, utterance_id in enumerate(ids)}
    page.blocks[own] = {
        "hypotheses": [
            None if decoding.hypotheses[i] == reference else decoding.hypotheses[i]
            for i, reference in decoding.references.items()
        ],
        "operations": [operations(utterance.alignment) for utterance in decoding.scored.utterances],
        "posteriors": {str(places[utterance_id]): found for utterance_id, found in shown.items()},
    }
    errors = confusions(decoding.scored, _CONFUSIONS)
    hardest = sorted(by_speaker(decoding.scored, speakers).items(), key=lambda item: -item[1].wer)
    page.decodings.append(
        {
            "experiment": place,
            "set": decoding.result.set,
            "corpus": decoding.result.corpus,
            "decoder": decoding.result.decoder,
            "wer": total.wer,
            "totals": {
                "substitutions": total.substitutions,
                "deletions": total.deletions,
                "insertions": total.insertions,
                "words": total.words,
                "utterances": total.utterances,
                "wrong": sum(1 for utterance in decoding.scored.utterances if utterance.counts.word_errors),
            },
            "substituted": errors.substituted,
            "deleted": errors.deleted,
            "inserted": errors.inserted,
            "speakers": [[speaker, counts.word_errors, counts.words] for speaker, counts in hardest],
            "texts": texts,
            "data": own,
            "note": note,
            "posteriors": "" if shown else "Posteriors need the experiment's weights.",
        }
    )


def _texts(page: _Page, run: Run, decoding: Decoding, gallery: Gallery) -> str:
    """Return the element id of what all decodings of a set share; the first of them puts it onto the page."""
    ids, references = list(decoding.references), list(decoding.references.values())
    key = (decoding.result.test, tuple(ids), tuple(references))
    texts = page.sets.setdefault(key, f"texts-{len(page.sets)}")
    # The data may be gone for one experiment and there for another.
    if texts not in page.blocks or page.blocks[texts]["silence"]:
        speakers: dict[str, str] = {}
        seconds: list[float | None] = [None] * len(ids)
        silence = ""
        try:
            speech = gallery.speech(run, decoding.result.set)
            speakers = speech.speakers
            seconds = [speech.seconds(utterance_id) for utterance_id in ids]
        except AsrkitError as error:
            silence = f"No audio: the prepared data is gone ({error})."
        guessed = guess_speakers(ids)
        # Where every utterance would be a speaker of its own, the ids tell nothing.
        speakers = speakers or (guessed if len(set(guessed.values())) < len(ids) else {})
        page.blocks[texts] = {
            "ids": ids,
            "references": references,
            "speakers": [speakers.get(utterance_id) for utterance_id in ids],
            "seconds": seconds,
            "media": {},
            "silence": silence,
        }
    return texts


def _figures(decoding: Decoding) -> dict[str, Any]:
    """Return a result's line: rates and counts as recomputed from the texts."""
    result, total, values = decoding.result, decoding.scored.total, decoding.result.values
    seconds, audio = values.get("seconds"), values.get("audio_seconds")
    speed = None
    if isinstance(seconds, int | float) and isinstance(audio, int | float) and seconds > 0:
        speed = audio / seconds
    return {
        "recipe": result.recipe,
        "source": result.source,
        "subset": result.subset,
        "decoder": result.decoder,
        "lm": Path(result.lm).name if result.lm else None,
        "wer": total.wer,
        "cer": total.cer,
        "substitutions": total.substitutions,
        "deletions": total.deletions,
        "insertions": total.insertions,
        "updates": values.get("updates") if isinstance(values.get("updates"), int) else 0,
        "speed": speed,
    }


def _tests(page: _Page) -> list[dict[str, Any]]:
    """Return the results by corpus and set, and their means where a system has several seeds."""
    tests = []
    for test in sorted({result.test for result, _ in page.results}):
        own = [(result, line) for result, line in page.results if result.test == test]
        try:
            systems = results.rows(result for result, _ in own)[test]
        except AsrkitError:  # experiments that differ in what results.json does not tell have no mean
            systems = []
        tests.append(
            {
                "title": results.title(test),
                "results": [line for _, line in own],
                "seeds": [results.cells(row) for row in systems if len(row.results) > 1],
            }
        )
    return tests


def _embed_media(page: _Page, gallery: Gallery) -> None:
    """Give every embedded utterance a block of its own, that is parsed when it is opened."""
    for texts in page.sets.values():
        block = page.blocks[texts]
        for place, utterance_id in enumerate(block["ids"]):
            media = gallery.media.get((texts, utterance_id))
            if media is not None:
                block["media"][str(place)] = name = f"media-{texts}-{place}"
                page.blocks[name] = media


def write_report(folders: Sequence[Path], output: Path, config: ReportConfig) -> None:
    """Write the page of some experiments, atomically.

    Raises:
        AsrkitError: if a folder is not an experiment.
    """
    write_text(output, report(folders, config))


def watch(
    folders: Sequence[Path],
    output: Path,
    config: ReportConfig,
    every: float = 5.0,
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Write the page whenever something in the experiments has changed, until interrupted.

    Meanwhile the page loads itself again every so often; the last writing leaves one that does not.

    Args:
        folders: experiment folders.
        output: the page.
        config: what goes onto it.
        every: seconds between two looks.
        wait: sleeps.

    Raises:
        AsrkitError: if a folder is not an experiment.
    """
    if every <= 0:
        raise AsrkitError(f"--every is {every}", mend="seconds, more than 0")
    cache = Cache()
    known: object = None
    try:
        while True:
            # Taken before the page is made: what changes meanwhile is seen the next time.
            now = [Run.open(folder).stamp() for folder in folders]
            if now != known:
                write_text(output, report(folders, config, every, cache))
                known = now
            wait(every)
    except KeyboardInterrupt:
        write_text(output, report(folders, config, None, cache))
