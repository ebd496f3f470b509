"""The records of downloads: rows, and what was asked, in a file beside them.

Responsible for: whose a record is, counting attempts, and reading a record whose owner is gone as paused.
What was asked may hold a URL with a query: it is kept, for its owner's eyes alone, until its download is over.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, fields, replace
from typing import TYPE_CHECKING, Any

from modelcache.errors import StoreError, UsageError
from modelcache.history import UNFINISHED, DownloadRecord, Standing
from modelcache.state.place import Place
from modelcache.store import leftovers
from modelcache.store.disk import CREATE, make_directories, read_small, write_all
from modelcache.store.layout import Layout
from modelcache.store.locks import is_held
from modelcache.store.owner import Owner

if TYPE_CHECKING:
    from sqlite3 import Connection, Row

MOST_REQUEST = 5 << 20  # of a manifest, at most
_NAMES = [field.name for field in fields(DownloadRecord)]
_KINDS: dict[str, type[int] | type[str]] = {
    field.name: int if field.type is int else str for field in fields(DownloadRecord)
}


def put(connection: "Connection", standing: Standing, owner: str, layout: Layout) -> None:
    """Writes a record as it stands. One that another process has under way changes only when this one takes it over,
    or has everything."""
    record = standing.record
    row = connection.execute("SELECT * FROM downloads WHERE id = ?", (record.id,)).fetchone()
    before = _record_of(dict(zip([*_NAMES, "owner"], row, strict=True))) if row else None
    is_theirs = before is not None and before.status in UNFINISHED and row[-1] != owner
    may_change = standing.begins or record.status == "success"
    if before and is_theirs and not may_change and _lives(row[-1], before.model, layout):
        return
    is_new = before is None or (before.status == "success" and record.status != "success")
    attempts = (0 if is_new or before is None else before.attempts) + standing.begins
    started_at = record.started_at if is_new or before is None else before.started_at
    kept = replace(record, attempts=max(attempts, record.status == "success"), started_at=started_at)
    marks = ", ".join("?" * (len(_NAMES) + 1))
    connection.execute(f"INSERT OR REPLACE INTO downloads VALUES ({marks})", (*astuple(kept), owner))  # noqa: S608


def keep_request(place: Place, standing: Standing) -> None:
    """Written when a download begins, gone when it has ended for good. Never raises: it can be asked again by hand."""
    path = place.request(standing.record.id)
    with suppress(OSError, StoreError):
        if standing.is_over or (standing.begins and standing.request):
            forget_request(place, standing.record.id)
        if standing.begins and standing.request:
            make_directories(place.requests)
            fd = os.open(path, CREATE, 0o600)  # a kill may leave half of it, which then says nothing
            try:
                write_all(fd, memoryview(standing.request.encode()), 0)
            finally:
                os.close(fd)


def request_of(place: Place, download_id: str) -> str:
    """What was asked; empty where that is not known (any more)."""
    with suppress(StoreError, ValueError):
        return (read_small(place.request(download_id), MOST_REQUEST, private=True) or b"").decode()
    return ""


def forget_request(place: Place, download_id: str) -> None:
    if re.fullmatch(r"\w+", download_id, re.ASCII):  # a database may hold anything
        with suppress(OSError):
            os.unlink(place.request(download_id))


def forget_old(connection: "Connection", before_ms: int, place: Place, layout: Layout) -> list[str]:
    """Drops records that changed last before that; their ids. Those stay that somebody carries out, and those of
    which bytes are here to go on with."""
    question = "SELECT id, status, model, owner FROM downloads WHERE last_attempt < ?"
    rows = list(connection.execute(question, (before_ms,)))
    unfinished = [one for one in leftovers.unfinished(layout) if not one.is_hopeless] if rows else []
    models, contents = {one.model for one in unfinished}, [one.key.rpartition("-")[2] for one in unfinished if one.key]
    ids = []
    for download_id, status, model, owner in rows:
        asked = "" if status == "success" else request_of(place, str(download_id))
        is_here = model in models or any(content in asked for content in contents)
        if status == "success" or not (is_here or (status in UNFINISHED and _lives(owner, str(model), layout))):
            ids.append(str(download_id))
    forget(connection, ids)
    return ids


def forget(connection: "Connection", ids: Sequence[str]) -> None:
    connection.executemany("DELETE FROM downloads WHERE id = ?", [(each,) for each in ids])


def all_of(connection: "Connection | None", layout: Layout, statuses: Sequence[str] = ()) -> Iterator[DownloadRecord]:
    """The latest first; of these statuses, or of all."""
    which = "WHERE status <> 'success'" if statuses and "success" not in statuses else ""  # those are the many
    question = f"SELECT * FROM downloads {which} ORDER BY last_attempt DESC"  # noqa: S608
    for row in connection.execute(question) if connection else ():
        record = _standing_now(row, layout)
        if record.id and (not statuses or record.status in statuses):
            yield record


def one_of(connection: "Connection | None", layout: Layout, download_id: str) -> DownloadRecord | None:
    found = connection.execute("SELECT * FROM downloads WHERE id = ?", (download_id,)) if connection else None
    row = found.fetchone() if found else None
    return _standing_now(row, layout) if row else None


def _standing_now(row: "Row", layout: Layout) -> DownloadRecord:
    record = _record_of(dict(row))
    if record.status in UNFINISHED and not _lives(row["owner"], record.model, layout):
        return replace(record, status="paused", error_message=record.error_message or "its process has ended")
    return record


def _record_of(row: dict[str, Any]) -> DownloadRecord:
    """What is not of the right type is as good as nothing."""
    values: dict[str, Any] = {
        name: row[name] if isinstance(row.get(name), kind) else kind() for name, kind in _KINDS.items()
    }
    return DownloadRecord(**values)


def _lives(owner: object, model: str, layout: Layout) -> bool:
    """Whether its process carries it out still. Of one in another pid namespace, only the lock of the model tells."""
    try:
        whose = Owner.from_json(json.loads(owner if isinstance(owner, str) else ""))
        if whose.is_proven_dead():
            return False
        return whose == Owner.here(whose.pid) or is_held(layout.model_lock(model))
    except (ValueError, RecursionError, UsageError):
        return False
