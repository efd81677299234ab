"""What the generators of bad inputs share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

Random = np.random.Generator


@dataclass(frozen=True)
class Case:
    """One bad input, and what must become of it."""

    name: str
    run: Callable[[Path], None]
    """Tries it in an empty folder; raises AssertionError where a promise is broken."""


class Lines(logging.Handler):
    """Collects what is logged while a block runs."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())

    def __enter__(self) -> Lines:
        self._logger.addHandler(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._logger.removeHandler(self)


def one_line(message: str) -> None:
    """Assert that a message is fit for a user: one line, of a length that can be read, with words in it."""
    assert message.strip(), "an empty message"
    assert "\n" not in message, f"several lines: {message!r}"
    assert len(message) < 600, f"{len(message)} characters: {message[:100]!r}…"
    assert "Traceback" not in message


def flip(data: bytes, random: Random, count: int) -> bytes:
    """Return data of which ``count`` bits are turned."""
    turned = bytearray(data)
    for place in random.integers(0, 8 * len(data), count):
        turned[place // 8] ^= 1 << (place % 8)
    return bytes(turned)


def cut_off(data: bytes, random: Random) -> bytes:
    """Return a beginning of the data."""
    return data[: int(random.integers(len(data)))]
