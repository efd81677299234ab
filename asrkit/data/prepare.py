"""From corpora to prepared sets: ``OUTPUT/SET/`` with manifest, index and rejects, and ``OUTPUT/units/``.

Running it again gives the same files; further corpora can be prepared into the same folder, and are then compared
with what is there. Bad input is listed in a set's ``rejects.tsv`` with the reason, and never stops the run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from asrkit.data import kaldi, lhotse_cuts, librispeech, recordings, tables
from asrkit.data.checking import Inspector
from asrkit.data.corpus import Reject, Utterance, is_evaluation, is_set_name
from asrkit.data.folders import building, check_replaceable
from asrkit.data.index import SET
from asrkit.data.inspect import Limits
from asrkit.data.overlap import Fingerprint, overlap_warnings
from asrkit.data.preparation import FILES, REJECTS, SetSummary, TextRules, prepare_set
from asrkit.data.remote import check_writable
from asrkit.data.sharding import ShardConfig, check_own, shard_set
from asrkit.errors import AsrkitError
from asrkit.files import held_alone
from asrkit.text.normalise import TextConfig
from asrkit.text.units import FILES as UNIT_FILES
from asrkit.text.units import Units

UNITS = "units"

Sets = Mapping[str, Iterable[Utterance | Reject]]


@dataclass
class PrepareConfig:
    """What is asked of a corpus."""

    text: TextConfig = field(default_factory=TextConfig)
    """How transcripts are spelt."""
    alphabet: str | None = None
    """The characters that transcripts may hold, besides the space; none = read off the training sets."""
    min_seconds: float = 0.1
    """Shorter utterances are rejected."""
    max_seconds: float = 35.0
    """Longer utterances are rejected where they have transcripts, and cut at pauses where they have not."""
    min_sample_rate: int = 8000
    """Recordings of fewer samples per second are rejected."""
    decode: bool = True
    """Whether every file is decoded in full; without, damage behind a good header and silence go unnoticed."""
    workers: int = 0
    """Processes that check audio; 0 = one per core."""
    shards: ShardConfig | None = None
    """How audio is put into shards; none = it stays in its files."""

    def __post_init__(self) -> None:
        if not 0.05 <= self.min_seconds < self.max_seconds:
            mend = f"from 0.05 to max_seconds, which is {self.max_seconds:g}"
            raise AsrkitError(f"min_seconds is {self.min_seconds:g}", mend=mend)
        if self.max_seconds > 3600:
            raise AsrkitError(f"max_seconds is {self.max_seconds:g}", mend="3600 at most")
        if self.min_sample_rate < 1000:
            raise AsrkitError(f"min_sample_rate is {self.min_sample_rate}", mend="1000 at least")
        if self.workers < 0:
            raise AsrkitError(f"workers is {self.workers}", mend="0 or more")
        if self.shards is not None and not self.decode:
            raise AsrkitError("shards hold audio that was decoded", mend="leave --headers-only out")
        if self.alphabet is not None and not self.alphabet.strip():
            raise AsrkitError("alphabet is empty", mend="list the characters, or leave it out")


@dataclass(frozen=True)
class Summary:
    """What was prepared."""

    output_dir: Path
    """Where it lies."""
    sets: list[SetSummary]
    """In the order of preparation: training sets first."""
    warnings: list[str]
    """What to look at, a line each."""

    def table(self) -> Table:
        """Return the sets as a table."""
        table = Table(title=str(self.output_dir), title_justify="left")
        table.add_column("set")
        for heading in ("utterances", "hours", "speakers", "rejected", "different sentences"):
            table.add_column(heading, justify="right")
        for found in self.sets:
            speakers = f"{found.speakers:,}" if found.speakers else "-"
            sentences = f"{found.sentences:,}" if found.labelled else "-"
            hours = f"{found.seconds / 3600:,.2f}"
            table.add_row(found.name, f"{found.utterances:,}", hours, speakers, f"{found.rejected:,}", sentences)
        return table

    def show(self, console: Console) -> None:
        """Print the table and the warnings."""
        console.print(self.table())
        for warning in self.warnings:
            console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def prepare(
    sets: Sets,
    output_dir: Path,
    config: PrepareConfig,
    *,
    corpus: str | Mapping[str, str] = "",
    console: Console | None = None,
) -> Summary:
    """Check every audio file of ``sets`` and write manifests, indices, rejects and units into ``output_dir``.

    ``corpus`` names the corpus that results will be reported for, of all sets or of each. Progress goes to
    ``console``. The units are the characters of all labelled training sets in ``output_dir`` (or of
    ``config.alphabet``).

    Raises AsrkitError when a set's name cannot be a folder's, when ``output_dir`` holds something else of that name,
    and when nothing is usable; the rejects are written even then.
    """
    output_dir = Path(output_dir)
    for name in sets:
        if not is_set_name(name):
            raise AsrkitError(
                f"a set cannot be called '{name}'", mend="letters, digits, '-' and '_'; name it NAME=PATH"
            )
        check_replaceable(output_dir / name, FILES)
    check_replaceable(output_dir / UNITS, tuple(UNIT_FILES.values()))
    if config.shards is not None and config.shards.location:
        # Now, not when all audio has been looked at.
        check_writable(config.shards.location)
        for name in sets:
            check_own(output_dir / name, config.shards)
    corpora = {name: corpus if isinstance(corpus, str) else corpus.get(name, "") for name in sets}
    found, rejects = _prepare_sets(sets, corpora, output_dir, config, console)
    if not any(part.utterances for part in found):
        first = next((reject for part in rejects.values() for reject in part), None)
        if first is None:
            raise AsrkitError("nothing to prepare: no audio was found")
        count, where = sum(map(len, rejects.values())), output_dir / next(n for n in rejects if rejects[n]) / REJECTS
        raise AsrkitError(
            f"nothing usable: all {count} entries are rejected, first {first.id}: {first.reason}", where=where
        )
    about = [part.name for part in found if part.utterances]
    if config.shards is not None:
        _shard_sets([part for part in found if part.utterances], output_dir, config.shards, config.workers, console)
    warnings = [warning for part in found for warning in _warnings(part, rejects[part.name], output_dir)]
    fingerprints: dict[str, Fingerprint] = {}
    for path in sorted(output_dir.glob(f"*/{SET}")):
        try:
            fingerprints[path.parent.name] = Fingerprint.load(path.parent)
        except AsrkitError as error:
            warnings.append(f"a set of an earlier run cannot be compared: {error}")
    return Summary(output_dir, found, warnings + overlap_warnings(fingerprints, about))


def _prepare_sets(
    sets: Sets, corpora: Mapping[str, str], output_dir: Path, config: PrepareConfig, console: Console | None
) -> tuple[list[SetSummary], dict[str, list[Reject]]]:
    """Prepare the training sets, the units, and then the evaluation sets, which are compared with the units."""
    limits = Limits(config.min_seconds, config.max_seconds, config.min_sample_rate, config.decode)
    alphabet = None if config.alphabet is None else frozenset(config.alphabet) - {" "}
    found: list[SetSummary] = []
    rejects: dict[str, list[Reject]] = {}
    with Inspector(limits, config.workers) as inspector, _progress(console) as progress:
        for evaluation in (False, True):
            for name in (name for name in sets if is_evaluation(name) == evaluation):
                task = progress.add_task(name, total=None)
                entries = list(sets[name])
                progress.update(task, total=len(entries))
                summary, rejects[name] = prepare_set(
                    name,
                    corpora[name],
                    entries,
                    output_dir / name,
                    inspector,
                    TextRules(config.text, alphabet),
                    lambda done, task=task: progress.advance(task, done),  # type: ignore[misc]
                )
                found.append(summary)
            if not evaluation:
                # One after the other, where several commands prepare sets of one folder.
                with held_alone(output_dir, patience_seconds=60):
                    alphabet = alphabet or _training_alphabet(output_dir)
                    if alphabet:
                        with building(output_dir / UNITS) as partial:
                            Units.characters(["".join(sorted(alphabet))]).save(partial)
    return found, rejects


def _shard_sets(
    sets: Sequence[SetSummary], output_dir: Path, config: ShardConfig, workers: int, console: Console | None
) -> None:
    with _progress(console) as progress:
        for part in sets:
            task = progress.add_task(f"{part.name}: shards", total=part.utterances)
            shard_set(output_dir / part.name, config, workers, lambda done, task=task: progress.advance(task, done))  # type: ignore[misc]


def _training_alphabet(output_dir: Path) -> frozenset[str] | None:
    """Return the characters of all labelled training sets in a folder, None where there are none."""
    alphabet: set[str] = set()
    for path in output_dir.glob(f"*/{SET}"):
        if not is_evaluation(path.parent.name):
            try:
                alphabet.update(json.loads(path.read_text(encoding="utf-8"))["alphabet"])
            except (OSError, ValueError, KeyError, TypeError):
                raise AsrkitError("a damaged set", where=path, mend="remove its folder") from None
    return frozenset(alphabet) or None


def _warnings(found: SetSummary, rejects: Sequence[Reject], output_dir: Path) -> list[str]:
    lines: list[str] = []
    if rejects:
        # Reasons go "kind: figures".
        kinds = Counter(reject.reason.split(":")[0] for reject in rejects)
        common = "; ".join(f"{count} x {kind}" for kind, count in kinds.most_common(3))
        lines.append(f"{found.name}: {len(rejects)} rejected ({common}), see {output_dir / found.name / REJECTS}")
    if not found.utterances:
        stays = (output_dir / found.name / SET).is_file()
        outcome = "the set of an earlier run stays" if stays else "so there is no such set"
        lines.append(f"{found.name}: nothing usable, {outcome}")
    if found.unknown:
        what = "have characters that no training set has; they are kept, and count as errors"
        lines.append(f"{found.name}: {found.unknown} of {found.utterances} utterances {what}")
    return lines


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
    )


def prepare_librispeech(
    corpus_dir: Path,
    output_dir: Path,
    limited_dir: Path | None = None,
    config: PrepareConfig | None = None,
    *,
    corpus: str | None = None,
    console: Console | None = None,
) -> Summary:
    """Prepare every set of a LibriSpeech tree (see `librispeech.scan`), its transcripts in the case that they have.

    ``corpus`` defaults to "librispeech" for the published sets, told by their numbers of utterances, and to the
    folder's name for anything else in that layout.
    """
    config = config or PrepareConfig(text=TextConfig(case="keep"))
    sets = {name: list(entries) for name, entries in librispeech.scan(Path(corpus_dir), limited_dir).items()}
    name = corpus or librispeech.corpus_name(Path(corpus_dir), {part: len(entries) for part, entries in sets.items()})
    return prepare(sets, output_dir, config, corpus=name, console=console)


def prepare_table(
    files: Sequence[str | Path],
    output_dir: Path,
    config: PrepareConfig | None = None,
    *,
    corpus: str = "table",
    console: Console | None = None,
) -> Summary:
    """Prepare csv, tsv or jsonl files, given as ``PATH`` or ``NAME=PATH`` (see `tables.scan`)."""
    return prepare(tables.scan(files), output_dir, config or PrepareConfig(), corpus=corpus, console=console)


def prepare_kaldi(
    dirs: Sequence[str | Path],
    output_dir: Path,
    config: PrepareConfig | None = None,
    *,
    corpus: str = "kaldi",
    console: Console | None = None,
) -> Summary:
    """Prepare Kaldi data folders, given as ``PATH`` or ``NAME=PATH`` (see `kaldi.scan`)."""
    return prepare(kaldi.scan(dirs), output_dir, config or PrepareConfig(), corpus=corpus, console=console)


def prepare_audio(
    dirs: Sequence[str | Path],
    output_dir: Path,
    config: PrepareConfig | None = None,
    *,
    corpus: str = "audio",
    console: Console | None = None,
) -> Summary:
    """Prepare untranscribed recordings, given as ``PATH`` or ``NAME=PATH`` (see `recordings.scan`)."""
    return prepare(recordings.scan(dirs), output_dir, config or PrepareConfig(), corpus=corpus, console=console)


def prepare_lhotse(
    cuts: Sequence[str | Path],
    output_dir: Path,
    config: PrepareConfig | None = None,
    *,
    corpus: str = "lhotse",
    console: Console | None = None,
) -> Summary:
    """Prepare lhotse cut manifests, given as ``PATH`` or ``NAME=PATH`` (see `lhotse_cuts.scan`)."""
    return prepare(lhotse_cuts.scan(cuts), output_dir, config or PrepareConfig(), corpus=corpus, console=console)
