"""What is known of a version besides its files: when it was last asked for, and whether it is pinned.

    used/<id>/<version>            its date is when
    pins/models/<id>               every version of the model stays, also those to come
    pins/versions/<id>/<version>   this one does

Each is an empty file: there is nothing that a kill, another process or another host could garble, and telling that a
model is used costs a hit one system call.

Responsible for: these marks. Leaves to others: what follows from them (`eviction`).
"""

import math
import os
import time
from contextlib import suppress

from modelcache.errors import StoreError
from modelcache.names import checked_path, joined
from modelcache.store.disk import check_no_links, create, disk_errors, link_towards, make_directories, remove_tree
from modelcache.store.installed import Installed
from modelcache.store.layout import Layout

FUTURE_S = 60.0  # clocks of machines that share a folder may differ by that


class Marks:
    """Of the models of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    # -- use ----------------------------------------------------------------------------------------------------------

    def used(self, model_id: str, version: str) -> bool:
        """Somebody asked for it just now. False where it had no mark until now: whoever evicts it takes that first.

        Raises nothing: where it cannot be noted, the date of its files counts.
        """
        path = self._use(model_id, version)
        try:
            if not link_towards(self._layout.root, os.path.dirname(path)):
                os.utime(path, follow_symlinks=False)
        except FileNotFoundError:
            with suppress(OSError, StoreError):
                self._make(path)
                return False
        except OSError:
            pass
        return True

    def take(self, record: Installed) -> float:
        """As `last_used`, and its mark is gone: `used` tells whoever asks from now on. Raises StoreError.

        Who asked before has dated the file that is looked at here, though it has no name any more.
        """
        path = self._use(record.id, record.version)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return self.last_used(record)  # there is none: whoever asks now makes it
        try:
            self._removed(path)
            return _counted(os.fstat(fd).st_mtime, record)
        finally:
            os.close(fd)

    def last_used(self, record: Installed) -> float:
        """In seconds since 1970, never in the future. Where no mark tells, or one from the future (I14): when its files
        came."""
        used = math.inf
        with suppress(OSError):
            used = os.lstat(self._use(record.id, record.version)).st_mtime
        return _counted(used, record)

    # -- pins ---------------------------------------------------------------------------------------------------------

    def pin(self, model_id: str, version: str = "") -> None:
        """Nothing but `remove` takes that version away, or any of the model where none is named. Raises StoreError."""
        path = self._pin(model_id, version)
        if not os.path.lexists(path):
            self._make(path)

    def unpin(self, model_id: str, version: str = "") -> bool:
        """Whether it was pinned. Raises StoreError."""
        return self._removed(self._pin(model_id, version))

    def is_pinned(self, model_id: str, version: str) -> bool:
        return any(os.path.lexists(self._pin(model_id, one)) for one in ("", version))

    # -- the end ------------------------------------------------------------------------------------------------------

    def forget(self, model_id: str, version: str) -> None:
        """That version is gone, and so is what was known of it. Raises StoreError."""
        for path in (self._use(model_id, version), self._pin(model_id, version)):
            self._removed(path)
            with suppress(OSError):
                os.rmdir(os.path.dirname(path))

    def _use(self, model_id: str, version: str) -> str:
        return _below(os.path.join(self._layout.used, checked_path(model_id, parts=1)), version)

    def _pin(self, model_id: str, version: str) -> str:
        if not version:
            return _below(os.path.join(self._layout.pins, "models"), model_id)
        return _below(os.path.join(self._layout.pins, "versions", checked_path(model_id, parts=1)), version)

    def _make(self, path: str) -> None:
        with disk_errors(path):
            check_no_links(self._layout.root, os.path.dirname(path))
            make_directories(os.path.dirname(path))
            with suppress(FileExistsError):
                os.close(create(path))

    def _removed(self, path: str) -> bool:
        """Whether there was one. Behind a link nothing is ours (I17)."""
        with disk_errors(path):
            if link_towards(self._layout.root, os.path.dirname(path)):
                return False
            is_there = os.path.lexists(path)
            remove_tree(path)  # somebody may have made a folder of it
        return is_there


def _counted(used: float, record: Installed) -> float:
    now = time.time()
    came = max((file.stamp.mtime_ns / 1e9 for file in record.files), default=0.0)
    return min(used if used < now + FUTURE_S else came, now)


def _below(folder: str, name: str) -> str:
    return joined(folder, checked_path(name, parts=1))
