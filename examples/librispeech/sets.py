"""Print unlabelled sets, those of all sources too, and dev sets of a configuration: `python sets.py CONFIG.yaml [KEY=VALUE …]`."""

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
    streams = [data.get("unlabelled", {}), *data.get("sources", {}).values()]
    # What lies in a folder of its own is prepared elsewhere.
    print(
        *(name for stream in streams if not stream.get("dir") for name in stream.get("sets", [])), *data.get("dev", [])
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
