"""An update that does not fit is computed in halves: the same update. What cannot fit is known before training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CLOCK, STILL, assert_same, checkpoint, make_batch, make_method, rows, settings, train
from hypothesis import given
from hypothesis import strategies as st

from asrkit.core.step import Accumulate, Totals
from asrkit.data.costliest import extremes
from asrkit.data.plan import micro_batch_sizes
from asrkit.errors import AsrkitError
from asrkit.methods.finetune import Finetune
from asrkit.methods.pretrain import Pretrain
from asrkit.methods.wav2vec_s import Wav2VecS
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine
from asrkit.training.memory import MemoryGuard, out_of_memory

ENGINE = TrainingEngine(torch.device("cpu"), "fp32", Ranks())
NO_DIVERSITY = {"wav2vec2": {"diversity_weight": 0.0, "features_dropout": 0.0}}


@contextmanager
def memory_for(samples: int, kind: type = Finetune) -> Iterator[list[int]]:
    """Let a forward pass on more padded samples run out of memory; yield the sizes that were tried."""
    losses, tried = kind.losses, []

    def limited(self: Any, stream: str, batch: Any, *others: Any) -> Any:
        tried.append(batch.waves.numel())
        found = losses(self, stream, batch, *others)
        if batch.waves.numel() > samples:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "losses", limited)
        yield tried


def gradients(kind: str, batches: dict[str, Any], guard: MemoryGuard) -> tuple[dict[str, torch.Tensor], Totals]:
    method = make_method(kind, encoder=STILL, **({"pretrain": NO_DIVERSITY} if kind == "pretrain" else {})).train()
    totals = guard.run(Accumulate(), method, batches, CLOCK, ENGINE)
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}, totals


@pytest.mark.parametrize(("kind", "owner"), [("finetune", Finetune), ("pretrain", Pretrain)])
def test_halves_give_the_gradient_of_the_whole(kind: str, owner: type, caplog: pytest.LogCaptureFixture) -> None:
    stream = {"finetune": "labelled", "pretrain": "unlabelled"}[kind]
    batches = {stream: [make_batch(range(8)), make_batch(range(20, 23))]}
    whole, totals = gradients(kind, batches, MemoryGuard())
    largest = max(batch.waves.numel() for batch in batches[stream])
    guard = MemoryGuard()
    with memory_for(largest // 3, owner) as tried:
        pieces, again = gradients(kind, batches, guard)
    assert sorted(pieces) == sorted(whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, rtol=1e-4, atol=1e-5)
    for name, (numerator, denominator) in totals.values.items():
        if name not in ("code_perplexity", "prob_perplexity", "diversity"):
            ratio = again.values[name][0] / again.values[name][1]
            torch.testing.assert_close(
                torch.as_tensor(ratio), torch.as_tensor(numerator / denominator), rtol=1e-4, atol=1e-5
            )
    assert guard.halved >= 2
    assert "micro-batches of" in caplog.text
    assert "Tried to allocate 20.00 GiB" in caplog.text
    # What is known not to fit is not tried a second time.
    known = guard.failed
    assert known is not None
    assert known < largest
    with memory_for(largest // 3, owner) as tried:
        gradients(kind, batches, guard)
    assert max(tried) < known


def test_an_utterance_that_does_not_fit_is_one_line() -> None:
    with (
        memory_for(10_000) as tried,
        pytest.raises(AsrkitError, match=r"out of memory, update 2: CUDA.*max_seconds") as caught,
    ):
        gradients("finetune", {"labelled": [make_batch(range(4))]}, MemoryGuard())
    assert "\n" not in str(caught.value)
    assert len(tried) < 20


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
    ],
)
def test_a_lack_of_memory_has_many_names(text: str) -> None:
    assert out_of_memory(RuntimeError(text))


def test_other_mistakes_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("a matrix of the wrong shape")

    monkeypatch.setattr(Finetune, "losses", broken)
    with pytest.raises(RuntimeError, match="wrong shape"):
        gradients("finetune", {"labelled": [make_batch(range(4))]}, MemoryGuard())


class TwoRanks(TrainingEngine):
    """The other rank brings as much as this one; counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), "fp32", Ranks())
        self.calls: list[int] = []

    @property
    def world_size(self) -> int:
        return 2

    def reduce(self, tensors: Any) -> None:
        self.calls.append(sum(tensor.numel() for tensor in tensors))
        for tensor in tensors:
            tensor.mul_(2)


def test_what_the_ranks_have_exchanged_is_not_exchanged_twice() -> None:
    """The other ranks know nothing of the repetition: they would wait for one another for ever."""

    def run(limit: int) -> tuple[list[int], dict[str, torch.Tensor]]:
        engine, method = TwoRanks(), make_method("finetune", encoder=STILL).train()
        batches = {"labelled": [make_batch(range(8))]}
        with memory_for(limit):
            MemoryGuard().run(Accumulate(), method, batches, CLOCK, engine)
        return engine.calls, {name: p.grad for name, p in method.named_parameters() if p.grad is not None}

    (whole, expected), (pieces, found) = run(10**9), run(40_000)
    assert pieces == whole
    assert len(whole) == 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_run_that_is_short_of_memory_learns_the_same(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = settings("finetune", speech, encoder=STILL, optimiser={"epsilon": 1e-2}, data={"batch_seconds": 9.0})
    assert train(tmp_path / "whole", whole) == 0
    with memory_for(45_000):
        assert train(tmp_path / "exp", whole) == 0
    assert capsys.readouterr().out.count("out of memory (CUDA out of memory") >= 1
    for name, weight in checkpoint(tmp_path / "whole")["model"].items():
        torch.testing.assert_close(checkpoint(tmp_path / "exp")["model"][name], weight, rtol=0, atol=1e-5)
    assert sum(row.get("halved_updates", 0) for row in rows(tmp_path / "exp")) >= 1
    assert not any("halved_updates" in row for row in rows(tmp_path / "whole"))


@given(
    durations=st.lists(st.floats(0.1, 30), min_size=1, max_size=60),
    limit=st.floats(1, 60),
    update=st.floats(1, 400),
    world=st.integers(1, 4),
)
def test_no_micro_batch_exceeds_the_extremes(durations: list[float], limit: float, update: float, world: int) -> None:
    """Any run of utterances that the plan may cut has at most as many rows, and as long ones."""
    seconds = np.sort(np.array(durations))[::-1]
    labels = np.arange(len(seconds))
    longest, fullest = extremes([(seconds, labels)], limit, update)
    assert [longest, fullest] == extremes(
        [(seconds[n : n + 1], labels[n : n + 1]) for n in range(len(seconds))], limit, update
    )
    assert longest.seconds == seconds[0]
    assert longest.labels == labels.max()
    assert longest.rows == 1 or longest.rows * longest.seconds <= limit * (1 + 1e-5)
    part = seconds[np.cumsum(seconds) <= update]
    if len(part):
        start = 0
        for size in micro_batch_sizes(part, limit, world):
            assert size <= fullest.rows or size * part[start] <= fullest.rows * fullest.seconds * (1 + 1e-6)
            assert size <= max(fullest.rows, 1)
            start += size


@pytest.mark.parametrize("method", ["pretrain", "finetune", "wav2vec_s"])
def test_a_rehearsal_leaves_no_trace(
    method: str, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = settings(method, speech)
    assert train(tmp_path / "whole", whole) == 0
    assert "memory:" not in capsys.readouterr().out
    assert train(tmp_path / "exp", whole, "training.check_memory=on") == 0
    assert "GiB at most" in capsys.readouterr().out
    assert rows(tmp_path / "exp") == rows(tmp_path / "whole")
    assert_same(checkpoint(tmp_path / "exp"), checkpoint(tmp_path / "whole"))


def test_validation_without_memory_ends_the_run_and_loses_nothing(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = settings("finetune", speech)
    assert train(tmp_path / "whole", whole) == 0
    validate = Finetune.validate

    def short(self: Any, batch: Any, clock: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Finetune, "validate", short)
    assert train(tmp_path / "exp", whole) == 2
    said = capsys.readouterr().err
    assert "out of memory, validation at step 4: CUDA out of memory" in said
    assert said.count("\n") == 1
    monkeypatch.setattr(Finetune, "validate", validate)
    assert train(tmp_path / "exp", whole) == 0
    assert rows(tmp_path / "exp") == rows(tmp_path / "whole")
    assert_same(checkpoint(tmp_path / "exp"), checkpoint(tmp_path / "whole"))


def test_a_method_knows_that_it_rehearses(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would leave out of a batch has to be in the rehearsal, and nowhere else."""
    rehearsed: list[str] = []
    monkeypatch.setattr(Wav2VecS, "rehearse", lambda self: rehearsed.append(self.config.pseudo.teacher))
    assert train(tmp_path / "exp", settings("wav2vec_s", speech), "training.check_memory=on") == 0
    assert len(rehearsed) == 1


def test_what_can_never_fit_ends_the_run_before_it_begins(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with memory_for(12_000):
        assert train(tmp_path / "exp", settings("finetune", speech), "training.check_memory=on") == 2
    said = capsys.readouterr()
    assert "out of memory, rehearsal" in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "exp" / "metrics.jsonl").exists()
