"""One download per model and per content at a time: a kernel lock per key, with a record that says who holds it.

Responsible for: waiting visibly and with an end (I11). A free kernel lock means a dead holder, whatever the
record says (I13); the record only explains. Leaves to `claim`: being right even if the lock lies (I12).
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from modelcache.errors import LockedError, StoreError
from modelcache.store.disk import CREATE, READ, disk_errors, make_directories, read_small
from modelcache.store.owner import Owner

POLL_S = 0.2
MODEL_LEASE_MS, FILE_LEASE_MS = 30 * 60_000, 5 * 60_000  # for readers that cannot ask the kernel (product C4)


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Subject:
    """What a lock is about: a version of a model, or one `file` of it."""

    model: str
    version: str = ""
    file: str = ""

    def __str__(self) -> str:
        return self.file or self.model


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait: until `progress()` has been the same for `timeout_s`, or `tick()` raises (every `poll_s`)."""

    timeout_s: float
    progress: Callable[[], object] = _nothing
    tick: Callable[[], None] = _nothing
    poll_s: float = POLL_S


@contextmanager
def locked(path: str, subject: Subject, patience: Patience) -> Iterator[bool]:
    """Holds the lock at `path` for the `with` block; its value is whether somebody else held it before.

    Raises LockedError, which names the holder, when the patience is over; StoreError if the disk refuses.
    """
    from filelock import FileLock, Timeout

    make_directories(os.path.dirname(path))
    waited, seen, since = False, object(), time.monotonic()
    with disk_errors(path):
        lock = FileLock(path, thread_local=False, fallback_to_soft=False)
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                waited = True
                patience.tick()
                now = patience.progress()
                if now != seen:
                    seen, since = now, time.monotonic()
                if time.monotonic() - since >= patience.timeout_s:
                    raise _refusal(path, subject, patience) from None
                threading.Event().wait(patience.poll_s)
    try:
        with suppress(OSError):  # the record only explains
            _record(path, subject)
        yield waited
    finally:
        with suppress(OSError):
            os.unlink(path + ".json")
        with suppress(OSError):  # what cannot be unlocked is free when this process ends
            lock.release()


def holder(path: str) -> str:
    """Who holds the lock, in words."""
    try:
        record = json.loads(read_small(path + ".json") or b"")
        since = time.strftime("%H:%M:%S", time.localtime(int(record["timestamp"]) / 1000))
        return f"process {int(record['pid'])} on {str(record['host'])[:64]!r} since {since}"
    except (StoreError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "another process"


def is_held(path: str) -> bool:
    """Whether somebody holds the lock at this moment. Who wants it just then waits 0.2 s longer."""
    import fcntl

    try:
        fd = os.open(path, READ)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _refusal(path: str, subject: Subject, patience: Patience) -> LockedError:
    idle = f", without progress for {patience.timeout_s:g} s" if patience.timeout_s else ""
    return LockedError(
        f"{subject} is in use by {holder(path)}{idle}", next_step="wait for it, or end that process, then run again"
    )


def _record(path: str, subject: Subject) -> None:
    """Neither atomic nor durable: half a record is "another process", and a kill leaves no temporary file."""
    mine = Owner.mine()
    record = {
        "pid": mine.pid, "host": mine.host, "processStart": mine.start, "timestamp": int(time.time() * 1000),
        "modelId": subject.model, "version": subject.version,
        "timeout": FILE_LEASE_MS if subject.file else MODEL_LEASE_MS, "file": subject.file,
    }  # fmt: skip
    with suppress(FileNotFoundError):
        os.unlink(path + ".json")
    fd = os.open(path + ".json", CREATE, 0o600)
    try:
        os.write(fd, json.dumps(record).encode())
    finally:
        os.close(fd)
