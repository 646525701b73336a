"""`python -m zbroker` is the command `zbroker`."""

from __future__ import annotations

import sys

from zbroker.cli import main

if __name__ == "__main__":
    sys.exit(main())
