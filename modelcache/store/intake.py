"""Makes a file of this disk a blob: by reflink where the disk can, else as its second name, else by copy.

Rules:
1. Every byte is read back and hashed before the blob has its name; one read, unless it has to be copied.
2. The file that is there is never changed: not its bytes, its mode or its date, whatever becomes of the blob.
3. A blob that is a second name of somebody else's file is *foreign*. `foreign/<sha256>` says so, with its inode: it
   keeps its mode, and no date of it is changed to mark rot. If its owner changes it, it does not look as it did when it
   was proven, and is read again like any other.

Responsible for: these. Leaves to others: which files (`foreign`), and what a wrong one means (`filefetch`).
"""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from modelcache.errors import SourceError, StoreError, UsageError
from modelcache.model import Digest
from modelcache.store import blobs
from modelcache.store.disk import (
    READ,
    again_where_taken,
    check_no_links,
    chunks_of,
    disk_errors,
    make_directories,
    random_name,
    read_small,
    store_error,
    sync_directory,
    temporary,
    write_all,
    write_atomic,
)
from modelcache.store.installed import Stamp
from modelcache.store.layout import Layout
from modelcache.store.links import FICLONE
from modelcache.store.modes import is_shared

MOST_MARK_BYTES = 64
LEAST_LINKED = 1 << 20  # bytes; what is smaller is what people edit in place: a copy of it is cheap, and nobody else's


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Taken:
    """A blob that was made of a file, what its bytes are, and how it looked before they were read.

    `is_copy`: its bytes are on the disk twice now.
    """

    reading: blobs.Reading
    stamp: Stamp
    is_copy: bool


def take(
    layout: Layout, path: str, expected: tuple[Digest, ...], piece_size: int, tick: Callable[[], None] = _nothing
) -> Taken | None:
    """Makes the file a blob. None, and nothing is left behind, where it is not what is expected or changed meanwhile.

    `tick` is called for each MiB; it may raise to give up. Raises SourceError where the file cannot be read or is none,
    StoreError where the store cannot be written to.
    """
    folder = os.path.join(layout.root, "blobs", "sha256")
    check_no_links(layout.root, folder)
    make_directories(folder)
    with _their_errors(path):
        fd = os.open(path, READ | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise SourceError(f"{path} is no regular file")
            with _temporary(folder) as (own, beside):
                if _is_cloned(own, fd):
                    return _named(layout, own, beside, expected, piece_size, tick, is_copy=False)
            if _may_link(fd, path, folder):
                return _linked(layout, fd, path, expected, piece_size, tick)
            with _temporary(folder) as (own, beside):
                for offset, chunk in _chunks(fd):
                    tick()
                    with disk_errors(beside):
                        write_all(own, chunk, offset)
                return _named(layout, own, beside, expected, piece_size, tick, is_copy=True)
        finally:
            os.close(fd)


@contextmanager
def _temporary(folder: str) -> Iterator[tuple[int, str]]:
    """A file of ours; gone afterwards, if it got no other name."""
    with disk_errors(folder):
        fd, beside = temporary(folder, lambda: f".{random_name(8)}.tmp")
    try:
        yield fd, beside
    finally:
        with suppress(FileNotFoundError):
            os.unlink(beside)
        os.close(fd)


@contextmanager
def _their_errors(path: str) -> Iterator[None]:
    """What the disk says of a file that is not ours costs us that file, and nothing else."""
    try:
        yield
    except OSError as error:
        raise SourceError(store_error(error, path).message) from error


def _is_cloned(own: int, fd: int) -> bool:
    try:
        fcntl.ioctl(own, FICLONE, fd)
    except OSError:
        return False
    return True


def _chunks(fd: int) -> Iterator[tuple[int, memoryview]]:
    offset = 0
    for chunk in chunks_of(fd, 0, os.fstat(fd).st_size):
        yield offset, chunk
        offset += len(chunk)


def _named(
    layout: Layout,
    own: int,
    beside: str,
    expected: tuple[Digest, ...],
    piece_size: int,
    tick: Callable[[], None],
    *,
    is_copy: bool,
) -> Taken | None:
    """Proves a file of ours, and gives it the blob's name."""
    with disk_errors(beside):
        stamp = Stamp.of(beside)
        reading = blobs.read_open(own, expected, piece_size, tick)
        if reading.wrong is not None:
            return None
        os.fchmod(own, blobs.MODE)
        os.fsync(own)
        _publish(layout, beside, reading)
    return Taken(reading, stamp, is_copy)


def _may_link(fd: int, path: str, folder: str) -> bool:
    """Whether the file can get a second name there, and everybody who uses the store may read it then.

    Some systems grant that for one's own files alone: it is tried.
    """
    status = os.fstat(fd)
    if status.st_size < LEAST_LINKED or (is_shared(folder) and not status.st_mode & stat.S_IROTH):
        return False
    probe = os.path.join(folder, f".{random_name(8)}.tmp")
    try:
        os.link(path, probe, follow_symlinks=False)
    except OSError:
        return False
    with suppress(FileNotFoundError):  # a clean may have taken it
        os.unlink(probe)
    return True


def _linked(
    layout: Layout, fd: int, path: str, expected: tuple[Digest, ...], piece_size: int, tick: Callable[[], None]
) -> Taken | None:
    """Proves the file where it is, and only then gives it the blob's name as well."""
    stamp = Stamp.of_open(fd)
    reading = blobs.read_open(fd, expected, piece_size, tick)
    if reading.wrong is not None:
        return None
    os.fsync(fd)  # whoever wrote it may not have waited for the disk
    is_named = False

    def name() -> None:
        nonlocal is_named
        is_named = _is_named(layout, path, stamp, reading)

    with disk_errors(layout.blob(reading.sha256)):
        again_where_taken(name)
    return Taken(reading, stamp, is_copy=False) if is_named else None


def _is_named(layout: Layout, path: str, stamp: Stamp, reading: blobs.Reading) -> bool:
    """Gives the file the blob's name as well. False where it is not any more what was read."""
    beside = os.path.join(layout.root, "blobs", "sha256", f".{random_name(8)}.tmp")
    os.link(path, beside, follow_symlinks=False)
    try:
        if stamp.judge(beside) != "right":
            return False
        make_directories(os.path.dirname(layout.foreign(reading.sha256)))
        write_atomic(layout.foreign(reading.sha256), str(stamp.inode).encode())
        _publish(layout, beside, reading)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(beside)
    return True


def _publish(layout: Layout, beside: str, reading: blobs.Reading) -> None:
    blob = layout.blob(reading.sha256)
    check_no_links(layout.root, os.path.dirname(blob))
    make_directories(os.path.dirname(blob))
    os.rename(beside, blob)
    sync_directory(os.path.dirname(blob))
    with suppress(StoreError):  # only knowledge that makes later looks cheaper
        blobs.note(layout, reading.digests, reading.pieces)


def is_foreign(layout: Layout, sha256: str, place: str) -> bool:
    """Whether the file at `place`, a blob or a link to one, is another tool's as well: nothing of it is changed."""
    with suppress(StoreError, UsageError, OSError):
        mark = read_small(layout.foreign(Digest.parse(sha256, "sha256")), MOST_MARK_BYTES)
        return mark is not None and mark == str(os.lstat(place).st_ino).encode()
    return False
