"""The SQLite file: opened, written in one transaction at a time, and given up at the first fault.

Rules:

1. Nothing that is wrong with it stops or slows a fetch: `write` never raises, and waits for a lock for 0.1 s at most.
2. What cannot be written because another process writes is for the caller to keep and to bring again.
3. A file that is no database of ours is set aside, and a new one begun. One of a newer version is left alone, and so
   is one that the disk fails to read.
4. Any other fault switches it off for this process, with one warning.

Responsible for: that, and the tables. Leaves to others: what is in the rows (`downloads`, `metrics`).
sqlite3 is imported when something is written or asked, not before.

It is opened for each transaction, and never waits for the disk: docs/decisions/0011. So a file that was removed is
made again, none is mapped while nobody writes (whoever cuts it short would kill us), and a fork inherits none.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from modelcache.errors import StoreError
from modelcache.store.disk import CREATE, make_directories

if TYPE_CHECKING:
    from sqlite3 import Connection, DatabaseError

VERSION = 3
WAIT_S = 0.1  # for another process's transaction, which takes milliseconds
AGAIN_AFTER_S = 5.0  # when somebody holds the lock for longer: others are not asked to wait each time
READ_WAIT_S = 2.0  # where a person asks
_READ_BYTES = 1 << 20

_TABLES = """
CREATE TABLE IF NOT EXISTS downloads (
    id TEXT PRIMARY KEY, model TEXT, version TEXT, source TEXT, path TEXT, status TEXT, downloaded_bytes INTEGER,
    total_bytes INTEGER, error_message TEXT, started_at INTEGER, completed_at INTEGER, attempts INTEGER,
    last_attempt INTEGER, hash TEXT, owner TEXT
);
CREATE TABLE IF NOT EXISTS attempts (
    timestamp INTEGER, host TEXT, model TEXT, file TEXT, layer TEXT, gateway TEXT, status TEXT, latency_ms INTEGER,
    bytes INTEGER, resumed_bytes INTEGER, attempt INTEGER, error_type TEXT, error_message TEXT, http_status INTEGER,
    duration_ms INTEGER
);
CREATE INDEX IF NOT EXISTS attempts_by_time ON attempts (timestamp);
CREATE TABLE IF NOT EXISTS days (
    day TEXT, host TEXT, model TEXT, layer TEXT, gateway TEXT, status TEXT, error_type TEXT, total INTEGER,
    bytes INTEGER, resumed_bytes INTEGER, duration_ms INTEGER, latencies TEXT, durations TEXT,
    PRIMARY KEY (day, host, model, layer, gateway, status, error_type)
);
CREATE TABLE IF NOT EXISTS sizes (day TEXT PRIMARY KEY, bytes INTEGER, files INTEGER);
CREATE TABLE IF NOT EXISTS usage (model TEXT PRIMARY KEY, requests INTEGER, last_used INTEGER);
CREATE TABLE IF NOT EXISTS health (
    layer TEXT, gateway TEXT, successes REAL, failures REAL, wrongs REAL, first_byte_s REAL, bytes REAL,
    busy_s REAL, weight REAL, updated_at INTEGER, last_success INTEGER, last_error TEXT, PRIMARY KEY (layer, gateway)
);
"""

_CHANGES = {  # what an older version lacks, by that version
    1: "DROP TABLE IF EXISTS health;",  # it had a mean over connections; what is known of gateways begins anew
    2: "ALTER TABLE days ADD COLUMN durations TEXT;",
}

log = logging.getLogger(__name__)


class NewerError(StoreError):
    """The database is of a newer modelcache, which knows what to do with it."""


class Database:
    """One file, for one writing thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._is_off = False
        self._may_begin_anew = True
        self._not_before = 0.0

    @property
    def is_off(self) -> bool:
        return self._is_off

    def write(self, work: Callable[["Connection"], None], *, at_once: bool = False) -> bool:
        """Does the work in one transaction. False if somebody holds the lock: to be brought again, later.

        True also where the database is switched off: there is nothing to bring again. `at_once` also asks where it was
        held a moment ago.
        """
        if self._is_off:
            return True
        if time.monotonic() < self._not_before and not at_once:
            return False
        import sqlite3

        try:
            self._write(work)
        except sqlite3.DatabaseError as error:
            return self._judge(error, work)
        except (OSError, StoreError, sqlite3.Error, ValueError, OverflowError) as error:
            self._switch_off(error)
        return True

    def _write(self, work: Callable[["Connection"], None]) -> None:
        """Closing without COMMIT rolls back."""
        with contextlib.closing(_opened(self.path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            work(connection)
            connection.execute("COMMIT")

    def _judge(self, error: "DatabaseError", work: Callable[["Connection"], None]) -> bool:
        import sqlite3

        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            self._not_before = time.monotonic() + AGAIN_AFTER_S
            return False
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT) and self._may_begin_anew:
            self._may_begin_anew = False
            try:
                _set_aside(self.path)
            except OSError as reason:  # another process is doing that now, or the disk fails
                self._switch_off(reason)
                return True
            return self.write(work, at_once=True)
        self._switch_off(error)
        return True

    def _switch_off(self, error: BaseException) -> None:
        self._is_off = True
        log.warning("%s: no history is kept from here on: %s", self.path, error)


def _opened(path: str) -> "Connection":
    """Ready to be written. The file is for its owner alone, and so is what SQLite puts beside it."""
    import sqlite3

    make_directories(os.path.dirname(path))
    with suppress(FileExistsError):
        os.close(os.open(path, CREATE, 0o600))
    if os.path.islink(path) or not os.path.isfile(path):
        raise StoreError(f"{path} is not a file of modelcache")
    connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        if (version := version_of(connection)) < VERSION:
            changes = " ".join(change for since, change in _CHANGES.items() if 0 < version <= since)
            connection.executescript(f"BEGIN IMMEDIATE; {changes} {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def version_of(connection: "Connection") -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise NewerError(f"it has version {version}, this modelcache reads {VERSION}", next_step="update modelcache")
    return version


def _set_aside(path: str) -> None:
    """Moves what is no database of ours to a name of its own. OSError where it cannot be moved now."""
    import fcntl

    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_garbage(path):
            return  # somebody else has set it aside, and begun anew
        aside = f"{path}.damaged-{time.time_ns() // 1_000_000}"
        os.rename(path, aside)
        for beside in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.rename(path + beside, aside + beside)
        log.warning("%s was damaged and is kept as %s", path, aside)
    finally:
        os.close(folder)


def _is_garbage(path: str) -> bool:
    return _is_malformed(path) and _can_be_read(path)


def _is_malformed(path: str) -> bool:
    """By SQLite's account, which says the same of a disk that fails."""
    import sqlite3

    try:
        with contextlib.closing(sqlite3.connect(path, timeout=WAIT_S)) as connection:
            verdict: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            return verdict != "ok"
    except sqlite3.DatabaseError as error:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        return code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def _can_be_read(path: str) -> bool:
    """From end to end: else it may be whole, on a disk that is not."""
    try:
        with open(path, "rb") as file:
            while file.read(_READ_BYTES):
                pass
    except OSError:
        return False
    return True


def _mode_to_read(path: str) -> str:
    if os.path.exists(path + "-wal"):
        return "mode=ro"  # it is somebody's, or of somebody who was killed: what is in there stays there
    if not os.access(os.path.dirname(path), os.W_OK):
        return "immutable=1"
    return "mode=rw" if os.access(path, os.W_OK) else "mode=ro"


@contextmanager
def reading(path: str, wait_s: float = READ_WAIT_S) -> Iterator["Connection | None"]:
    """For questions; None where there is no database yet. StoreError, in one line, where it cannot be read.

    Nothing is left beside it that was not there: whoever may write takes away what SQLite puts there. Also without the
    right to write, where SQLite needs what lies beside it to be there or the file to stay as it is.
    """
    if not os.path.isfile(path):
        yield None
        return
    import sqlite3
    from urllib.parse import quote

    mode = _mode_to_read(path)
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?{mode}", timeout=wait_s, uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA query_only = 1")
            yield connection if version_of(connection) else None
    except NewerError as error:
        raise StoreError(f"{path}: {error.message}", next_step=error.next_step) from error
    except sqlite3.Error as error:
        step = "move it away: it holds history, no model" if _is_garbage(path) else "try again later"
        raise StoreError(f"{path} cannot be read: {error}", next_step=step) from error
