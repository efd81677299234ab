"""Read configurations with changes to them, before hours are spent on those that come first.

    python check.py CONFIG.yaml KEY=VALUE … -- CONFIG.yaml KEY=VALUE …

The first mistake is told in one line, with status 2.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from asrkit.errors import AsrkitError
from asrkit.training.config import load_experiment_config


def main() -> int:
    """Read what the command line names."""
    for between, words in itertools.groupby(sys.argv[1:], lambda word: word == "--"):
        if between:
            continue
        config, *changes = words
        try:
            load_experiment_config(Path(config), ["exp_dir=unused", *changes])
        except AsrkitError as error:
            print(error, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
