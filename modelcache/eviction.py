"""Which models go so that the others have room (product C7): those of no use for long, and the least recently used.

A version stays that is pinned, that somebody fetches, of which a process has a file open, or that was asked for within
the hour. What it shares with one that stays frees nothing, and is not counted.

Responsible for: choosing; `chosen` is a rule that touches nothing. Leaves to others: taking them away (`removal`), and
when (`cleaning`).
"""

import os
import stat
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from modelcache.errors import LockedError
from modelcache.model import Digest
from modelcache.openfiles import inodes_in_use
from modelcache.store.installed import Installed
from modelcache.store.intake import is_foreign
from modelcache.store.layout import Layout
from modelcache.store.leftovers import entries_of
from modelcache.store.locks import is_held
from modelcache.store.marks import Marks
from modelcache.store.registry import Registry, installed_under
from modelcache.store.removal import remove
from modelcache.units import as_age, in_units

RECENT_S = 3600.0  # who asked for it may be about to open it
BLOCK = 512  # bytes, of st_blocks (stat(2))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version. `contents` are the bytes that each of its contents takes on the disk, by SHA-256; `copies` what it
    takes besides, where links are not possible."""

    record: Installed
    last_used: float
    may_go: bool
    contents: Mapping[str, int] = field(default_factory=dict)
    copies: int = 0


@dataclass(frozen=True, slots=True)
class Evicted:
    """A version that has to go, what that frees, and why."""

    record: Installed
    size: int
    reason: str


@dataclass(frozen=True, slots=True)
class Limits:
    """How many bytes a store may take, and after how many seconds without use a version goes; 0: no limit."""

    budget: int = 0
    unused_age: float = 0.0


def chosen(
    candidates: Iterable[Candidate], now: float, taken: int, limits: Limits, stuck: Container[str] = ()
) -> Iterator[Evicted]:
    """Those that go, the least recently used first, of a store that takes so many bytes of the disk.

    Over the budget no more go than are needed, and none that would free nothing. `stuck` are the folders of those that
    did not go after all, as far as that is known by the time the next is asked for.
    """
    oldest_first = sorted(candidates, key=lambda one: one.last_used)
    users = Counter(sha256 for one in oldest_first for sha256 in one.contents)
    staying = {sha256 for one in oldest_first if not _may_go(one, now) for sha256 in one.contents}
    for one in oldest_first:
        idle_s = now - one.last_used
        is_unused = limits.unused_age and idle_s > limits.unused_age
        over = taken - limits.budget if limits.budget else 0
        is_wanted = over > 0 and (one.copies or any(one.contents[sha256] for sha256 in one.contents.keys() - staying))
        if not _may_go(one, now) or not (is_unused or is_wanted):
            continue
        users.subtract(one.contents.keys())
        size = one.copies + sum(size for sha256, size in one.contents.items() if not users[sha256])
        idle = f"not asked for in {as_age(idle_s)}"
        yield Evicted(one.record, size, idle if is_unused else f"{in_units(over)} over the budget; {idle}")
        if one.record.folder in stuck:
            users.update(one.contents.keys())
            staying |= one.contents.keys()
        else:
            taken -= size


def _may_go(one: Candidate, now: float) -> bool:
    return one.may_go and now - one.last_used > RECENT_S


def evict(layout: Layout, registry: Registry, one: Evicted) -> int:
    """Removes it, unless somebody has come to want it since; the bytes that frees, on the disk and with copies.

    LockedError, StoreError.
    """
    record = one.record

    def check() -> None:
        marks = Marks(layout)
        is_pinned = marks.is_pinned(record.id, record.version)
        if is_pinned or time.time() - marks.last_used(record) <= RECENT_S:
            raise LockedError(f"{record.id} was asked for or pinned just now")
        if time.time() - marks.take(record) <= RECENT_S:  # from here on nobody believes what he sees of it (`hits`)
            marks.used(record.id, record.version)
            raise LockedError(f"{record.id} was asked for just now")

    remove(layout, registry, record, check)
    return one.size


def candidates(layout: Layout) -> list[Candidate]:
    """Every version that is installed here."""
    in_use, marks = inodes_in_use(), Marks(layout)
    return [_candidate(layout, record, marks, in_use) for record in installed_under(layout.models)]


def _candidate(layout: Layout, record: Installed, marks: Marks, in_use: frozenset[int]) -> Candidate:
    contents: dict[str, int] = {}
    copies, is_open = 0, False
    for file in record.files:
        place, blob = record.place(file), layout.blob(Digest("sha256", file.sha256))
        with suppress(OSError):
            status = os.lstat(place)
            is_open = is_open or status.st_ino in in_use
            copies += status.st_blocks * BLOCK if status.st_nlink == 1 else 0
        with suppress(OSError):
            status = os.lstat(blob)
            is_open = is_open or status.st_ino in in_use
            contents[file.sha256] = 0 if is_foreign(layout, file.sha256, blob) else status.st_blocks * BLOCK
    is_fetched = is_held(layout.model_lock(record.id))
    may_go = not (is_open or is_fetched or marks.is_pinned(record.id, record.version))
    return Candidate(record, marks.last_used(record), may_go, contents, copies)


def taken(layout: Layout) -> int:
    """How many bytes of the disk a store takes, each file once, whatever names it has; no file of another tool."""
    inodes: dict[int, int] = {}
    waiting = [os.path.realpath(layout.root)]  # which may be a link to where there is room
    while waiting:
        for entry in entries_of(waiting.pop()):
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                inodes[status.st_ino] = status.st_blocks * BLOCK
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(entry.path)
    for entry in entries_of(os.path.dirname(layout.foreign(Digest("sha256", "0" * 64)))):
        with suppress(OSError, ValueError):
            blob = layout.blob(Digest("sha256", entry.name))
            if is_foreign(layout, entry.name, blob):
                inodes.pop(os.lstat(blob).st_ino, None)
    return sum(inodes.values())
