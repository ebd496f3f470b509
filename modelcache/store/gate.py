"""Nothing is swept while a model is installed, and no model is installed during a sweep (I30).

A blob has no name but its own between its commit and the record of its model, which may be hours later: whoever
installs holds the lock of that model all the time. So a sweep first closes the gate, then looks whether anybody
holds one; and whoever has taken one looks at the gate before he goes on. One of the two sees the other.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from modelcache.store.layout import Layout
from modelcache.store.locks import Patience, Subject, is_held, locked

_SUBJECT = Subject("the sweep of the store")


@contextmanager
def sweeping(layout: Layout) -> Iterator[bool]:
    """For the `with` block nobody begins to install; False where somebody is at it already: nothing may go then.

    Raises LockedError while another sweep goes on, StoreError.
    """
    with locked(layout.lock("sweep"), _SUBJECT, Patience(0.0)):
        yield not _is_anybody_installing(layout)


@contextmanager
def listing(layout: Layout) -> Iterator[bool]:
    """The same for whoever only looks: nothing is written, and nobody is kept from anything."""
    yield not (is_held(layout.lock("sweep")) or _is_anybody_installing(layout))


def await_sweep(layout: Layout, patience: Patience) -> None:
    """For the holder of a model's lock: returns when no sweep goes on. Raises LockedError when the patience is over."""
    if is_held(layout.lock("sweep")):
        with locked(layout.lock("sweep"), _SUBJECT, patience):
            pass


def _is_anybody_installing(layout: Layout) -> bool:
    folder = os.path.dirname(layout.lock(""))
    there = os.listdir(folder) if os.path.isdir(folder) else []
    names = [name for name in there if name.startswith("model-") and name.endswith(".lock")]
    return any(is_held(os.path.join(folder, name)) for name in names)
