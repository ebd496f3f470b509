"""Going on with a download, pausing or cancelling it, whoever carries it out: this process, the queue, or nobody.

Responsible for: which of them is told. Leaves to others: how a download stands (`past`), what it does (`download`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from modelcache import past
from modelcache.again import parsed
from modelcache.dispatch import Show
from modelcache.errors import LockedError
from modelcache.fetching import begun
from modelcache.history import UNFINISHED, DownloadRecord
from modelcache.roots import Roots
from modelcache.runtime import STOP_WITHIN_S, Runtime

if TYPE_CHECKING:
    from modelcache.download import Download


def resume(
    roots: Roots, record: DownloadRecord, headers: Mapping[str, str] | None, progress: Show
) -> "Download | None":
    """What goes on; None if it is ready. UsageError where what was asked is not known any more."""
    if record.status == "success":
        return None
    runtime = roots.own
    past.pause_in_queue(runtime.shelf, record.id, False)
    download = runtime.find(record.id)
    if download is not None:
        download.resume()
        return download
    ref, wish = parsed(runtime.state.request_of(record.id))
    return begun(roots, ref, replace(wish, headers=dict(headers or {})), progress)


def pause(runtime: Runtime, record: DownloadRecord) -> None:
    """LockedError while another process is at it that runs no queue."""
    is_queued = record.status != "success" and past.pause_in_queue(runtime.shelf, record.id, True)
    download = runtime.find(record.id)
    if download is not None:
        download.pause()
        download.wait_stopped(STOP_WITHIN_S)
    elif record.status in UNFINISHED and not is_queued:
        raise LockedError(f"{record.model} is being fetched by another process", next_step="press Ctrl-C there")


def cancel(runtime: Runtime, record: DownloadRecord) -> None:
    """LockedError while another process is at it."""
    if record.status == "success":
        return
    download = runtime.find(record.id)
    if download is not None:
        download.cancel()
        download.wait_stopped(STOP_WITHIN_S)
    else:
        past.forget(runtime.state, runtime.shelf, runtime.shop, record)
    past.take_out_of_queue(runtime.shelf, record.id)
