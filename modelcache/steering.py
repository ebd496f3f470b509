"""What was done, in every root of a cache; going on with a download, pausing or cancelling it, whoever carries it out:
this process, the queue, or nobody.

Responsible for: which root and which of them it is. Leaves to others: how a download stands (`past`), what it does
(`download`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from modelcache import past
from modelcache.again import parsed
from modelcache.dispatch import Show
from modelcache.errors import LockedError, UnknownDownloadError
from modelcache.fetching import begun
from modelcache.history import UNFINISHED, DownloadRecord
from modelcache.roots import Roots
from modelcache.rows import Report, joined
from modelcache.runtime import STOP_WITHIN_S, Runtime

if TYPE_CHECKING:
    from modelcache.download import Download


def downloads(roots: Roots, statuses: Sequence[str]) -> Report:
    """One row a download, the latest first."""
    told = joined([past.downloads(runtime.state, runtime.shelf, statuses) for runtime in roots.all()])
    return replace(told, rows=tuple(sorted(told, key=lambda row: -row["lastAttempt"])))


def found(roots: Roots, download_id: str) -> tuple[Runtime, DownloadRecord]:
    """How a download stands, and the root that it is in. Raises UnknownDownloadError."""
    *others, last = roots.all()
    for runtime in others:
        try:
            return runtime, past.download(runtime.state, runtime.shelf, download_id)
        except UnknownDownloadError:
            continue
    return last, past.download(last.state, last.shelf, download_id)


def resume(roots: Roots, download_id: str, headers: Mapping[str, str] | None, progress: Show) -> "Download | None":
    """What goes on; None if it is ready. UsageError where what was asked is not known any more."""
    runtime, record = found(roots, download_id)
    if record.status == "success":
        return None
    past.pause_in_queue(runtime.shelf, record.id, False)
    download = runtime.find(record.id)
    if download is not None:
        download.resume()
        return download
    ref, wish = parsed(runtime.state.request_of(record.id))
    return begun(roots, ref, replace(wish, headers=dict(headers or {})), progress)


def pause(roots: Roots, download_id: str) -> None:
    """LockedError while another process is at it that runs no queue."""
    runtime, record = found(roots, download_id)
    is_queued = record.status != "success" and past.pause_in_queue(runtime.shelf, record.id, True)
    download = runtime.find(record.id)
    if download is not None:
        download.pause()
        download.wait_stopped(STOP_WITHIN_S)
    elif record.status in UNFINISHED and not is_queued:
        raise LockedError(f"{record.model} is being fetched by another process", next_step="press Ctrl-C there")


def cancel(roots: Roots, download_id: str) -> None:
    """LockedError while another process is at it."""
    runtime, record = found(roots, download_id)
    if record.status == "success":
        return
    download = runtime.find(record.id)
    if download is not None:
        download.cancel()
        download.wait_stopped(STOP_WITHIN_S)
    else:
        past.forget(runtime.state, runtime.shelf, runtime.shop, record)
    past.take_out_of_queue(runtime.shelf, record.id)
