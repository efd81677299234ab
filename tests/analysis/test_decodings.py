from __future__ import annotations

import itertools
import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.analysis.bootstrap import interval
from asrkit.analysis.decodings import confusions, guess_speakers, operations, speaker_errors, wer_interval
from asrkit.text.wer import score

TEXTS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=6).map(" ".join)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5)


@settings(deadline=None)
@given(pairs=PAIRS)
def test_operations_tell_the_whole_alignment(pairs: list[tuple[str, str]]) -> None:
    scored = score({str(n): p[0] for n, p in enumerate(pairs)}, {str(n): p[1] for n, p in enumerate(pairs)})
    for utterance, (reference, hypothesis) in zip(scored.utterances, pairs, strict=True):
        spoken, heard = iter(reference.split()), iter(hypothesis.split())
        errors = 0
        for count, kind in re.findall(r"(\d+)([=sdi])", operations(utterance.alignment)):
            for _ in range(int(count)):
                pair = next(spoken) if kind != "i" else None, next(heard) if kind != "d" else None
                assert (pair[0] == pair[1]) == (kind == "=")
                errors += kind != "="
        assert (list(spoken), list(heard), errors) == ([], [], utterance.counts.word_errors)


@settings(deadline=None)
@given(pairs=PAIRS)
def test_confusions_and_speakers_add_up_to_the_totals(pairs: list[tuple[str, str]]) -> None:
    ids = [f"{n % 2}-1-{n}" for n in range(len(pairs))]
    scored = score(
        dict(zip(ids, (p[0] for p in pairs), strict=True)), dict(zip(ids, (p[1] for p in pairs), strict=True))
    )
    found = confusions(scored)
    assert sum(times for *_, times in found.substituted) == scored.total.substitutions
    assert sum(times for _, times in found.deleted) == scored.total.deletions
    assert sum(times for _, times in found.inserted) == scored.total.insertions
    by_speaker = speaker_errors(scored, guess_speakers(ids))
    assert sum(errors for errors, _ in by_speaker.values()) == scored.total.word_errors
    assert sum(words for _, words in by_speaker.values()) == scored.total.words


def test_only_librispeechs_ids_name_speakers() -> None:
    assert guess_speakers(["12-3-4", "5-6-7"]) == {"12-3-4": "12", "5-6-7": "5"}
    assert guess_speakers(["12-3-4", "talk"]) == {}


def test_interval_is_that_of_all_possible_draws() -> None:
    speakers = {"a": (1, 10), "b": (4, 12), "c": (2, 40), "d": (9, 20)}
    every = [
        sum(speakers[s][0] for s in drawn) / sum(speakers[s][1] for s in drawn)
        for drawn in itertools.product(speakers, repeat=4)
    ]
    low, high = interval(speakers, draws=200_000) or (0, 0)
    assert np.allclose([low, high], np.quantile(every, [0.025, 0.975]), atol=0.01)
    assert low < sum(e for e, _ in speakers.values()) / sum(w for _, w in speakers.values()) < high


def test_interval_closes_where_speakers_are_alike_and_needs_two() -> None:
    assert interval({"a": (1, 10), "b": (2, 20), "c": (3, 30)}) == (0.1, 0.1)
    assert interval({"a": (1, 10)}) is None
    assert interval({"a": (1, 10), "b": (0, 0)}) is None
    scored = score({"u": "a b", "v": "c"}, {"u": "a x", "v": "c"})
    assert wer_interval(scored, {"u": "s"}) is None
    assert wer_interval(scored, {"u": "s", "v": "t"}) == (0.0, 0.5)
