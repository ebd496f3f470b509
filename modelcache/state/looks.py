"""What sweeps remember on this host: which model's turn it is, and how files of other caches were found.

    models   how long ago the oldest file of a version was verified, by its record: so that a record is read only then
    proven   in which model a content that several models share was verified last
    looks    files that have no stamp of ours, or that are wrong, or whose record could not be written: when they were
             looked at, and what was found
    wrong    which bytes of them are wrong
    begun    which portions of a large file were right when a sweep ended in it: the next one reads the others

Responsible for: that file, in SQLite, beside the state. It only saves looking: records and files are the truth, and
whatever it says is compared with them. One that is garbage, or of another version, is begun anew; where none can be
written, or the disk is full, it is in memory, for one run. Leaves to others: what is due (`due`), reading (`sweep`).
"""

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from modelcache.errors import StoreError, UsageError
from modelcache.model import Span
from modelcache.outcome import Finding
from modelcache.store.disk import CREATE, make_directories
from modelcache.store.installed import Installed, Stamp
from modelcache.store.layout import Layout
from modelcache.store.registry import versions_under

if TYPE_CHECKING:
    from sqlite3 import Connection

VERSION = 2
WAIT_S = 5.0  # for another sweep of this host, which writes for a moment
MEMORY = ":memory:"
ROOM = 8 << 20  # bytes that the disk has to have left
MOST_BYTES = 1 << 16  # of the portions of a file: there are not more
MOST_SPANS = 1000  # of a file, that are kept; of one that is wrong all over, none

_TABLES = """
CREATE TABLE models (
    id TEXT, version TEXT, folder_ns INTEGER, oldest INTEGER, size INTEGER, wrong INTEGER, read_at INTEGER,
    PRIMARY KEY (id, version)
) WITHOUT ROWID;
CREATE INDEX models_by_age ON models (oldest);
CREATE TABLE proven (sha256 TEXT PRIMARY KEY, id TEXT, version TEXT, path TEXT) WITHOUT ROWID;
CREATE TABLE looks (
    cache BLOB, place BLOB, size INTEGER, mtime_ns INTEGER, inode INTEGER, at INTEGER, finding TEXT, reason TEXT,
    PRIMARY KEY (cache, place)
) WITHOUT ROWID;
CREATE TABLE wrong (cache BLOB, place BLOB, spans BLOB, PRIMARY KEY (cache, place)) WITHOUT ROWID;
CREATE TABLE begun (
    place BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode INTEGER, at INTEGER, pieces BLOB, done BLOB
) WITHOUT ROWID;
CREATE TEMP TABLE there (id TEXT PRIMARY KEY, folder_ns INTEGER) WITHOUT ROWID;
"""
_TEMPORARY = _TABLES[_TABLES.index("CREATE TEMP") :]
_SINCE = {1: _TABLES[_TABLES.index("CREATE TABLE wrong") : _TABLES.index("CREATE TEMP")]}  # what older ones lack
_SPAN = struct.Struct("<qq")
_FINDINGS: tuple[Finding, ...] = ("whole", "corrupt", "missing", "unreadable")


@dataclass(frozen=True, slots=True)
class Look:
    """How a file looked when it was read, and what was found; `stamp.verified_at` is when."""

    stamp: Stamp
    finding: Finding
    reason: str = ""
    wrong: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Begun:
    """A file of which not all was read: how it looked, and since when; `done` are the portions that were right, by the
    list of piece digests that is called `pieces`."""

    stamp: Stamp
    pieces: bytes
    done: frozenset[int]


class Looks:
    """Of one root on one host, for one sweep at a time."""

    def __init__(self, connection: "Connection", *, is_kept: bool = True) -> None:
        self._connection = connection
        self.is_kept = is_kept  # else it is lost with this run

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: str) -> Iterator[Self]:
        """For the `with` block. StoreError where its disk fails later on."""
        import sqlite3

        connection, is_kept = _opened(path)
        try:
            yield cls(connection, is_kept=is_kept)
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}", next_step="free the disk, or move that file away") from error
        finally:
            with contextlib.suppress(sqlite3.Error):
                connection.commit()
            connection.close()

    def keep(self) -> None:
        """What was noted so far outlives a kill."""
        self._connection.commit()

    # -- models -------------------------------------------------------------------------------------------------------

    def follow(self, layout: Layout, now_ms: int) -> None:
        """Brings the list of models up to date, reading only the records of new versions."""
        run = self._connection.execute
        run("DELETE FROM there")
        self._connection.executemany("INSERT OR IGNORE INTO there VALUES (?, ?)", _folders(layout.models))
        run("DELETE FROM models WHERE id NOT IN (SELECT id FROM there)")
        changed = run(
            "SELECT there.id, there.folder_ns FROM there LEFT JOIN models ON models.id = there.id"
            " AND models.folder_ns = there.folder_ns WHERE models.id IS NULL"
        )
        for model_id, folder_ns in changed.fetchall():
            self._read(layout, model_id, folder_ns, now_ms)
        self.keep()

    def _read(self, layout: Layout, model_id: str, folder_ns: int, now_ms: int) -> None:
        self._connection.execute("DELETE FROM models WHERE id = ?", (model_id,))
        records = [one for one in versions_under(layout.models, model_id) if one.id == model_id]
        is_settled = len(records) == _count(os.path.join(layout.models, model_id))
        for record in records:
            self.note(record, now_ms, folder_ns if is_settled else 0)

    def note(self, record: Installed, now_ms: int, folder_ns: int | None = None) -> None:
        """What a record says by now. One that is noted for the first time is given the date of its folder."""
        trusted = [file for file in record.files if not file.is_distrusted]
        oldest = min((file.stamp.verified_at for file in trusted), default=now_ms)
        oldest = oldest if 0 < oldest < 1 << 62 else 0
        wrong = len(record.files) - len(trusted) + len(record.missing) + self._looks_below(record.folder)
        size = min(1 << 60, sum(max(0, file.size) for file in record.files))
        if folder_ns is None:
            sql = "UPDATE models SET oldest = ?, size = ?, wrong = ?, read_at = ? WHERE id = ? AND version = ?"
            self._connection.execute(sql, (oldest, size, wrong, now_ms, record.id, record.version))
        else:
            row = record.id, record.version, folder_ns, oldest, size, wrong, now_ms
            self._connection.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def _looks_below(self, folder: str) -> int:
        sql = "SELECT count(*) FROM looks WHERE cache = x'' AND place > ? AND place < ?"
        below = os.fsencode(folder)
        (count,) = self._connection.execute(sql, (below + b"/", below + b"0")).fetchone()  # 0 comes after /
        return int(count)

    def forget(self, model_id: str, version: str) -> None:
        self._connection.execute("DELETE FROM models WHERE id = ? AND version = ?", (model_id, version))

    def total(self) -> int:
        """Bytes of all models; those that several share are counted for each."""
        (total,) = self._connection.execute("SELECT total(size) FROM models").fetchone()
        return int(total)

    def oldest_models(self, before_ms: int, now_ms: int) -> Iterator[tuple[int, str, str]]:
        """When its oldest file was verified, id and version: of models that may have files which were verified before
        then, or something wrong. A row that is as old itself is not believed: whatever it says, its record is read."""
        rows = self._connection.execute(
            "SELECT CASE WHEN wrong OR read_at < ?1 OR read_at > ?2 OR oldest > ?2 THEN 0 ELSE oldest END AS turn,"
            " id, version FROM models WHERE oldest < ?1 OR wrong OR read_at < ?1 OR read_at > ?2 OR oldest > ?2"
            " ORDER BY turn, id, version",
            (before_ms, now_ms + 3_600_000),
        )
        for turn, model_id, version in rows.fetchall():
            if isinstance(turn, int) and isinstance(model_id, str) and isinstance(version, str):
                yield turn, model_id, version

    # -- contents that models share -----------------------------------------------------------------------------------

    def prove(self, sha256: str, model_id: str, version: str, path: str) -> None:
        """The content was verified as this file of a model."""
        row = sha256, model_id, version, path
        self._connection.execute("INSERT OR REPLACE INTO proven VALUES (?, ?, ?, ?)", row)

    def proven(self, sha256: str) -> tuple[str, str, str] | None:
        """Id and version of a model, and the path of its file that was verified as this content last: its record says
        when."""
        rows = self._connection.execute("SELECT id, version, path FROM proven WHERE sha256 = ?", (sha256,))
        row = rows.fetchone()
        return row if row and all(isinstance(each, str) for each in row) else None

    # -- files without a stamp ----------------------------------------------------------------------------------------

    def of(self, cache: str) -> dict[str, Look]:
        """By place."""
        rows = self._connection.execute(
            "SELECT place, finding, reason, spans, size, mtime_ns, inode, at FROM looks LEFT JOIN wrong"
            " USING (cache, place) WHERE cache = ?",
            (os.fsencode(cache),),
        )
        return {
            os.fsdecode(place): Look(Stamp(*numbers), finding, str(reason), _spans(spans))
            for place, finding, reason, spans, *numbers in rows
            if type(place) is bytes and finding in _FINDINGS and all(isinstance(each, int) for each in numbers)
        }

    def look(self, cache: str, place: str, look: Look) -> None:
        stamp = look.stamp
        reason = look.reason.encode(errors="replace").decode()  # it may name a file that has any name
        numbers = stamp.size, stamp.mtime_ns, stamp.inode, stamp.verified_at
        row = os.fsencode(cache), os.fsencode(place), *numbers, look.finding, reason
        self._connection.execute("INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        spans = b"".join(_SPAN.pack(span.start, span.stop) for span in look.wrong[: MOST_SPANS + 1])
        spans = spans if len(spans) <= MOST_SPANS * _SPAN.size else b""
        self._connection.execute("INSERT OR REPLACE INTO wrong VALUES (?, ?, ?)", (*row[:2], spans))

    def unlook(self, cache: str, places: Iterable[str]) -> None:
        rows = [(os.fsencode(cache), os.fsencode(place)) for place in places]
        self._connection.executemany("DELETE FROM looks WHERE cache = ? AND place = ?", rows)
        self._connection.executemany("DELETE FROM wrong WHERE cache = ? AND place = ?", rows)

    # -- files that take long -----------------------------------------------------------------------------------------

    def begun(self, place: str) -> Begun | None:
        """What an earlier sweep has read of it, and no look at the whole came after."""
        sql = "SELECT size, mtime_ns, inode, at, pieces, done FROM begun WHERE place = ?"
        row = self._connection.execute(sql, (os.fsencode(place),)).fetchone()
        if not row or [type(each) for each in row] != [int, int, int, int, bytes, bytes]:
            return None
        done = row[5][:MOST_BYTES]
        bits = (number for number in range(8 * len(done)) if done[number // 8] >> number % 8 & 1)
        return Begun(Stamp(*row[:4]), row[4], frozenset(bits))

    def begin(self, place: str, begun: Begun) -> None:
        bits = bytearray(max(begun.done, default=0) // 8 + 1)
        for number in begun.done:
            bits[number // 8] |= 1 << number % 8
        stamp = begun.stamp
        row = os.fsencode(place), stamp.size, stamp.mtime_ns, stamp.inode, stamp.verified_at, begun.pieces, bytes(bits)
        self._connection.execute("INSERT OR REPLACE INTO begun VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def end(self, place: str) -> None:
        self._connection.execute("DELETE FROM begun WHERE place = ?", (os.fsencode(place),))


def _spans(packed: object) -> tuple[Span, ...]:
    """None of what nobody can have written."""
    if type(packed) is not bytes or len(packed) % _SPAN.size:
        return ()
    found = [(start, stop) for start, stop in _SPAN.iter_unpack(packed)]
    return tuple(Span(*each) for each in found) if all(0 <= start < stop for start, stop in found) else ()


def _opened(path: str) -> "tuple[Connection, bool]":
    """The file, made anew if it is garbage; in memory where it cannot be written. And whether it is the file."""
    import sqlite3

    for _ in range(2):
        try:
            connection = _connected(path)
        except sqlite3.OperationalError:  # locked, read-only, full
            break
        except sqlite3.DatabaseError:
            with contextlib.suppress(OSError):
                os.unlink(path)
        except (OSError, StoreError, UsageError):
            break
        else:
            return (connection, True) if _has_room(path) else (_copied(connection), False)
    return _connected(MEMORY), False


def _has_room(path: str) -> bool:
    """SQLite tells of a full disk when all that it was to keep is lost."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize >= ROOM


def _copied(connection: "Connection") -> "Connection":
    """The same in memory."""
    import sqlite3

    memory = sqlite3.connect(MEMORY)
    with contextlib.closing(connection):
        connection.backup(memory)
    memory.executescript(_TEMPORARY)
    return memory


def _connected(path: str) -> "Connection":
    """sqlite3.DatabaseError for a file that is not ours."""
    import sqlite3

    if path != MEMORY:
        make_directories(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, CREATE, 0o600))
        if os.path.islink(path) or not os.path.isfile(path):
            raise StoreError(f"{path} is not a file of modelcache")
    connection = sqlite3.connect(path, timeout=WAIT_S)
    try:
        connection.execute("PRAGMA synchronous = OFF")  # losing it costs looking
        lacking = _lacking(connection)
        connection.executescript(f"BEGIN; {lacking} PRAGMA user_version = {VERSION}; COMMIT;" if lacking else "")
        connection.executescript(_TEMPORARY)
    except BaseException:
        connection.close()
        raise
    return connection


def _lacking(connection: "Connection") -> str:
    """What makes it a database of this version. sqlite3.DatabaseError for one that is not ours."""
    import sqlite3

    (version,) = connection.execute("PRAGMA user_version").fetchone()
    tables = {name for (name,) in connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")}
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if not version and not tables:
        return _TABLES.replace(_TEMPORARY, "")
    lacking = "".join(sql for since, sql in _SINCE.items() if 0 < version <= since)
    ours = _created(_TABLES) - _created(lacking)
    if not 0 < version <= VERSION or tables != ours or verdict != "ok":
        raise sqlite3.DatabaseError("not ours")
    return lacking


def _created(sql: str) -> set[str]:
    return {each.strip() for each in sql.split(";") if each.strip().startswith("CREATE TABLE")}


def _folders(models: str) -> Iterator[tuple[str, int]]:
    """Name and date of each folder there."""
    with contextlib.suppress(OSError), os.scandir(models) as entries:
        for entry in entries:
            with contextlib.suppress(OSError, UnicodeError):
                if entry.is_dir(follow_symlinks=False):
                    entry.name.encode()
                    yield entry.name, entry.stat(follow_symlinks=False).st_mtime_ns


def _count(folder: str) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(folder))
    return -1
