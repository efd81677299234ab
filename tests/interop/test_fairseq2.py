"""fairseq2's models: checkpoint folders and assets by name, exported cards, and what both make of the same audio."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
import yaml
from foreign import CONVOLUTIONS
from torch import Tensor, nn

from asrkit.training.experiment import open_experiment

pytest.importorskip("fairseq2")

from fairseq2.assets import AssetCard
from fairseq2.models.transformer import TransformerNormOrder
from fairseq2.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2EncoderConfig, get_wav2vec2_model_hub
from fairseq2.models.wav2vec2.asr import (
    Wav2Vec2AsrConfig,
    create_wav2vec2_asr_model,
    get_wav2vec2_asr_model_hub,
)
from fairseq2.models.wav2vec2.factory import create_wav2vec2_model
from fairseq2.nn import BatchLayout

SMALL: dict[str, Any] = {
    "model_dim": 32,
    "feature_dim": CONVOLUTIONS[-1][0],
    "feature_extractor_layer_descs": [tuple(spec) for spec in CONVOLUTIONS],
    "pos_conv_kernel_size": 16,
    "num_pos_conv_groups": 4,
    "num_encoder_layers": 2,
    "num_encoder_attn_heads": 4,
    "ffn_inner_dim": 48,
}
LAYERED = {"feature_extractor_bias": True, "feature_extractor_layer_norm_convs": True}
CONFORMER = {**LAYERED, "use_conformer": True, "depthwise_conv_kernel_size": 5}
SHAPES: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {**LAYERED, "layer_norm_features": False, "norm_order": TransformerNormOrder.PRE},
    "stacked": {**LAYERED, "pos_encoder_depth": 3, "pos_conv_kernel_size": 15},
    "rotary": {**LAYERED, "pos_encoder_type": "rotary"},
    "conformer-relative": {**CONFORMER, "pos_encoder_type": "relative"},
    "conformer-rotary": {**CONFORMER, "pos_encoder_type": "rotary", "layer_norm_features": False},
    "conformer-conv": CONFORMER,
}
UNITS = 10


@pytest.fixture(autouse=True)
def _no_compiler() -> Iterator[None]:
    """Let what fairseq2 sends through torch.compile run as it is: a compiler may be missing."""
    with torch.compiler.set_stance("force_eager"):
        yield


def make(shape: str, supervised: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Return a random model and its asset card."""
    torch.manual_seed(5)
    encoder = Wav2Vec2EncoderConfig(**{**SMALL, **SHAPES[shape]})
    if supervised:
        config: Any = Wav2Vec2AsrConfig(encoder_config=encoder, target_vocab_size=UNITS)
        model = foreign.randomise(create_wav2vec2_asr_model(config))
    else:
        small = {"final_dim": 24, "quantized_dim": 24, "num_codebooks": 2, "num_codebook_entries": 8}
        config = Wav2Vec2Config(encoder_config=encoder, **small)
        model = foreign.randomise(create_wav2vec2_model(config))
    plain = asdict(config)
    plain["encoder_config"]["norm_order"] = encoder.norm_order.name
    family = "wav2vec2_asr" if supervised else "wav2vec2"
    return model, {"name": "checkpoint", "model_family": family, "model_config": plain}


def write(model: nn.Module, card: dict[str, Any], folder: Path) -> Path:
    """Write the checkpoint folder of a training with fairseq2: a card, and the weights of two steps."""
    for step, state in ((10, {name: torch.zeros_like(t) for name, t in model.state_dict().items()}), (20, None)):
        path = folder / f"step_{step}/model/pp_00/tp_00/sdp_00.pt"
        path.parent.mkdir(parents=True)
        torch.save(model.state_dict() if state is None else state, path)
    text = yaml.dump(yaml.safe_load(yaml.dump(card, Dumper=_Plain)), sort_keys=False)
    (folder / "model.yaml").write_text(text, encoding="utf-8")
    return folder


class _Plain(yaml.SafeDumper):
    pass


_Plain.add_representer(tuple, lambda dumper, value: dumper.represent_list(value))


def write_dictionary(folder: Path) -> Path:
    """Write fairseq's dictionary for the outputs: four markers stand before what it lists."""
    path = folder / "dict.ltr.txt"
    path.write_text("".join(f"{letter} {99 - number}\n" for number, letter in enumerate("|BA'CD")), encoding="utf-8")
    return path


def reload(folder: Path) -> nn.Module:
    """Load an exported folder through fairseq2's hub, by its card."""
    metadata = {**yaml.safe_load((folder / "model.yaml").read_text()), "__base_path__": folder}
    card = AssetCard(metadata["name"], metadata)
    hub = get_wav2vec2_asr_model_hub() if metadata["model_family"] == "wav2vec2_asr" else get_wav2vec2_model_hub()
    return hub.load_model(card, device=torch.device("cpu"), dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: nn.Module, batch: Any) -> Tensor:
    layout = BatchLayout.of(batch.waves, list(batch.host_lengths))
    return model(batch.waves, layout)[0]


def normalised(batch: Any, folder: Path) -> Any:
    """Return the batch as a recipe of fairseq2 gives it to the model."""
    if not open_experiment(folder).config.encoder.waveform.normalise:
        return batch
    waves = batch.waves.clone()
    for row, samples in enumerate(batch.host_lengths):
        waves[row, :samples] = torch.nn.functional.layer_norm(waves[row, :samples], (samples,))
    return type(batch)(**{**vars(batch), "waves": waves})


@pytest.mark.parametrize("shape", SHAPES)
def test_ctc_models_come_and_go(shape: str, tmp_path: Path) -> None:
    theirs, card = make(shape, supervised=True)
    source = write(theirs, card, tmp_path / "theirs")
    dictionary = str(write_dictionary(tmp_path))
    first = foreign.run_import(source, tmp_path / "first", "--dictionary", dictionary)
    exported = foreign.run_export(first, "fairseq2", tmp_path / "exported")
    foreign.assert_same_model(first, foreign.run_import(exported, tmp_path / "second"))
    assert open_experiment(first).units.symbols == ("<s>", "<pad>", "</s>", "<unk>", *"|BA'CD")
    again = reload(exported)
    for lengths in ([700], [5123]):
        batch = foreign.make_batch(lengths)
        ours, _ = foreign.states(first, batch)
        batch = normalised(batch, first)
        torch.testing.assert_close(ours, logits(theirs, batch), **foreign.TOLERANCE)
        torch.testing.assert_close(ours, logits(again, batch), **foreign.TOLERANCE)


@pytest.mark.parametrize(
    ("shape", "padding"),
    # fairseq2 hides padding from convolutions, as asrkit does, but for BASE's first and for stacked positions.
    [("base", "foreign"), ("stacked", "foreign")]
    + [(shape, "exact") for shape in SHAPES if shape not in ("base", "stacked")],
)
def test_padded_batches(shape: str, padding: str, tmp_path: Path) -> None:
    theirs, card = make(shape, supervised=True)
    source = write(theirs, card, tmp_path / "theirs")
    folder = foreign.run_import(source, tmp_path / "ours", "--dictionary", str(write_dictionary(tmp_path)))
    batch = foreign.make_batch([3000, 5123, 700])
    ours, frames = foreign.states(folder, batch, padding)
    foreign.assert_valid_close(ours, logits(theirs, normalised(batch, folder)), frames)


@pytest.mark.parametrize("shape", ["base", "large", "conformer-relative"])
def test_pretrained_models_come_and_go(shape: str, tmp_path: Path) -> None:
    theirs, card = make(shape, supervised=False)
    first = foreign.run_import(write(theirs, card, tmp_path / "theirs"), tmp_path / "first")
    exported = foreign.run_export(first, "fairseq2", tmp_path / "exported")
    foreign.assert_same_model(first, foreign.run_import(exported, tmp_path / "second"))
    wanted, found = theirs.state_dict(), reload(exported).state_dict()
    assert sorted(wanted) == sorted(found)
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_the_blank_comes_first(tmp_path: Path) -> None:
    """fairseq2's CTC loss takes unit 0 as the blank, so that a model with another one is rearranged."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, vocab_size=4, pad_token_id=3,
        conv_dim=[16] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    theirs = foreign.randomise(transformers.Wav2Vec2ForCTC(config))
    theirs.save_pretrained(tmp_path / "theirs")
    foreign.write_vocabulary(tmp_path / "theirs", {"|": 0, "a": 1, "b": 2, "<pad>": 3})
    first = foreign.run_import(tmp_path / "theirs", tmp_path / "first")
    again = foreign.run_import(foreign.run_export(first, "fairseq2", tmp_path / "exported"), tmp_path / "again")
    assert open_experiment(again).units.symbols == ("<pad>", "|", "a", "b")
    batch = foreign.make_batch([5123])
    one, other = foreign.states(first, batch)[0], foreign.states(again, batch)[0]
    torch.testing.assert_close(one[..., [3, 0, 1, 2]], other, atol=0.0, rtol=0.0)


def test_assets_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Through fairseq2's own store, which also knows the cards that a user puts into a folder."""
    from fairseq2.runtime import dependency

    theirs, card = make("base", supervised=False)
    weights = tmp_path / "weights.pt"
    torch.save({"model": theirs.state_dict()}, weights)
    cards = tmp_path / "cards"
    cards.mkdir()
    mine = {**card, "name": "my_base", "checkpoint": str(weights)}
    (cards / "mine.yaml").write_text(yaml.dump(yaml.safe_load(yaml.dump(mine, Dumper=_Plain))), encoding="utf-8")
    monkeypatch.setenv("FAIRSEQ2_USER_ASSET_DIR", str(cards))
    monkeypatch.setattr(dependency, "_resolver", None)
    by_name = foreign.run_import("fairseq2:my_base", tmp_path / "by_name")
    by_folder = foreign.run_import(write(theirs, card, tmp_path / "theirs"), tmp_path / "by_folder")
    foreign.assert_same_model(by_name, by_folder)
    capsys.readouterr()
    assert foreign.cli.main(["import", "fairseq2:wav2vec2_bas", "--output", str(tmp_path / "none")]) == 2
    assert "no such asset of fairseq2 (did you mean 'wav2vec2_base'?)" in foreign.told(capsys)


def test_damaged_folders_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(expected: str) -> None:
        assert foreign.cli.main(["import", str(folder), "--output", str(tmp_path / "ours")]) == 2
        assert expected in foreign.told(capsys)

    model, card = make("base", supervised=False)
    folder = write(model, card, tmp_path / "theirs")
    file = folder / "step_20/model/pp_00/tp_00/sdp_00.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    fails("fairseq2 cannot load it")
    state = model.state_dict()
    del state["final_proj.weight"]
    torch.save(state, file)
    fails("final_proj.weight")
    (folder / "model.yaml").write_text(yaml.dump({**card, "model_family": "llama"}, Dumper=_Plain))
    fails("expected a model_family among wav2vec2, wav2vec2_asr, found 'llama'")
    (folder / "model.yaml").write_text("nothing")
    fails("expected an asset card with model_family, found none")
