"""The comparisons with other toolkits run, the contenders do the same work, and absent ones are named."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from asrkit.core.clock import Clock
from asrkit.errors import AsrkitError
from asrkit.training.distributed import Ranks
from asrkit.training.engine import TrainingEngine

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import best_rq_step
import block_attention
import blocks
import finetune_step
import joint_step
import neighbour_blocks
import neighbours
import pretrain_step
import wav2vec_s_step
from neighbour_blocks import Frames
from options import available
from steps import OPTIMISER
from updates import update, utterances

CPU = torch.device("cpu")
INSTALLED = {name for name in ("transformers", "fairseq2") if importlib.util.find_spec(name)}
BRIEF = ["--size", "tiny", "--device", "cpu", "--rounds", "2", "--warm-up", "1"]
needs_transformers = pytest.mark.skipif("transformers" not in INSTALLED, reason="transformers is not installed")
needs_fairseq2 = pytest.mark.skipif("fairseq2" not in INSTALLED, reason="fairseq2 is not installed")


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let what goes through torch.compile run as it is: compiling takes a minute, and a compiler may be missing."""
    monkeypatch.setenv("CXX", sys.executable)
    with torch.compiler.set_stance("force_eager"):
        yield


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(module.__file__), *BRIEF, *arguments])
    assert module.main() == 0


def check(found: dict[str, Any], expected: set[str]) -> None:
    present = {name for name in expected if name.partition(",")[0] in INSTALLED | {"asrkit", "torchaudio"}}
    assert set(found["contenders"]) == {"asrkit"} | present
    assert set(found["absent"]) == expected - present
    assert all(len(one["seconds"]) == 2 and one["peak_bytes"] > 0 for one in found["contenders"].values())
    ratios = {one["name"] for one in found["ratios"]}
    assert ratios >= {f"time of {name} / asrkit" for name in present}
    assert ratios >= {f"memory of {name} / asrkit" for name in present}


@pytest.mark.parametrize("module", [pretrain_step, finetune_step])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_run(
    module: ModuleType,
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out.json"
    lengths = ["--seconds", "1", "--shortest", "0.8"] if precision == "fp32" else ["--seconds", "0.8"]
    more = ["--precision", precision, "--layer-drop", "0.3", "--compile", "--output", str(output)]
    run(module, monkeypatch, *lengths, *more)
    found = json.loads(output.read_text(encoding="utf-8"))
    check(found, {"transformers", "fairseq2", "transformers, compiled", "asrkit, compiled"})
    assert str(output) not in found["command"]
    assert all(one["mfu"] > 0 and one["audio_seconds_per_second"] > 0 for one in found["contenders"].values())
    assert found["settings"]["precision"] == precision
    printed = capsys.readouterr().out
    assert "MFU" in printed
    assert "above 1, asrkit needs less" in printed


@pytest.mark.parametrize(
    ("module", "arguments", "contenders"),
    [
        (joint_step, ["--seconds", "3"], {"supervised", "contrastive", "joint", "joint, measured"}),
        (wav2vec_s_step, ["--seconds", "5"], {"supervised", "wav2vec_s"}),
        (
            best_rq_step,
            ["--seconds", "3", "--entries", "16", "--codebooks", "1", "2"],
            {"wav2vec 2.0", "BEST-RQ, 1 x 16", "BEST-RQ, 2 x 16", "encoder alone"},
        ),
        (
            block_attention,
            ["--seconds", "1", "2", "--block", "0.4", "--train"],
            {f"{kind}, {seconds} s" for kind in ("blocks", "all frames") for seconds in (1, 2)},
        ),
    ],
)
def test_own_benchmarks_run(
    module: ModuleType, arguments: list[str], contenders: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.json"
    given = ["--rounds", "2", "--warm-up", "1", "--device", "cpu", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [str(module.__file__), *given, *arguments])
    # Whether a limit holds says nothing at this size.
    assert module.main() in (0, 1)
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["title"] == module.TITLE
    assert set(found["contenders"]) == contenders
    assert all(len(one["seconds"]) == 2 for one in found["contenders"].values())


def test_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for precision, shortest in (("fp32", "20"), ("bf16", "30")):
        more = ["--precision", precision, "--batch", "2", "--frames", "30", "--shortest", shortest]
        run(blocks, monkeypatch, *more, "--output", str(tmp_path))
        for kind, names in blocks.MAKERS.items():
            found = json.loads((tmp_path / f"block-{kind}-cpu-{precision}.json").read_text(encoding="utf-8"))
            check(found, set(names))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in blocks.MAKERS.items() for name in names], ids="-".join
)
def test_blocks_are_of_the_same_size(kind: str, name: str) -> None:
    if name != "torchaudio" and name not in INSTALLED:
        pytest.skip(f"{name} is not installed")
    shape, frames = blocks.shape_of(kind, "tiny"), Frames([20, 15], CPU)
    own, other = neighbour_blocks.asrkit(shape, frames), getattr(neighbour_blocks, name)(shape, frames)
    # In the convolution module torchaudio has biases as asrkit: two of dim, one of 2 * dim; fairseq2 and transformers have none.
    biases = 4 * shape.dim if shape.conv_bias and shape.blocks == "conformer" and name != "torchaudio" else 0
    assert parameters(other.module) == parameters(own.module) - biases
    x = torch.randn(2, 20, shape.dim)
    assert other.forward(x).shape == own.forward(x).shape == x.shape


@pytest.mark.parametrize("name", ["torchaudio", "transformers", "fairseq2"])
def test_blocks_attend_to_valid_frames_only(name: str) -> None:
    if name != "torchaudio" and name not in INSTALLED:
        pytest.skip(f"{name} is not installed")
    block = getattr(neighbour_blocks, name)(blocks.shape_of("transformer", "tiny"), Frames([20, 15], CPU))
    block.module.eval()
    x = torch.randn(2, 20, 32)
    changed = x.clone()
    changed[1, 15:] += 1.0
    torch.testing.assert_close(block.forward(changed)[1, :15], block.forward(x)[1, :15])
    assert not torch.allclose(block.forward(changed)[1, 15:], block.forward(x)[1, 15:])


MAKERS = [
    pytest.param(
        pretrain_step, neighbours.transformers_pretraining, marks=needs_transformers, id="transformers-pretrain"
    ),
    pytest.param(pretrain_step, neighbours.fairseq2_pretraining, marks=needs_fairseq2, id="fairseq2-pretrain"),
    pytest.param(finetune_step, neighbours.transformers_ctc, marks=needs_transformers, id="transformers-finetune"),
    pytest.param(finetune_step, neighbours.fairseq2_ctc, marks=needs_fairseq2, id="fairseq2-finetune"),
]


@pytest.mark.parametrize(("module", "maker"), MAKERS)
def test_models_have_as_many_parameters_and_all_learn(module: ModuleType, maker: Any) -> None:
    method, batch = module.make_method("tiny"), utterances([1.0, 0.8], seed=1)
    made = maker(method, batch, CPU)
    engine = TrainingEngine(CPU, "fp32", Ranks())
    learning = [parameter for parameter in made.model.parameters() if parameter.requires_grad]
    # Entering its phase freezes what asrkit's method leaves as it is.
    update(method, {"labelled" if module is finetune_step else "unlabelled": [batch]}, engine)
    assert parameters(made.model) == parameters(method)
    before = [parameter.detach().clone() for parameter in learning]
    neighbours.update(made, engine, OPTIMISER)()
    assert all(not torch.equal(old, new) for old, new in zip(before, learning, strict=True))


@needs_transformers
def test_transformers_begins_with_asrkits_weights() -> None:
    method, batch = finetune_step.make_method("tiny"), utterances([1.0, 1.0], seed=1)
    made = neighbours.transformers_ctc(method, batch, CPU)
    method.eval()
    made.model.eval()
    clock = Clock(1, 10, "finetune", 10, 1000)
    encoded = method.encode(batch)
    losses = method.ctc.loss(encoded, batch, method.ctc.draw(batch, encoded.host_lengths, clock), clock)
    torch.testing.assert_close(made.loss(), losses.terms["ctc"].sum / 2, rtol=1e-4, atol=1e-4)


@needs_fairseq2
def test_without_a_compiler_fairseq2_runs_as_it_stands_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(neighbours, "compiles", lambda device: False)
    output = tmp_path / "out.json"
    more = ["--precision", "fp32", "--seconds", "0.8", "--compile", "--output", str(output)]
    with torch.compiler.set_stance("default"):
        monkeypatch.setenv("CXX", "no such compiler")
        run(pretrain_step, monkeypatch, *more)
    found = json.loads(output.read_text(encoding="utf-8"))
    assert "fairseq2" in found["contenders"]
    assert any("there is no compiler" in note for note in found["notes"])
    assert "asrkit, compiled" in found["absent"]
    assert "transformers, compiled" in found["absent"]


def test_an_absent_toolkit_is_named() -> None:
    def missing() -> Any:
        raise AsrkitError("the comparison needs fairseq2")

    def there() -> None:
        return None

    runs, absent = available({"a": lambda: there, "b": missing})
    assert list(runs) == ["a"]
    assert absent == {"b": "the comparison needs fairseq2"}


def test_steps_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(name: str, extra: str, purpose: str) -> Any:
        raise AsrkitError(f"{purpose} needs {name.partition('.')[0]}")

    monkeypatch.setattr(neighbours, "optional", missing)
    output = tmp_path / "out.json"
    run(finetune_step, monkeypatch, "--precision", "fp32", "--seconds", "0.8", "--output", str(output))
    found = json.loads(output.read_text(encoding="utf-8"))
    assert set(found["contenders"]) == {"asrkit"}
    assert set(found["absent"]) == {"transformers", "fairseq2"}
    assert "absent: the comparison needs fairseq2" in capsys.readouterr().out
