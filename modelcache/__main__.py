"""The process of the command `modelcache`; also `python -m modelcache`.

Responsible for: the interpreter's own settings. Leaves everything else to `cli`.
"""

import gc
import signal
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Ends the process with the command's exit code."""
    gc.set_threshold(100_000)  # imports make many objects and no garbage: looking for it costs 9 ms at the start
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # `main` catches it: before, a Ctrl-C would show where imports were
    from modelcache.cli import main

    code = main()
    gc.freeze()  # and 22 ms at the end
    sys.exit(code)


if __name__ == "__main__":
    run()
