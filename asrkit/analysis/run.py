"""An experiment folder as the report reads it: whatever is there, at any stage of a training, from any version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from asrkit.analysis import curves
from asrkit.analysis.results import FILE as RESULTS
from asrkit.errors import AsrkitError
from asrkit.training.environment import FILE as ENVIRONMENT

SIMILARITY = "similarity.json"
_LOG_CHARACTERS = 40_000


@dataclass(frozen=True)
class Run:
    """The files of an experiment."""

    folder: Path
    """The experiment folder."""
    yaml: str
    """config.yaml as it stands."""
    config: dict[str, Any]
    """config.yaml, parsed."""

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read an experiment's config.

        Raises:
            AsrkitError: if the folder is not an experiment.
        """
        text = _read(folder / "config.yaml")
        if text is None:
            raise AsrkitError("not an experiment: no config.yaml in it", where=folder, mend="give train's exp_dir")
        try:
            config = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise AsrkitError(f"not YAML: {error}", where=folder / "config.yaml") from None
        return cls(folder, text, config if isinstance(config, dict) else {})

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl."""
        return curves.read_rows(self.folder / curves.FILE)

    @property
    def recipe(self) -> str:
        """The methods that led here, such as pretrain+finetune."""
        lines = (_read(self.folder / "recipe") or "").splitlines()
        return lines[0].strip() if lines else str(self.config.get("method", ""))

    @property
    def log(self) -> str:
        """train.log."""
        return _read(self.folder / "train.log") or ""

    @property
    def environment(self) -> dict[str, str]:
        """environment.json; empty where there is none."""
        try:
            found = json.loads(_read(self.folder / ENVIRONMENT) or "{}")
        except ValueError:
            return {}
        return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}

    @property
    def decodings(self) -> list[Path]:
        """Folders decode/SET/DECODER with results."""
        return sorted(path.parent for path in self.folder.glob(f"decode/*/*/{RESULTS}"))

    @property
    def changed(self) -> float | None:
        """When the newest row of metrics.jsonl was written, in seconds since 1970."""
        path = self.folder / curves.FILE
        return path.stat().st_mtime if path.is_file() else None

    def describe(self, name: str) -> dict[str, Any]:
        """Return what the page shows of the experiment itself, as JSON."""
        columns = curves.curves(self.rows)
        log = self.log
        labels = self.config.get("data", {}).get("labelled", {}).get("sets", [])
        speeds = columns.series.get("audio_seconds_per_second", ([], []))[1]
        return {
            "name": name,
            "folder": str(self.folder),
            "recipe": self.recipe,
            "labels": "+".join(str(label) for label in labels),
            "seed": self.config.get("seed"),
            "status": columns.last,
            "best": self._best(),
            "speed": speeds[-1] if speeds else None,
            "changed": self.changed,
            "notes": [],
            "curves": {
                "steps": columns.steps,
                "seconds": columns.seconds,
                "phases": columns.phases,
                "series": columns.series,
            },
            "rows": columns.rows,
            "thinned": max(1, round(columns.rows / max(1, len(columns.steps)))),
            "config": dict(_flat(self.config)),
            "yaml": self.yaml,
            "environment": self.environment,
            "log": log[-_LOG_CHARACTERS:],
            "log_cut": len(log) > _LOG_CHARACTERS,
        }

    def _best(self) -> dict[str, Any] | None:
        """Return the lowest validation figure, the word error rate where there is one."""
        for name in ("wer", "loss", "contrastive"):
            found = curves.best(self.rows, f"dev/{name}")
            if found is not None:
                return {"name": name, "value": found[0], "step": found[1]}
        return None

    def similarities(self) -> list[dict[str, Any]]:
        """Return what every similarity.json in the folder or one folder below holds, as JSON.

        Such a file names the two sides (``a``, ``b``), and gives for each of ``layers`` a value in ``pwcca``.
        """
        found = []
        for path in sorted([*self.folder.glob(SIMILARITY), *self.folder.glob(f"*/{SIMILARITY}")]):
            try:
                values = json.loads(_read(path) or "")
                layers = [str(layer) for layer in values["layers"]]
                rates = [float(value) for value in values["pwcca"]]
            except (ValueError, KeyError, TypeError):
                continue
            if layers and len(layers) == len(rates) and all(0 <= rate <= 1 for rate in rates):
                title = f"{values.get('a', self.folder)} and {values.get('b', '')}"
                found.append({"title": title, "layers": layers, "values": rates})
        return found

    def stamp(self) -> tuple[Any, ...]:
        """Return something that changes when a file that the page shows does."""
        paths = [self.folder / name for name in ("config.yaml", "train.log", ENVIRONMENT, curves.FILE)]
        paths += [
            *self.folder.glob("decode/*/*/*"),
            *self.folder.glob(SIMILARITY),
            *self.folder.glob(f"*/{SIMILARITY}"),
        ]
        return tuple(stamp(path) for path in paths)


def stamp(path: Path) -> tuple[str, int, int]:
    """Return a file's name, time of change and size; a file that is not there has neither."""
    try:
        status = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), status.st_mtime_ns, status.st_size


def names(folders: list[Path]) -> list[str]:
    """Return the shortest ends of paths that tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(len(own) for own in parts) + 1):
        ends = ["/".join(own[-length:]) for own in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [str(folder) for folder in folders]


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", json.dumps(value, ensure_ascii=False, default=str)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
