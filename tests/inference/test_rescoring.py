"""Rescoring with a causal language model: probabilities against one text at a time, and the n-best it reorders."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from asrkit.decoding.factory import DecoderChoice
from asrkit.decoding.hypothesis import Hypothesis
from asrkit.errors import AsrkitError
from asrkit.inference.decode import DecodeOptions, SetDecoder
from asrkit.inference.rescoring import add_scores, rank
from asrkit.interop.causal_lm import CausalLM
from tests.inference.fakes import Mishearing, write_data


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with random weights whose tokens are letters."""
    transformers = pytest.importorskip(
        "transformers", reason='transformers is missing: pip install "asrkit[huggingface]"'
    )
    folder = tmp_path_factory.mktemp("gpt2")
    letters = ["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "\u0120"]
    (folder / "vocab.json").write_text(json.dumps({letter: n for n, letter in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokeniser = transformers.GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokeniser.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(letters), n_positions=128, n_embd=16, n_layer=2, n_head=2)
    config.bos_token_id = config.eos_token_id = 0
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_probabilities_equal_those_of_one_text_at_a_time(gpt2: Path) -> None:
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(gpt2).eval()
    tokeniser = transformers.AutoTokenizer.from_pretrained(gpt2)
    texts = ["THE CAT", "", "A", "the goat EATS", *(f"BOB {'A' * n}" for n in range(1, 30))]
    found = CausalLM(str(gpt2), torch.device("cpu")).log10(texts)
    for text, log10 in zip(texts, found, strict=True):
        spelt = text.lower() if text.isupper() else text
        tokens = torch.tensor([[0, *tokeniser.encode(spelt), 0]])
        with torch.no_grad():
            loss = model(tokens, labels=tokens).loss
        assert log10 == pytest.approx(-float(loss) * (tokens.shape[1] - 1) / math.log(10), abs=1e-3)


def test_ranking() -> None:
    readings = [Hypothesis(text, (), (), score, score) for text, score in (("A", -1.0), ("B", -2.0), ("C", -3.0))]
    (scored,) = add_scores([readings], lambda texts: [{"A": -9.0, "B": -1.0, "C": -1.5}[t] for t in texts])
    assert [h.text for h in rank(scored, 0.0)] == ["A", "B", "C"]
    assert [(h.text, h.score) for h in rank(scored, 1.0)] == [("B", -3.0), ("C", -4.5), ("A", -10.0)]
    assert [h.text for h in rank([replace(scored[0], rescored=None)], 5.0)] == ["A"]


def test_tuned_and_applied(gpt2: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "corpus", train=2, dev=8, test=6)
    options = DecodeOptions(
        choice=DecoderChoice("beam"), beam=20, jobs=1, rescore=str(gpt2), tune_on="dev", trials=4, search="grid"
    )
    folder = tmp_path / "exp"
    decoder = SetDecoder(Mishearing(folder), data, options)
    tuned = decoder.tune()
    assert len(tuned.trials) == 1 + 4 + 5  # the default, the grid of word scores, the weights of the neural model
    result, _ = decoder.decode("test")
    assert (result.rescore, result.rescore_weight, result.tuned_on) == (gpt2.name, tuned.rescore_weight, "dev")
    assert (folder / "decode" / "test" / decoder.conditions.label / "results.json").is_file()
    assert not (folder / "decode" / "test" / decoder.conditions.label / "nbest.jsonl").exists()


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason='transformers is missing: pip install "asrkit[huggingface]"')
    with pytest.raises(AsrkitError, match="no causal language model"):
        CausalLM(str(tmp_path), torch.device("cpu"))
