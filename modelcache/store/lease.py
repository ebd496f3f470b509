"""A lock where the kernel cannot lock: a marker that its holder touches now and then (filelock's SoftFileLease).

Responsible for: who has died. A marker is dead when it did not change for three beats, measured with our own clock
while we watch it, so that no two clocks are compared (I13, I14); on the same host, when its process is gone.
filelock takes a dead marker over by swapping two names, which NFS and SMB refuse, and leaves an empty one alone for
ever: what has not changed for a beat more is removed here. Leaves to `claim`: being right where two hold it at once.
"""

import os
import time
from contextlib import suppress

from modelcache.errors import StoreError
from modelcache.store.disk import READ

BEAT_S = 6.0  # four beats are less than the patience of those who change a record
_Mark = tuple[int, int, int]


class Lease:
    """Like filelock's locks, as far as `locks` uses them. One thread at a time."""

    def __init__(self, path: str, beat_s: float = BEAT_S) -> None:
        from filelock import SoftFileLease

        self._path = path
        self._beat_s = beat_s
        self._lock = SoftFileLease(path, lease_duration=3 * beat_s, heartbeat_interval=beat_s, thread_local=False)
        self._seen: _Mark | None = None
        self._since = 0.0

    def acquire(self, timeout: float = 0) -> None:
        """Tries once. Raises filelock.Timeout while somebody has it; OSError, or StoreError if there is no thread."""
        from filelock import LeaseSettingsMismatch, Timeout

        try:
            self._lock.acquire(timeout=timeout)
        except (Timeout, LeaseSettingsMismatch):
            self.remove_if_dead()  # whoever comes first has it: perhaps we, next time
            raise Timeout(self._path) from None
        except RuntimeError as error:
            self._lock.release(force=True)
            raise StoreError(f"no thread: {error}", next_step="end some programs") from error

    def release(self) -> None:
        self._lock.release()

    def remove_if_dead(self) -> bool:
        """True where it was watched, again and again by this method, and has been silent for four beats."""
        if not self._is_dead():
            return False
        with suppress(OSError):
            os.unlink(self._path)
        return True

    def _is_dead(self) -> bool:
        mark, now = _mark(self._path), time.monotonic()
        if mark is None or mark != self._seen:
            self._seen, self._since = mark, now
        return mark is not None and now - self._since >= 4 * self._beat_s


def _mark(path: str) -> _Mark | None:
    """Changes with every beat and every holder."""
    with suppress(OSError):
        os.close(os.open(path, READ | os.O_NONBLOCK))  # a file server is asked what is true now, not a cache
    with suppress(OSError):
        status = os.lstat(path)
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns
    return None
