"""torchaudio's Wav2Vec2Model: pipelines by name, and exported folders."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import foreign
import pytest
import soundfile
import torch
import torchaudio
from foreign import CONVOLUTIONS
from torchaudio.pipelines import Wav2Vec2ASRBundle, Wav2Vec2Bundle, Wav2Vec2FABundle
from torchaudio.pipelines._wav2vec2 import utils

from asrkit import load
from asrkit.training.experiment import open_experiment

LABELS = ("|", "B", "A", "'", "C")
ARGUMENTS: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [tuple(spec) for spec in CONVOLUTIONS],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 32,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 48,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
    "aux_num_out": len(LABELS) + 1,
}
LARGE = {"extractor_mode": "layer_norm", "extractor_conv_bias": True, "encoder_layer_norm_first": True}


@pytest.fixture(params=["base", "large", "pretrained", "aligner"])
def pipeline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A small model behind the name of a real pipeline, whose weights torchaudio believes to have fetched."""
    kind = request.param
    arguments = {**ARGUMENTS, **(LARGE if kind == "large" else {})}
    if kind == "pretrained":
        arguments["aux_num_out"] = None
    model = foreign.randomise(torchaudio.models.wav2vec2_model(**arguments))
    state = model.state_dict()
    if kind != "pretrained":
        # As in the files that are really fetched: three outputs are there that the pipeline cuts out.
        for name in ("aux.weight", "aux.bias"):
            state[name] = torch.cat([state[name][:1], torch.full_like(state[name][:3], 9.0), state[name][1:]])
    monkeypatch.setattr(utils, "load_state_dict_from_url", lambda url, **options: dict(state))
    common = (f"{kind}.pth", arguments)
    rest = {"_sample_rate": 16000, "_normalize_waveform": kind == "large", "_model_type": "Wav2Vec2"}
    made = {"pretrained": Wav2Vec2Bundle, "aligner": Wav2Vec2FABundle}.get(kind, Wav2Vec2ASRBundle)
    labels = {} if kind == "pretrained" else {"_labels": LABELS}
    monkeypatch.setattr(torchaudio.pipelines, "WAV2VEC2_BASE", made(*common, **rest, **labels))
    found = torchaudio.pipelines.WAV2VEC2_BASE.get_model()
    # Around the aligner's model is one that adds an output for the star and takes logarithms of probabilities.
    return found.model if kind == "aligner" else found


def test_pipelines_come_and_go(pipeline: torch.nn.Module, tmp_path: Path) -> None:
    first = foreign.run_import("torchaudio:WAV2VEC2_BASE", tmp_path / "first")
    exported = foreign.run_export(first, "torchaudio", tmp_path / "exported")
    foreign.assert_same_model(first, foreign.run_import(exported, tmp_path / "second"))
    description = json.loads((exported / "torchaudio.json").read_text())
    again = torchaudio.models.wav2vec2_model(**description["arguments"]).eval()
    again.load_state_dict(torch.load(exported / "model.pt", weights_only=True))
    for samples in (400, 5123):
        batch = foreign.make_batch([samples])
        ours, _ = foreign.states(first, batch)
        waves = batch.waves
        if description["normalize_waveform"]:
            waves = torch.nn.functional.layer_norm(waves, waves.shape)
        with torch.no_grad():
            torch.testing.assert_close(ours, pipeline(batch.waves)[0], **foreign.TOLERANCE)
            torch.testing.assert_close(ours, again(waves)[0], **foreign.TOLERANCE)


def test_padded_batches_with_foreign_padding(pipeline: torch.nn.Module, tmp_path: Path) -> None:
    folder = foreign.run_import("torchaudio:WAV2VEC2_BASE", tmp_path / "ours")
    batch = foreign.make_batch([3000, 5123, 700])
    model, waves = getattr(pipeline, "model", pipeline), batch.waves.clone()
    if open_experiment(folder).config.encoder.waveform.normalise:
        # The pipeline itself would normalise all rows as one.
        for row, samples in enumerate(batch.host_lengths):
            waves[row, :samples] = torch.nn.functional.layer_norm(waves[row, :samples], (samples,))
    with torch.no_grad():
        wanted, lengths = model(waves, batch.wave_lengths)
    ours, frames = foreign.states(folder, batch, "foreign")
    assert lengths.tolist() == list(frames)
    foreign.assert_valid_close(ours, wanted, frames)


def test_text_and_loading_snippet(pipeline: torch.nn.Module, tmp_path: Path) -> None:
    folder = foreign.run_import("torchaudio:WAV2VEC2_BASE", tmp_path / "ours")
    units = open_experiment(folder).units
    if units is None:
        return
    assert units.symbols == ("<pad>", *LABELS)
    exported = foreign.run_export(folder, "torchaudio", tmp_path / "exported")
    wave = foreign.make_batch([500, 16000]).waves[1].numpy()
    soundfile.write(tmp_path / "speech.wav", wave, 16_000, subtype="FLOAT")
    command = [sys.executable, str(exported / "load.py"), str(tmp_path / "speech.wav")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = load(folder, device="cpu", precision="fp32").transcribe(wave, 16_000)
    assert " ".join(said.replace("|", " ").split()) == text
    assert text


def test_unknown_other_and_unreachable_pipelines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: Any, **options: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(utils, "load_state_dict_from_url", unreachable)
    for name, expected in (
        ("WAV2VEC2_BAS", "did you mean 'WAV2VEC2_BASE'?"),
        ("WAVLM_BASE", "expected a Wav2Vec2 pipeline, found WavLM"),
        ("WAV2VEC2_BASE", "cannot be downloaded: Name or service not known (once with a network"),
    ):
        assert foreign.cli.main(["import", f"torchaudio:{name}", "--output", str(tmp_path / "ours")]) == 2
        assert expected in foreign.told(capsys)
