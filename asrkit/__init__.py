"""asrkit: speech recognisers from much untranscribed and little transcribed speech."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asrkit.inference.recogniser import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load` when it is first asked for, so that `import asrkit` is quick."""
    if name == "load":
        from asrkit.inference.recogniser import load

        return load
    raise AttributeError(f"module 'asrkit' has no attribute '{name}'")
