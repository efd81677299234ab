"""What can be exported where, ONNX, and pushing to the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from helpers import UNITS, train, variant

from asrkit.config import from_dict
from asrkit.heads.ctc import CTCHead, CTCHeadConfig
from asrkit.heads.wav2vec2 import Wav2Vec2HeadConfig
from asrkit.interop import onnx
from asrkit.interop.portable import Portable, read_experiment, write_experiment
from asrkit.interop.sources import FORMATS
from asrkit.nn.config import EncoderConfig
from asrkit.nn.encoder import Encoder
from asrkit.text.units import Units

SMALL = {"layers": 2, "dim": 16, "ffn_dim": 24, "heads": 2}
LAYERS = [[8, 10, 5], [8, 8, 8], [8, 8, 8]]
POSITIONS = {"conv_position_kernel": 8, "conv_position_groups": 2}
LAYERED = {"layers": LAYERS, "norm": "layer", "bias": True, "normalise": True}
LOGMEL = {"frontend": "logmel", "logmel": {"bins": 16, "channels": 4}, "blocks": "conformer", "conv_kernel": 5}
FOREIGN = {"blocks": "conformer", "conv_kernel": 5, "conv_norm": "batch", "conv_bias": False, "waveform": LAYERED}
SHAPES: dict[str, dict[str, Any]] = {
    "logmel-conformer": {**LOGMEL, "positions": "rotary"},
    "logmel-1d": {
        "frontend": "logmel",
        "logmel": {"convolution": "1d", "normalisation": "global"},
        "positions": "none",
    },
    "base": {"waveform": {"layers": LAYERS}, **POSITIONS},
    "large": {"waveform": LAYERED, "pre_norm": True, **POSITIONS},
    "data2vec": {"waveform": LAYERED, **POSITIONS, "conv_position_layers": 3, "conv_position_kernel": 5},
    "conformer": {**FOREIGN, "positions": "relative", "outer_norm": "after"},
    "conformer-blocks": {**LOGMEL, "positions": "shaw", "attention_block": 7},
    "transformer-blocks": {"waveform": {"layers": LAYERS}, **POSITIONS, "attention_block": 7},
    "conditioned": {**LOGMEL, "positions": "rotary", "layers": 3},
    "conditioned-large": {"waveform": LAYERED, "pre_norm": True, **POSITIONS},
    "conformer-turned": {**FOREIGN, "positions": "rotary-input"},
}


READS = {"conditioned": [1, 2], "conditioned-large": [1]}
"""Where the CTC head takes part between blocks."""


def make(shape: str, units: Units | None = UNITS) -> Portable:
    config = from_dict(EncoderConfig, {**SMALL, **SHAPES[shape]})
    torch.manual_seed(5)
    parts: dict[str, torch.nn.Module] = {"encoder": foreign.randomise(Encoder(config))}
    if units is not None:
        parts["ctc"] = foreign.randomise(CTCHead(CTCHeadConfig(intermediate=READS.get(shape, [])), config.dim, units))
    weights = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    return Portable(config, weights, units, ctc=CTCHeadConfig(intermediate=READS.get(shape, [])))


def write(shape: str, folder: Path, units: Units | None = UNITS) -> Path:
    write_experiment(make(shape, units), folder, "test")
    return folder


@pytest.mark.parametrize("shape", SHAPES)
def test_onnx_gives_the_same_on_any_batch(shape: str, tmp_path: Path) -> None:
    """Other lengths and another batch size than were exported; padding changes nothing there either."""
    runtime = pytest.importorskip("onnxruntime")
    folder = write(shape, tmp_path / "ours")
    exported = foreign.run_export(folder, "onnx", tmp_path / "exported")
    session = runtime.InferenceSession(exported / "model.onnx")
    for lengths in ([720], [9000], [5123, 16000, 2000]):
        batch = foreign.make_batch(lengths)
        ours, frames = foreign.states(folder, batch)
        inputs = {"waves": batch.waves.numpy(), "lengths": batch.wave_lengths.numpy()}
        logits, counts = session.run(None, inputs)
        assert counts.tolist() == list(frames)
        foreign.assert_valid_close(torch.from_numpy(logits), ours, frames)
    assert Units.load(exported / "units") == UNITS


def test_onnx_of_an_encoder_without_a_head(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    folder = write("base", tmp_path / "ours", units=None)
    exported = foreign.run_export(folder, "onnx", tmp_path / "exported")
    session = runtime.InferenceSession(exported / "model.onnx")
    assert [output.name for output in session.get_outputs()] == ["states", "frames"]
    assert not (exported / "units").exists()


def test_a_wrong_onnx_file_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    folder = write("base", tmp_path / "ours")
    check = onnx._check

    def tampered(module: onnx.Runtime, path: Path) -> None:
        with torch.no_grad():
            module.head.project.bias.add_(1.0)
        check(module, path)

    monkeypatch.setattr(onnx, "_check", tampered)
    assert foreign.cli.main(["export", str(folder), "--format", "onnx", "--output", str(tmp_path / "out")]) == 2
    assert "onnxruntime and torch differ by" in foreign.told(capsys)
    assert not (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.parametrize("form", ["huggingface", "fairseq2"])
def test_a_head_with_targets_as_they_are_is_refused(form: str) -> None:
    refusal, model = FORMATS[form][0], make("base", units=None)
    assert refusal(replace(model, head=Wav2Vec2HeadConfig())) is None
    assert "quantise" in str(refusal(replace(model, head=Wav2Vec2HeadConfig(quantise_targets=False))))


@pytest.mark.parametrize(
    ("shape", "form", "reason", "able"),
    [
        ("logmel-conformer", "torchaudio", "not with a log-mel frontend", "onnx"),
        *(
            ("transformer-blocks", form, "attend within blocks", "onnx")
            for form in ("huggingface", "fairseq2", "torchaudio")
        ),
        *(
            ("conditioned-large", form, "takes part between", "onnx")
            for form in ("huggingface", "fairseq2", "torchaudio")
        ),
        ("logmel-conformer", "huggingface", "not with a log-mel frontend", "onnx"),
        ("logmel-conformer", "fairseq2", "convolutions over the wave", "onnx"),
        ("conformer", "torchaudio", "Transformer blocks", "huggingface or onnx"),
        ("conformer", "fairseq2", "no norm after its blocks", "huggingface or onnx"),
        ("conformer-turned", "fairseq2", "no positions of the kind rotary-input", "onnx"),
        ("data2vec", "torchaudio", "a single positional convolution", "huggingface or fairseq2 or onnx"),
    ],
)
def test_what_a_format_lacks_is_told_with_the_formats_that_work(
    shape: str, form: str, reason: str, able: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(shape, tmp_path / "ours")
    assert foreign.cli.main(["export", str(folder), "--format", form, "--output", str(tmp_path / "out")]) == 2
    line = foreign.told(capsys)
    assert reason in line
    assert line.endswith(f"(--format {able})")
    assert not (tmp_path / "out").exists()


def test_word_pieces_cannot_go_where_letters_are_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["abc ab bca", "cab abba", "bacca acba"]
    folder = write("base", tmp_path / "ours", Units.train_bpe(texts, 8))
    assert foreign.cli.main(["export", str(folder), "--format", "huggingface", "--output", str(tmp_path / "out")]) == 2
    assert "writes letters, not units of kind 'bpe'" in foreign.told(capsys)
    again = foreign.run_import(foreign.run_export(folder, "torchaudio", tmp_path / "exported"), tmp_path / "again")
    foreign.assert_same_model(folder, again)


def test_folders_that_hold_something_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write("base", tmp_path / "ours")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    for command in (
        ["export", str(folder), "--format", "torchaudio", "--output", str(tmp_path / "full")],
        ["import", "somewhere", "--output", str(tmp_path / "full")],
    ):
        assert foreign.cli.main(command) == 2
        assert "holds something already" in foreign.told(capsys)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


class FakeHub:
    """Stands in for huggingface_hub.HfApi."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.calls = error, []

    def __call__(self) -> FakeHub:
        return self

    def create_repo(self, name: str, **options: Any) -> str:
        if self.error:
            raise self.error
        self.calls.append(("create", name, options))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, **options: Any) -> None:
        names = sorted(path.name for path in Path(options["folder_path"]).iterdir())
        self.calls.append(("upload", options["repo_id"], names))


def test_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = write("base", tmp_path / "ours")
    fake = FakeHub()
    monkeypatch.setattr(hub, "HfApi", fake)
    foreign.run_export(folder, "huggingface", tmp_path / "out", "--push", "me/model", "--private")
    assert "https://huggingface.co/me/model" in capsys.readouterr().out
    names = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json"]
    assert fake.calls == [
        ("create", "me/model", {"private": True, "exist_ok": True}),
        ("upload", "me/model", sorted([*names, "vocab.json"])),
    ]
    monkeypatch.setattr(hub, "HfApi", FakeHub(OSError("401 Client Error")))
    options = ["--format", "huggingface", "--output", str(tmp_path / "more"), "--push", "me/model"]
    assert foreign.cli.main(["export", str(folder), *options]) == 2
    line = foreign.told(capsys)
    assert "cannot be pushed to the Hugging Face hub: 401 Client Error (hf auth login;" in line
    assert (tmp_path / "more" / "config.json").is_file()
    assert foreign.cli.main(["export", str(folder), "--format", "onnx", "--output", "x", "--push", "me/model"]) == 2
    assert "--push is for --format huggingface" in foreign.told(capsys)


def test_every_format_of_the_command_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        foreign.cli.main(["export", "--help"])
    assert f"{{{','.join(FORMATS)}}}" in "".join(capsys.readouterr().out.split())


def as_json(path: Path) -> Mapping[str, Any]:
    loaded: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def test_what_was_imported_is_written_down(tmp_path: Path) -> None:
    folder = write("base", tmp_path / "ours", units=None)
    assert as_json(folder / "import.json") == {"source": "test", "fresh": ["ssl."], "notes": []}


def test_an_encoder_that_best_rq_trained_is_exported_without_its_head(speech: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    assert train(tmp_path / "exp", variant("pretrain, best_rq", speech)) == 0
    model = read_experiment(tmp_path / "exp")
    assert model.head is None
    assert all(name.startswith("encoder.") for name in model.weights)
    exported = foreign.run_export(tmp_path / "exp", "onnx", tmp_path / "exported")
    batch = foreign.make_batch([9000, 16000])
    states, frames = foreign.states(tmp_path / "exp", batch)
    session = runtime.InferenceSession(exported / "model.onnx")
    found, counts = session.run(None, {"waves": batch.waves.numpy(), "lengths": batch.wave_lengths.numpy()})
    assert counts.tolist() == list(frames)
    foreign.assert_valid_close(torch.from_numpy(found), states, frames)
