"""Write-back behind a download, so that the last fsync is short and the kernel's memory stays flat.

Responsible for: hearing of every error of the disk exactly because the kernel tells it only once, to whoever syncs
first. Leaves to `partial`: when bytes are written, and what an error means.
"""

import os
import threading
from contextlib import suppress

SYNC_EVERY = 64 << 20  # bytes after which write-back is started


class WriteBack:
    """One helper thread at a time. `wrote` and `finish` are not for several threads at once."""

    def __init__(self) -> None:
        self._unsynced = 0
        self._helper: threading.Thread | None = None
        self._error: OSError | None = None

    def wrote(self, fd: int, count: int) -> None:
        """OSError if bytes from before did not get onto the disk."""
        if self._error:
            raise self._error
        self._unsynced += count
        if self._unsynced < SYNC_EVERY or (self._helper and self._helper.is_alive()):
            return
        with suppress(OSError):  # no handle to be had: then the last fsync takes longer
            own = os.dup(fd)
            self._unsynced = 0
            self._helper = threading.Thread(target=self._sync_and_close, args=(own,), daemon=True)
            self._helper.start()

    def finish(self, fd: int) -> None:
        """Returns when everything is on the disk. OSError if anything did not get there, now or before."""
        if self._helper:
            self._helper.join()
        if self._error:
            raise self._error
        _sync(fd)

    def _sync_and_close(self, fd: int) -> None:
        try:
            _sync(fd)
        except OSError as error:
            self._error = error
        finally:
            os.close(fd)


def _sync(fd: int) -> None:
    """What the disk did not take is forgotten: else a later run would read, and prove, it from memory."""
    try:
        os.fsync(fd)
    except OSError:
        with suppress(OSError, AttributeError):  # not on every system
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        raise
