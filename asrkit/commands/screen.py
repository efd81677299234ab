"""What every command writes to."""

from __future__ import annotations

from rich.console import Console

# Without emoji: rich would make one of the `:100:` in FILE:100: …
console = Console(stderr=False, emoji=False)
errors = Console(stderr=True, emoji=False)


def print_error(message: object) -> None:
    """Print a mistake in one line."""
    errors.print(f"asrkit: error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def print_plain(text: str) -> None:
    """Print text for other programs as it is: rich would wrap it and turn tabs into spaces."""
    print(text, flush=True)
