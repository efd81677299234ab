"""The sentences of the synthetic corpus: a small grammar of timetables, weather, requests and stories.

The words are chosen for regular spelling and for sounds that keep them apart in every accent of English that espeak-ng
speaks; together they use all 26 letters. The word classes are small and their order is fixed, so that an n-gram model
trained on the transcripts predicts well, while the grammar holds far more sentences than any corpus draws from it: no
sentence of a test set need occur in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from math import prod

import numpy as np

from asrkit.errors import AsrkitError

# A lower-case symbol is rewritten by one of its alternatives; an upper-case one is a word.
GRAMMAR: Mapping[str, tuple[str, ...]] = {
    "sentence": ("timetable", "weather", "request", "story"),
    "timetable": (
        "THE order vehicle TO city LEAVES when",
        "THE order vehicle FROM city ARRIVES AT hour",
        "THE vehicle FROM city TO city LEAVES AT hour",
    ),
    "weather": (
        "EXPECT strength air IN city when",
        "strength air AND air FROM THE region when",
        "air FROM THE region AND strength air IN city",
    ),
    "request": (
        "PLEASE action THE colour thing place",
        "PLEASE action THE thing AT hour when",
        "action THE colour thing AND action THE thing",
    ),
    "story": (
        "THE quality person deed THE colour thing",
        "ON day THE person deed THE thing place",
        "THE person deed amount colour things when",
    ),
    "when": ("ON day", "ON day daypart", "IN THE daypart"),
    "place": ("BEHIND THE spot", "UNDER THE spot", "NEAR THE spot"),
    "order": ("FIRST", "LAST", "NEXT"),
    "vehicle": ("TRAIN", "BOAT"),
    "city": ("BOSTON", "MADRID", "BRAZIL", "QUEBEC"),
    "hour": ("FIVE", "SIX", "SEVEN", "NINE", "TEN", "ELEVEN", "TWELVE"),
    "amount": ("hour", "TWENTY"),
    "day": ("MONDAY", "FRIDAY", "SUNDAY"),
    "daypart": ("MORNING", "EVENING"),
    "strength": ("HEAVY", "STRONG"),
    "air": ("RAIN", "SNOW", "WIND", "THUNDER"),
    "region": ("NORTH", "SOUTH", "WEST"),
    "action": ("OPEN", "WASH", "PAINT"),
    "colour": ("RED", "GREEN", "BLACK", "YELLOW", "SILVER"),
    "thing": ("DOOR", "WINDOW", "BASKET", "LAMP"),
    "things": ("JACKETS", "PLATES"),
    "spot": ("KITCHEN", "GARDEN", "MARKET", "BRIDGE"),
    "person": ("FARMER", "DOCTOR", "CAPTAIN", "SISTER"),
    "quality": ("OLD", "LITTLE", "HAPPY"),
    "deed": ("FOUND", "SOLD", "DROPPED"),
}

# Any other word occurs at most once in a sentence: nobody travels from Boston to Boston.
_REPEATABLE = frozenset({"THE", "AND", "IN", "ON", "AT", "TO", "FROM"})


def vocabulary() -> tuple[str, ...]:
    """Return the word types of the grammar in alphabetical order."""
    symbols = {symbol for forms in GRAMMAR.values() for form in forms for symbol in form.split()}
    return tuple(sorted(symbol for symbol in symbols if symbol.isupper()))


def ways(form: str) -> int:
    """Return how many derivations a form has: a bound on its sentences, before repetitions are refused."""
    return prod(sum(ways(other) for other in GRAMMAR[part]) if part in GRAMMAR else 1 for part in form.split())


def accepts(sentence: str) -> bool:
    """Return whether no content word is repeated."""
    content = [word for word in sentence.split() if word not in _REPEATABLE]
    return len(content) == len(set(content))


def sentences(generator: np.random.Generator) -> Iterator[str]:
    """Yield distinct sentences in upper case for ever, each a pure function of the generator's state at the start.

    Raises AsrkitError when hardly a new sentence is left.
    """
    seen: set[str] = set()
    misses = 0
    while True:
        sentence = " ".join(_expand("sentence", generator))
        if sentence in seen or not accepts(sentence):
            misses += 1
            if misses > 1000:
                raise AsrkitError(
                    f"the grammar of the mini corpus has run out of new sentences after {len(seen)}",
                    mend="ask for fewer minutes of speech",
                )
            continue
        misses = 0
        seen.add(sentence)
        yield sentence


def _expand(symbol: str, generator: np.random.Generator) -> Iterator[str]:
    if symbol not in GRAMMAR:
        yield symbol
        return
    choice = int(np.searchsorted(_thresholds(symbol), generator.random(), side="right"))
    for part in GRAMMAR[symbol][choice].split():
        yield from _expand(part, generator)


@cache
def _thresholds(symbol: str) -> np.ndarray:
    """Return the cumulative probabilities of the forms of ``symbol``.

    They are in proportion to the fourth root of the number of derivations: between fairness to forms, which would
    exhaust the small ones, and fairness to sentences, which would starve them of words.
    """
    roots = np.array([ways(form) ** 0.25 for form in GRAMMAR[symbol]])
    return np.cumsum(roots / roots.sum())[:-1]
