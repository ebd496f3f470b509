"""One download per content at a time: a kernel lock per key, with a record that says who holds it.

Responsible for: waiting visibly and with an end (I11). A free kernel lock means a dead holder, whatever the
record says (I13); the record only explains. Leaves to `partial`: being right even if the lock lies (I12).
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from modelcache.errors import LockedError, StoreError
from modelcache.store.disk import disk_errors, make_directories, read_small, write_atomic
from modelcache.store.owner import Owner

POLL_S = 0.2


@contextmanager
def locked(
    path: str, subject: str, timeout_s: float, progress: Callable[[], object], tick: Callable[[], None]
) -> Iterator[None]:
    """Holds the lock at `path` for the `with` block.

    While another holds it, `tick` is called every 0.2 s (it may raise to give up), and LockedError is raised once
    `progress()` has returned the same for `timeout_s` seconds.
    """
    from filelock import FileLock, Timeout

    make_directories(os.path.dirname(path))
    with disk_errors(path):
        lock = FileLock(path, thread_local=False, fallback_to_soft=False)
        seen, since = object(), time.monotonic()
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                tick()
                now = progress()
                if now != seen:
                    seen, since = now, time.monotonic()
                if time.monotonic() - since >= timeout_s:
                    raise LockedError(
                        f"{subject} is being fetched by {holder(path)}, without progress for {timeout_s:g} s",
                        next_step="wait for it, or end that process, then run again",
                    ) from None
                threading.Event().wait(POLL_S)
    try:
        with suppress(StoreError):  # the record only explains
            _record(path, subject)
        yield
    finally:
        with suppress(OSError):
            os.unlink(path + ".json")
        lock.release()


def holder(path: str) -> str:
    """Who holds the lock, in words."""
    try:
        record = json.loads(read_small(path + ".json") or b"")
        since = time.strftime("%H:%M:%S", time.localtime(int(record["timestamp"]) / 1000))
        return f"process {int(record['pid'])} on {str(record['host'])[:64]!r} since {since}"
    except (StoreError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "another process"


def _record(path: str, subject: str) -> None:
    mine = Owner.mine()
    record = {
        "pid": mine.pid, "host": mine.host, "processStart": mine.start,
        "timestamp": int(time.time() * 1000), "modelId": subject,
    }  # fmt: skip
    write_atomic(path + ".json", json.dumps(record).encode())
