"""What can be asked of what is remembered: downloads, requests per model, how gateways have done.

Responsible for: these reports, and what is left of a download whose process has ended. Leaves to others: keeping
(`state`), and fetching again (`steering`).
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from modelcache.account import id_of
from modelcache.again import bytes_here, parsed
from modelcache.errors import LockedError, ModelCacheError, UnknownDownloadError, UsageError
from modelcache.events import now_ms
from modelcache.filefetch import discard
from modelcache.history import DownloadRecord, Standing
from modelcache.order import Order, Workshop
from modelcache.ordering import order_of
from modelcache.rows import Report
from modelcache.state.state import State
from modelcache.states import RECORD_STATUS
from modelcache.store.locks import is_held
from modelcache.store.shelf import Shelf
from modelcache.store.waitlist import Waitlist

FOR_PROGRAMS = ("cidId", "downloadPath", "lastAttempt", "currentSize", "hash", "completed_at", "canResume")
STATUSES = tuple(dict.fromkeys(RECORD_STATUS.values()))


def downloads(state: State, shelf: Shelf, statuses: Sequence[str]) -> Report:
    """One row a download (product H). UsageError for a status that there is not."""
    for wrong in (status for status in statuses if status not in STATUSES):
        raise UsageError(f"no status {wrong!r}: one of {', '.join(STATUSES)}")
    rows = [
        _as_it_is(state, shelf, record).to_row() | {"canResume": bool(state.request_of(record.id))}
        for record in state.downloads(statuses)
    ]
    return Report("downloads", tuple(rows), hidden=FOR_PROGRAMS)


def download(state: State, shelf: Shelf, download_id: str) -> DownloadRecord:
    record = state.download(download_id)
    if record is None:
        raise UnknownDownloadError(f"no download {download_id!r}", next_step="`modelcache status` lists them")
    return _as_it_is(state, shelf, record)


def usage(states: Sequence[State]) -> Report:
    """One row a model, the most requested first: of all roots together."""
    counts, last = Counter[str](), dict[str, int]()
    for row in (row for state in states for row in state.usage()):
        counts[row["model_id"]] += row["request_count"]
        last[row["model_id"]] = max(row["last_used"], last.get(row["model_id"], 0))
    ranked = sorted(counts, key=lambda model: (-counts[model], -last[model], model))
    rows = (
        {"model_id": model, "request_count": counts[model], "rank": rank, "last_used": last[model]}
        for rank, model in enumerate(ranked, 1)
    )
    return Report("requests per model", tuple(rows))


def health(state: State) -> Report:
    """One row a gateway; counts and means fade with time."""
    now = now_ms()
    rows = [
        {
            "layer": layer, "gateway": gateway, "success_rate": round(score.success_rate, 3),
            "attempts": round(score.faded(now).attempts, 1), "first_byte_s": round(score.first_byte_s, 3),
            "throughput_bps": round(score.throughput), "last_success": score.last_success,
            "last_error": score.last_error,
        }
        for (layer, gateway), score in sorted(state.health().items())
    ]  # fmt: skip
    return Report("health of gateways", tuple(rows))


def forget(state: State, shelf: Shelf, shop: Workshop, record: DownloadRecord) -> None:
    """Removes what is here of a download that nobody carries out, and says in its record that it was cancelled.

    LockedError while a process is at it.
    """
    if is_held(shelf.layout.model_lock(record.model)):
        raise LockedError(f"{record.model} is being fetched by another process", next_step="end that one first")
    order = _order_of(state, shelf, record)
    if order:
        for file in order.files:
            discard(order, file, shop)
    over = replace(record, status="failed", error_message=f"{record.source} was cancelled", downloaded_bytes=0)
    shop.dispatcher.note(Standing(over, is_over=True))


def take_out_of_queue(shelf: Shelf, download_id: str) -> None:
    """Nobody who runs the queue begins again with what was cancelled. StoreError."""
    waitlist = _waitlist_of(shelf)
    for entry_id in _queued(shelf, waitlist, download_id):
        with suppress(UsageError):  # somebody took it out meanwhile
            waitlist.remove(entry_id)


def pause_in_queue(shelf: Shelf, download_id: str, paused: bool) -> bool:
    """Whether the queue knows of it: whoever runs that leaves it alone from here on, or takes it up again.

    StoreError.
    """
    waitlist = _waitlist_of(shelf)
    found = _queued(shelf, waitlist, download_id)
    for entry_id in found:
        with suppress(UsageError):
            waitlist.pause_one(entry_id, paused)
    return bool(found)


def _waitlist_of(shelf: Shelf) -> Waitlist:
    return Waitlist(shelf.layout.queue, shelf.layout.lock("queue"))


def _queued(shelf: Shelf, waitlist: Waitlist, download_id: str) -> list[str]:
    """Entries that lead to a download. What was asked may be forgotten there, and a URL may be signed anew here."""
    found = []
    for entry in waitlist.read().entries:
        with suppress(ModelCacheError):  # it is garbled
            if id_of(order_of(shelf, *parsed(entry.request))) == download_id:
                found.append(entry.id)
    return found


def _as_it_is(state: State, shelf: Shelf, record: DownloadRecord) -> DownloadRecord:
    """The disk knows better how much is here: of what a process has under way, and of what nobody carries out."""
    if record.status == "success":
        return record
    order = _order_of(state, shelf, record)
    if order is None:
        return record
    here, total = bytes_here(order, shelf.layout)
    return replace(record, downloaded_bytes=here, total_bytes=total or record.total_bytes)


def _order_of(state: State, shelf: Shelf, record: DownloadRecord) -> Order | None:
    """What was asked, as it would be carried out now; None where that is not known any more."""
    with suppress(ModelCacheError):
        return order_of(shelf, *parsed(state.request_of(record.id)))
    return None
