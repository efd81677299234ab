"""The report's page: a template, its style and its scripts, put together into one file."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from typing import Any

SCRIPTS = (
    "base.js",
    "align.js",
    "curves.js",
    "results.js",
    "errors.js",
    "utterances.js",
    "similarity.js",
    "settings.js",
    "main.js",
)


def render(title: str, blocks: dict[str, Any], refresh: float | None = None) -> str:
    """Return a page that needs nothing but itself.

    Args:
        title: the page's title.
        blocks: JSON values by element id; ``page`` is read when the page opens, the others when they are needed.
        refresh: seconds after which the page loads itself again; None for never.
    """
    own = files(__package__)
    script = "(() => {\n'use strict';\n" + "\n".join(_text(own / name) for name in SCRIPTS) + "\n})();"
    # With this policy a browser runs our script and nothing else, and loads nothing from anywhere.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; media-src data:"
    )
    parts = {
        "policy": html.escape(policy),
        "title": html.escape(title),
        "refresh": "" if refresh is None else f'<noscript><meta http-equiv="refresh" content="{refresh:g}"></noscript>',
        "style": _text(own / "page.css"),
        "data": "\n".join(
            f'<script type="application/json" id="{html.escape(name)}">{embed(value)}</script>'
            for name, value in blocks.items()
        ),
        "script": script,
    }
    pieces = _text(own / "page.html").split("@@")
    # Every second piece is a name; parts are never searched for names themselves.
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def _text(resource: Any) -> str:
    return str(resource.read_text(encoding="utf-8"))


def embed(value: Any) -> str:
    """Return JSON that can stand inside a script element: no character of it means anything to an HTML parser."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
