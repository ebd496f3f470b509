"""Looks after a store: what earlier runs left is found and told when the next one begins, and one model forgotten.

Responsible for: the check at the start (product D1) and `reset` (D4): what goes, why, and saying so.
Leaves to others: finding it, and that nothing in use ever goes (`leftovers`); all else that goes in time (`cleaning`);
when, and to whom it is told (`cache`, commands). Nothing here asks the network.
"""

import logging
import os
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from modelcache.errors import LockedError, StoreError
from modelcache.events import Fact
from modelcache.order import Workshop
from modelcache.rows import Report
from modelcache.state.state import State
from modelcache.store import leftovers
from modelcache.store.installed import Installed
from modelcache.store.leftovers import Unfinished
from modelcache.store.locks import Patience, Subject, locked
from modelcache.store.removal import remove

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # the texts are for whoever configures logging; the command shows them itself
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
        if unchanged_for(path) > shop.settings.temporary_age:
            _attempt(partial(leftovers.remove_temporary, path))
    return Report(CHECKING, rows)


def _told(shop: Workshop, one: Unfinished) -> dict[str, Any]:
    texts = [
        f"Found partial download for model: {_named(one)}", f"Partial size: {one.size} bytes",
        f"Can resume: {one.can_resume}",
    ]  # fmt: skip
    log.warning(". ".join(texts))
    details: dict[str, str | int | bool] = {"file": one.file, "size": one.size, "can_resume": one.can_resume}
    shop.dispatcher.publish(Fact("partial_found", one.model, texts[0], details=details))
    is_gone = one.is_hopeless and _attempt(partial(leftovers.discard, shop.layout, one)) is not None
    if is_gone:
        texts.append(clean_up_told(shop, one))
    return {
        "model": one.model, "file": one.file, "size": one.size, "total": one.total, "can_resume": one.can_resume,
        "cleaned": is_gone, "text": ". ".join(texts),
    }  # fmt: skip


def _named(one: Unfinished) -> str:
    return f"{one.model} ({one.file})" if one.file not in ("", one.model) else one.model


def clean_up_told(shop: Workshop, one: Unfinished) -> str:
    text = f"Cleaned up partial download for: {one.model}"
    log.warning(text)
    shop.dispatcher.publish(Fact("partial_cleaned", one.model, text, one.file, details={"size": one.size}))
    return text


def unchanged_for(path: str) -> float:
    """Since when a file is as it is, whatever it says itself: also as another name of an older one."""
    try:
        now = os.lstat(path)
    except OSError:
        return 0.0
    return time.time() - now.st_ctime


def _attempt(removal: Callable[[], int]) -> int | None:
    """What it returns; None where it is in use by now, or the disk refuses."""
    try:
        return removal()
    except (LockedError, StoreError, OSError) as error:
        log.info("%s", error)
        return None


# -- reset ------------------------------------------------------------------------------------------------------------


def reset(shop: Workshop, state: State, model: str, records: list[Installed]) -> Report:
    """Takes away everything of one model: its versions, their records, what is unfinished and was asked. Its log stays.

    Blobs that others have stay. Raises LockedError while somebody fetches it, StoreError; running it again goes on.
    """
    rows: list[dict[str, Any]] = []
    files = {file.sha256: file for record in records for file in record.files}
    for record in records:
        freed = remove(shop.layout, shop.registry, record)
        rows.append(_reset_row("version", model, record.folder, freed))
    with locked(shop.layout.model_lock(model), Subject(model), Patience(0.0)):
        for version in shop.registry.versions(model):  # one whose record is gone
            shop.registry.removed(model, version)
            rows.append(_reset_row("version", model, f"{model}@{version}", 0))
        rows += [
            _reset_row("partial", model, one.folder, leftovers.discard(shop.layout, one))
            for one in leftovers.unfinished(shop.layout)
            if one.model == model or (one.model == one.file and one.key.removeprefix("sha256-") in files)
        ]
    state.forget(model)
    if rows:
        freed = sum(row["size"] for row in rows)
        shop.dispatcher.publish(Fact("reset", model, f"{model} is reset", details={"freed": freed}))
    return Report(f"{model} is reset", tuple(rows))


def _reset_row(kind: str, model: str, path: str, size: int) -> dict[str, Any]:
    return {"kind": kind, "model": model, "path": path, "size": size, "reason": "reset", "removed": True}
