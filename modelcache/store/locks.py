"""One download per model and per content at a time: a kernel lock per key, with a record that says who holds it.

Responsible for: waiting visibly and with an end (I11). A free kernel lock means a dead holder, whatever the
record says (I13); the record only explains. Leaves to `lease`: file systems where the kernel cannot lock; to `claim`:
being right even if the lock lies (I12).
"""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from modelcache.errors import LockedError, StoreError
from modelcache.store.disk import READ, create, disk_errors, make_directories, random_name, read_small
from modelcache.store.lease import BEAT_S, Lease
from modelcache.store.modes import is_shared
from modelcache.store.owner import Owner, is_suspended

if TYPE_CHECKING:
    from filelock import BaseFileLock

POLL_S = 0.2
PEEK_S = 0.05  # `is_held` takes a lock for a moment: nobody is refused for that
CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # a file system without flock
LEASE = ".lease"
MOST_BYTES = 64 << 10  # of a record
SHOWN_EVERY_S = 1.0  # that bytes were read and hashed
HALF_A_DAY_S = 12 * 60 * 60
MODEL_LEASE_MS, FILE_LEASE_MS = 30 * 60_000, 5 * 60_000  # for readers that cannot ask the kernel (product C4)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a lock is about: a version of a model, or one `file` of it. `name` is what people call it."""

    model: str
    version: str = ""
    file: str = ""
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.file or self.model


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock, as its record says; without a pid, nobody knows."""

    pid: int = 0
    host: str = ""
    start: int = 0
    since_ms: int = 0

    @classmethod
    def of(cls, path: str) -> Self:
        """Of the lock at `path`. Whatever its record holds: nothing is raised."""
        try:
            record = json.loads(read_small(path + ".json", MOST_BYTES) or b"")
            match record:
                case {"pid": int(pid), "host": str(host), "processStart": int(start), "timestamp": int(since_ms)}:
                    time.localtime(since_ms // 1000)
                    return cls(pid, host[:64], start, since_ms) if 0 < pid < 2**31 else cls()
        except (StoreError, OSError, ValueError, OverflowError, RecursionError):
            pass
        return cls()

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        day = "" if abs(time.time() - self.since_ms / 1000) < HALF_A_DAY_S else "%Y-%m-%d "
        since = time.strftime(f"{day}%H:%M:%S", time.localtime(self.since_ms // 1000))
        who = "this process" if self._is(Owner.mine()) else f"process {self.pid} on {self.host!r}"
        return f"{who} since {since}"

    def owns(self, owner: Owner | None) -> bool:
        """Whether `owner` is this process, by all that a record tells."""
        return owner is not None and self._is(owner)

    def advice(self) -> str:
        """What to do if it does not go on: the command where there is one."""
        here = Owner.here(self.pid) if self.pid else None
        if here is None or not self._is(here):
            who = f"process {self.pid} on {self.host!r}" if self.pid else "the process that has it"
            return f"wait for it, or end {who}"
        if here == Owner.mine():
            return "wait for the other download, or cancel it"
        if is_suspended(self.pid):
            return f"it is suspended: let it go on with `kill -CONT {self.pid}`, or end it with `kill -KILL {self.pid}`"
        return f"wait for it, or end it with `kill {self.pid}`"

    def _is(self, owner: Owner) -> bool:
        return (owner.host[:64], owner.pid, owner.start) == (self.host, self.pid, self.start)


def _unknown(_holder: Holder) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait: until `progress` of the holder, and its `Pulse`, have been the same for `timeout_s`.

    It is waited for 50 ms at least, looked at every `poll_s`, and says in words how far the holder is. `wait` sleeps
    between two looks, and may raise to end the waiting.
    """

    timeout_s: float
    progress: Callable[[Holder], object] = _unknown
    wait: Callable[[float], None] = time.sleep
    poll_s: float = POLL_S


class Pulse:
    """Shows whoever waits for a lock that its holder gets on where nothing is written: by the date of its record."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._done = 0
        self._not_before = 0.0

    def show(self, done: int) -> None:
        """`done` is any number that changes while the work goes on. Called as often as one likes; never raises."""
        if done != self._done and time.monotonic() >= self._not_before:
            self._done, self._not_before = done, time.monotonic() + SHOWN_EVERY_S
            with suppress(OSError, NotImplementedError):
                os.utime(self._path + ".json", follow_symlinks=False)


def _shown(path: str) -> int:
    try:
        return os.lstat(path + ".json").st_mtime_ns
    except OSError:
        return 0


@contextmanager
def locked(path: str, subject: Subject, patience: Patience) -> Iterator[None]:
    """Holds the lock at `path` for the `with` block. Somebody else may have held it until a moment ago.

    Raises LockedError, which names the holder, when the patience is over; StoreError if the disk refuses. A child
    that is forked inside owns no lock and leaves it alone (I15).
    """
    make_directories(os.path.dirname(path))
    with disk_errors(path):
        _make_for_group(path)
        lock = _acquired(path, subject, patience)
    process = os.getpid()
    try:
        with suppress(OSError):  # the record only explains
            _record(path, subject)
        yield
    finally:
        if os.getpid() == process:
            with suppress(OSError):
                os.unlink(path + ".json")
            with suppress(OSError):  # what cannot be unlocked is free when this process ends
                lock.release()


def _make_for_group(path: str) -> None:
    """Where a group shares the root, a lock is every member's from its first moment: none is kept from waiting."""
    if not is_shared(os.path.dirname(path)) or os.path.lexists(path):
        return
    beside = f"{os.path.dirname(path)}/{random_name(8)}.lock"  # a kill leaves what is a free lock
    os.close(create(beside))
    with suppress(FileExistsError):
        os.link(beside, path)
    os.unlink(beside)


def _acquired(path: str, subject: Subject, patience: Patience) -> "BaseFileLock | Lease":
    from filelock import FileLock, Timeout

    lock: BaseFileLock | Lease = FileLock(path, thread_local=False, fallback_to_soft=False)
    seen: object = None
    since = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pass
        except OSError as error:
            if error.errno not in CANNOT_LOCK or isinstance(lock, Lease):
                raise
            lock = Lease(path + LEASE)
            continue
        else:
            return lock
        holder = Holder.of(path)
        far = patience.progress(holder)
        if (now := (far, _shown(path))) != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - since >= max(patience.timeout_s, PEEK_S):
            raise _refusal(subject, patience, holder, str(far))
        patience.wait(min(patience.poll_s, max(patience.timeout_s, PEEK_S) / 10))


def is_held(path: str) -> bool:
    """Whether somebody holds the lock at this moment. Who wants it just then waits 0.2 s longer."""
    import fcntl

    try:
        fd = os.open(path, READ | os.O_NONBLOCK)  # a fifo in its place must not hang us
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in CANNOT_LOCK or os.path.lexists(path + LEASE)
    finally:
        os.close(fd)
    return False


class Lookout:
    """Asks the same locks again and again, and so sees also that a lease has died, where the kernel cannot lock.

    `beat_s` is that of leases.
    """

    def __init__(self, beat_s: float = BEAT_S) -> None:
        self._beat_s = beat_s
        self._leases: dict[str, Lease] = {}

    def is_held(self, path: str) -> bool:
        """As `is_held`; a dead lease is removed."""
        if not is_held(path):
            self._leases.pop(path, None)
            return False
        if not os.path.lexists(path + LEASE):
            return True
        if path not in self._leases:
            self._leases[path] = Lease(path + LEASE, self._beat_s)
        return not self._leases[path].remove_if_dead()


def _refusal(subject: Subject, patience: Patience, holder: Holder, far: str) -> LockedError:
    idle = f", without progress for {patience.timeout_s:g} s" if patience.timeout_s else ""
    how_far = f" ({far})" if far else ""
    return LockedError(f"{subject} is in use by {holder}{idle}{how_far}", next_step=holder.advice())


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
    fd = create(path + ".json")
    try:
        os.write(fd, json.dumps(record).encode())
    finally:
        os.close(fd)
