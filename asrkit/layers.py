"""Where a config's values come from: YAML files that build on one another, and ``KEY=VALUE`` overrides.

Each source is a `Layer` of plain values that knows the file and line of every key, so that a complaint can name them.
"""

from __future__ import annotations

import io
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from asrkit.errors import AsrkitError, nearest
from asrkit.schema import hints, strip_optional

Keys = tuple[str, ...]
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Layer:
    """Plain values, and where each key was set."""

    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, str] = field(default_factory=dict)

    def over(self, lower: Layer) -> Layer:
        """Return ``lower`` with this layer's values laid over it."""
        return Layer(overlay(lower.tree, self.tree), {**lower.places, **self.places})

    def place(self, keys: Keys) -> str | None:
        """Return where a key, or the nearest section around it, was set."""
        return next((self.places[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in self.places), None)


def read_layers(path: Path | None, overrides: Sequence[str], schema: type | None) -> Layer:
    """Return a file, the files below it and the overrides as one layer; ``schema`` tells which overrides are text."""
    layer = Layer()
    for upper in _read_files(Path(path), ()) if path is not None else []:
        layer = upper.over(layer)
    for item in overrides:
        layer = _override(item, schema).over(layer)
    return layer


def _read_files(path: Path, above: tuple[Path, ...]) -> list[Layer]:
    """Return the layers of a file and of the files that it builds on, lowest first."""
    layer = _read_file(path)
    base = layer.tree.pop("base", None)
    if base is None:
        return [layer]
    where = layer.place(("base",))
    if not isinstance(base, str):
        raise AsrkitError(f"base takes the name of a YAML file, not {show(base)}", where=where)
    other = path.parent / base
    if not other.is_file():
        raise AsrkitError(f"base file '{other}' does not exist", where=where, mend=_nearest_file(other))
    above = (*above, path.resolve())
    if other.resolve() in above:
        raise AsrkitError(f"base '{base}' leads back to a file that builds on it", where=where, mend="remove one base")
    return [*_read_files(other, above), layer]


def _read_file(path: Path) -> Layer:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AsrkitError("no such config file", where=path, mend=_nearest_file(path)) from None
    except UnicodeDecodeError as error:
        raise AsrkitError(f"not UTF-8 at byte {error.start}", where=path, mend="save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        raise AsrkitError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=path) from None
    places: dict[Keys, str] = {(): str(path)}
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return Layer({}, places)
        if not isinstance(root, yaml.MappingNode):
            raise AsrkitError("holds no KEY: VALUE pairs", where=path)
        _locate(root, path, (), places)
        tree = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except AsrkitError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else path
        raise AsrkitError(f"not valid YAML: {error.problem or error}", where=where) from None
    except Exception as error:  # Explicit YAML tags make PyYAML raise anything at all: KeyError, IndexError, …
        raise _complaint(error, "is not valid YAML", places) from None
    return Layer(typing.cast("dict[str, Any]", tree), places)


def _locate(node: yaml.MappingNode, path: Path, keys: Keys, places: dict[Keys, str]) -> None:
    """Note the line of every key under a YAML mapping; refuse a key given twice."""
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise AsrkitError("a key is not a plain word", where=f"{path}:{line}")
        here = (*keys, key.value)
        if key.value in seen:
            raise AsrkitError(
                f"key '{'.'.join(here)}' is given twice, on lines {seen[key.value]} and {line}",
                where=path,
                mend="keep one",
            )
        seen[key.value] = line
        places[here] = f"{path}:{line}"
        if isinstance(value, yaml.MappingNode):
            _locate(value, path, here, places)


def _override(item: str, schema: type | None) -> Layer:
    name, equals, text = item.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys):
        raise AsrkitError(f"'{item}' is not KEY=VALUE", where=COMMAND_LINE, mend="for example seed=2")
    wanted, optional = strip_optional(_type_at(schema, keys) if schema else None)
    value: Any = text
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        value = typing.cast("dict[str, Any]", parsed)["value"]
    except Exception as error:  # As for a file: the value's YAML may be anything.
        if wanted is not str:
            raise AsrkitError(
                f"the value of '{item}' is not valid YAML", where=COMMAND_LINE, mend="quote it"
            ) from error
    if wanted is str and not isinstance(value, str) and not (optional and value is None):
        value = text
    for key in reversed(keys):
        value = {key: value}
    return Layer(value, dict.fromkeys((keys[:n] for n in range(1, len(keys) + 1)), COMMAND_LINE))


def _type_at(schema: type, keys: Keys) -> Any:
    """Return the type of the field that ``keys`` lead to, or None."""
    hint: Any = schema
    for key in keys:
        hint, _ = strip_optional(hint)
        if is_dataclass(hint):
            hint = hints(hint).get(key)  # type: ignore[arg-type]
        else:
            hint = typing.get_args(hint)[1] if typing.get_origin(hint) is dict else None
    return hint


def resolve(layer: Layer, key: str | None = None) -> Any:
    """Return the layer's values, or that of one key, with every ``${…}`` replaced."""
    try:
        values = OmegaConf.create(layer.tree)
        chosen = values if key is None else values[key]
        return OmegaConf.to_container(chosen, resolve=True) if OmegaConf.is_config(chosen) else chosen
    except Exception as error:  # A resolver may fail in any way.
        raise _complaint(error, "cannot be resolved", layer.places) from None


def _complaint(error: Exception, what: str, places: Mapping[Keys, str]) -> AsrkitError:
    """Return what PyYAML or OmegaConf complain of, with the key where they know it."""
    name = str(getattr(error, "full_key", None) or "")
    where = Layer({}, dict(places)).place(tuple(re.split(r"[.\[\]]+", name)))
    lines = str(error).splitlines()
    reason = lines[0] if lines and lines[0].strip() else type(error).__name__
    return AsrkitError(f"'{name}' {what}: {reason}" if name else f"{what}: {reason}", where=where)


def _nearest_file(path: Path) -> str | None:
    folder = path.parent
    names = [p.name for p in sorted(folder.glob("*.y*ml"))] if folder.is_dir() else []
    return nearest(path.name, names) if names else None


def overlay(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``lower`` with the values of ``upper``; sections are merged, all else is replaced."""
    merged = dict(lower)
    for name, value in upper.items():
        below = merged.get(name)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[name] = overlay(below, value) if both else value  # type: ignore[arg-type]
    return merged


def show(value: Any) -> str:
    """Return a value as an error message quotes it: as YAML spells it, and short."""
    text = (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else repr(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."
