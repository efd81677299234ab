"""`asrkit decode`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from asrkit.commands.flags import count
from asrkit.errors import AsrkitError


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags; those of the model are the caller's."""
    parser.add_argument("--model", required=True, type=Path, metavar="EXP", help="an experiment folder")
    parser.add_argument("--data", required=True, type=Path, metavar="DATA", help="prepared data")
    parser.add_argument("--sets", nargs="+", default=[], metavar="SET", help="sets to decode")
    search = parser.add_argument_group("search")
    search.add_argument(
        "--decoder",
        default="auto",
        metavar="NAME",
        help="greedy, beam (built in), flashlight; auto: greedy, or the fastest that --lm and --lexicon allow",
    )
    search.add_argument("--lm", type=Path, metavar="FILE", help="an n-gram over words or units: ARPA or KenLM binary")
    search.add_argument("--lexicon", metavar="FILE", help="the only words allowed (lm: those of the n-gram)")
    search.add_argument("--beam", type=int, default=100, metavar="N", help="readings kept after each frame (100)")
    search.add_argument("--lm-weight", type=float, metavar="W", help="weight of the n-gram's log10 probability")
    search.add_argument("--word-score", type=float, metavar="S", help="added per word")
    search.add_argument("--nbest", type=int, metavar="N", help="write the N best readings, with word times, as JSON")
    search.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="processes that search (one per core that has memory)"
    )
    rescore = parser.add_argument_group("rescoring")
    rescore.add_argument("--rescore", metavar="NAME", help="a causal language model of Hugging Face, or its folder")
    rescore.add_argument("--rescore-weight", type=float, metavar="W", help="weight of its log10 probability (1)")
    tuning = parser.add_argument_group("tuning: weights are kept beside the model and used from then on")
    tuning.add_argument("--tune-on", metavar="SET", help="search the weights on this development set first")
    tuning.add_argument("--trials", type=int, default=64, metavar="N", help="settings to try (64)")
    tuning.add_argument("--search", choices=("random", "grid"), default="random", help="which ones (random)")
    tuning.add_argument("--tune-seed", type=count, default=1, metavar="N", help="seed of the random ones (1)")


def run(options: argparse.Namespace, console: Console) -> int:
    """Tune where asked, then decode each set and print its errors."""
    from asrkit.decoding.factory import DecoderChoice
    from asrkit.inference.decode import DecodeOptions, SetDecoder
    from asrkit.inference.recogniser import load
    from asrkit.text.wer import table

    if not options.sets and not options.tune_on:
        raise AsrkitError("nothing to decode", mend="name sets: --sets dev-clean test-clean")
    chosen = DecodeOptions(
        choice=DecoderChoice(options.decoder, options.lm, options.lexicon),
        beam=options.beam,
        lm_weight=options.lm_weight,
        word_score=options.word_score,
        nbest=options.nbest,
        rescore=options.rescore,
        rescore_weight=options.rescore_weight,
        tune_on=options.tune_on,
        trials=options.trials,
        search=options.search,
        seed=options.tune_seed,
        jobs=options.jobs,
    )
    recogniser = load(options.model, device=options.device, precision=options.precision, checkpoint=options.checkpoint)
    with SetDecoder(recogniser, options.data, chosen, console) as decoder:
        if options.tune_on:
            decoder.tune()
        for name in options.sets:
            result, scored = decoder.decode(name)
            speed = result.audio_seconds / max(result.seconds, 1e-9)
            title = f"{name}: {result.recipe}, {decoder.conditions.label}, {speed:.0f}x real time"
            title += ", errors in phones" if decoder.writes_phones else ""
            console.print(table(scored, title=title))
    return 0
