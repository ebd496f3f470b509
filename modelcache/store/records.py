"""Records that several threads and processes read and change.

Responsible for: one change at a time (I3), so that no change is lost, and reading a record once for many files.
Lock order: a model's, a content's, this one, the registry's. Nothing that takes long is done inside it.
Leaves to others: what is to be recorded; it is found out before, and put into what the record says by then.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from modelcache.store.installed import RECORD, Installed, InstalledFile
from modelcache.store.layout import Layout
from modelcache.store.locks import Patience, Subject, locked

PATIENCE = Patience(30.0, poll_s=0.005)
SETTLED_NS = 100_000_000  # a file that is younger could be replaced by one that looks the same
MOST = 4


@contextmanager
def changing(layout: Layout) -> Iterator[None]:
    """For the `with` block nobody else changes a record: read it inside, change and write it.

    Raises LockedError; StoreError if the disk refuses.
    """
    with locked(layout.lock("records"), Subject("the record of a model"), PATIENCE):
        yield


class Records:
    """Reads a record again only when it was replaced: asking for each of many files costs a stat, not a parse."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._read: dict[str, tuple[tuple[int, ...], Mapping[str, InstalledFile]]] = {}

    def entry(self, folder: str, path: str) -> InstalledFile | None:
        """What the record in `folder` says of one file, by now."""
        look = _look(os.path.join(folder, RECORD))
        with self._guard:
            known = self._read.get(folder)
            if known is None or known[0] != look:
                record = Installed.read(folder)
                if record is None:
                    return None
                known = look, record.by_path()
                if look and time.time_ns() - look[0] > SETTLED_NS:
                    self._keep(folder, known)
        return known[1].get(path)

    def _keep(self, folder: str, known: tuple[tuple[int, ...], Mapping[str, InstalledFile]]) -> None:
        self._read.pop(folder, None)
        while len(self._read) >= MOST:
            self._read.pop(next(iter(self._read)))
        self._read[folder] = known


def _look(path: str) -> tuple[int, ...]:
    with suppress(OSError):
        now = os.lstat(path)
        return now.st_mtime_ns, now.st_ctime_ns, now.st_ino, now.st_size
    return ()
