"""Decode prepared sets with an experiment, and write hypotheses, references and `results.json`."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import track

from asrkit.data.index import SetIndex
from asrkit.data.stream import evaluation_batches
from asrkit.decoding.config import BeamConfig
from asrkit.decoding.factory import LEXICON_OF_LM, DecoderChoice, resolve
from asrkit.decoding.hypothesis import Hypothesis
from asrkit.errors import AsrkitError
from asrkit.files import write_text
from asrkit.inference import tune as tuning
from asrkit.inference.recogniser import Recogniser
from asrkit.inference.rescoring import Scorer, add_scores, rank
from asrkit.inference.results import PHONES, Result, commit, hardware, write_nbest
from asrkit.inference.scores import ScoredSet, labelled_set, score_set
from asrkit.inference.search import Searcher, Setup, default_jobs
from asrkit.text.wer import Score, score, write_transcripts

_RESCORED = 50
"""Readings per utterance that a neural language model judges, unless another number is asked."""


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode."""

    choice: DecoderChoice = field(default_factory=DecoderChoice)
    """Decoder, n-gram and lexicon."""
    beam: int = BeamConfig.beam
    """Width of the search."""
    lm_weight: float | None = None
    """Weight of the n-gram; None takes a tuned one, or else the default."""
    word_score: float | None = None
    """Added per word, likewise; a weight that is given leaves the others tuned."""
    nbest: int | None = None
    """Readings to write to nbest.jsonl; None writes none."""
    rescore: str | None = None
    """A causal language model of Hugging Face, name or folder."""
    rescore_weight: float | None = None
    """Its weight, likewise."""
    tune_on: str | None = None
    """A development set to search weights on first."""
    trials: int = 64
    """Settings to try there."""
    search: str = "random"
    """random or grid."""
    seed: int = 1
    """Of the random search."""
    jobs: int = 0
    """Processes of the search; 0 for one per core, as far as their language models fit into the memory."""

    @property
    def given(self) -> bool:
        """Whether weights were given."""
        return any(weight is not None for weight in (self.lm_weight, self.word_score, self.rescore_weight))

    def __post_init__(self) -> None:
        if self.nbest is not None and self.nbest < 1:
            raise AsrkitError(f"--nbest {self.nbest}", mend="1 or more")
        if self.jobs < 0:
            raise AsrkitError(f"--jobs {self.jobs}", mend="1 or more, or 0 for as many as cores and memory allow")
        if self.tune_on is not None:
            tuning.refuse_test_set(self.tune_on)
            if self.given:
                raise AsrkitError("weights are either given or tuned", mend="leave one of the two out")
        if self.rescore_weight is not None and self.rescore is None:
            raise AsrkitError("a rescoring weight without a model", mend="--rescore NAME")


class SetDecoder:
    """Decodes prepared sets with one experiment and one choice of options.

    A context manager: what it loads for the first set, language models in several processes, serves the others too, and ends with
    it.
    """

    def __init__(
        self, recogniser: Recogniser, data_dir: Path, options: DecodeOptions, console: Console | None = None
    ) -> None:
        """Choose the decoder and the weights' conditions; nothing is decoded yet.

        Raises:
            AsrkitError: for options that contradict each other or the experiment.
        """
        self.recogniser = recogniser
        self.data_dir = data_dir
        self.console = console or Console(quiet=True)
        deep = _RESCORED if options.rescore and options.nbest is None else options.nbest or 1
        choice = resolve(options.choice, recogniser.units, deep)
        name = choice.decoder
        if name == "greedy" and (options.tune_on or options.rescore or options.given):
            raise AsrkitError(
                "greedy decoding has one reading and no weights", mend="give --lm FILE, or --decoder beam"
            )
        self.options = replace(options, choice=choice)
        self.readings = 1 if name == "greedy" else deep
        lm, lexicon = choice.lm, choice.lexicon
        self.conditions = tuning.Conditions(
            decoder=name,
            lm=_stem(lm) if lm else None,
            lm_digest=tuning.digest(lm) if lm else None,
            lexicon_digest=lexicon if lexicon in (None, LEXICON_OF_LM) else tuning.digest(_existing(Path(lexicon))),
            rescore=Path(options.rescore).name if options.rescore else None,
            update=recogniser.update,
        )
        self._scorer: Scorer | None = None
        self._searcher: Searcher | None = None

    def __enter__(self) -> SetDecoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the search's processes."""
        if self._searcher is not None:
            self._searcher.close()
            self._searcher = None

    def tune(self) -> tuning.Tuned:
        """Search weights on the development set of the options and store them beside the model."""
        name = self.options.tune_on
        if name is None:
            raise AsrkitError("no set to tune on", mend="--tune-on dev-clean")
        info = labelled_set(self.data_dir / name).info
        options, base = self.options, self._config(None)
        with self._scored(name) as scored:
            searcher = self.searcher
            self._warn_of_letters(name, scored.references)
            tried = tuning.settings(base, searcher.decoder.weights, options.trials, options.search, options.seed)
            errors = track(
                searcher.errors(scored, tried), f"tuning on {name}", len(tried), console=self.console, transient=True
            )
            trials = [tuning.record(config, counts) for config, counts in zip(tried, errors, strict=True)]
            found = tuning.best(trials)
            if options.rescore:
                config = replace(base, lm_weight=found.lm_weight, word_score=found.word_score, nbest=self.readings)
                nbest = add_scores(list(searcher.hypotheses(scored, config)), self.scorer)
                more = tuning.rescoring_trials(nbest, scored.references, config, options.trials)
                trials += more
                found = tuning.best(more)
        tuned = tuning.Tuned(
            conditions=self.conditions,
            set=name,
            corpus=str(info["corpus"]),
            lm_weight=found.lm_weight,
            word_score=found.word_score,
            rescore_weight=found.rescore_weight,
            wer=found.wer,
            search=options.search,
            seed=options.seed,
            beam=options.beam,
            trials=tuple(trials),
        )
        path = tuning.store(self.recogniser.experiment.folder, tuned)
        rescored = f", rescoring weight {tuned.rescore_weight:g}" if options.rescore else ""
        self.console.print(
            f"{name}: WER {trials[0].wer:.2%} untuned, {tuned.wer:.2%} with language model weight {tuned.lm_weight:g}, "
            f"word score {tuned.word_score:g}{rescored} ({len(trials)} trials, {path})",
            highlight=False,
            soft_wrap=True,
        )
        return tuned

    def decode(self, name: str) -> tuple[Result, Score]:
        """Decode one prepared set and write `decode/<set>/<decoder>/` in the experiment.

        Raises:
            AsrkitError: if the set is missing or has no transcripts.
        """
        index = labelled_set(self.data_dir / name)
        tuned = self._tuned()
        config = self._config(tuned)
        began = time.perf_counter()
        nbest: list[list[Hypothesis]] = []
        if self.conditions.decoder == "greedy" and self.options.nbest is None:
            references, hypotheses, audio = self._greedy(name)
        else:
            with self._scored(name) as scored:
                found = self.searcher.hypotheses(scored, config, timed=self.options.nbest is not None)
                nbest = list(track(found, name, len(scored), console=self.console, transient=True))
                references, audio = dict(zip(scored.ids, scored.references, strict=True)), scored.audio_seconds
            if self.options.rescore:
                weight = self._rescore_weight(tuned)
                nbest = [rank(readings, weight) for readings in add_scores(nbest, self.scorer)]
            hypotheses = {i: readings[0].text for i, readings in zip(references, nbest, strict=True)}
        seconds = time.perf_counter() - began
        self._warn_of_letters(name, list(references.values()))
        if self.writes_phones:
            references = self._as_phones(name, references)
        scored_set = score(references, hypotheses)
        result = self._result(name, index, scored_set, seconds, audio, config, tuned)
        output = self.recogniser.experiment.folder / "decode" / name / self.conditions.label
        write_transcripts(output / "ref.trans.txt", references)
        write_transcripts(output / "hyp.trans.txt", hypotheses)
        if self.options.nbest is not None:
            write_nbest(output / "nbest.jsonl", list(references), nbest, self.options.nbest)
        write_text(output / "results.json", json.dumps(asdict(result), indent=1) + "\n")
        return result, scored_set

    @property
    def writes_phones(self) -> bool:
        """Whether hypotheses are phones, and references and errors with them; a search through the lexicon finds words."""
        return self.conditions.decoder == "greedy" and self.recogniser.units.kind == "phone"

    @property
    def searcher(self) -> Searcher:
        """The search with its n-gram, loaded when first wanted."""
        if self._searcher is None:
            setup = Setup(self.options.choice, self.recogniser.units, self.recogniser.frame_rate)
            self._searcher = Searcher(setup, self.options.jobs or default_jobs(self.options.choice))
        return self._searcher

    @property
    def scorer(self) -> Scorer:
        """The neural language model, loaded when first wanted; where the search's were, as there may not be room for both."""
        if self._scorer is None:
            self.close()
            from asrkit.interop.causal_lm import CausalLM

            self._scorer = CausalLM(str(self.options.rescore), self.recogniser.device).log10
        return self._scorer

    def _greedy(self, name: str) -> tuple[dict[str, str], dict[str, str], float]:
        """Return references, hypotheses and seconds of audio; the search runs where the encoder does."""
        references: dict[str, str] = {}
        hypotheses: dict[str, str] = {}
        audio = 0.0
        for batch in evaluation_batches([self.data_dir / name], None, self.recogniser.experiment.config.data, 0, 1):
            audio += batch.seconds
            hypotheses.update(zip(batch.ids, self.recogniser.texts(batch), strict=True))
            references.update(zip(batch.ids, batch.texts or (), strict=True))
        return references, hypotheses, audio

    def _warn_of_letters(self, name: str, texts: Sequence[str]) -> None:
        """Say which letters of the transcripts the model does not have; those of phones are told by `_as_phones`."""
        units = self.recogniser.units
        told = units.unwritable(name, texts) if units.kind != "phone" else None
        if told is not None:
            self.console.print(told, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _as_phones(self, name: str, references: dict[str, str]) -> dict[str, str]:
        """Return references in phones."""
        units = self.recogniser.units
        unknown = units.unknown(references.values())
        if unknown is not None:
            told = f"{name}: {unknown}; each counts as a phone that is never right"
            self.console.print(told, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return {utterance_id: units.reference(text) for utterance_id, text in references.items()}

    @contextmanager
    def _scored(self, name: str) -> Iterator[ScoredSet]:
        with tempfile.TemporaryDirectory(prefix="asrkit-") as folder:
            yield score_set(self.recogniser, self.data_dir / name, Path(folder) / "scores")

    def _config(self, tuned: tuning.Tuned | None) -> BeamConfig:
        options = self.options
        config = BeamConfig(beam=options.beam, nbest=self.readings)
        if tuned is not None:
            config = replace(config, lm_weight=tuned.lm_weight, word_score=tuned.word_score)
        if options.lm_weight is not None:
            config = replace(config, lm_weight=options.lm_weight)
        return config if options.word_score is None else replace(config, word_score=options.word_score)

    def _rescore_weight(self, tuned: tuning.Tuned | None) -> float:
        if self.options.rescore_weight is not None:
            return self.options.rescore_weight
        return 1.0 if tuned is None else tuned.rescore_weight

    def _tuned(self) -> tuning.Tuned | None:
        """Return weights that were searched under these very conditions; those that are given take precedence over them."""
        if self.conditions.decoder == "greedy":
            return None
        found = tuning.recall(self.recogniser.experiment.folder, self.conditions)
        if isinstance(found, str):
            self.console.print(f"{found}: its weights are not used", style="yellow", highlight=False, soft_wrap=True)
            return None
        return found

    def _result(
        self,
        name: str,
        index: SetIndex,
        scored: Score,
        seconds: float,
        audio: float,
        config: BeamConfig,
        tuned: tuning.Tuned | None,
    ) -> Result:
        experiment, conditions = self.recogniser.experiment, self.conditions
        searched = conditions.decoder != "greedy"
        total = scored.total
        return Result(
            set=name,
            corpus=str(index.info["corpus"]) + (PHONES if self.writes_phones else ""),
            wer=total.wer,
            cer=total.cer,
            words=total.words,
            substitutions=total.substitutions,
            deletions=total.deletions,
            insertions=total.insertions,
            utterances=total.utterances,
            decoder=conditions.decoder,
            lm=self.options.choice.lm.name if self.options.choice.lm else None,
            model=str(experiment.folder),
            recipe=experiment.recipe,
            method=experiment.config.method,
            source=experiment.source or None,
            subset="+".join(experiment.config.data.labelled.sets),
            seed=experiment.config.seed,
            updates=self.recogniser.update,
            seconds=round(seconds, 3),
            audio_seconds=round(audio, 3),
            hardware=hardware(self.recogniser.device),
            commit=commit(),
            beam=config.beam if searched else None,
            lm_weight=config.lm_weight if conditions.lm else None,
            word_score=config.word_score if searched else None,
            lexicon=self.options.choice.lexicon,
            rescore=conditions.rescore,
            rescore_weight=self._rescore_weight(tuned) if conditions.rescore else None,
            tuned_on=tuned.set if tuned and not self.options.given else None,
        )


def _stem(path: Path) -> str:
    name = path.name
    for ending in (".gz", ".arpa", ".bin"):
        name = name.removesuffix(ending)
    return name


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise AsrkitError("no such lexicon", where=path)
    return path
