#!/usr/bin/env python
"""Averages the weights of a run's checkpoints into a new experiment folder, for `asrkit decode` or as `init`.

    python scripts/average_checkpoints.py exp/finetune --newest 5 --output exp/finetune_mean

A run keeps training.keep_checkpoints of them; averaging five wants training.keep_checkpoints=5.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from asrkit.errors import AsrkitError
from asrkit.training.averaging import average


def main() -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, metavar="EXP", help="a folder of asrkit train")
    parser.add_argument("--output", type=Path, required=True, metavar="EXP", help="the new folder")
    parser.add_argument("--newest", type=int, default=0, metavar="N", help="so many of the newest (all)")
    parser.add_argument("--steps", type=int, nargs="+", default=[], metavar="STEP", help="these checkpoints (all)")
    options = parser.parse_args()
    try:
        used = average(options.experiment, options.output, options.steps, options.newest)
    except AsrkitError as error:
        print(f"average_checkpoints: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: the mean of steps {', '.join(map(str, used))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
