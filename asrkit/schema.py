"""What a config dataclass says of itself: its fields' types, defaults and documentation, read off the source.

Nothing here reads a value that a user gives; that is `asrkit.config`.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any


@dataclass(frozen=True)
class FieldDoc:
    """One configurable value of a schema."""

    key: str
    """Dotted key, as an override names it."""
    type: str
    """Type as a user reads it: ``int``, ``list[str]``, ``float | None``."""
    default: Any
    """Default in plain YAML values; `dataclasses.MISSING` where a value is required."""
    doc: str
    """The line under the field in the source, or the field's ``metadata["doc"]``."""


def describe(schema: type) -> list[FieldDoc]:
    """Return every value of a schema in order of definition, sections flattened to dotted keys.

    An optional section that is absent by default has a row of its own before the rows of its fields.
    """
    return list(_describe(schema, (), None))


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain values: dictionaries, lists, numbers, strings, None."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config) if f.init}


def defaults(schema: Any) -> dict[str, Any]:
    """Return the schema's defaults as plain values; what has none is absent."""
    tree: dict[str, Any] = {}
    for f in fields(schema):
        value = default_of(f)
        if f.init and value is not MISSING:
            tree[f.name] = _plain(value)
        elif f.init and is_dataclass(hints(schema)[f.name]):
            tree[f.name] = defaults(hints(schema)[f.name])
    return tree


def default_of(f: Field[Any]) -> Any:
    """Return a field's default, made afresh by its factory where it has one; MISSING where a value is required."""
    return f.default_factory() if f.default_factory is not MISSING else f.default


@functools.cache
def hints(schema: type) -> dict[str, Any]:
    """Return the types of a schema's fields."""
    return typing.get_type_hints(schema)


def strip_optional(hint: Any) -> tuple[Any, bool]:
    """Return the type without its ``None``, and whether it had one."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [a for a in typing.get_args(hint) if a is not type(None)]
        if len(kinds) == 1:
            return kinds[0], True
    return hint, False


def type_text(hint: Any) -> str:
    """Return a type as a user reads it."""
    inner, optional = strip_optional(hint)
    if optional:
        return f"{type_text(inner)} | None"
    origin = typing.get_origin(hint)
    if origin is None:
        return "..." if hint is Ellipsis else getattr(hint, "__name__", str(hint))
    return f"{origin.__name__}[{', '.join(type_text(a) for a in typing.get_args(hint))}]"


def _describe(schema: Any, keys: tuple[str, ...], default: Any) -> Iterator[FieldDoc]:
    for f in fields(schema):
        if not f.init:
            continue
        here = (*keys, f.name)
        value = default_of(f) if default is None else getattr(default, f.name)
        inner, _ = strip_optional(hints(schema)[f.name])
        section = is_dataclass(inner)
        if not section or value is None:
            text = type_text(hints(schema)[f.name])
            yield FieldDoc(".".join(here), text, value if value is MISSING else _plain(value), _doc(schema, f))
        if section:
            yield from _describe(inner, here, None if value is MISSING else value)


def _doc(schema: type, f: Field[Any]) -> str:
    if "doc" in f.metadata:
        return str(f.metadata["doc"])
    owner = next((c for c in schema.__mro__ if f.name in inspect.get_annotations(c)), schema)
    return _docs(owner).get(f.name, "")


@functools.cache
def _docs(owner: type) -> dict[str, str]:
    """Return the string literals that stand right under a class's fields, by field; a class without source has none."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, str] = {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for above, below in itertools.pairwise(statements):
        if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name) and isinstance(below, ast.Expr):
            value = below.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[above.target.id] = " ".join(value.value.split())
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
