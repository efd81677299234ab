"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AsrkitError(Exception):
    """A mistake in a config, corpus, checkpoint or flag, told in one line.

    The message says what is wrong, where, and how to mend it. The command line prints it without a traceback and exits
    with status 2.
    """

    def __init__(self, what: str, *, where: object = None, mend: str | None = None) -> None:
        place = f"{where}: " if where is not None else ""
        cure = f" ({mend})" if mend else ""
        super().__init__(" ".join(f"{place}{what}{cure}".split()))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?``, or the list of what is known when nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(names)
