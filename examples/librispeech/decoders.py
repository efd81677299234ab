"""Decode a model in several ways; called by decoders.sh, which says how."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from asrkit.errors import AsrkitError
from asrkit.files import write_text

HOME = Path(__file__).resolve().parent


def decoders(options: argparse.Namespace) -> None:
    """Make the n-gram, decode in every way, keep what came out."""
    lm = options.model / f"{options.order}gram.arpa"
    _asrkit("lm", "train", "--data", options.data, "--sets", *options.lm_sets, "--order", options.order, "--output", lm)
    every = ["decode", "--model", options.model, "--data", options.data, "--sets", *options.sets]
    _asrkit(*every, "--decoder", "greedy")
    _asrkit(*every, "--decoder", "flashlight")
    _asrkit(*every, "--decoder", "flashlight", "--lm", lm, "--tune-on", options.dev)
    for name in options.sets:
        for path in sorted((options.model / "decode" / name).glob("*/results.json")):
            result = json.loads(path.read_text(encoding="utf-8"))
            # Where files lie on this machine says nothing to anyone else.
            result["model"] = options.model.name
            result["lm"] = Path(result["lm"]).name if result["lm"] else None
            target = options.results_dir / options.name / name / path.parent.name / "results.json"
            write_text(target, json.dumps(result, indent=1) + "\n")


def _asrkit(*arguments: object) -> None:
    command: Sequence[str] = ["asrkit", *map(str, arguments)]
    if subprocess.run(command).returncode:
        raise AsrkitError(f"failed: {' '.join(command)}", mend="see above")


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="decoders.sh", add_help=False)
    parser.add_argument("name")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lm-sets", nargs="+", required=True)
    parser.add_argument("--order", type=int, default=4)
    parser.add_argument("--dev", default="dev-clean")
    parser.add_argument("--sets", nargs="+", default=["dev-clean", "test-clean"])
    parser.add_argument("--results-dir", type=Path, default=HOME / "results" / "decoding")
    try:
        decoders(parser.parse_args())
    except (AsrkitError, OSError) as error:
        print(f"decoders.sh: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("decoders.sh: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
