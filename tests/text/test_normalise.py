from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.errors import AsrkitError
from asrkit.text.normalise import CASES, FORMS, PUNCTUATION, TextConfig, normalise

CONFIGS = st.builds(TextConfig, case=st.sampled_from(CASES), unicode=st.sampled_from(FORMS))
SPACES_AND_QUOTES = st.text(st.sampled_from("aB'\u2019\u2018\u200c\u0301-\u00ad \t.\u3000"), max_size=20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  world!\n", "HELLO WORLD"),
        ("don't 'tis the dogs' bone", "DON'T 'TIS THE DOGS' BONE"),
        ("\u2018I don\u2019t\u2019, she said: \u201cno\u201d", "I DON'T SHE SAID NO"),
        ("the dogs\u2019 bone", "THE DOGS' BONE"),
        ("a ' b '' c", "A B C"),
        ("well-known\u2014yes", "WELL KNOWN YES"),
        ("5 \u20ac + 3", "5 3"),
        ("cafe\u0301", "CAF\u00c9"),
        ("soft\u00adhyphen \ufeffmark\u200b", "SOFTHYPHEN MARK"),
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645\u060c \u0627\u0648",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u0627\u0648",
        ),
        ("\u0915\u094d\u0937\u0924\u094d\u0930\u093f\u092f\u0964", "\u0915\u094d\u0937\u0924\u094d\u0930\u093f\u092f"),
        ("\u6771\u4eac\u3001\u65e5\u672c\u3002", "\u6771\u4eac \u65e5\u672c"),
        ("I \u2764\ufe0f you", "I YOU"),
        ("1\ufe0f\u20e3 \U0001f44d\U0001f3fd \u0301 x", "1 X"),
        ("\u845b\U000e0100\u57ce", "\u845b\u57ce"),
        ("\u0b95\u0bcd\u200c\u0bb7\u0bc1", "\u0b95\u0bcd\u200c\u0bb7\u0bc1"),
        ("", ""),
        (" ... ", ""),
    ],
)
def test_default_spelling(text: str, expected: str) -> None:
    assert normalise(text, TextConfig()) == expected


def test_options() -> None:
    assert normalise("Don't, Stop", TextConfig(case="lower", punctuation="keep")) == "don't, stop"
    assert normalise("Don\u2019t", TextConfig(case="keep", punctuation="keep")) == "Don\u2019t"
    assert normalise("\uff21\ufb01", TextConfig(case="keep", unicode="NFKC")) == "Afi"


@pytest.mark.parametrize(("key", "value"), [("case", "uper"), ("unicode", "NFX"), ("punctuation", "drop")])
def test_impossible_options(key: str, value: str) -> None:
    with pytest.raises(AsrkitError, match=f"{key} cannot be '{value}'"):
        TextConfig(**{key: value})


@settings(deadline=None, max_examples=300)
@given(
    text=st.text(max_size=30) | SPACES_AND_QUOTES,
    case=st.sampled_from(CASES),
    form=st.sampled_from(FORMS),
    punctuation=st.sampled_from(PUNCTUATION),
)
def test_laws(text: str, case: str, form: str, punctuation: str) -> None:
    config = TextConfig(case=case, unicode=form, punctuation=punctuation)
    once = normalise(text, config)
    assert normalise(once, config) == once
    assert once == " ".join(once.split())
    assert unicodedata.is_normalized(form, once)
    assert once.encode("utf-8").decode("utf-8") == once
    kinds = {unicodedata.category(c) for c in once if c not in " '\u200c\u200d"}
    assert not kinds & {"Cc", "Cf", "Cs"}
    if punctuation == "strip":
        assert not {kind[0] for kind in kinds} & {"P", "S"}
