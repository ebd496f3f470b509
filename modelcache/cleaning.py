"""`clean`: what is nobody's, too old, or more than the budget goes (product C7, E2).

Responsible for: what goes, in which order, and why; one row each, in a dry run just the same ones.
Leaves to others: finding it, and that nothing in use ever goes (`leftovers`, `eviction`), when (`jobs`), and telling
people. Nothing here asks the network.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from modelcache import eviction
from modelcache.errors import LockedError, PausedError, StoreError
from modelcache.events import Fact, now_ms
from modelcache.maintenance import clean_up_told, unchanged_for
from modelcache.openfiles import inodes_in_use
from modelcache.order import Workshop
from modelcache.rows import Report
from modelcache.state.state import State
from modelcache.store import leftovers
from modelcache.store.gate import listing, sweeping
from modelcache.store.installed import Installed
from modelcache.store.layout import Layout
from modelcache.store.locks import is_held
from modelcache.store.marks import FUTURE_S
from modelcache.units import DAY_S, as_age, in_units

FOREIGN_AGE_S = DAY_S  # Ollama and huggingface_hub go on with what is younger
_DAMAGED = re.compile(r".+\.db\.damaged-[0-9]+(-wal|-shm)?", re.DOTALL)
ENDED = "; it was ended before its time, and the next run goes on there"
BUDGET = "budget"  # the row that says that it is not kept
STILL_OVER = "{} over the budget: what is left is pinned, in use, shared, or was asked for within the hour"


@dataclass(slots=True)
class _Broom:
    """Removes what it is given, or only lists it."""

    shop: Workshop
    dry_run: bool
    stop: threading.Event
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def layout(self) -> Layout:
        return self.shop.layout

    def listed_in(self, root: str) -> int:
        """The bytes of what is listed there: other tools' caches, and the state on some disks, are elsewhere."""
        return sum(row["size"] for row in self.rows if row["path"].startswith(root + os.sep))

    def check(self) -> None:
        """Raises PausedError when it is told to stop."""
        if self.stop.is_set():
            raise PausedError("stopped")

    def take(
        self, kind: str, path: str, reason: str, removal: Callable[[], int], model: str = "", size: int | None = None
    ) -> bool:
        """Whether it is gone. A row tells; none of what somebody has begun to use meanwhile. Raises as `check`."""
        self.check()
        row = _row(kind, path, reason, model, leftovers.size_of(path) if size is None else size)
        if not self.dry_run:
            try:
                row |= {"size": removal(), "removed": True}
            except LockedError:
                return False
            except StoreError as error:
                row["reason"] = error.line()
        self.rows.append(row)
        return bool(row["removed"])


def _row(kind: str, path: str, reason: str, model: str = "", size: int = 0) -> dict[str, Any]:
    return {"kind": kind, "model": model, "path": path, "size": size, "reason": reason, "removed": False}


def clean(
    shop: Workshop, state: State, *, dry_run: bool, foreign: bool = False, stop: threading.Event | None = None
) -> Report:
    """Removes what is nobody's and too old, or in a dry run lists just that: one row each, with the bytes it takes.

    What a fetch, a verification or another clean is using stays, whatever its age. A row whose `removed` is False
    after a run says in `reason` why, and is a finding; so is a budget that cannot be kept, in a dry run, too.
    `foreign`: also downloads that other tools began a day ago or more. `stop` ends it before the next find; the title
    says so.
    """
    broom = _Broom(shop, dry_run, stop or threading.Event())
    title = "would be removed" if dry_run else "removed"
    try:
        _sweep_all(broom, state, foreign=foreign)
    except PausedError:
        title += ENDED
    rows = tuple(broom.rows)
    kept = sum(not row["removed"] and (not dry_run or row["kind"] == BUDGET) for row in rows)
    return Report(title, rows, findings=kept)


def _sweep_all(broom: _Broom, state: State, *, foreign: bool) -> None:
    locks = list(_free_locks(broom))
    for sweep in (_partials, _temporary, _quarantine, _logs, _blobs):
        broom.check()
        sweep(broom)
    for lock in locks:
        broom.take("lock", lock.path, lock.reason, lock.remove, size=lock.size)
    _requests(broom, state)
    _damaged(broom, os.path.dirname(state.place.database))
    if foreign:
        _foreign(broom)
    broom.check()
    _models(broom)


def _partials(broom: _Broom) -> None:
    most = broom.shop.settings.stale_partial_age
    for one in leftovers.unfinished(broom.layout):
        idle_s = time.time() - one.touched_at
        if one.is_in_use:
            continue
        if idle_s < -FUTURE_S and not one.is_hopeless and not broom.dry_run:
            leftovers.rejuvenate(one.folder)
        if not one.is_hopeless and idle_s <= most:
            continue
        reason = "nothing in it can be used" if one.is_hopeless else f"not touched for {as_age(idle_s)}"
        if broom.take("partial", one.folder, reason, partial(leftovers.discard, broom.layout, one), one.model):
            clean_up_told(broom.shop, one)


def _temporary(broom: _Broom) -> None:
    for path in leftovers.temporary(broom.layout, deep=True):
        if (idle_s := unchanged_for(path)) > broom.shop.settings.temporary_age:
            broom.take("temporary", path, f"left {as_age(idle_s)} ago", partial(leftovers.remove_temporary, path))


def _quarantine(broom: _Broom) -> None:
    for entry in leftovers.entries_of(broom.layout.quarantine):
        idle_s = time.time() - leftovers.set_aside_at(entry.path)
        if idle_s > broom.shop.settings.quarantine_age:
            broom.take(
                "quarantine", entry.path, f"set aside {as_age(idle_s)} ago", partial(leftovers.removed, entry.path)
            )


def _logs(broom: _Broom) -> None:
    for entry in leftovers.entries_of(broom.layout.logs):
        try:
            idle_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
            if idle_s < -FUTURE_S and not broom.dry_run:
                os.utime(entry.path, follow_symlinks=False)
        except OSError:
            continue  # it is gone by now, or is another user's
        if idle_s > broom.shop.settings.log_age:
            reason = f"nothing logged for {as_age(idle_s)}"
            broom.take("log", entry.path, reason, partial(leftovers.removed, entry.path))


def _requests(broom: _Broom, state: State) -> None:
    """What was asked, which may be a signed URL, is kept no longer than what came of it."""
    most = broom.shop.settings.stale_partial_age
    for path in state.requests_left(now_ms() - int(1000 * most)):
        if (idle_s := unchanged_for(path)) > most:
            broom.take("request", path, f"asked {as_age(idle_s)} ago", partial(leftovers.removed, path))


def _damaged(broom: _Broom, folder: str) -> None:
    """Databases that were set aside."""
    for entry in leftovers.entries_of(folder):
        idle_s = unchanged_for(entry.path)
        if _DAMAGED.fullmatch(entry.name) and idle_s > broom.shop.settings.quarantine_age:
            reason = f"set aside {as_age(idle_s)} ago"
            broom.take("quarantine", entry.path, reason, partial(leftovers.removed, entry.path))


def _blobs(broom: _Broom) -> None:
    if not os.path.isdir(os.path.join(broom.layout.root, "blobs")):
        return
    sweep = listing if broom.dry_run else sweeping
    try:
        with sweep(broom.layout) as nobody_installs:
            for path in leftovers.orphans(broom.layout) if nobody_installs else ():
                broom.take("blob", path, "no model has it", partial(leftovers.removed, path))
    except LockedError:
        pass  # another sweep is at it


def _foreign(broom: _Broom) -> None:
    """What other tools began, and have not gone on with for a day; nothing that one of them may be at."""
    in_use = inodes_in_use()
    for tier in broom.shop.tiers:
        for one in tier.abandoned():
            try:
                found = [os.lstat(path) for path in one.paths]
            except OSError:
                continue  # it has ended by now
            idle_s = time.time() - max(status.st_mtime for status in found)
            is_busy = is_held(one.lock) or any(status.st_ino in in_use for status in found)
            if idle_s > FOREIGN_AGE_S and not is_busy:
                reason = f"begun by another tool, and not touched for {as_age(idle_s)}"
                size = sum(leftovers.size_of(path) for path in one.paths)
                broom.take("foreign", one.paths[0], reason, partial(_all_removed, one.paths), size=size)


def _all_removed(paths: tuple[str, ...]) -> int:
    return sum(map(leftovers.removed, paths))


def _models(broom: _Broom) -> None:
    """Last, for all else has made room."""
    settings, layout = broom.shop.settings, broom.layout
    if not (settings.disk_budget or settings.unused_age):
        return
    taken = eviction.taken(layout) - (broom.listed_in(layout.root) if broom.dry_run else 0)
    taken -= _rotten(broom, taken - settings.disk_budget) if settings.disk_budget else 0
    limits = eviction.Limits(settings.disk_budget, settings.unused_age)
    stuck: set[str] = set()
    for one in eviction.chosen(eviction.candidates(layout), time.time(), taken, limits, stuck):
        removal = partial(eviction.evict, layout, broom.shop.registry, one)
        is_gone = broom.take("model", one.record.folder, one.reason, removal, one.record.id, one.size)
        if is_gone:
            _eviction_told(broom.shop, one.record)
        elif not broom.dry_run:
            stuck.add(one.record.folder)
        taken -= one.size if is_gone or broom.dry_run else 0
    if settings.disk_budget and taken > settings.disk_budget:
        over = STILL_OVER.format(in_units(taken - settings.disk_budget))
        broom.rows.append(_row(BUDGET, layout.root, over))


def _rotten(broom: _Broom, over: int) -> int:
    """What had rotted goes before what is right, whatever its age, the oldest first; the bytes that frees.

    What is withheld has another name, and stays: without this one it would take as much.
    """
    freed = 0
    listed = {row["path"] for row in broom.rows}
    aside = [entry.path for entry in leftovers.entries_of(broom.layout.quarantine) if entry.path not in listed]
    for path in sorted(aside, key=leftovers.set_aside_at):
        if freed >= over:
            break
        size = leftovers.size_of(path)
        removal = partial(leftovers.removed, path)
        if not size and not os.path.isdir(path):
            continue  # it is withheld
        is_gone = broom.take("quarantine", path, f"{in_units(over)} over the budget", removal)
        freed += size if is_gone or broom.dry_run else 0
    return freed


def _eviction_told(shop: Workshop, record: Installed) -> None:
    text = f"{record.id}@{record.version} is removed, to make room"
    shop.dispatcher.publish(Fact("removed", record.id, text, version=record.version, path=record.folder))


@dataclass(frozen=True, slots=True)
class _Lock:
    """One that nobody holds, as it was found."""

    path: str
    size: int
    reason: str

    def remove(self) -> int:
        """The bytes that it had when it was found: whoever removed a partial meanwhile took some of them away."""
        leftovers.remove_lock(self.path)
        return self.size


def _free_locks(broom: _Broom) -> Iterator[_Lock]:
    """A lock that was let go of is only an empty file, which the next fetch of the same may use again."""
    for path in leftovers.free_locks(broom.layout):
        is_empty = leftovers.is_let_go(path)
        if not is_empty or unchanged_for(path) > broom.shop.settings.temporary_age:
            reason = "nobody holds it" if is_empty else "its holder is dead"
            yield _Lock(path, leftovers.size_of_lock(path), reason)
