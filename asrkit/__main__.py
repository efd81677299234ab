"""`python -m asrkit` is the command `asrkit`."""

import sys

from asrkit.cli import main

sys.exit(main())
