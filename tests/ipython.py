"""Runs cells in an IPython of its own process: `ipython.py CELL...` prints what came of each, as lines of JSON."""

import contextlib
import io
import json
import os
import signal
import sys
import tempfile

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config


def main(cells: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config, ipython_dir=tempfile.mkdtemp(dir=os.environ["MODELCACHE_HOME"]))
    shell.user_ns["completed"] = lambda text: shell.complete(None, text, len(text))[1]
    for cell in cells:
        printed, wrong = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(wrong):
            ran = shell.run_cell(cell)
        shown, _ = shell.display_formatter.format(ran.result) if ran.result is not None else ({}, {})
        error = type(ran.error_in_exec).__name__ if ran.error_in_exec else ""
        story = {"printed": printed.getvalue(), "wrong": wrong.getvalue(), "shown": shown, "error": error}
        print(json.dumps(story))


if __name__ == "__main__":
    main(sys.argv[1:])
