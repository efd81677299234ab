"""Imports go one way: a file imports from its own floor or from below, never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import asrkit

PACKAGE = Path(asrkit.__file__).parent

FLOORS = (
    ("__init__", "errors", "files", "processes", "randomness"),
    ("config", "layers", "schema", "text"),
    ("data", "nn"),
    ("losses", "decoding"),
    ("core",),
    ("heads",),
    ("methods",),
    ("training",),
    ("inference", "analysis", "interop"),
    ("cli", "__main__", "commands"),
)
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}

OPTIONAL = {
    "espeakng_loader",
    "fairseq",
    "fairseq2",
    "flashlight",
    "fsspec",
    "hypothesis",
    "kenlm",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pytest",
    "s3fs",
    "safetensors",
    "transformers",
}
"""What an extra brings: `import asrkit.anything` must work without it."""

FOREIGN = {"fairseq", "fairseq2", "transformers"}
"""Other toolkits: the interop floor alone speaks with them."""


@dataclass(frozen=True)
class Import:
    """One imported module, and whether it is imported when the file is."""

    name: str
    line: int
    eager: bool
    typing_only: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str) -> Iterator[Import]:
    def visit(node: ast.AST, eager: bool, typing_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, eager, typing_only)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield Import(full if full in MODULES else str(node.module), node.lineno, eager, typing_only)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, eager, True)
            for child in node.orelse:
                yield from visit(child, eager, typing_only)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, eager and not inside, typing_only)

    yield from visit(ast.parse(MODULES[module].read_text(encoding="utf-8")), True, False)


def floor_of(module: str) -> int:
    parts = module.split(".")
    return HEIGHT[parts[1] if len(parts) > 1 else "__init__"]


def test_every_module_has_a_floor() -> None:
    found = {module.split(".")[1] for module in MODULES if "." in module}
    assert found <= set(HEIGHT), f"put {sorted(found - set(HEIGHT))} on a floor"
    assert len(MODULES) > 20


@pytest.mark.parametrize("module", [name for name in MODULES if name != "asrkit"])
def test_imports_come_from_the_same_floor_or_below(module: str) -> None:
    upward = [
        f"line {found.line}: {found.name}"
        for found in imports_of(module)
        if found.name.split(".")[0] == "asrkit" and floor_of(found.name) > floor_of(module)
    ]
    assert not upward


def test_the_package_itself_imports_nothing_of_its_own_at_once() -> None:
    own = [found for found in imports_of("asrkit") if found.name.startswith("asrkit") and not found.typing_only]
    assert [found.name for found in own if found.eager] == []


def test_no_circles() -> None:
    graph = {
        module: sorted({i.name for i in imports_of(module) if i.name in MODULES and i.eager and not i.typing_only})
        for module in MODULES
    }
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "a circle: " + " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for following in graph[module]:
                walk(following, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_optional_packages_are_imported_when_they_are_used(module: str) -> None:
    for found in imports_of(module):
        top = found.name.split(".")[0]
        if top in OPTIONAL and not found.typing_only:
            assert not found.eager, f"line {found.line}: import {top} inside the function that needs it"
        if top in FOREIGN:
            assert module.startswith("asrkit.interop"), f"line {found.line}: {top} belongs to asrkit.interop"
