"""What runs that were killed or given up have left in a store.

Responsible for: finding it cheaply, telling what is still somebody's from what is nobody's, and taking it away:

1. What a lock says is in use is left alone, and it is asked again, under that lock, before anything goes (I29).
2. A file's own time tells its age. One from the future is no older or younger for that: it ages from now on (I14).
3. Links are not followed, and nothing outside the store is looked at.

Leaves to `cleaning` and `maintenance`: how old is too old, and telling people.
"""

import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from modelcache.errors import LockedError
from modelcache.printing import printable
from modelcache.store.claim import holes
from modelcache.store.disk import CREATE, READ, disk_errors, random_name, remove_tree
from modelcache.store.installed import RECORD, Installed
from modelcache.store.journal import Facts, read_head
from modelcache.store.layout import Layout
from modelcache.store.locks import CANNOT_LOCK, LEASE, Patience, Subject, is_held, locked
from modelcache.store.marks import FUTURE_S

HEAD = 4 << 10  # bytes of a journal that are read: some 200 lines, in a fraction of a millisecond
SILENCE_S = 3600.0  # of a lease: nobody on any machine has it any more (product E2)
MOST_SHOWN = 200
_PARTIAL = re.compile(r"((?:sha256|sha512|(?:git-)?sha1|md5|blake3|url)-[0-9a-f]{32,128})\.[0-9a-f]{16}")
_ASIDE = re.compile(r".*\.([0-9]{19})", re.DOTALL)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp|\.[0-9a-f]{16}\.tmp|\..+\.[0-9a-f]{16}\.modelcache", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A partial as it was found. `key` is empty where it is none of ours, `total` None where nobody knows it.

    `size` is exact for what fits into `HEAD` of a journal, else what the data takes on the disk. A hopeless one has
    no byte that a later run could use.
    """

    folder: str
    key: str
    model: str
    file: str
    size: int
    total: int | None
    can_resume: bool
    is_hopeless: bool
    is_in_use: bool
    touched_at: float


def unfinished(layout: Layout) -> Iterator[Unfinished]:
    """Every partial, without touching it; what cannot be read now is left out."""
    for entry in entries_of(layout.partials):
        with suppress(OSError):
            yield _looked_at(layout, entry.path)


def discard(layout: Layout, one: Unfinished) -> int:
    """Removes it, unless somebody has taken or changed it since; the bytes freed. LockedError, StoreError."""
    if not one.key:
        return removed(one.folder)
    with locked(layout.lock(one.key), Subject(one.model, file=one.file), Patience(0.0)):
        try:
            is_as_it_was = _touched_at(one.folder) == one.touched_at
        except OSError:
            return 0  # its next owner has given it another name
        return removed(one.folder) if is_as_it_was else 0


def _looked_at(layout: Layout, folder: str) -> Unfinished:
    found = _PARTIAL.fullmatch(os.path.basename(folder))
    key = found[1] if found else ""
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        name = shown(key or os.path.basename(folder))
        return Unfinished(folder, key, name, "", 0, None, False, bool(key), False, os.lstat(folder).st_mtime)
    journal = os.path.join(folder, "journal")
    facts = read_head(journal, HEAD) or read_head(journal)  # a long name fills the head: then all of it decides
    here, is_exact = _bytes_of(folder), facts is not None and os.lstat(journal).st_size <= HEAD
    size = min(facts.written.size, here) if facts and is_exact else here
    return Unfinished(
        folder, key, *_names(facts, key or os.path.basename(folder)), size, _total(facts),
        can_resume=bool(key and facts and size and (facts.validators or not key.startswith("url-"))),
        is_hopeless=bool(key) and (facts is None or not size), is_in_use=bool(key) and is_held(layout.lock(key)),
        touched_at=_touched_at(folder),
    )  # fmt: skip


def _names(facts: Facts | None, otherwise: str) -> tuple[str, str]:
    """Model and file, as a journal says; it may say anything."""
    header = facts.header if facts else {}
    file = header.get("path")
    file = file if isinstance(file, str) else ""
    model = header.get("model")
    model = model if isinstance(model, str) and model else file or otherwise
    return shown(model), shown(file)


def _total(facts: Facts | None) -> int | None:
    size = facts.header.get("size") if facts else None
    return size if type(size) is int and size >= 0 else facts.size if facts else None


def _bytes_of(folder: str) -> int:
    """How many bytes the data has on the disk, as far as the file system tells what is a hole."""
    try:
        fd = os.open(os.path.join(folder, "data"), READ | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            return 0
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return 0
        return status.st_size - sum(hole.size for hole in holes(fd, status.st_size))
    finally:
        os.close(fd)


def _touched_at(folder: str) -> float:
    """When anything in it changed last."""
    now = os.lstat(folder)
    times = [now.st_mtime]
    for name in ("journal", "data") if stat.S_ISDIR(now.st_mode) else ():
        with suppress(OSError):
            times.append(os.lstat(os.path.join(folder, name)).st_mtime)
    return max(times)


def rejuvenate(folder: str) -> None:
    """Its times lie in the future: it ages from now on."""
    for path in (folder, os.path.join(folder, "journal"), os.path.join(folder, "data")):
        with suppress(OSError):
            os.utime(path, follow_symlinks=False)


# -- everything else --------------------------------------------------------------------------------------------------


def temporary(layout: Layout, *, deep: bool) -> Iterator[str]:
    """Files of a moment's work, such as a record on its way; only those in the root itself, unless `deep`.

    Whoever writes one holds its lock as long.
    """
    yield from temporary_in(layout.root)
    for top in ("blobs", "pieces", "aliases", "models", "catalog", "jobs") if deep else ():
        for folder in _folders_below(os.path.join(layout.root, top)):
            found = list(temporary_in(folder))
            known = Installed.read(_version_of(layout, folder)) if found and top == "models" else None
            paths = {known.place(file) for file in known.files} if known else set()
            yield from (path for path in found if path not in paths)


def temporary_in(folder: str) -> Iterator[str]:
    """Those that nobody writes."""
    for entry in entries_of(folder):
        if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False) and not is_held(entry.path):
            yield entry.path


def remove_temporary(path: str) -> int:
    """Removes it under its lock; the bytes freed. LockedError where somebody writes it, StoreError."""
    size = size_of(path)
    with disk_errors(path), suppress(FileNotFoundError):
        fd = os.open(path, READ | os.O_NONBLOCK)
        try:
            _lock_now(fd, path)
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                os.unlink(path)
        finally:
            os.close(fd)
    return size


def _folders_below(folder: str) -> Iterator[str]:
    waiting = [folder]
    while waiting:
        yield (there := waiting.pop())
        waiting += [entry.path for entry in entries_of(there) if entry.is_dir(follow_symlinks=False)]


def _version_of(layout: Layout, folder: str) -> str:
    return os.path.join(layout.models, *os.path.relpath(folder, layout.models).split(os.sep)[:2])


def set_aside_at(path: str) -> float:
    """When something came into the quarantine: its name tells, unless that lies in the future."""
    found = _ASIDE.fullmatch(os.path.basename(path))
    told = int(found[1]) / 1e9 if found else time.time() + 2 * FUTURE_S
    if told < time.time() + FUTURE_S:
        return told
    with suppress(OSError):
        return os.lstat(path).st_ctime
    return time.time()  # it is gone by now


def orphans(layout: Layout) -> Iterator[str]:
    """Blobs that no record names and no model links to. None at all while a record is garbage: who knows what it named.

    The caller sees to it that nothing is installed meanwhile (`gate`).
    """
    named: set[str] = set()
    for model in entries_of(layout.models):
        for version in entries_of(model.path):
            record = Installed.read(version.path)
            if record is None and os.path.lexists(os.path.join(version.path, RECORD)):
                return
            named.update(file.sha256 for file in (record.files if record else ()))
    for shard in entries_of(os.path.join(layout.root, "blobs", "sha256")):
        for blob in entries_of(shard.path):
            if re.fullmatch("[0-9a-f]{64}", blob.name) and blob.name not in named:
                with suppress(OSError):  # it may be gone by now
                    status = blob.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                        yield blob.path


def free_locks(layout: Layout) -> Iterator[str]:
    """Lock files that nobody holds, each with the record of its last holder, if it was killed."""
    names = {entry.name.removesuffix(".json") for entry in entries_of(os.path.dirname(layout.lock("")))}
    for name in sorted(names):
        path = os.path.join(os.path.dirname(layout.lock("")), name)
        beat_s = _since_beat(path)
        if name.endswith(".lock") and (not is_held(path) if beat_s is None else beat_s > SILENCE_S):
            yield path


def is_let_go(path: str) -> bool:
    """Whether its last holder ended as he should: then nothing tells of him."""
    if os.path.islink(path) or not os.path.isfile(path):
        return False
    return not (os.path.lexists(path + ".json") or os.path.lexists(path + LEASE))


def _since_beat(path: str) -> float | None:
    """How long a lease has been silent, where one takes the place of the kernel's lock: by the file server's clock."""
    try:
        beat = os.lstat(path + LEASE).st_mtime
    except OSError:
        return None
    with suppress(OSError):
        return _now_in(os.path.dirname(path)) - beat
    return 0.0  # nobody can tell: it is held


def _now_in(folder: str) -> float:
    """The time of the clock that dates files there (I13): another machine's may differ from ours by hours."""
    touched = os.path.join(folder, f"{random_name(8)}.lock")  # a kill leaves what is a free lock
    os.close(os.open(touched, CREATE, 0o600))
    try:
        return os.lstat(touched).st_mtime
    finally:
        os.unlink(touched)


def size_of_lock(path: str) -> int:
    """With what tells of its holder."""
    return sum(size_of(path + end) for end in ("", ".json", LEASE))


def remove_lock(path: str) -> int:
    """Removes a lock file under its own lock: whoever waits for it sees that its name is gone, and begins anew."""
    size = size_of_lock(path)
    if os.path.islink(path) or (os.path.lexists(path) and not os.path.isfile(path)):
        return removed(path)  # it is no lock, and was in the way of one
    with disk_errors(path), suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            _lock_now(fd, path)
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                for end in (LEASE, ".json", ""):
                    with suppress(FileNotFoundError):
                        os.unlink(path + end)
        finally:
            os.close(fd)
    return size


def _lock_now(fd: int, path: str) -> None:
    """LockedError where somebody has it, or a lease that still beats."""
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise LockedError(f"{path} is held again") from error
    beat_s = _since_beat(path)
    if beat_s is not None and beat_s <= SILENCE_S:
        raise LockedError(f"{path} is held again")


def entries_of(folder: str) -> list["os.DirEntry[str]"]:
    """What is in a folder, by name; nothing where it cannot be read, or is a link."""
    with suppress(OSError):
        if not os.path.islink(folder):
            with os.scandir(folder) as found:
                return sorted(found, key=lambda entry: entry.name)
    return []


def size_of(path: str) -> int:
    """How many bytes its removal would free on the disk."""
    total, waiting = 0, [path]
    while waiting:
        place = waiting.pop()
        with suppress(OSError):
            status = os.lstat(place)
            if stat.S_ISDIR(status.st_mode):
                waiting += [entry.path for entry in entries_of(place)]
            elif status.st_nlink == 1:
                total += status.st_blocks * 512
    return total


def removed(path: str) -> int:
    """Removes a file or a folder of ours; the bytes freed. Raises StoreError."""
    size = size_of(path)
    with disk_errors(path):
        remove_tree(path)
    return size


def shown(text: str) -> str:
    """Text from a file that may hold anything, fit for a terminal."""
    return printable(text[:MOST_SHOWN], "?")
