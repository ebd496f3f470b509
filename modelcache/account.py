"""The account of a download: what its record says, each time that changes.

Responsible for: the id that stays the same however often the same is fetched to the same place, and turning what a
download knows of itself into a record. Leaves to others: keeping it (`state`), and the download itself.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace

from modelcache.dispatch import Dispatcher
from modelcache.events import now_ms
from modelcache.history import Attempt, DownloadRecord, Note, Standing
from modelcache.model import checksum_of, version_of
from modelcache.order import Fetched, Order
from modelcache.states import RECORD_STATUS, State
from modelcache.store.layout import Layout
from modelcache.task import Task

MOST_ERROR = 300  # characters: a record is below 1 KB (product A10)


def id_of(order: Order) -> str:
    """The version of a URL, and of a tag, does not count: it may be known only when the bytes are here."""
    what = (order.id, order.called or ("" if order.single else order.version), order.output, str(order.cached))
    return hashlib.sha256("\0".join(what).encode()).hexdigest()[:16]


def place_of(order: Order, layout: Layout) -> str:
    """Where it will be; empty while only the bytes can tell."""
    if order.output:
        return order.output
    folder = layout.model(order.id, order.version) if order.version else ""
    return os.path.join(folder, order.name) if folder and order.single else folder


class Account:
    """Written by the threads of one download. `request` is what was asked, to be asked again; it may hold secrets."""

    def __init__(self, order: Order, layout: Layout, dispatcher: Dispatcher, request: str) -> None:
        self.id = id_of(order)
        self._layout = layout
        self._dispatcher = dispatcher
        self._request = request
        self._started_at = now_ms()
        self._last: DownloadRecord | None = None

    def begins(self, order: Order, tasks: Sequence[Task]) -> None:
        """It is under way: one more attempt."""
        self._last = self._record(order, tasks, State.RESOLVING)
        self._note(order, Standing(self._last, begins=True, request=self._request))

    def stands(
        self, order: Order, tasks: Sequence[Task], state: State, error: str = "", *, is_final: bool = False
    ) -> None:
        """Nothing is told twice. After a final error the same request would fail again: a signed URL is not kept."""
        record = replace(self._record(order, tasks, state), error_message=error[:MOST_ERROR])
        last = self._last or record
        timeless = replace(record, last_attempt=last.last_attempt, completed_at=last.completed_at)
        if self._last is None or timeless != last:
            self._last = record
            is_over = state is State.READY or (is_final and any(mark in self._request for mark in "?;"))
            self._note(order, Standing(record, is_over=is_over))

    def is_cancelled(self, order: Order, tasks: Sequence[Task], error: str) -> None:
        """Nobody will go on with it."""
        record = replace(self._record(order, tasks, State.FAILED), error_message=error[:MOST_ERROR], downloaded_bytes=0)
        self._note(order, Standing(record, is_over=True))

    def found(self, order: Order, done: Fetched) -> None:
        """A file that was here already."""
        self._note(order, Attempt("cache", done.tier, "hit", file=done.file.path, model=order.id, bytes=done.size))

    def _note(self, order: Order, note: Note) -> None:
        if order.cached:  # else nothing stays, history included
            self._dispatcher.note(note)

    def _record(self, order: Order, tasks: Sequence[Task], state: State) -> DownloadRecord:
        now, is_ready = now_ms(), state is State.READY
        digests = {task.file.path: task.done.sha256.hex for task in tasks if task.done}
        if is_ready and not order.version:
            order = replace(order, version=version_of(digests))
        return DownloadRecord(
            self.id, order.id, order.version, order.ref, place_of(order, self._layout), RECORD_STATUS[state],
            downloaded_bytes=sum(task.here for task in tasks), total_bytes=sum(task.total for task in tasks),
            started_at=self._started_at, completed_at=now if is_ready else 0, last_attempt=now,
            hash=checksum_of(digests) if is_ready else "",
        )  # fmt: skip
