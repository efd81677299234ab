from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.analysis.decodings import bounds, operations
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


def test_bounds_need_speakers_and_two_of_them() -> None:
    scored = score({"u": "a b", "v": "c"}, {"u": "a x", "v": "c"})
    assert bounds(scored, {"u": "s", "v": "t"}) == (0.0, 0.5)
    assert bounds(scored, {"u": "s"}) is None
    assert bounds(scored, {"u": "s", "v": "s"}) is None
