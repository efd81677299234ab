"""What may stand behind a flag."""

from __future__ import annotations

import argparse
import math


def finite(text: str) -> float:
    """Return a flag's number, neither infinite nor none."""
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return number


def count(text: str) -> int:
    """Return a flag's number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0")
    return int(text)
