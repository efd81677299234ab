"""The command line: one function per command, each a few lines; errors are one line and exit status 2."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asrkit
from asrkit.commands import align as align_command
from asrkit.commands import checkpoints as checkpoints_command
from asrkit.commands import decode as decode_command
from asrkit.commands import lexicon as lexicon_command
from asrkit.commands import lm as lm_command
from asrkit.commands import score as score_command
from asrkit.commands import similarity as similarity_command
from asrkit.commands import transcribe as transcribe_command
from asrkit.commands.flags import finite
from asrkit.commands.screen import console
from asrkit.commands.screen import print_error as _print_error
from asrkit.errors import AsrkitError, nearest

if TYPE_CHECKING:
    from asrkit.data.sharding import ShardConfig


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a flag; takes files and KEY=VALUE behind flags too; numbers are finite."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", float, finite)
        self._mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See argparse; a command that has no further commands sorts flags and all else apart."""
        if self._subparsers is not None or self._mixing:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False

    def error(self, message: str) -> None:  # type: ignore[override]
        """Print the mistake and how to see the usage, and exit with status 2."""
        _print_error(f"{message} (see {self.prog} --help)")
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0 done, 2 a mistake told in one line, 130 interrupted (state saved)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.run
        return command(options)
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130
    except AsrkitError as error:
        if _is_first_to_fail():
            _print_error(error)
        return 2
    except OSError as error:  # full disks, missing rights
        if _is_first_to_fail():
            where = f"{error.filename}: " if error.filename else ""
            _print_error(f"{where}{error.strerror or error}")
        return 2
    except Exception:
        if _is_first_to_fail():
            raise
        return 2


def _is_first_to_fail() -> bool:
    """Whether this process, of those that torchrun started, should tell what went wrong."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from asrkit.training.distributed import mistake_number

    return mistake_number() == 1


def _parser() -> Parser:
    parser = Parser(
        prog="asrkit", description="Speech recognisers from much untranscribed and little transcribed speech."
    )
    parser.add_argument("--version", action="version", version=f"asrkit {asrkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_prepare(commands)

    train = _add(
        commands,
        "train",
        _train,
        "train, or go on training, what a config describes",
        "asrkit train conf/mini/pretrain_mini.yaml exp_dir=exp/pretrain data.dir=data/mini",
    )
    train.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="the experiment's settings")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that win over the file's")
    train.add_argument(
        "--dry-run", action="store_true", help="try config, data, memory and a few updates; estimate the whole run"
    )
    train.add_argument(
        "--profile", action="store_true", help="say where the time of an update goes; EXP/profile gets a trace"
    )
    train.add_argument("--help-config", metavar="METHOD", help="print every setting of a method with its default")

    decode = _add(
        commands,
        "decode",
        _decode,
        "recognise prepared sets and write results.json",
        "asrkit decode --model exp/finetune --data data/mini --sets test-clean --lm lm.arpa --tune-on dev-clean",
    )
    decode_command.add(decode)
    _add_model_options(decode)

    summary = "compare hypotheses with references"
    score_command.add(_add(commands, "score", score_command.run, summary, "asrkit score ref.trans.txt hyp.trans.txt"))

    transcribe = _add(
        commands,
        "transcribe",
        transcribe_command.run,
        "write the text of recordings",
        "asrkit transcribe --model exp/finetune talk.flac interviews/ --format srt --output subtitles",
    )
    transcribe_command.add(transcribe)
    _add_model_options(transcribe)

    align = _add(
        commands,
        "align",
        align_command.run,
        "find when the words and characters of a known text are spoken",
        "asrkit align --model exp/finetune --audio talk.flac --text talk.txt --format textgrid --output aligned",
    )
    align_command.add(align)
    _add_model_options(align)

    report = _add(
        commands,
        "report",
        _report,
        "write one HTML page about experiments: curves, results, errors, utterances to hear",
        "asrkit report exp/a exp/b --output report.html",
    )
    report.add_argument("experiments", nargs="+", type=Path, metavar="EXP", help="experiment folders")
    report.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page")
    report.add_argument("--title", default="", help="its title (the experiments' names)")
    report.add_argument("--utterances", type=int, default=20, metavar="N", help="worst ones with audio per decoding")
    report.add_argument("--megabytes", type=float, default=24, metavar="MB", help="most that audio may add (24)")
    report.add_argument("--device", default="auto", help="where posteriors are computed: auto, cpu, cuda or cuda:K")
    report.add_argument("--watch", action="store_true", help="write it again whenever something changes")
    report.add_argument("--every", type=float, default=5, metavar="SECONDS", help="how often --watch looks (5)")

    similarity_command.add(
        _add(
            commands,
            "similarity",
            _similarity,
            "compare the layers of two models (PWCCA): a table, JSON and a figure",
            "asrkit similarity --a exp/pretrain --b exp/finetune --data data/mini --sets dev-clean",
        )
    )

    results = _add(
        commands,
        "results",
        _results,
        "put the results of many decodings into tables, means over seeds",
        "asrkit results exp --output my_results.md",
    )
    results.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="what holds results.json files")
    results.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="FILE.md keeps all tables between its markers; any other file gets what is on the screen",
    )
    language_model = _add(
        commands, "lm", _lm, "make n-gram language models", "asrkit lm train text.txt --output lm.arpa"
    )
    kinds = language_model.add_subparsers(title="actions", metavar="ACTION", required=True)
    lm_command.add(
        _add(
            kinds,
            "train",
            _lm,
            "estimate a model (modified Kneser-Ney) and write it as ARPA, which KenLM reads",
            "asrkit lm train --data data/mini --sets train-clean-100 --order 4 --output exp/lm.arpa",
        )
    )

    lexicon_command.add(
        _add(
            commands,
            "lexicon",
            _lexicon,
            "write down how words are pronounced (espeak-ng), for units.kind=phone",
            "asrkit lexicon --data data/mini --sets 1h dev-clean --output lexicon.txt",
        )
    )

    summary = "turn another toolkit's model into an experiment"
    example = "asrkit import facebook/wav2vec2-base --output exp/wav2vec2-base"
    checkpoints_command.add_import(_add(commands, "import", _import, summary, example))
    summary = "write an experiment in another toolkit's format"
    example = "asrkit export exp/finetune --format huggingface --output exported"
    checkpoints_command.add_export(_add(commands, "export", _export, summary, example))

    _add(commands, "doctor", _doctor, "say what this machine has", "asrkit doctor")
    return parser


def _add_prepare(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _add(
        commands,
        "prepare",
        _prepare,
        "check recordings and transcripts and write what training reads",
        "asrkit prepare librispeech --corpus-dir corpora --output-dir data/librispeech",
    )
    kinds = parser.add_subparsers(title="corpora", metavar="CORPUS", required=True, dest="kind")
    summaries = {
        "librispeech": "LibriSpeech's own layout, and Libri-light's limited folders",
        "mini": "a synthetic corpus in LibriSpeech's layout, made on the spot",
        "table": "csv, tsv or jsonl files with a column `audio` and perhaps `text`, `speaker`, `set`, `start`, `duration`",
        "kaldi": "Kaldi data folders: wav.scp, text, utt2spk, segments",
        "audio": "folders of untranscribed recordings; long ones are cut at pauses",
        "lhotse": "lhotse cut manifests",
    }
    examples = {
        "librispeech": "--corpus-dir corpora --output-dir data/librispeech",
        "mini": "--output-dir data/mini",
        "table": "train=train.tsv dev=dev.tsv --output-dir data/mine",
        "kaldi": "train=data/train --output-dir data/mine",
        "audio": "radio=recordings/ --output-dir data/mine",
        "lhotse": "train=cuts.jsonl.gz --output-dir data/mine",
    }
    for kind, summary in summaries.items():
        corpus = _add(kinds, kind, _prepare, summary, f"asrkit prepare {kind} {examples[kind]}")
        corpus.add_argument("--output-dir", required=True, type=Path, metavar="DATA", help="where the sets go")
        if kind == "librispeech":
            corpus.add_argument("--corpus-dir", required=True, type=Path, metavar="DIR", help="holds LibriSpeech/")
            corpus.add_argument("--limited-dir", type=Path, metavar="DIR", help="librispeech_finetuning, if elsewhere")
        elif kind == "mini":
            corpus.add_argument("--corpus-dir", type=Path, metavar="DIR", help="where the audio goes (DATA/corpus)")
            corpus.add_argument("--seed", type=int, help="everything random in the corpus follows from it (1)")
            corpus.add_argument(
                "--domain", metavar="NAME", help="a smaller corpus of one kind: slow, fast or noisy speech"
            )
        else:
            corpus.add_argument(
                "inputs", nargs="+", metavar="[SET=]PATH", help="inputs, and what their sets are called"
            )
        text = corpus.add_argument_group("transcripts")
        text.add_argument("--case", choices=("upper", "lower", "keep"), help="spelling (upper; librispeech: keep)")
        text.add_argument("--punctuation", choices=("strip", "keep"), help="(strip)")
        text.add_argument(
            "--alphabet", metavar="CHARACTERS", help="what transcripts may hold (read off the training sets)"
        )
        limits = corpus.add_argument_group("limits")
        limits.add_argument("--min-seconds", type=float, help="shorter utterances are rejected (0.1)")
        limits.add_argument("--max-seconds", type=float, help="longer ones are rejected, or cut if untranscribed (35)")
        limits.add_argument("--headers-only", action="store_true", help="do not decode every file: faster, finds less")
        limits.add_argument("--workers", type=int, help="processes that check audio (one per core)")
        shards = corpus.add_argument_group("shards")
        shards.add_argument(
            "--shards",
            nargs="?",
            const="",
            metavar="WHERE",
            help="put audio into tar files: beside the manifests, or below a folder or URL such as s3://bucket/mine",
        )
        shards.add_argument(
            "--shard-format", choices=("flac", "opus"), help="flac changes no sample, opus is small (flac)"
        )
        shards.add_argument("--shard-hours", type=float, metavar="HOURS", help="audio per shard (8)")


def _add(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    example: str,
) -> Parser:
    parser = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
    parser.set_defaults(run=run)
    return parser


def _add_model_options(parser: Parser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:K")
    parser.add_argument("--precision", default="auto", help="auto, bf16, fp16 or fp32")
    parser.add_argument("--checkpoint", default="best", choices=("best", "last"), help="which weights")


def _prepare(options: argparse.Namespace) -> int:
    from asrkit.data import prepare
    from asrkit.text.normalise import TextConfig

    librispeech = options.kind in ("librispeech", "mini")
    text = TextConfig(
        case=options.case or ("keep" if librispeech else "upper"), punctuation=options.punctuation or "strip"
    )
    given = {name: getattr(options, name) for name in ("alphabet", "min_seconds", "max_seconds", "workers")}
    set_ones = {name: value for name, value in given.items() if value is not None}
    config = prepare.PrepareConfig(text=text, decode=not options.headers_only, shards=_shards(options), **set_ones)
    if options.kind == "mini":
        corpus_dir = _synthesise(options)
        summary = prepare.prepare_librispeech(
            corpus_dir,
            options.output_dir,
            None,
            config,
            # Results of one corpus are not another's.
            corpus=f"mini-{options.domain}" if options.domain else "mini",
            console=console,
        )
    elif options.kind == "librispeech":
        summary = prepare.prepare_librispeech(
            options.corpus_dir, options.output_dir, options.limited_dir, config, console=console
        )
    else:
        run = getattr(prepare, f"prepare_{options.kind}")
        summary = run(options.inputs, options.output_dir, config, console=console)
    summary.show(console)
    return 0


def _shards(options: argparse.Namespace) -> ShardConfig | None:
    from asrkit.data.sharding import ShardConfig

    given = {"format": options.shard_format, "hours": options.shard_hours}
    if options.shards is None and any(value is not None for value in given.values()):
        raise AsrkitError(
            "--shard-format and --shard-hours say how, but not that shards are wanted", mend="add --shards"
        )
    if options.shards is None:
        return None
    return ShardConfig(options.shards, **{name: value for name, value in given.items() if value is not None})


def _synthesise(options: argparse.Namespace) -> Path:
    from rich.progress import Progress

    from asrkit.data.mini import MiniConfig, synthesise
    from asrkit.data.mini_domains import DOMAINS, domain

    if options.domain is not None and options.domain not in DOMAINS:
        raise AsrkitError(f"no domain '{options.domain}' of the corpus", mend=nearest(options.domain, DOMAINS))
    config = domain(options.domain) if options.domain else MiniConfig()
    if options.seed is not None:
        config = dataclasses.replace(config, seed=options.seed)
    corpus_dir = options.corpus_dir or options.output_dir / "corpus"
    console.print(f"speech by espeak-ng goes to {corpus_dir}", highlight=False, soft_wrap=True)
    with Progress(console=console) as progress:
        task = progress.add_task("speakers", total=None)
        return synthesise(
            config,
            corpus_dir,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _train(options: argparse.Namespace) -> int:
    if options.help_config:
        from asrkit.config import describe
        from asrkit.training.config import schema

        for line in describe(schema(options.help_config)):
            console.print(f"{line.key} ({line.type}) = {line.default}", style="bold", markup=False, soft_wrap=True)
            console.print(f"    {line.doc}", markup=False, highlight=False, soft_wrap=True)
        return 0
    if options.config is None:
        raise AsrkitError("asrkit train needs a CONFIG.yaml", mend="see asrkit train --help")
    from asrkit.training.config import load_experiment_config
    from asrkit.training.experiment import Outcome, train

    config = load_experiment_config(options.config, options.overrides)
    if options.dry_run or options.profile:
        from asrkit.training.profiling import profile_run
        from asrkit.training.trial import dry_run

        (dry_run if options.dry_run else profile_run)(config, console)
        return 0
    outcome = train(config, console)
    # torchrun would start processes again that it takes for failed, and whoever sends SIGUSR1 does so himself.
    postponed = outcome is Outcome.POSTPONED and "TORCHELASTIC_RUN_ID" in os.environ
    return 0 if outcome is Outcome.COMPLETE or postponed else 130


def _decode(options: argparse.Namespace) -> int:
    return decode_command.run(options, console)


def _similarity(options: argparse.Namespace) -> int:
    return similarity_command.run(options, console)


def _lexicon(options: argparse.Namespace) -> int:
    return lexicon_command.run(options, console)


def _lm(options: argparse.Namespace) -> int:
    return lm_command.run(options, console)


def _import(options: argparse.Namespace) -> int:
    return checkpoints_command.run_import(options, console)


def _export(options: argparse.Namespace) -> int:
    return checkpoints_command.run_export(options, console)


def _report(options: argparse.Namespace) -> int:
    from asrkit.analysis import report

    config = report.ReportConfig(options.title, options.utterances, options.megabytes, options.device)
    if options.watch:
        console.print(f"watching, {options.output} follows; stop with Ctrl-C", markup=False, soft_wrap=True)
        report.watch(options.experiments, options.output, config, options.every)
    else:
        report.write_report(options.experiments, options.output, config)
    size = options.output.stat().st_size / 1e6
    console.print(f"{options.output}, {size:.1f} MB: open it in a browser", markup=False, soft_wrap=True)
    return 0


def _results(options: argparse.Namespace) -> int:
    from asrkit.analysis import results

    results.show(results.collect(options.folders), options.output)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from asrkit.inference.doctor import findings

    for name, value in findings():
        console.print(f"{name:<24} {value}", markup=False, highlight=False, soft_wrap=True)
    return 0
