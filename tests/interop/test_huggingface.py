"""Models of transformers: in, out, and in again; and what both make of the same audio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from foreign import CONVOLUTIONS, VOCABULARY
from torch import nn

from asrkit import load
from asrkit.errors import AsrkitError
from asrkit.heads.ctc import CTCHead
from asrkit.interop.hub import read_folder
from asrkit.interop.vocabulary import read_units
from asrkit.training.experiment import open_experiment

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [spec[0] for spec in CONVOLUTIONS],
    "conv_kernel": [spec[1] for spec in CONVOLUTIONS],
    "conv_stride": [spec[2] for spec in CONVOLUTIONS],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_codevectors_per_group": 8,
    "num_codevector_groups": 2,
    "codevector_dim": 24,
    "proj_codevector_dim": 24,
    "vocab_size": len(VOCABULARY),
    "pad_token_id": 0,
}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
CONFORMER = {"hidden_act": "swish", "conv_depthwise_kernel_size": 5, "feat_extract_norm": "layer", "conv_bias": True}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("Wav2Vec2", {}),
    "base-with-bias": ("Wav2Vec2", {"conv_bias": True}),
    "large": ("Wav2Vec2", LARGE),
    "conformer-relative": ("Wav2Vec2Conformer", {**CONFORMER, "position_embeddings_type": "relative"}),
    "conformer-rotary": ("Wav2Vec2Conformer", {**CONFORMER, "position_embeddings_type": "rotary"}),
    "conformer-plain": ("Wav2Vec2Conformer", {**CONFORMER, "position_embeddings_type": None}),
    "hubert-base": ("Hubert", {}),
    "hubert-large": ("Hubert", LARGE),
    "data2vec": ("Data2VecAudio", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5, "conv_bias": False}),
}


def make(shape: str, ending: str = "ForCTC", **changes: Any) -> nn.Module:
    family, own = SHAPES[shape]
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **own, **changes})
    torch.manual_seed(5)
    return foreign.randomise(getattr(transformers, family + ending)(config), markers=(1, 2, 3))


def write(model: nn.Module, folder: Path, normalise: bool = False) -> Path:
    model.save_pretrained(folder)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise, return_attention_mask=normalise)
    extractor.save_pretrained(folder)
    foreign.write_vocabulary(folder, VOCABULARY)
    return folder


def reload(folder: Path, ending: str) -> nn.Module:
    """Load an exported folder with transformers, which must miss nothing and find nothing unknown."""
    config = transformers.AutoConfig.from_pretrained(folder)
    name = {"wav2vec2": "Wav2Vec2", "wav2vec2-conformer": "Wav2Vec2Conformer", "data2vec-audio": "Data2VecAudio"}
    model, information = getattr(transformers, name[config.model_type] + ending).from_pretrained(
        folder, output_loading_info=True
    )
    assert {key: value for key, value in information.items() if value} == {}
    return model.eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_ctc_models_come_and_go(shape: str, tmp_path: Path) -> None:
    theirs = make(shape)
    first = foreign.run_import(write(theirs, tmp_path / "theirs"), tmp_path / "first")
    exported = foreign.run_export(first, "huggingface", tmp_path / "exported")
    foreign.assert_same_model(first, foreign.run_import(exported, tmp_path / "second"))
    again = reload(exported, "ForCTC")
    for samples in (400, 5123):
        batch = foreign.make_batch([samples])
        ours, _ = foreign.states(first, batch)
        with torch.no_grad():
            torch.testing.assert_close(ours, theirs(batch.waves).logits, **foreign.TOLERANCE)
            torch.testing.assert_close(ours, again(batch.waves).logits, **foreign.TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_padded_batches_with_foreign_padding(shape: str, tmp_path: Path) -> None:
    theirs = make(shape)
    folder = foreign.run_import(write(theirs, tmp_path / "theirs"), tmp_path / "ours")
    batch = foreign.make_batch([3000, 5123, 700])
    with torch.no_grad():
        wanted = theirs(batch.waves, attention_mask=foreign.attention_mask(batch)).logits
    ours, frames = foreign.states(folder, batch, "foreign")
    foreign.assert_valid_close(ours, wanted, frames)


@pytest.mark.parametrize("shape", ["data2vec", "conformer-relative", "conformer-rotary"])
def test_exact_padding_is_the_foreign_model_without_padding(shape: str, tmp_path: Path) -> None:
    theirs = make(shape)
    folder = foreign.run_import(write(theirs, tmp_path / "theirs"), tmp_path / "ours")
    batch = foreign.make_batch([3000, 5123])
    ours, frames = foreign.states(folder, batch)
    with torch.no_grad():
        alone = theirs(batch.waves[:1, :3000]).logits
        padded = theirs(batch.waves, attention_mask=foreign.attention_mask(batch)).logits
    assert (padded[0, : frames[0]] - alone[0]).abs().max() > 1e-3  # their own result depends on padding
    torch.testing.assert_close(ours[0, : frames[0]], alone[0], **foreign.TOLERANCE)


@pytest.mark.parametrize("shape", ["base", "large", "conformer-relative"])
def test_greedy_text_is_the_same(shape: str, tmp_path: Path) -> None:
    """Raw audio on both sides: preprocessor, model and tokeniser there, `asrkit.load` here; before and after export."""
    normalise = shape != "base"
    theirs = make(shape)
    source = write(theirs, tmp_path / "theirs", normalise)
    first = foreign.run_import(source, tmp_path / "first")
    exported = foreign.run_export(first, "huggingface", tmp_path / "exported")
    second = reload(exported, "ForCTC")
    texts = set()
    for samples in (4000, 16000, 9000):
        wave = foreign.make_batch([500, samples]).waves[1, :samples].numpy()
        said = []
        for model, folder in ((theirs, source), (second, exported)):
            processor = transformers.Wav2Vec2Processor.from_pretrained(folder)
            inputs = processor(wave, sampling_rate=16_000, return_tensors="pt")
            with torch.no_grad():
                best = model(inputs.input_values).logits.argmax(-1)
            said.append(" ".join(processor.batch_decode(best)[0].split()))
        ours = load(first, device="cpu", precision="fp32").transcribe(wave, 16_000)
        assert said == [ours, ours]
        texts.add(ours)
    assert len(texts) > 1
    assert max(len(text) for text in texts) > 3


@pytest.mark.parametrize("shape", ["base", "large", "conformer-relative"])
def test_pretrained_models_come_and_go(shape: str, tmp_path: Path) -> None:
    theirs = make(shape, "ForPreTraining")
    first = foreign.run_import(write(theirs, tmp_path / "theirs"), tmp_path / "first")
    exported = foreign.run_export(first, "huggingface", tmp_path / "exported")
    foreign.assert_same_model(first, foreign.run_import(exported, tmp_path / "second"))
    config = open_experiment(first).config.options.wav2vec2
    assert (config.final_dim, config.groups, config.entries) == (24, 2, 8)
    state = reload(exported, "ForPreTraining").state_dict()
    unused = "pos_conv_embed" if "conformer" in shape else "nothing"
    differing = [name for name, tensor in theirs.state_dict().items() if unused not in name]
    differing = [name for name in differing if not torch.allclose(theirs.state_dict()[name], state[name], atol=1e-7)]
    assert differing == []
    method = foreign.method_of(first)
    batch = foreign.make_batch([5123])
    with torch.no_grad():
        wanted = theirs(batch.waves)
        ours, _ = foreign.states(first, batch)
        torch.testing.assert_close(method.ssl.project_states(ours), wanted.projected_states, **foreign.TOLERANCE)


@pytest.mark.parametrize("shape", ["base", "hubert-large", "data2vec"])
def test_encoders_without_a_head_come_and_go(shape: str, tmp_path: Path) -> None:
    theirs = make(shape, "Model")
    first = foreign.run_import(write(theirs, tmp_path / "theirs"), tmp_path / "first")
    exported = foreign.run_export(first, "huggingface", tmp_path / "exported")
    foreign.assert_same_model(first, foreign.run_import(exported, tmp_path / "second"))
    batch = foreign.make_batch([5123])
    ours, _ = foreign.states(first, batch)
    with torch.no_grad():
        torch.testing.assert_close(ours, theirs(batch.waves).last_hidden_state, **foreign.TOLERANCE)
        again = reload(exported, "Model")(batch.waves).last_hidden_state
        torch.testing.assert_close(ours, again, **foreign.TOLERANCE)


def test_old_files_of_weights_are_read_too(tmp_path: Path) -> None:
    theirs = make("base")
    folder = write(theirs, tmp_path / "theirs")
    new = foreign.run_import(folder, tmp_path / "new")
    (folder / "model.safetensors").unlink()
    old = {"original0": "weight_g", "original1": "weight_v"}
    state = theirs.state_dict()
    for now, then in old.items():
        name = "wav2vec2.encoder.pos_conv_embed.conv."
        state[name + then] = state.pop(f"{name}parametrizations.weight.{now}")
    halves = list(state.items())
    shards = {"a.bin": dict(halves[:20]), "b.bin": dict(halves[20:])}
    for name, part in shards.items():
        torch.save(part, folder / name)
    index = {"weight_map": {key: name for name, part in shards.items() for key in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    foreign.assert_same_model(new, foreign.run_import(folder, tmp_path / "old"))


def test_the_blank_and_the_order_of_units_are_kept(tmp_path: Path) -> None:
    """As community models have it: the blank last, markers in brackets, symbols beyond the model's outputs."""
    vocabulary = {"é": 0, "b": 1, "|": 2, "[UNK]": 3, "[PAD]": 4, "<s>": 5, "</s>": 6}
    theirs = make("base", vocab_size=5, pad_token_id=4)
    folder = write(theirs, tmp_path / "theirs")
    foreign.write_vocabulary(folder, vocabulary, unk_token="[UNK]", pad_token="[PAD]", word_delimiter_token="|")
    first = foreign.run_import(folder, tmp_path / "first")
    units = open_experiment(first).units
    assert units.symbols == ("é", "b", "|", "<unk>", "[PAD]")
    assert (units.blank, units.boundary) == (4, "|")
    assert units.decode([0, 1, 2, 4, 3, 0]) == "éb é"
    exported = foreign.run_export(first, "huggingface", tmp_path / "exported")
    foreign.assert_same_model(first, foreign.run_import(exported, tmp_path / "second"))


@pytest.mark.parametrize("blank", ["<pad>", "[PAD]", "_"])
def test_a_vocabulary_on_its_own_is_a_dictionary(blank: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "|": 1, blank: 2}))
    if blank == "_":
        with pytest.raises(AsrkitError, match="found none"):
            read_units(tmp_path / "vocab.json")
        (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "_"}')
    units = read_units(tmp_path / "vocab.json")
    assert (units.blank, units.boundary) == (2, "|")
    assert units.decode([0, 2, 1, 0]) == "a a"


def test_what_transformers_5_writes_elsewhere_is_found(tmp_path: Path) -> None:
    """The preprocessor inside of processor_config.json, added symbols in tokenizer_config.json."""
    folder = write(make("base", vocab_size=7, pad_token_id=4), tmp_path / "theirs", normalise=True)
    extractor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    vocabulary = {"é": 0, "b": 1, "|": 2, "[UNK]": 3, "[PAD]": 4}
    added = {"5": {"content": "<s>"}, "6": {"content": "</s>"}}
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "word_delimiter_token": "|"}
    foreign.write_vocabulary(folder, vocabulary, **names, added_tokens_decoder=added)
    ours = open_experiment(foreign.run_import(folder, tmp_path / "ours"))
    assert ours.config.encoder.waveform.normalise
    assert ours.units is not None
    assert ours.units.symbols == ("é", "b", "|", "<unk>", "[PAD]", "<s>", "</s>")
    extractor["sampling_rate"] = 8000
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    with pytest.raises(AsrkitError, match=r"processor_config\.json: .*8000|8000.*processor_config"):
        read_folder(folder)


def test_encoder_only_leaves_the_head_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(make("base"), tmp_path / "theirs")
    ours = foreign.run_import(folder, tmp_path / "ours", "--encoder-only")
    assert open_experiment(ours).units is None
    assert "left out: lm_head.bias, lm_head.weight (2 weights)" in capsys.readouterr().out


def test_the_card_says_how_to_run_it(tmp_path: Path) -> None:
    for shape, unpadded in (("base", True), ("large", False)):
        ours = foreign.run_import(write(make(shape), tmp_path / f"{shape}-theirs"), tmp_path / shape)
        card = (foreign.run_export(ours, "huggingface", tmp_path / f"{shape}-out") / "README.md").read_text()
        assert ("Run it unpadded" in card) == unpadded
        assert "Wav2Vec2ForCTC" in card


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model_type": "wavlm"}, "expected a model_type among wav2vec2, wav2vec2-conformer, hubert, data2vec-audio"),
        ({"hidden_act": "relu"}, "expected hidden_act 'gelu', found 'relu'"),
        ({"add_adapter": True}, "expected add_adapter False, found True"),
        ({"num_hidden_layers": 3}, "expected a weight 'wav2vec2.encoder.layers.2."),
        ({"hidden_size": 48, "num_attention_heads": 4}, "has the shape (32, 16), expected was (48, 16)"),
        ({"adapter_attn_dim": 16}, "has adapters for each of several languages"),
    ],
)
def test_what_asrkit_has_not_is_told_in_one_line(
    values: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(make("base"), tmp_path / "theirs")
    change(folder, **values)
    assert foreign.cli.main(["import", str(folder), "--output", str(tmp_path / "ours")]) == 2
    assert expected in foreign.told(capsys)
    assert not (tmp_path / "ours").exists()


def test_damaged_folders_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(expected: str) -> None:
        assert foreign.cli.main(["import", str(folder), "--output", str(tmp_path / "ours")]) == 2
        assert expected in foreign.told(capsys)

    folder = write(make("base"), tmp_path / "theirs")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    fails("expected a file of weights, found something else")
    (folder / "model.safetensors").unlink()
    fails("expected model.safetensors or pytorch_model.bin, found neither")
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "vocab.json").write_text('{"a": 0, "b": 1}')
    fails("expected 10 symbols, found none with the index 2")
    (folder / "vocab.json").write_text("{")
    fails("expected JSON")
    (folder / "vocab.json").unlink()
    fails("has a CTC head but no vocab.json")
    (folder / "config.json").unlink()
    fails("found none of them")


def test_a_head_of_an_imported_model_is_a_ctc_head(tmp_path: Path) -> None:
    method = foreign.method_of(foreign.run_import(write(make("base"), tmp_path / "theirs"), tmp_path / "ours"))
    assert isinstance(method.ctc, CTCHead)
    assert method.ctc.project.out_features == len(VOCABULARY)
