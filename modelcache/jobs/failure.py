"""What somebody's job raised, in words that may be logged and kept.

Responsible for: its kind, its message without what may be a secret (I22), and the places it passed: never a line of
source text, for what stands there is nobody's business but its author's. Leaves to others: whose fault it is, and
keeping it (`runner`, `ledger`).
"""

import re
from collections.abc import Iterator
from types import TracebackType

from modelcache.printing import printable
from modelcache.urls import without_secrets

MOST_WORDS = 300  # characters of a message
MOST_PLACES = 20  # the last of them: a recursion without end has a thousand
_URL = re.compile(r"\S*://\S*")
_QUERY = re.compile(r"\?\S+")
_SECRET = re.compile(
    r"(token(?!s\b|i[sz])|secret|passw|pwd|credential|api.?key|access.?key|authori[sz]ation|bearer|cookie)\w*|\bhf_",
    re.IGNORECASE,
)  # but no tokenizer, and no number of tokens


def what(error: BaseException) -> str:
    """`ValueError: no such column`. A message ends where it begins to speak of a secret; a URL has no query."""
    try:
        said = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - it is somebody's own class
        said = ""
    said = _QUERY.sub("", _URL.sub(lambda found: without_secrets(found[0]), said[: 10 * MOST_WORDS]))
    if found := _SECRET.search(said):
        said = said[: found.start()] + found[0] + " ..."
    said = printable(said[:MOST_WORDS])
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def where(error: BaseException) -> str:
    """A line a place below our own, the innermost last: `file.py:12 in function`."""
    return "\n".join(f"  {place}" for place in [*_places(error.__traceback__)][1:][-MOST_PLACES:])


def _places(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        code = trace.tb_frame.f_code
        yield f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
