"""Print the unlabelled and the dev sets of a configuration: `python sets.py CONFIG.yaml [KEY=VALUE …]`."""

from __future__ import annotations

import sys
from pathlib import Path

from asrkit.config import peek
from asrkit.errors import AsrkitError


def main() -> int:
    """Read the configuration named on the command line."""
    try:
        data = peek("data", Path(sys.argv[1]), sys.argv[2:]) or {}
    except AsrkitError as error:
        print(error, file=sys.stderr)
        return 2
    print(*data.get("unlabelled", {}).get("sets", []), *data.get("dev", []))
    return 0


if __name__ == "__main__":
    sys.exit(main())
