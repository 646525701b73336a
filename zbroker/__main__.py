"""The command `zbroker`, also as `python -m zbroker`.

Until a command is loaded Ctrl-C ends the process without a word, as the system does it: raised
in the middle of an import, it would be a traceback, or be swallowed.
"""

from __future__ import annotations

import signal
import sys


def run() -> int:
    """Runs the command line of this process; returns the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from zbroker.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
