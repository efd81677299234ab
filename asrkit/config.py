"""Configuration: dataclass defaults, then YAML files, then ``KEY=VALUE`` overrides, into any dataclass schema.

A schema is a dataclass whose fields are int, float, bool, str, Optional of these, lists, tuples, dictionaries with
string keys, and further dataclasses. A YAML file holds only what differs from the defaults, and may build on another
with ``base: other.yaml``, a path relative to itself. Sections and dictionaries are merged, lists replaced. Values may
refer to each other with OmegaConf's ``${section.key}`` and to the environment with ``${oc.env:NAME}``. Every mistake
becomes one AsrkitError that names the key, the file and line it came from, and the nearest valid name.
"""

from __future__ import annotations

import difflib
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from asrkit.errors import AsrkitError
from asrkit.files import write_text
from asrkit.layers import Keys, Layer, overlay, read_layers, resolve, show
from asrkit.schema import FieldDoc, default_of, defaults, describe, hints, strip_optional, to_dict, type_text

__all__ = ["FieldDoc", "describe", "from_dict", "load", "peek", "save", "to_dict"]

T = TypeVar("T")
_WANTED = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def load(schema: type[T], path: Path | None, overrides: Sequence[str] = ()) -> T:
    """Return an instance of ``schema``: its defaults, changed by a YAML file, changed by ``KEY=VALUE`` strings.

    Args:
        schema: a dataclass; nested dataclasses are sections. Their ``__post_init__`` run, innermost first.
        path: a YAML file, or None for the defaults.
        overrides: OmegaConf dotlist items such as ``seed=2`` or ``data.labelled.sets=[1h,9h]``. The value
            for a field of type str is taken as it stands, so that ``name=010`` is the string ``010``.

    Raises:
        AsrkitError: missing or unparsable file, unknown or duplicate key, wrong type, or a value refused by a
            ``__post_init__``.
    """
    layer = read_layers(path, overrides, schema)
    # The defaults take part, so that an interpolation can refer to a key that nobody has set.
    full = Layer(overlay(defaults(schema), layer.tree), layer.places)
    resolved = Layer(resolve(full), layer.places)
    instance: T = _build(schema, resolved.tree, resolved, (), None, schema)
    return instance


def peek(key: str, path: Path | None, overrides: Sequence[str] = ()) -> Any:
    """Return what files and overrides give a top-level key, or None: for choosing the schema by one of its keys."""
    layer = read_layers(path, overrides, None)
    return resolve(layer, key) if key in layer.tree else None


def from_dict(schema: type[T], values: Mapping[str, Any], where: object = None) -> T:
    """Return an instance of ``schema`` from plain values, such as `to_dict` gives; nothing is interpolated.

    Raises:
        AsrkitError: as `load`, naming ``where``.
    """
    layer = Layer(dict(values), {(): str(where)} if where is not None else {})
    instance: T = _build(schema, layer.tree, layer, (), None, schema)
    return instance


def save(config: Any, path: Path) -> None:
    """Write a config as complete YAML, atomically; `load` gives the same config back."""
    text = yaml.dump(_escape(to_dict(config)), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    write_text(Path(path), text)


# Building


def _build(schema: Any, tree: Mapping[str, Any], layer: Layer, keys: Keys, default: Any, root: Any) -> Any:
    """Return an instance of ``schema``; ``default`` is the instance whose values stand where ``tree`` has none."""
    types = hints(schema)
    known = {f.name: f for f in fields(schema) if f.init}
    for name in tree:
        if name not in known:
            raise _unknown(str(name), list(known), layer, keys, root)
    values = {}
    for name, f in known.items():
        here = (*keys, name)
        fallback = default_of(f) if default is None else getattr(default, name)
        if name in tree and tree[name] != "???":
            values[name] = _convert(types[name], tree[name], layer, here, fallback, root)
        elif fallback is not MISSING:
            values[name] = fallback
        elif is_dataclass(types[name]):
            values[name] = _build(types[name], {}, layer, here, None, root)
        else:
            mend = f"set it: {type_text(types[name])}"
            raise AsrkitError(f"'{'.'.join(here)}' has no value", where=layer.place(keys), mend=mend)
    try:
        return schema(**values)
    except AsrkitError as error:
        raise _refused(str(error), list(known), layer, keys) from None


def _unknown(name: str, known: list[str], layer: Layer, keys: Keys, root: Any) -> AsrkitError:
    key = ".".join((*keys, name))
    where = layer.place((*keys, name))
    section = ".".join(keys)
    every = [f.key for f in describe(root)]
    if key in every:
        return AsrkitError(f"'{key}' is written as one key", where=where, mend="nest it: one line per section")
    # A key given in the wrong section is found by its own name, or at last by the likeness of the whole.
    likely = [k for k in every if k.rpartition(".")[2] == name]
    likely += [".".join((*keys, close)) for close in difflib.get_close_matches(name, known, n=1, cutoff=0.6)]
    likely = likely or difflib.get_close_matches(key, every, n=1, cutoff=0.8)
    if likely:
        mend = "did you mean " + " or ".join(f"'{k}'" for k in likely[:3]) + "?"
    else:
        mend = f"known{f' in {section}' if section else ''}: " + ", ".join(known)
    return AsrkitError(f"unknown key '{key}'", where=where, mend=mend)


def _refused(message: str, names: list[str], layer: Layer, keys: Keys) -> AsrkitError:
    """Return a ``__post_init__``'s complaint with the section and the places where the keys it names were set."""
    named = [(*keys, name) for name in names if re.search(rf"\b{re.escape(name)}\b", message)]
    places = dict.fromkeys(layer.places[here] for here in named if here in layer.places)
    section = ".".join(keys)
    if keys:
        # A section knows its own name at most; the user knows it by the whole path.
        whole = re.sub(rf"(?<![\w.]){re.escape(keys[-1])}\.(?=\w)", f"{section}.", message)
        message = whole if f"{section}." in whole else f"{section}: {message}"
    return AsrkitError(message, where=", ".join(places) or layer.place(keys))


def _convert(hint: Any, value: Any, layer: Layer, keys: Keys, default: Any, root: Any) -> Any:
    """Return ``value`` as the type of the field at ``keys``, or raise."""
    wanted, optional = strip_optional(hint)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)

    def wrong(want: str, mend: str | None = None) -> AsrkitError:
        if not optional and value is None and mend is None:
            mend = "give it a value, or remove the line"
        want += " or null" if optional else ""
        return AsrkitError(f"'{'.'.join(keys)}' takes {want}, not {show(value)}", where=layer.place(keys), mend=mend)

    if value is None and optional:
        return None
    if is_dataclass(wanted):
        if not isinstance(value, Mapping):
            raise wrong("a section of keys")
        return _build(wanted, value, layer, keys, None if default is MISSING else default, root)
    if wanted in _WANTED:
        converted = _scalar(wanted, value)
        if converted is None:
            quotable = wanted is str and isinstance(value, (bool, int, float))
            raise wrong(_WANTED[wanted], "put it in quotes" if quotable else None)
        return converted
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise wrong("a list", f"write [{value}]" if isinstance(value, (str, int, float)) else None)
        if origin is tuple and arguments[-1] is not Ellipsis:
            if len(value) != len(arguments):
                raise wrong(f"a list of {len(arguments)}")
            kinds = arguments
        else:
            kinds = (arguments[0],) * len(value)
        items = enumerate(zip(kinds, value, strict=True))
        return origin(_convert(kind, v, layer, (*keys, str(i)), MISSING, root) for i, (kind, v) in items)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise wrong("names with values")
        for name in value:
            if not isinstance(name, str):
                where = layer.place((*keys, str(name)))
                raise AsrkitError(f"'{'.'.join(keys)}' has the name {show(name)}", where=where, mend="put it in quotes")
        given = {name: _convert(arguments[1], v, layer, (*keys, name), MISSING, root) for name, v in value.items()}
        return {**default, **given} if isinstance(default, Mapping) else given
    raise TypeError(f"{'.'.join(keys)}: a config field cannot be of type {hint}")


def _scalar(wanted: type, value: Any) -> int | float | bool | str | None:
    """Return ``value`` as ``wanted``, or None where that would lose or invent something.

    Numbers may come as strings, for that is what an environment variable gives; 1e5 is an integer and 1.5 is none; a
    string never comes from a number, whose spelling (010, 1:30) YAML has forgotten.
    """
    if wanted is str:
        return value if isinstance(value, str) else None
    if isinstance(value, bool):
        return value if wanted is bool else None
    if not isinstance(value, (int, float, str)):
        return None
    if wanted is bool:
        return _TRUTH.get(str(value).strip().lower())
    try:
        if wanted is int:
            return value if isinstance(value, int) else _integer(value)
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def _integer(value: float | str) -> int | None:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)
    return int(value) if value.is_integer() else None


def _escape(value: Any) -> Any:
    """Return the values so that OmegaConf reads a literal ``${`` back as it stands."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda m: m.group(1) * 2 + "\\${", value)
    if isinstance(value, dict):
        return {name: _escape(v) for name, v in value.items()}
    return [_escape(v) for v in value] if isinstance(value, list) else value


class _Dumper(yaml.SafeDumper):
    """Lists on one line, no anchors, and quotes round every string that could be read as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)


def _represent_str(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # Line breaks beyond the newline survive in double quotes only.
    style = ("'" if re.match(r"[-+.\d]", value) else None) if value.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_str)
