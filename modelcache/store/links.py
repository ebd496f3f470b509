"""Gives proven bytes the names people use: links inside the store, copies outside it.

Responsible for: never showing half a file under such a name (I6), and never letting an edit of an output reach the
cache (I5). Leaves to `blobs`: whether the bytes are right to begin with; a copy is hashed all the same.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from modelcache.errors import LockedError, LostError, VerificationError
from modelcache.model import Digest
from modelcache.names import cut
from modelcache.store.disk import (
    READ,
    again_where_taken,
    chunks_of,
    disk_errors,
    make_directories,
    make_output_directories,
    output_mode,
    random_name,
    sync_directory,
    write_all,
)
from modelcache.store.installed import Stamp
from modelcache.store.modes import mode_in

PEEK_S = 0.05
FICLONE = 0x40049409  # linux/fs.h: share the extents of another file, copy on write


def _nothing() -> None:
    pass


def link(blob: str, target: str, sha256: Digest, proven: Stamp) -> Stamp:
    """Makes `target` a hard link to the blob, replacing what is there; a copy where links are not possible.

    `proven` is how the blob looked when it was proven. Returns how `target` did: a blob that was replaced or found
    rotten since then does not look like that. Raises StoreError, LostError where there is no blob any more.
    """
    make_directories(os.path.dirname(target))
    if not os.path.lexists(blob):
        raise LostError(target)
    with disk_errors(target):
        if _same_inode(blob, target):
            return proven
        try:
            again_where_taken(lambda: _link(blob, target))
        except OSError:
            if not os.path.isfile(blob) or os.path.isdir(target):
                raise
            return copy(blob, target, sha256, 0o444)
        sync_directory(os.path.dirname(target))
    return proven


def _link(blob: str, target: str) -> None:
    beside = f"{os.path.dirname(target)}/.{random_name(8)}.tmp"
    try:
        os.link(blob, beside, follow_symlinks=False)
        os.rename(beside, target)
    finally:  # rename(2) does nothing, and says so to nobody, where another process has linked the same blob just now
        with suppress(FileNotFoundError):
            os.unlink(beside)


def copy(
    source: str, target: str, sha256: Digest, mode: int | None = None, tick: Callable[[], None] = _nothing
) -> Stamp:
    """Makes `target` an independent copy, proven by reading the copy back; a reflink where the disk can.

    The temporary name is fixed by destination and digest, so that a rerun replaces what a kill left. Raises
    VerificationError if the source is not what its digest says, LockedError if another process is copying to the
    same place, StoreError. `mode` None is that of a new file under the umask. `tick` is called for each MiB; it may
    raise to give up. Returns how it looked before it was read back.
    """
    with replaced(target, sha256.hex[:16], mode) as (fd, beside):
        return _fill(fd, beside, source, sha256, tick)


@contextmanager
def replaced(target: str, mark: str, mode: int | None = None) -> Iterator[tuple[int, str]]:
    """For the `with` block a new file, open and under another name; at its end that, synced, is `target`.

    The other name is fixed by `target` and `mark`, so that a rerun replaces what a kill left; after an error nothing
    is left. Raises LockedError if another process is writing the same, StoreError. `mode` as in `copy`.
    """
    folder, name = os.path.split(target)
    make_output_directories(folder)
    beside = f"{folder}/.{cut(name)}.{mark}.modelcache"
    with disk_errors(target):
        fd = _own(beside, target)
        try:
            yield fd, beside
            os.fchmod(fd, output_mode() if mode is None else mode)
            os.fsync(fd)
            os.rename(beside, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(beside)
            raise
        finally:
            os.close(fd)
        sync_directory(folder)


def _fill(fd: int, beside: str, source: str, sha256: Digest, tick: Callable[[], None]) -> Stamp:
    hashed = hashlib.sha256()
    whence = os.open(source, READ)
    try:
        size = os.fstat(whence).st_size
        try:
            fcntl.ioctl(fd, FICLONE, whence)
        except OSError:
            position = 0
            for chunk in chunks_of(whence, 0, size):
                tick()
                write_all(fd, chunk, position)
                position += len(chunk)
    finally:
        os.close(whence)
    stamp = Stamp.of(beside)
    for chunk in chunks_of(fd, 0, size):
        tick()
        hashed.update(chunk)
    if hashed.hexdigest() != sha256.hex:
        raise VerificationError(f"{source} is not what it was: sha256 {sha256.hex[:12]}… expected")
    return stamp


def _own(beside: str, target: str) -> int:
    """Opens the temporary file for this process alone, empty. The lock goes with the descriptor."""
    end = time.monotonic() + PEEK_S
    while True:
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        is_ours = _may_change_mode(fd, mode_in(os.path.dirname(beside), 0o600))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_inode_as(fd, beside):
                if is_ours:
                    os.ftruncate(fd, 0)
                    return fd
                os.unlink(beside)
        except BlockingIOError:
            os.close(fd)
            if time.monotonic() < end:
                time.sleep(PEEK_S / 10)  # whoever cleans only looks at it
                continue
            raise LockedError(f"another process is writing {target}", next_step="wait for it") from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its owner renamed it meanwhile, or it was another account's: begin anew


def _may_change_mode(fd: int, mode: int) -> bool:
    """Gives it this mode. False where it is what a kill left of another account, who shares the root."""
    with suppress(PermissionError):
        os.fchmod(fd, mode)
        return True
    return False


def _same_inode_as(fd: int, path: str) -> bool:
    mine = os.fstat(fd)
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _same_inode(one: str, other: str) -> bool:
    first = os.lstat(one)
    try:
        second = os.lstat(other)
    except FileNotFoundError:
        return False
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)
