"""What urllib3 logs of our own requests: nothing, for its lines hold whole URLs, with secrets in them (I22).

A program or notebook that logs everything would keep them. Whatever else it asks by urllib3 or requests, in whatever
thread, is heard as before. Leaves to others: saying what happened (`events`, `logbook`).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_MODULES = ("connection", "connectionpool", "poolmanager", "response", "util.retry")
_is_ours = ContextVar("modelcache_is_ours", default=False)


@contextmanager
def unheard() -> Iterator[None]:
    """Around a request: what this thread asks inside is not logged."""
    token = _is_ours.set(True)
    try:
        yield
    finally:
        _is_ours.reset(token)


def _is_of_others(_record: logging.LogRecord) -> bool:
    """Called in the thread that logs."""
    return not _is_ours.get()


for _name in _MODULES:
    logging.getLogger(f"urllib3.{_name}").addFilter(_is_of_others)
