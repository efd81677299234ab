"""N-gram models: modified Kneser-Ney against its formulas spelt out, scores against KenLM, and damaged files."""

from __future__ import annotations

import gzip
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.decoding.arpa import read_arpa, read_vocabulary
from asrkit.decoding.kneser_ney import FALLBACK, estimate
from asrkit.decoding.ngram import BEGIN, END, UNKNOWN, perplexity, sentence_log10
from asrkit.errors import AsrkitError
from tests.decoding.common import train

CORPUS = ["a b c", "a b d", "a c", "b b a c", "a b c d", "d", "c a b", "a b", "a b c", "e a b", "b a", "c c c a"]


def zipf_sentences(count: int, vocabulary: int, seed: int) -> list[str]:
    """Sentences in which some words, and some pairs of words, are much more frequent than others."""
    rng = np.random.default_rng(seed)
    sentences = []
    for _ in range(count):
        words = [int(rng.zipf(1.3)) % vocabulary]
        while len(words) < 25 and rng.random() < 0.85:
            words.append((words[-1] * 7 + int(rng.zipf(1.6))) % vocabulary)
        sentences.append(" ".join(f"w{word}" for word in words))
    return sentences


class Formulas:
    """Chen & Goodman's interpolated modified Kneser-Ney, word by word, with dictionaries and no tricks."""

    def __init__(self, sentences: Sequence[Sequence[str]], order: int) -> None:
        self.order = order
        raw: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order + 1)]
        for words in sentences:
            marked = (BEGIN, *words, END)
            for n in range(1, order + 1):
                raw[n].update(tuple(marked[i : i + n]) for i in range(len(marked) - n + 1))
        self.words = sorted({w for s in sentences for w in s})
        self.counts = list(raw)
        for n in range(1, order):
            left: dict[tuple[str, ...], set[str]] = defaultdict(set)
            for gram in raw[n + 1]:
                left[gram[1:]].add(gram[0])
            self.counts[n] = Counter({g: raw[n][g] if g[0] == BEGIN else len(left[g]) for g in raw[n]})
        del self.counts[1][(BEGIN,)]
        self.discounts = [(0.0, 0.0, 0.0, 0.0)] + [self.discount(n) for n in range(1, order + 1)]

    def discount(self, n: int) -> tuple[float, ...]:
        frequency = Counter(self.counts[n].values())
        if not all(frequency[c] for c in (1, 2, 3)):
            return (0.0, *FALLBACK)
        y = frequency[1] / (frequency[1] + 2 * frequency[2])
        found = [c - (c + 1) * y * frequency[c + 1] / frequency[c] for c in (1, 2, 3)]
        return (0.0, *found) if all(0 <= d <= c for c, d in enumerate(found, 1)) else (0.0, *FALLBACK)

    def probability(self, history: tuple[str, ...], word: str) -> float:
        n = len(history) + 1
        lower = 1 / (len(self.words) + 2) if n == 1 else self.probability(history[1:], word)
        following = {g: c for g, c in self.counts[n].items() if g[:-1] == history}
        total = sum(following.values())
        if not total:
            return lower
        discount = self.discounts[n]
        count = following.get((*history, word), 0)
        gamma = sum(discount[min(c, 3)] for c in following.values()) / total
        return (count - discount[min(count, 3)]) / total + gamma * lower

    def sentence(self, words: Sequence[str]) -> float:
        marked = [BEGIN, *words, END]
        total = 0.0
        for i in range(1, len(marked)):
            total += math.log10(self.probability(tuple(marked[max(0, i - self.order + 1) : i]), marked[i]))
        return total


def test_a_model_worked_out_by_hand(tmp_path: Path) -> None:
    """`a` and `b b`, bigrams. All discounts fall back to 0.5, 1, 1.5.

    Unigrams count distinct left neighbours: a {<s>} 1, b {<s>, b} 2, </s> {a, b} 2, total 5; the uniform share is that of
    four words (a, b, </s>, <unk>): gamma = (0.5 + 1 + 1) / 5 = 0.5. p(a) = 0.5/5 + 0.5/4 = 0.225; p(b) = 1/5 + 0.125 = 0.325
    and so is p(</s>); p(<unk>) = 0.125. After b (b once, </s> once): gamma = 1/2, p(b|b) = 0.5/2 + 0.325/2 = 0.4125.
    """
    model = train(["a", "b b"], 2, tmp_path / "lm.arpa")
    for word, probability in {"a": 0.225, "b": 0.325, "never": 0.125}.items():
        assert 10 ** model.unigram(word) == pytest.approx(probability, abs=1e-6)
    after_b, _ = model.score(model.start(), "b")
    assert 10 ** model.score(after_b, "b")[1] == pytest.approx(0.4125, abs=1e-6)
    assert 10 ** model.finish(after_b) == pytest.approx(0.4125, abs=1e-6)
    assert 10 ** model.score(after_b, "a")[1] == pytest.approx(0.1125, abs=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_estimates_equal_the_formulas(order: int, tmp_path: Path) -> None:
    for sentences in (CORPUS, zipf_sentences(150, 60, 1)):
        plain = Formulas([s.split() for s in sentences], order)
        found = estimate([s.split() for s in sentences], order).discounts
        np.testing.assert_allclose(found, [discounts[1:] for discounts in plain.discounts[1:]])
        model = train(sentences, order, tmp_path / "lm.arpa")
        for sentence in [*sentences[:40], "a a a a a", "d never c", "", "w1 w2 never w1", "c b a"]:
            words = sentence.split()
            assert sentence_log10(model, words) == pytest.approx(plain.sentence(words), abs=1e-4)


def test_estimated_discounts_are_used_where_the_counts_allow() -> None:
    found = estimate([s.split() for s in zipf_sentences(3000, 200, 2)], 3).discounts
    # Few of the 200 words occur but once.
    assert FALLBACK not in found[1:]
    assert all(0 < d1 < 1 and 0 < d2 < 2 and 0 < d3 < 3 for d1, d2, d3 in found)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6), min_size=1, max_size=8), st.integers(1, 5))
def test_probabilities_sum_to_one(tmp_path_factory: pytest.TempPathFactory, sentences: list, order: int) -> None:
    model = train([" ".join(s) for s in sentences], order, tmp_path_factory.mktemp("lm") / "lm.arpa")
    assert model.order <= order
    for sentence in sentences[:3]:
        state = model.start()
        for word in [*sentence, None]:
            everything = [*model.vocabulary, UNKNOWN, END]
            assert sum(10 ** model.score(state, w)[1] for w in everything) == pytest.approx(1.0, abs=1e-5)
            if word is not None:
                state, _ = model.score(state, word)


def kenlm_scores(path: Path, sentences: Sequence[Sequence[str]]) -> list[float]:
    """Sentences' log10 probabilities by the package kenlm or, where it is missing, by flashlight-text's KenLM."""
    try:
        import kenlm
    except ImportError:
        pytest.importorskip(
            "flashlight.lib.text.decoder.kenlm", reason="neither kenlm nor flashlight-text is installed"
        )
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary

        vocabulary = Dictionary(sorted({word for sentence in sentences for word in sentence}))
        model = KenLM(str(path), vocabulary)
        totals = []
        for sentence in sentences:
            state, total = model.start(False), 0.0
            for word in sentence:
                state, log10 = model.score(state, vocabulary.get_index(word))
                total += log10
            totals.append(total + model.finish(state)[1])
        return totals
    reference = kenlm.Model(str(path))
    return [reference.score(" ".join(sentence)) for sentence in sentences]


def test_scores_equal_kenlm_on_a_thousand_sentences(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    model = train(zipf_sentences(4000, 300, 3), 4, path)
    sentences = [s.split() for s in zipf_sentences(990, 320, 4)] + [
        ["never"],
        [],
        ["w1"] * 30,
        ["w1", "never", "w2"],
    ] * 3
    assert len(sentences) >= 1000
    unknown = sum(word not in model.index for sentence in sentences for word in sentence)
    assert unknown > 10
    found = [sentence_log10(model, sentence) for sentence in sentences]
    np.testing.assert_allclose(found, kenlm_scores(path, sentences), atol=1e-4)


def test_a_pruned_model_scores_as_kenlm_does(tmp_path: Path) -> None:
    """Without n-grams in the middle: longer ones whose ends are missing, as other toolkits' pruning leaves them."""
    path = tmp_path / "pruned.arpa"
    train(zipf_sentences(300, 30, 5), 3, path)
    head, unigrams, bigrams, trigrams = path.read_text().split("\n\n")[:4]
    kept = trigrams.splitlines()[1:]
    pairs = bigrams.splitlines()[1:]
    begins = {" ".join(line.split("\t")[1].split()[:2]) for line in kept}
    fewer = [line for n, line in enumerate(pairs) if n % 3 or line.split("\t")[1] in begins]
    assert len(fewer) < len(pairs)
    ends = {" ".join(line.split("\t")[1].split()[1:]) for line in kept}
    assert ends - {line.split("\t")[1] for line in fewer}
    head = head.replace(f"ngram 2={len(pairs)}", f"ngram 2={len(fewer)}")
    path.write_text("\n\n".join([head, unigrams, "\n".join(["\\2-grams:", *fewer]), trigrams, "\\end\\", ""]))
    sentences = [s.split() for s in zipf_sentences(300, 32, 6)]
    model = read_arpa(path)
    np.testing.assert_allclose(
        [sentence_log10(model, sentence) for sentence in sentences], kenlm_scores(path, sentences), atol=1e-4
    )


def test_compressed_files_and_vocabularies(tmp_path: Path) -> None:
    model = train(CORPUS, 3, tmp_path / "lm.arpa")
    packed = train(CORPUS, 3, tmp_path / "lm.arpa.gz")
    assert gzip.decompress((tmp_path / "lm.arpa.gz").read_bytes()) == (tmp_path / "lm.arpa").read_bytes()
    assert packed.children == model.children
    assert read_vocabulary(tmp_path / "lm.arpa.gz") == [UNKNOWN, BEGIN, END, *"abcde"]
    assert model.vocabulary == [*"abcde"]


def test_a_no_break_space_belongs_to_its_word(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text(
        "\\data\\\nngram 1=4\n\n\\1-grams:\n-99 <s>\n-0.5\t</s>\n-0.5\t10\u00a0000\n-0.5 \u3000\n\n\\end\\\n",
        encoding="utf-8",
    )
    assert read_vocabulary(path) == ["<s>", "</s>", "10\u00a0000", "\u3000"]
    assert read_arpa(path).score(0, "10\u00a0000")[1] == -0.5


def test_perplexity_of_a_fair_coin(tmp_path: Path) -> None:
    path = tmp_path / "coin.arpa"
    third = math.log10(1 / 3)
    path.write_text(
        f"\\data\\\nngram 1=4\n\n\\1-grams:\n-99 <s>\n{third} </s>\n{third} heads\n{third} tails\n\n\\end\\\n"
    )
    assert perplexity(read_arpa(path), [["heads", "tails"], ["tails"]]) == pytest.approx(3.0)
    assert read_arpa(path).score(0, "edge")[1] == -100.0


@pytest.mark.parametrize(
    ("sentences", "order", "says"),
    [([], 3, "no words"), ([[]], 3, "no words"), ([["a"]], 0, "order 0"), ([["a", "<s>"]], 2, "marker <s>")],
)
def test_texts_without_a_model(sentences: list, order: int, says: str) -> None:
    with pytest.raises(AsrkitError, match=says):
        estimate(sentences, order)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["drop", "cut", "swap", "word"]), st.randoms(use_true_random=False))
def test_damaged_files_are_told_in_one_line(tmp_path_factory: pytest.TempPathFactory, at: int, how: str, rng) -> None:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    train(CORPUS, 3, path)
    lines = path.read_text().splitlines()
    at %= len(lines)
    if how == "drop":
        del lines[at]
    elif how == "cut":
        lines = lines[:at]
    elif how == "swap":
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    else:
        lines[at] = rng.choice(["x", "-1 q z y x", "nan a", "\\4-grams:", "1e9\ta", "\x00"])
    path.write_text("\n".join(lines))
    said = ""
    try:
        assert math.isfinite(sentence_log10(read_arpa(path), ["a", "b", "never"]))
    except AsrkitError as error:
        said = str(error)
    assert not said or (str(path) in said and "\n" not in said)


def test_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lm.bin").write_bytes(b"mmap lm http\xff\xfe" + bytes(range(256)))
    with pytest.raises(AsrkitError, match="no ARPA file"):
        read_arpa(tmp_path / "lm.bin")
    with pytest.raises(AsrkitError, match="cannot be read"):
        read_arpa(tmp_path / "none.arpa")
