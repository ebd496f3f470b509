"""Looks after a store: what earlier runs left is found, told and, where it is nobody's, taken away.

Responsible for: the check at the start (product D1), `clean` (E2) and `reset` (D4): what goes, why, and saying so.
Leaves to `leftovers`: finding it, and that nothing in use ever goes; to `cache` and commands: when, and to whom it
is told. Nothing here asks the network.
"""

import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from modelcache.errors import LockedError, StoreError
from modelcache.events import Fact, now_ms
from modelcache.order import Workshop
from modelcache.rows import Report
from modelcache.state.state import State
from modelcache.store import leftovers
from modelcache.store.gate import listing, sweeping
from modelcache.store.installed import Installed
from modelcache.store.layout import Layout
from modelcache.store.leftovers import Unfinished
from modelcache.store.locks import Patience, Subject, locked
from modelcache.store.removal import remove

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # the texts are for whoever configures logging; the command shows them itself
DAY_S = 86_400.0
_DAMAGED = re.compile(r".+\.db\.damaged-[0-9]+(-wal|-shm)?", re.DOTALL)
CHECKING = "Checking for partial model downloads..."


# -- at the start -----------------------------------------------------------------------------------------------------


def check_at_start(shop: Workshop) -> Report:
    """What earlier runs left unfinished: a row each, with the words for it in `text`. Cleans up what is hopeless.

    Partials of which somebody has the lock are none of those. Raises nothing: a fetch comes next.
    """
    log.info(CHECKING)
    found = [one for one in leftovers.unfinished(shop.layout) if one.key and not one.is_in_use]
    rows = tuple(_told(shop, one) for one in found)
    for path in leftovers.temporary(shop.layout, deep=False):
        if _idle_s(path) > shop.settings.temporary_age:
            _attempt(partial(leftovers.remove_temporary, path))
    return Report(CHECKING, rows)


def _told(shop: Workshop, one: Unfinished) -> dict[str, Any]:
    texts = [
        f"Found partial download for model: {one.model}", f"Partial size: {one.size} bytes",
        f"Can resume: {one.can_resume}",
    ]  # fmt: skip
    for text in texts:
        log.warning(text)
    details: dict[str, str | int | bool] = {"file": one.file, "size": one.size, "can_resume": one.can_resume}
    shop.dispatcher.publish(Fact("partial_found", one.model, texts[0], details=details))
    is_gone = one.is_hopeless and _attempt(partial(leftovers.discard, shop.layout, one)) is not None
    if is_gone:
        texts.append(_clean_up_told(shop, one))
    return {
        "model": one.model, "file": one.file, "size": one.size, "total": one.total, "can_resume": one.can_resume,
        "cleaned": is_gone, "text": ". ".join(texts),
    }  # fmt: skip


def _clean_up_told(shop: Workshop, one: Unfinished) -> str:
    text = f"Cleaned up partial download for: {one.model}"
    log.warning(text)
    shop.dispatcher.publish(Fact("partial_cleaned", one.model, text, one.file, details={"size": one.size}))
    return text


def _attempt(removal: Callable[[], int]) -> int | None:
    """What it returns; None where it is in use by now, or the disk refuses."""
    try:
        return removal()
    except (LockedError, StoreError, OSError) as error:
        log.info("%s", error)
        return None


# -- clean ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Broom:
    """Removes what it is given, or only lists it."""

    shop: Workshop
    dry_run: bool
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def layout(self) -> Layout:
        return self.shop.layout

    def take(self, kind: str, path: str, reason: str, removal: Callable[[], int], model: str = "") -> bool:
        """Whether it is gone. A row tells; none of what somebody has begun to use meanwhile."""
        row = {
            "kind": kind, "model": model, "path": path, "size": leftovers.size_of(path), "reason": reason,
            "removed": False,
        }  # fmt: skip
        if not self.dry_run:
            try:
                row |= {"size": removal(), "removed": True}
            except LockedError:
                return False
            except StoreError as error:
                row["reason"] = error.line()
        self.rows.append(row)
        return bool(row["removed"])


def clean(shop: Workshop, state: State, *, dry_run: bool) -> Report:
    """Removes what is nobody's and too old, or in a dry run lists just that: one row each, with the bytes it takes.

    What a fetch, a verification or another clean is using stays, whatever its age. A row whose `removed` is False
    after a run says in `reason` why.
    """
    broom = _Broom(shop, dry_run)
    for sweep in (_partials, _temporary, _quarantine, _logs, _blobs, _locks):
        sweep(broom)
    _requests(broom, state)
    _damaged(broom, os.path.dirname(state.place.database))
    return Report("would be removed" if dry_run else "removed", tuple(broom.rows))


def _partials(broom: _Broom) -> None:
    most = broom.shop.settings.stale_partial_age
    for one in leftovers.unfinished(broom.layout):
        idle_s = time.time() - one.touched_at
        if one.is_in_use:
            continue
        if idle_s < -leftovers.FUTURE_S and not one.is_hopeless and not broom.dry_run:
            leftovers.rejuvenate(one.folder)
        if not one.is_hopeless and idle_s <= most:
            continue
        reason = "nothing in it can be used" if one.is_hopeless else f"not touched for {_age(idle_s)}"
        if broom.take("partial", one.folder, reason, partial(leftovers.discard, broom.layout, one), one.model):
            _clean_up_told(broom.shop, one)


def _temporary(broom: _Broom) -> None:
    for path in leftovers.temporary(broom.layout, deep=True):
        if (idle_s := _idle_s(path)) > broom.shop.settings.temporary_age:
            broom.take("temporary", path, f"left {_age(idle_s)} ago", partial(leftovers.remove_temporary, path))


def _quarantine(broom: _Broom) -> None:
    for entry in leftovers.entries_of(broom.layout.quarantine):
        idle_s = time.time() - leftovers.set_aside_at(entry.path)
        if idle_s > broom.shop.settings.quarantine_age:
            broom.take(
                "quarantine", entry.path, f"set aside {_age(idle_s)} ago", partial(leftovers.removed, entry.path)
            )


def _logs(broom: _Broom) -> None:
    for entry in leftovers.entries_of(broom.layout.logs):
        try:
            idle_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
            if idle_s < -leftovers.FUTURE_S and not broom.dry_run:
                os.utime(entry.path, follow_symlinks=False)
        except OSError:
            continue  # it is gone by now, or is another user's
        if idle_s > broom.shop.settings.log_age:
            broom.take("log", entry.path, f"nothing logged for {_age(idle_s)}", partial(leftovers.removed, entry.path))


def _requests(broom: _Broom, state: State) -> None:
    """What was asked, which may be a signed URL, is kept no longer than what came of it."""
    most = broom.shop.settings.stale_partial_age
    for path in state.requests_left(now_ms() - int(1000 * most)):
        if (idle_s := _idle_s(path)) > most:
            broom.take("request", path, f"asked {_age(idle_s)} ago", partial(leftovers.removed, path))


def _damaged(broom: _Broom, folder: str) -> None:
    """Databases that were set aside."""
    for entry in leftovers.entries_of(folder):
        idle_s = _idle_s(entry.path)
        if _DAMAGED.fullmatch(entry.name) and idle_s > broom.shop.settings.quarantine_age:
            reason = f"set aside {_age(idle_s)} ago"
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


def _locks(broom: _Broom) -> None:
    """A lock that was let go of is only an empty file, which the next fetch of the same may use again."""
    for path in leftovers.free_locks(broom.layout):
        is_empty = leftovers.is_let_go(path)
        if not is_empty or _idle_s(path) > broom.shop.settings.temporary_age:
            reason = "nobody holds it" if is_empty else "its holder is dead"
            broom.take("lock", path, reason, partial(leftovers.remove_lock, path))


def _idle_s(path: str) -> float:
    """Since when a file is as it is, whatever it says itself: also as another name of an older one."""
    try:
        now = os.lstat(path)
    except OSError:
        return 0.0
    return time.time() - now.st_ctime


def _age(idle_s: float) -> str:
    return f"{idle_s / DAY_S:.0f} days" if idle_s >= 2 * DAY_S else f"{idle_s / 3600:.1f} h"


# -- reset ------------------------------------------------------------------------------------------------------------


def reset(shop: Workshop, state: State, model: str, records: list[Installed]) -> Report:
    """Takes away everything of one model: its versions, their records, what is unfinished and was asked. Its log stays.

    Blobs that others have stay. Raises LockedError while somebody fetches it, StoreError; running it again goes on.
    """
    broom = _Broom(shop, dry_run=False)
    files = {file.sha256: file for record in records for file in record.files}
    for record in records:
        freed = remove(shop.layout, shop.registry, record)
        broom.rows.append(_reset_row("version", model, record.folder, freed))
    with locked(shop.layout.model_lock(model), Subject(model), Patience(0.0)):
        for version in shop.registry.versions(model):  # one whose record is gone
            shop.registry.removed(model, version)
            broom.rows.append(_reset_row("version", model, f"{model}@{version}", 0))
        for one in leftovers.unfinished(shop.layout):
            if one.model == model or (one.model == one.file and one.key.removeprefix("sha256-") in files):
                broom.rows.append(_reset_row("partial", model, one.folder, leftovers.discard(shop.layout, one)))
    state.forget(model)
    if broom.rows:
        freed = sum(row["size"] for row in broom.rows)
        shop.dispatcher.publish(Fact("reset", model, f"{model} is reset", details={"freed": freed}))
    return Report(f"{model} is reset", tuple(broom.rows))


def _reset_row(kind: str, model: str, path: str, size: int) -> dict[str, Any]:
    return {"kind": kind, "model": model, "path": path, "size": size, "reason": "reset", "removed": True}
