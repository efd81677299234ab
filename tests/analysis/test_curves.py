from __future__ import annotations

import json
import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from asrkit.analysis.curves import best, curves, read_rows

STEPS = st.lists(st.booleans(), max_size=200)


@given(kinds=STEPS, most=st.integers(1, 20))
def test_what_is_kept_was_measured_and_bounded_and_ends_with_the_last(kinds: list[bool], most: int) -> None:
    rows = [{"step": n, "phase": "p", "dev/wer" if dev else "ctc": n / 7} for n, dev in enumerate(kinds)]
    kept = curves(rows, most)
    assert kept.rows == len(rows)
    assert kept.steps == sorted(set(kept.steps))
    for name, dev in (("dev/wer", True), ("ctc", False)):
        places, values = kept.series.get(name, ([], []))
        steps = [kept.steps[place] for place in places]
        assert len(steps) <= most
        assert all(math.isclose(value or 0, step / 7, rel_tol=1e-5) for step, value in zip(steps, values, strict=True))
        measured = [n for n, kind in enumerate(kinds) if kind == dev]
        assert steps[-1:] == measured[-1:]
        if len(measured) <= most:
            assert steps == measured


def test_broken_and_half_rows_are_left_out_and_infinities_are_gaps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "ctc": NaN}\n[]\n{"step": "x"}\n\n{"step": 2, "ctc": 3.5}\n{"step": 3, "ct', "utf-8")
    found = curves(read_rows(path))
    assert found.steps == [1, 2]
    assert found.series == {"ctc": ([0, 1], [None, 3.5])}
    json.dumps(found.series, allow_nan=False)
    assert read_rows(tmp_path / "none") == []


def test_best_is_the_lowest_finite_value() -> None:
    rows = [{"step": 1, "dev/wer": 0.5}, {"step": 2, "dev/wer": float("nan")}, {"step": 3, "dev/wer": 0.2}, {"step": 4}]
    assert best(rows, "dev/wer") == (0.2, 3)
    assert best(rows, "dev/cer") is None
