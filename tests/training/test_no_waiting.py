"""A step asks nothing of the device: the host runs ahead of it until the update's norms are read, once.

Tensors without data stand in for a device: reading a value from one raises. On a GPU torch's own watch over waiting says the
same of real ones.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CLOCK, make_batch, make_method
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from asrkit.core.method import Method
from asrkit.core.step import Totals
from asrkit.methods import common
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine
from asrkit.training.optimiser import Optimiser, OptimiserConfig

STEPS = [
    ("finetune", "finetune"),
    ("pretrain", "pretrain"),
    ("bl_just", "exploration"),
    ("bl_just", "joint"),
    ("weighted_sum", "joint"),
]
CPU = torch.device("cpu")


def step(name: str, phase: str, device: torch.device, before: Any = None) -> tuple[Method, Optimiser]:
    """Run the phase's step on two micro-batches of each stream; ``before`` is entered once all is at hand."""
    method = make_method(name, encoder={"layer_drop": 0.0, "dropout": 0.1}).to(device).train()
    stretch = next(one for one in method.phases() if one.name.startswith(phase))
    engine = TrainingEngine(device, "fp32", Ranks())
    optimiser = Optimiser(method, OptimiserConfig())
    optimiser.enter(stretch)
    batches = {stream: [make_batch(seeds).to(device) for seeds in ((1, 2), (3,))] for stream in stretch.streams}
    with before or torch.enable_grad():
        if before is not None and device == CPU:
            batches = {stream: [one._map(torch.zeros_like) for one in several] for stream, several in batches.items()}
        stretch.step.run(method, batches, CLOCK, engine, Totals({}))
    return method, optimiser


@pytest.mark.parametrize(("name", "phase"), STEPS)
def test_a_step_reads_no_value(name: str, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # LayerDrop's numbers are the host's own; here they would be without data too.
    monkeypatch.setattr(common, "layer_uniforms", lambda seed, update, count: [0.5] * count)
    method, _ = step(name, phase, CPU, FakeTensorMode(allow_non_fake_inputs=True))
    assert any(parameter.grad is not None for parameter in method.parameters())


def test_an_update_reads_its_norms_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    method, optimiser = step("finetune", "finetune", CPU)
    stretch = next(one for one in method.phases() if one.name == "finetune")
    read: list[str] = []
    for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__float__", "__int__"):
        original = getattr(Tensor, name)

        def counted(tensor: Tensor, *arguments: Any, name: str = name, original: Any = original) -> Any:
            read.append(name)
            return original(tensor, *arguments)

        monkeypatch.setattr(Tensor, name, counted)
    _, taken = optimiser.update(stretch, 2, TrainingEngine(CPU, "fp32", Ranks()))
    assert taken
    assert read == ["tolist"]


class Watched:
    """On a GPU: whatever waits for it raises."""

    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: object) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "phase"), STEPS)
def test_a_step_does_not_wait_for_the_gpu(name: str, phase: str) -> None:
    device = torch.device("cuda", 0)
    step(name, phase, device)  # kernels are compiled and libraries loaded
    step(name, phase, device, Watched())
