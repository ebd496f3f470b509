"""Having the folder of a partial is owning it: the fence when locks lie (I12).

Responsible for: claiming what an earlier run left, by renaming it to a token of ours, or beginning anew; and how much
of it can be believed. Leaves to `partial`: everything after that.

The data is read-only once its owner has ended all its writers. Where it is not, and the owner is not proven dead,
its bytes are copied to a new inode: that owner may still write, into the old one, which nobody sees any more.
So are the bytes of another account that shares the root: nobody but the owner of a file may change its mode.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TypeVar

from modelcache.errors import StoreError
from modelcache.model import ModelFile, Span
from modelcache.spans import END, SpanSet
from modelcache.store.disk import (
    READ,
    WRITE,
    again_where_taken,
    chunks_of,
    create,
    disk_errors,
    make_directories,
    random_name,
    remove_tree,
    write_all,
)
from modelcache.store.journal import Journal, read_facts
from modelcache.store.modes import mode_in
from modelcache.store.owner import Owner

T = TypeVar("T")
POLL_S = 0.2
RELEASED = 0o400  # the mode of data that nobody writes any more


@dataclass(frozen=True, slots=True)
class Claim:
    """A folder that is ours, with its files open."""

    folder: str
    fd: int
    journal: Journal


def claim(base: str, key: str, file: ModelFile, model: str = "") -> Claim:
    """Raises StoreError; then everything is left as it is. What is of no use for this file is removed.

    Whose file it is, `model`, is noted for people.
    """
    make_directories(base)
    with disk_errors(base):
        return again_where_taken(lambda: _claimed(base, key, file, model))


def _claimed(base: str, key: str, file: ModelFile, model: str) -> Claim:
    for name in found(base, key):
        claimed = _taken(base, name, key, file)
        if claimed:
            return claimed
    return _begun(os.path.join(base, _token_of(key)), key, file, model)


def found(base: str, key: str) -> list[str]:
    """Names of the partials of a key, the one with most bytes first. Raises StoreError."""

    def size(name: str) -> int:
        facts = read_facts(os.path.join(base, name, "journal"))
        return facts.written.size if facts else -1

    with disk_errors(base):
        try:
            names = [name for name in os.listdir(base) if name.rpartition(".")[0] == key]
        except FileNotFoundError:
            return []
        return sorted(names, key=size, reverse=True) if len(names) > 1 else names


def forget(base: str, key: str) -> None:
    """Removes what a kill left of a file that is complete now. The caller holds the key's lock."""
    with suppress(OSError, StoreError):
        for name in found(base, key):
            remove_tree(os.path.join(base, name))


def result_of_others(
    base: str, key: str, timeout_s: float, wait: Callable[[float], None], look: Callable[[], T | None]
) -> T | None:
    """What `look` finds once those who took a partial over are done with it.

    None when nobody alive has a partial of the key any more, or none of them wrote anything for `timeout_s` seconds.
    `wait` sleeps between two looks, and may raise to end the waiting.
    """
    seen: list[tuple[str, int]] | None = None
    since = time.monotonic()
    while True:
        now = _on_their_way(base, key)  # before the look: a partial that is gone may be a result
        if (result := look()) is not None:
            return result
        if not now and seen == []:  # twice, for a folder that is renamed just now may be missed
            return None
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since >= timeout_s:
            return None
        wait(POLL_S)


def _on_their_way(base: str, key: str) -> list[tuple[str, int]]:
    """The partials of a key that may have a live owner, and how many bytes each has."""
    partials = []
    for name in found(base, key):
        facts = read_facts(os.path.join(base, name, "journal"))
        if facts and not (facts.owner and facts.owner.is_proven_dead()):
            partials.append((name, facts.written.size))
    return partials


def _token_of(key: str) -> str:
    return f"{key}.{random_name(8)}"


def _begun(folder: str, key: str, file: ModelFile, model: str) -> Claim:
    with ExitStack() as undo:
        os.mkdir(folder, 0o700)
        undo.callback(remove_tree, folder)
        os.chmod(folder, mode_in(os.path.dirname(folder), 0o700))
        fd = create(os.path.join(folder, "data"))
        undo.callback(os.close, fd)
        header = {"key": key, "size": file.size, "path": file.path, "model": model}
        journal = Journal.create(os.path.join(folder, "journal"), header)
        undo.callback(journal.close)
        journal.owned_by(Owner.mine())
        undo.pop_all()
        return Claim(folder, fd, journal)


def _taken(base: str, name: str, key: str, file: ModelFile) -> Claim | None:
    """None where somebody else was faster, where it is another user's, or where it was of no use and is gone."""
    folder = os.path.join(base, _token_of(key))
    try:
        os.rename(os.path.join(base, name), folder)
        claimed = _opened(folder, file) if stat.S_ISDIR(os.lstat(folder).st_mode) else None
        if claimed is None:
            remove_tree(folder)
    except (FileNotFoundError, PermissionError):
        return None
    return claimed


def _opened(folder: str, file: ModelFile) -> Claim | None:
    """None where it is not a partial, or was begun for another size."""
    with ExitStack() as undo:
        journal = Journal.open(os.path.join(folder, "journal"))
        if journal is None:
            return None
        undo.callback(journal.close)
        if file.size is not None and journal.facts.header.get("size") not in (None, file.size):
            return None
        fd = _data(os.path.join(folder, "data"), journal)
        if fd is None:
            return None
        undo.callback(os.close, fd)
        _believe(fd, journal, journal.facts.size if file.size is None else file.size)
        journal.owned_by(Owner.mine())
        undo.pop_all()
        return Claim(folder, fd, journal)


def _data(path: str, journal: Journal) -> int | None:
    """The data, open, where no former owner can reach it; None where there is no such file."""
    with suppress(FileNotFoundError):
        os.unlink(path + ".new")  # a copy that was cut short
    try:
        old = os.open(path, READ | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise
    try:
        status = os.fstat(old)
        if not stat.S_ISREG(status.st_mode):
            return None
        owner = journal.facts.owner
        if status.st_mode & 0o222 and not (owner and owner.is_proven_dead()):
            return _copied(old, path, journal.facts.written)
        try:
            os.fchmod(old, mode_in(os.path.dirname(path), 0o600))
        except PermissionError:  # it is another account's, who shares the root
            return _copied(old, path, journal.facts.written)
        return os.open(path, WRITE)
    finally:
        os.close(old)


def _copied(old: int, path: str, written: SpanSet) -> int:
    beside = path + ".new"
    new = create(beside)
    try:
        for span in written:
            position = span.start
            for chunk in chunks_of(old, *span):
                write_all(new, chunk, position)
                position += len(chunk)
        os.rename(beside, path)
    except BaseException:
        os.close(new)
        os.unlink(beside)
        raise
    return new


def _believe(fd: int, journal: Journal, size: int | None) -> None:
    """The journal may say more than the file holds: after a power cut the file may be shorter, or have holes."""
    here = os.fstat(fd).st_size
    end = here if size is None else min(here, size)
    for hole in [*holes(fd, end), Span(end, END)]:
        if journal.facts.written.overlaps(*hole):
            journal.dropped(*hole)


def holes(fd: int, end: int) -> Iterator[Span]:
    """Where the file has no bytes before `end`, as far as the file system tells."""
    position = 0
    while position < end:
        try:
            start = min(os.lseek(fd, position, os.SEEK_DATA), end)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return
            start = end  # nothing but a hole is left
        if position < start:
            yield Span(position, start)
        position = os.lseek(fd, start, os.SEEK_HOLE) if start < end else end
