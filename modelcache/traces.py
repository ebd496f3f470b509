"""An error of ours as a notebook shows it: where the user's code asked, then one line.

Responsible for: which frames are the user's, and their lines; no value of any variable, and no error before this one.
Leaves to others: what the line says (`errors`), and the whole trace (`cli`, Python).
"""

import os
import traceback
from collections.abc import Iterator
from itertools import takewhile

from modelcache.printing import printable

OURS = __name__.partition(".")[0]
RUNNERS = ("IPython", "ipykernel", "asyncio", "concurrent", "threading")  # run the user's code, or wait for it


def told(error: BaseException, line: str) -> list[str]:
    """Lines of text; `line` says what happened."""
    return [*_frames(error), f"{type(error).__name__}: {printable(line)}"]


def _frames(error: BaseException) -> Iterator[str]:
    """Down to where our code begins; what that called is ours as well."""
    asked = takewhile(lambda pair: _package(pair[0].f_globals) != OURS, traceback.walk_tb(error.__traceback__))
    mine = (pair for pair in asked if _package(pair[0].f_globals) not in RUNNERS)
    for summary in traceback.StackSummary.extract(mine):
        is_cell = summary.line and not os.path.exists(summary.filename)  # IPython keeps the lines of what was typed
        where = "Cell" if is_cell else f'File "{summary.filename}"'
        within = f", in {summary.name}" if summary.name.isidentifier() else ""
        yield f"{where}, line {summary.lineno}{within}"
        if summary.line:
            yield f"    {summary.line}"


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]
