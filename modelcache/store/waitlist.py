"""queue.json: what is to be fetched, in which order, and by whom it is being fetched.

Responsible for: reading it whatever state it is in, and changing it without losing another process's change (I3, I4).
Whoever fetches an entry holds a lock of it as long; where that is free, the entry waits, whatever the file says (I13).
Leaves to `queueing`: fetching. What was asked may hold a URL with its query: the file is for its owner alone.
"""

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Self

from modelcache.errors import LockedError, StoreError, UsageError
from modelcache.store.disk import make_directories, random_name, read_small, write_atomic
from modelcache.store.locks import Lookout, Patience, Subject, locked
from modelcache.store.owner import Owner

FORMAT = 1
MOST_ENTRIES = 10_000
HIGHEST = 1_000_000  # priority, and as much below zero
LATEST_MS = 1 << 47  # some thousand years: what dates can show
GARBLED = ".garbled"
_ID = re.compile("[0-9a-f]{8}")
PATIENCE = Patience(30.0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to fetch. `request` is what was asked, as `again` writes it; `ref` the same for people."""

    id: str
    ref: str
    request: str
    priority: int = 0
    added_at: int = 0  # ms
    owner: Owner | None = None  # who fetches it now
    error: str = ""  # why it failed; it waits no more until somebody says so
    paused: bool = False  # by somebody, this one alone; it waits no more until he says so

    @property
    def is_running(self) -> bool:
        return self.owner is not None

    @property
    def is_waiting(self) -> bool:
        return not (self.error or self.paused or self.is_running)

    @property
    def status(self) -> str:
        if self.error:
            return "failed"
        return "running" if self.is_running else "paused" if self.paused else "waiting"

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id, "ref": self.ref, "request": self.request, "priority": self.priority,
            "added_at": self.added_at, "owner": self.owner.to_json() if self.owner else None, "error": self.error,
            "paused": self.paused,
        }  # fmt: skip

    @classmethod
    def from_json(cls, fields: object) -> Self:
        """ValueError where it is not an entry."""
        match fields:
            case {
                "id": str(id_), "ref": str(ref), "request": str(request), "priority": int(priority),
                "added_at": int(added_at), "owner": owner, "error": str(error), **rest,
            } if _ID.fullmatch(id_) and abs(priority) <= HIGHEST and 0 <= added_at < LATEST_MS:  # fmt: skip
                holder = None if owner is None else Owner.from_json(owner)
                return cls(id_, ref, request, priority, added_at, holder, error, rest.get("paused") is True)
        raise ValueError("not an entry")


@dataclass(frozen=True, slots=True)
class Waiting:
    """The whole list as it is now; entries in the order in which they are fetched."""

    entries: tuple[Entry, ...] = ()
    paused: bool = False

    @property
    def is_alive(self) -> bool:
        """Whether anything waits, or is being fetched."""
        return any(entry.is_waiting or entry.is_running for entry in self.entries)

    def find(self, entry_id: str) -> Entry:
        """UsageError where there is none."""
        for entry in self.entries:
            if entry.id == entry_id:
                return entry
        raise UsageError(f"there is no {entry_id!r} in the queue", next_step="see `modelcache queue`")

    def with_entry(self, changed: Entry) -> "Waiting":
        """An entry of another priority comes after those that have it already."""
        others = [entry for entry in self.entries if entry.id != changed.id]
        if changed.priority == self.find(changed.id).priority:
            others = [changed if entry.id == changed.id else entry for entry in self.entries]
        else:
            others.append(changed)
        return replace(self, entries=_in_order(others))


class Waitlist:
    """The file, from any process, and the locks of what is claimed through this object.

    The lock of an entry is named after that of the list and the id. They go with this object, or with `close`.
    """

    def __init__(self, path: str, lock: str) -> None:
        self._path = path
        self._lock = lock
        self._held: dict[str, ExitStack] = {}
        self._lookout = Lookout()

    def read(self) -> Waiting:
        """What is garbled counts as empty, an entry that is garbled as none.

        StoreError where the disk does not let it be read, and for a newer format.
        """
        return self._waiting(self._parsed(read_small(self._path, private=True)))

    def add(self, ref: str, request: str, priority: int) -> Entry:
        """What is wanted already is not added twice; it gets the higher priority, and waits (again)."""
        _check_priority(priority)
        entry = Entry(random_name(4), ref, request, priority, time.time_ns() // 1_000_000)

        def change(now: Waiting) -> Waiting:
            nonlocal entry
            same = next((each for each in now.entries if each.request == request), None)
            if same is not None:
                entry = replace(same, priority=max(priority, same.priority), error="", paused=False)
                return now.with_entry(entry)
            if len(now.entries) >= MOST_ENTRIES:
                raise UsageError(f"the queue holds {MOST_ENTRIES:,} entries; no more go in")
            return replace(now, entries=_in_order([*now.entries, entry]))

        self._change(change)
        return entry

    def prioritize(self, entry_id: str, priority: int) -> None:
        """Higher is fetched earlier; what is fetched already goes on."""
        _check_priority(priority)
        self._change(lambda now: now.with_entry(replace(now.find(entry_id), priority=priority)))

    def move(self, entry_id: str, before: str) -> None:
        """Right before another one, with its priority."""

        def change(now: Waiting) -> Waiting:
            moved = replace(now.find(entry_id), priority=now.find(before).priority)
            if entry_id == before:
                return now
            others = [entry for entry in now.entries if entry.id != entry_id]
            at = next(place for place, entry in enumerate(others) if entry.id == before)
            return replace(now, entries=_in_order([*others[:at], moved, *others[at:]]))

        self._change(change)

    def remove(self, entry_id: str) -> None:
        def change(now: Waiting) -> Waiting:
            gone = now.find(entry_id)
            return replace(now, entries=tuple(entry for entry in now.entries if entry is not gone))

        self._change(change)
        self.give_back(entry_id)

    def pause(self, paused: bool) -> None:
        """All of it."""
        self._change(lambda now: replace(now, paused=paused))

    def pause_one(self, entry_id: str, paused: bool) -> None:
        self._change(lambda now: now.with_entry(replace(now.find(entry_id), paused=paused)))

    def claim(self, most: int) -> Entry | None:
        """The next one, for this process; None where nothing waits or `most` are fetched already, by whomever."""
        claimed: Entry | None = None

        def change(now: Waiting) -> Waiting:
            nonlocal claimed
            if now.paused or sum(entry.is_running for entry in now.entries) >= most:
                return now
            first = next((entry for entry in now.entries if entry.is_waiting and self._take(entry)), None)
            if first is None:
                return now
            claimed = replace(first, owner=Owner.mine())
            return now.with_entry(claimed)

        self._change(change)
        return claimed

    def give_back(self, entry_id: str) -> None:
        """What was claimed here waits again. Nothing is written: its lock is free."""
        if lock := self._held.pop(entry_id, None):
            with suppress(OSError):
                os.unlink(self._lock_of(entry_id))  # whoever waits for it sees that its name is gone
            lock.close()

    def close(self) -> None:
        """Gives back all that was claimed here."""
        for entry_id in list(self._held):
            self.give_back(entry_id)

    def fail(self, entry_id: str, error: str) -> None:
        """What was claimed here waits no more until `retry`."""
        self._end(entry_id, lambda entry: replace(entry, owner=None, error=error))

    def hold(self, entry_id: str) -> None:
        """What was claimed here waits no more until somebody says so."""
        self._end(entry_id, lambda entry: replace(entry, owner=None, paused=True))

    def _end(self, entry_id: str, ended: Callable[[Entry], Entry]) -> None:
        """One that was removed meanwhile stays away."""

        def change(now: Waiting) -> Waiting:
            with suppress(UsageError):
                return now.with_entry(ended(now.find(entry_id)))
            return now

        self._change(change)
        self.give_back(entry_id)

    def retry(self, entry_id: str) -> None:
        self._change(lambda now: now.with_entry(replace(now.find(entry_id), error="")))

    def _take(self, entry: Entry) -> bool:
        """Its lock, if nobody has it; he may be letting go of it just now."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self._lock_of(entry.id), Subject(entry.ref), Patience(0.0)))
            except LockedError:
                return False
            self._held[entry.id] = stack.pop_all()
        return True

    def _lock_of(self, entry_id: str) -> str:
        base, end = os.path.splitext(self._lock)
        return f"{base}-{entry_id}{end}"

    def _change(self, change: Callable[[Waiting], Waiting]) -> None:
        make_directories(os.path.dirname(self._path))
        with locked(self._lock, Subject("queue.json"), PATIENCE):
            text = read_small(self._path, private=True)
            data = self._parsed(text)
            before = self._waiting(data)
            after = change(before)
            if after == before:
                return
            if text and len(before.entries) < len(data.get("entries", (None,))):
                self._set_aside(text)
            entries = [entry.to_json() for entry in after.entries]
            data |= {"format": FORMAT, "paused": after.paused, "entries": entries}
            write_atomic(self._path, json.dumps(data, indent=1).encode(), 0o600)

    def _set_aside(self, garbled: bytes) -> None:
        """Once: the first may hold what somebody wants back, and they do not pile up."""
        if not os.path.lexists(self._path + GARBLED):
            write_atomic(self._path + GARBLED, garbled, 0o600)

    def _waiting(self, data: dict[str, Any]) -> Waiting:
        """Every entry that is one; of a running one its lock is asked."""
        entries: dict[str, Entry] = {}
        for fields in data.get("entries", []):
            with suppress(ValueError):
                entry = Entry.from_json(fields)
                is_running = entry.owner is not None and self._lookout.is_held(self._lock_of(entry.id))
                entries.setdefault(entry.id, entry if is_running else replace(entry, owner=None))
        return Waiting(_in_order(list(entries.values())), data.get("paused") is True)

    def _parsed(self, text: bytes | None) -> dict[str, Any]:
        data: Any = None
        with suppress(ValueError, RecursionError):
            data = json.loads(text or b"")
        if not isinstance(data, dict) or not isinstance(data.get("entries"), list):
            return {}
        if isinstance(found := data.get("format"), int) and found > FORMAT:
            raise StoreError(f"{self._path} was written by a newer modelcache", next_step="update modelcache")
        return data


def _in_order(entries: list[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: -entry.priority))


def _check_priority(priority: int) -> None:
    if not -HIGHEST <= priority <= HIGHEST:
        raise UsageError(f"priority {priority} is not between {-HIGHEST:,} and {HIGHEST:,}")
