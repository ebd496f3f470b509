"""Durable, link-proof file operations, and what the disk's refusals mean to a person.

Responsible for: the order write, sync, rename, sync the directory (I3); never following a symlink inside
the cache (I17); translating OSError into StoreError with what to do (I25).
Leaves to others: which paths, and what goes into the files.
"""

import errno
import fcntl
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, TypeVar

from modelcache.errors import ShortageError, StoreError, UsageError
from modelcache.store.modes import FOLDER, is_shared, mode_in

T = TypeVar("T")
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
BUFFER = 1 << 20
SHARE = "find {0} -type d -exec chmod 2775 {{}} +; find {0} -type f -exec chmod g+r {{}} +"
SWEEPS = 100  # that may come just then
# linux/falloc.h; unlike posix_fallocate it never writes zeros where there is no support
_FS_IOC_RESVSP, _FS_IOC_UNRESVSP = 0x40305828, 0x4030582B

_PLACE = "MODELCACHE_HOME or --output"
_ADVICE = {
    errno.ENOSPC: ("the disk is full", "free space"),
    errno.EDQUOT: ("the disk quota is used up", "free space"),
    errno.EROFS: ("the file system is read-only", f"choose another {_PLACE}"),
    errno.EACCES: ("permission denied", f"choose another {_PLACE}, or mend its permissions"),
    errno.EPERM: ("not permitted", f"choose another {_PLACE}, or mend its permissions"),
    errno.EFBIG: ("the file is too large for this file system or limit", "choose a file system without that limit"),
    errno.EMFILE: ("too many open files", "raise `ulimit -n`"),
    errno.ENFILE: ("too many open files on this machine", "close some programs"),
    errno.EIO: ("the disk failed to read or write", "check the disk"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ELOOP: ("a symbolic link is in the way", "remove the link"),
    errno.ENOTDIR: ("a file is where a folder should be", "move it away"),
    errno.EISDIR: ("a folder is where a file should be", "move it away"),
}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def random_name(size: int) -> str:
    """`size` random bytes in hex: a name that nobody else has (`secrets` would be 5 ms of every start)."""
    return os.urandom(size).hex()


def store_error(error: OSError, path: str) -> StoreError:
    """What an OSError at `path` means and what to do, in one line."""
    reason, advice = _ADVICE.get(error.errno or 0, (error.strerror or str(error), "mend it"))
    kind = ShortageError if error.errno in (errno.EMFILE, errno.ENFILE) else StoreError
    return kind(f"{path}: {reason}", next_step=advice)


def is_full(error: StoreError) -> bool:
    """Whether a file could not be made or written only because there is no room."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_ROOM


@contextmanager
def disk_errors(path: str) -> Iterator[None]:
    """Translates every OSError inside into StoreError that names `path`."""
    try:
        yield
    except OSError as error:
        raise store_error(error, path) from error


@contextmanager
def chosen_by(name: str) -> Iterator[None]:
    """StoreErrors inside are about a place that the user chose by that setting or option: their advice says so."""
    try:
        yield
    except ShortageError:
        raise
    except StoreError as error:
        advice = error.next_step.replace(_PLACE, name)
        error.next_step = advice if name in advice else f"{advice}, or choose another {name}"
        raise


def sync_directory(path: str) -> None:
    """Makes renames inside `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directories(path: str) -> None:
    """Creates a folder of ours and what it lacks above it. A symlink where it should be is refused (I17).

    In a root that a group shares it is the group's (`modes`).
    """
    with disk_errors(path):
        _make(path, 0o700)
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)


def make_output_directories(path: str) -> None:
    """Creates a folder of the user's and what it lacks above it, under the umask. Symlinks to folders are followed."""
    with disk_errors(path):
        _make(path, 0o777)
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)


def _make(path: str, mode: int) -> None:
    parent = os.path.dirname(path)
    try:
        make_folder(path, mode)
    except FileNotFoundError:
        if parent in ("", path):
            raise
        _make(parent, mode)
        with suppress(FileExistsError):
            make_folder(path, mode)
        sync_directory(parent)
    except FileExistsError:
        pass


def make_root(path: str) -> None:
    """The root that a group is to share. UsageError where one is there that is not like that."""
    if not os.path.lexists(path):
        with disk_errors(path):
            _make(os.path.dirname(path), 0o777)
            with suppress(FileExistsError):
                _make_shared(path)
    elif not is_shared(path):
        from shlex import quote

        raise UsageError(f"shared = true, but {path} is not a group's", next_step=f"{SHARE.format(quote(path))}")


def make_folder(path: str, mode: int = 0o700) -> None:
    """One folder, with the mode that it has to have where it lies. FileExistsError where something is there."""
    if mode_in(os.path.dirname(path), mode) == mode:
        os.mkdir(path, mode)
    elif os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    else:
        _make_shared(path)


def _make_shared(path: str) -> None:
    """It is the group's when it gets its name: whoever comes just then, or after a kill, is not kept out of it, and
    makes nothing in it that is his alone. It may take the place of an empty folder, which was made just now."""
    beside = os.path.join(os.path.dirname(path), f".{random_name(8)}.tmp")
    os.mkdir(beside, 0o700)
    try:
        os.chmod(beside, FOLDER)
        os.rename(beside, path)
    except OSError as error:
        os.rmdir(beside)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from error
        raise


def create(path: str, private: int = 0o600) -> int:
    """A new file, open to be written, with the mode that it has to have where it lies."""
    fd = os.open(path, CREATE, private)
    if (wanted := mode_in(os.path.dirname(path), private)) != private:
        os.fchmod(fd, wanted)
    return fd


def check_no_links(root: str, path: str) -> None:
    """StoreError if `path`, or a folder between `root` and it, is a symlink: nothing is written through it (I17)."""
    if link := link_towards(root, path):
        raise store_error(OSError(errno.ELOOP, os.strerror(errno.ELOOP)), link)


def link_towards(root: str, path: str) -> str:
    """The first symlink on the way from `root` to `path`, `path` included; empty if there is none."""
    link = ""
    while len(path) > len(root):
        if os.path.islink(path):
            link = path
        path = os.path.dirname(path)
    return link


def write_atomic(path: str, content: bytes, mode: int | None = None) -> None:
    """Replaces a small file: a reader sees the old or the new whole, whatever is killed when (I3).

    Without a `mode` it is its owner's alone, or the group's that shares the root.
    """
    with disk_errors(path):
        with _replacing(path, mode) as fd:
            write_all(fd, memoryview(content), 0)
        sync_directory(os.path.dirname(path))


@contextmanager
def replacing(path: str, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file of any size that takes the place of another, as `write_atomic` does, when the block has ended.

    Where the block raises, nothing is left of it, and what was there stays. StoreError.
    """
    with disk_errors(path):
        with _replacing(path, mode) as fd, os.fdopen(fd, "wb", closefd=False) as stream:
            yield stream
        sync_directory(os.path.dirname(path))


@contextmanager
def _replacing(path: str, mode: int | None) -> Iterator[int]:
    folder, name = os.path.split(path)
    fd, beside = temporary(folder, lambda: f".{name}.{random_name(4)}.tmp", mode)
    try:
        yield fd
        os.fsync(fd)
        os.rename(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise
    finally:
        os.close(fd)


def temporary(folder: str, new_name: Callable[[], str], mode: int | None = None) -> tuple[int, str]:
    """A new file, open to be written, and its path. Its lock tells whoever cleans that it is in use; that goes with the
    descriptor. What a clean took, or has in its hands, before it was locked is made again, under another name."""
    for _ in range(SWEEPS):
        path = os.path.join(folder, new_name())
        fd = create(path) if mode is None else os.open(path, CREATE, mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(FileNotFoundError):
                os.unlink(path)
        except OSError:
            return fd, path  # a disk without locks: its age keeps it
        else:
            if os.fstat(fd).st_nlink:
                return fd, path
        os.close(fd)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), folder)


def again_where_taken(work: Callable[[], T]) -> T:
    """What was taken away while it was made is made again: a link, which a clean sees before anybody can lock it, or
    what another host takes where locks lie. FileNotFoundError where that goes on and on."""
    for _ in range(SWEEPS):
        with suppress(FileNotFoundError):
            return work()
    return work()


def check_room(path: str, needed: int) -> None:
    """StoreError if the disk that `path` is on has not that many bytes left: told before an hour is spent on it.

    Writing may fail all the same (I25).
    """
    with disk_errors(path):
        disk = os.statvfs(path)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise StoreError(
            f"{path}: the disk has room for {free:,} bytes, {needed:,} more are needed",
            next_step="free space",
        )


def at_once(path: str, flags: int) -> int:
    """An opener for `open`: a fifo in its place must not hang us."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_small(path: str, most: int = 64 << 20, *, private: bool = False) -> bytes | None:
    """The content of a regular file of our own; None where there is none. Links and giants are refused.

    So is, for `private`, what another account has put into a root that it shares: it says what we are to do.
    """
    with disk_errors(path):
        try:
            fd = os.open(path, READ | os.O_NONBLOCK)  # a fifo in its place must not hang us
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > most:
                raise StoreError(f"{path}: not a file of modelcache", next_step="move it away")
            if private and status.st_uid != os.geteuid() and is_shared(os.path.dirname(path)):
                raise StoreError(f"{path}: another account has put it there", next_step="move it away")
            return b"".join(map(bytes, chunks_of(fd, 0, status.st_size)))  # copies: the views share one buffer
        finally:
            os.close(fd)


def write_all(fd: int, view: memoryview, offset: int) -> None:
    """pwrite until all is written: a full disk may take a part first."""
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def reserve(fd: int, start: int, stop: int) -> bool:
    """Asks for room for bytes to come, without changing the size of the file. False where that cannot be had."""
    return _for_space(fd, _FS_IOC_RESVSP, start, stop)


def give_back(fd: int, start: int, stop: int) -> None:
    """Frees the room of these bytes, which are zeros or absent after it; the size of the file stays. Never raises."""
    _for_space(fd, _FS_IOC_UNRESVSP, start, stop)


def _for_space(fd: int, request: int, start: int, stop: int) -> bool:
    space = struct.pack("hhqqiI16x", 0, os.SEEK_SET, start, stop - start, 0, 0)
    with suppress(OSError):
        return sys.platform == "linux" and fcntl.ioctl(fd, request, space) is not None
    return False


def chunks_of(fd: int, start: int, stop: int, buffer: memoryview | None = None) -> Iterator[memoryview]:
    """Reads bytes in order through one buffer; each view is valid until the next. Ends early at the end of the file."""
    buffer = memoryview(bytearray(min(BUFFER, max(1, stop - start)))) if buffer is None else buffer
    while start < stop:
        count = os.preadv(fd, [buffer[: min(len(buffer), stop - start)]], start)
        if not count:
            return
        yield buffer[:count]
        start += count


def remove_tree(path: str) -> None:
    """Removes a folder of ours with all that is in it, following no link. What is gone already is no error."""
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
    folders = [path]
    for folder in folders:  # it grows meanwhile
        with suppress(FileNotFoundError):
            for entry in list(os.scandir(folder)):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    with suppress(FileNotFoundError):
                        os.unlink(entry.path)
    for folder in reversed(folders):
        with suppress(FileNotFoundError):
            os.rmdir(folder)


def output_mode() -> int:
    """The mode of a new file under the umask, read without setting it: other threads create files meanwhile."""
    with suppress(OSError, ValueError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return 0o666 & ~int(next(line for line in status if line.startswith("Umask:")).split()[1], 8)
    return 0o644
