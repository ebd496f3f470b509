"""The state of one cache in one process: what is kept of downloads, and what can be asked of it.

Responsible for: being the one writer (a sink of the dispatcher), keeping in memory what another process's lock keeps
from being written, and answering from a connection of its own. Losing all of it loses no model, and no fetch waits.
Leaves to others: the file and its faults (`database`), the rows (`downloads`, `metrics`).
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import dropwhile
from typing import TYPE_CHECKING, Any

from modelcache.dispatch import Kept
from modelcache.errors import StoreError
from modelcache.events import now_ms
from modelcache.health import Gateway, Health
from modelcache.history import UNFINISHED, Attempt, DownloadRecord, Note, Standing, Use
from modelcache.state import downloads, metrics
from modelcache.state.database import WAIT_S, Database, reading
from modelcache.state.hauls import Size
from modelcache.state.place import Place
from modelcache.state.uses import Uses
from modelcache.store.layout import Layout
from modelcache.store.owner import Owner

if TYPE_CHECKING:
    from sqlite3 import Connection

MOST_KEPT, MOST_KEPT_BYTES = 10_000, 16 << 20  # notes in memory; what was asked may be megabytes
SCORES_FOR_S = 30.0  # health changes slowly: many files of one model do not ask for it each
ROLL_UP_EVERY_S = 3600.0

log = logging.getLogger(__name__)


class State:
    """`uses` may be counted by any thread; a child after a fork makes a State of its own."""

    def __init__(self, root: str, uses: Uses, metrics_age_s: float, *, shared: bool = False) -> None:
        self.place = Place.of(root, shared=shared)
        self.uses = uses
        self._layout = Layout(root)
        self._database = Database(self.place.database)
        self._metrics_age_s = metrics_age_s
        self._owner = json.dumps(Owner.mine().to_json())
        self._writing = threading.Lock()
        self._kept: list[Note] = []
        self._has_dropped = False
        self._roll_up_at = 0.0
        self._scores: tuple[float, dict[Gateway, Health]] = (-SCORES_FOR_S, {})

    # -- writing ------------------------------------------------------------------------------------------------------

    def __call__(self, kept: Sequence[Kept]) -> None:
        """Takes notes from the dispatcher, and writes them unless somebody holds the lock."""
        notes = [note for note in kept if isinstance(note, Attempt | Standing | Use)]
        if notes or self._kept:
            with self._writing:
                self._take(notes)
                self._flush(at_once=False)

    def close(self) -> None:
        """Writes what is left. Waits for another process for a moment, not for ever."""
        if not self._writing.acquire(timeout=WAIT_S):
            return
        try:
            self._take(())
            if self._kept:
                self._flush(at_once=True)
        finally:
            self._writing.release()

    def keep_size(self, size: Size) -> None:
        """Notes how large the store is on a day; the last note of a day counts."""
        with self._writing:
            self._database.write(lambda connection: metrics.put_size(connection, size), at_once=True)

    def forget(self, model: str) -> None:
        """Drops what is known of a model's downloads that have ended, and what was asked. What cannot be read stays."""
        ids = []
        with suppress(StoreError):
            ids = [one.id for one in self.downloads() if one.model == model and one.status not in UNFINISHED]
        if ids:
            with self._writing:
                self._database.write(lambda connection: downloads.forget(connection, ids), at_once=True)
        for download_id in ids:
            downloads.forget_request(self.place, download_id)

    def _take(self, notes: Sequence[Note]) -> None:
        uses, more = self.uses.take()
        self._kept += [*notes, *uses, *(Use(model, count=count) for model, count in more.items())]

    def _flush(self, *, at_once: bool) -> None:
        notes = self._kept
        standings = [note for note in notes if isinstance(note, Standing)]
        self._keep_requests(note for note in standings if note.begins)  # before anybody can see the record
        if not self._database.write(lambda connection: self._write(connection, notes), at_once=at_once):
            self._drop_some()
            return
        self._kept = []
        if any(isinstance(note, Attempt) for note in notes):
            self._scores = (-SCORES_FOR_S, self._scores[1])
        self._keep_requests(dropwhile(lambda note: not note.is_over, standings))

    def _keep_requests(self, notes: Iterable[Standing]) -> None:
        if not self._database.is_off:
            for note in notes:
                downloads.keep_request(self.place, note)

    def _drop_some(self) -> None:
        """Of what waits for the lock, what is too much for the memory."""
        kept = _bounded(self._kept)
        if len(kept) < len(self._kept) and not self._has_dropped:
            self._has_dropped = True
            log.warning("%s is locked for long: the oldest of what is to be kept is dropped", self.place.database)
        self._kept = kept

    def _write(self, connection: "Connection", notes: Sequence[Note]) -> None:
        uses = [note for note in notes if isinstance(note, Use)]
        for standing in (note for note in notes if isinstance(note, Standing)):
            downloads.put(connection, standing, self._owner, self._layout)
        attempts = [note for note in notes if isinstance(note, Attempt)] + [_row_of(use) for use in uses if use.is_hit]
        metrics.add_attempts(connection, self.place.host, attempts)
        metrics.add_uses(connection, _counted(uses))
        self._forget_old(connection)

    def _forget_old(self, connection: "Connection") -> None:
        if time.monotonic() < self._roll_up_at:
            return
        before_ms = now_ms() - int(1000 * self._metrics_age_s)
        is_more = metrics.roll_up(connection, before_ms)
        for download_id in downloads.forget_old(connection, before_ms, self.place, self._layout):
            downloads.forget_request(self.place, download_id)
        self._roll_up_at = 0.0 if is_more else time.monotonic() + ROLL_UP_EVERY_S

    # -- asking -------------------------------------------------------------------------------------------------------

    def downloads(self, statuses: Sequence[str] = ()) -> list[DownloadRecord]:
        """The latest first. StoreError where the database cannot be read, as in everything that is asked here."""
        with reading(self.place.database) as connection:
            return list(downloads.all_of(connection, self._layout, statuses))

    def download(self, download_id: str) -> DownloadRecord | None:
        with reading(self.place.database) as connection:
            return downloads.one_of(connection, self._layout, download_id)

    def request_of(self, download_id: str) -> str:
        """What was asked, as text; empty where it is not known. It may hold secrets."""
        return downloads.request_of(self.place, download_id)

    def requests_left(self, before_ms: int) -> list[str]:
        """Paths of what was asked, without that of downloads that somebody carries out or that changed since then.

        All of them, where no record can be read.
        """
        wanted: set[str] = set()
        with suppress(StoreError):
            records = self.downloads()
            wanted = {one.id for one in records if one.status in UNFINISHED or one.last_attempt >= before_ms}
        with suppress(OSError):
            names = sorted(os.listdir(self.place.requests))
            return [
                os.path.join(self.place.requests, name) for name in names if name.removesuffix(".json") not in wanted
            ]
        return []

    def usage(self) -> list[dict[str, Any]]:
        with reading(self.place.database) as connection:
            return list(metrics.ranking(connection))

    def health(self) -> dict[Gateway, Health]:
        with reading(self.place.database) as connection:
            return metrics.scores(connection)

    def scores(self) -> Mapping[Gateway, Health]:
        """The same for a fetch, which does not wait for it: what other processes found in the last half minute may be
        missing, and at worst nothing is known."""
        asked_at, scores = self._scores
        if time.monotonic() - asked_at >= SCORES_FOR_S:
            try:
                with reading(self.place.database, WAIT_S) as connection:
                    scores = metrics.scores(connection)
            except (StoreError, OSError):
                scores = {}
            self._scores = (time.monotonic(), scores)
        return scores


def _bounded(notes: list[Note]) -> list[Note]:
    """The latest for which there is room; records, which can be gone on with, before all others."""
    sizes = [len(note.request) if isinstance(note, Standing) else 0 for note in notes]
    if len(notes) <= MOST_KEPT and sum(sizes) <= MOST_KEPT_BYTES:
        return notes
    kept, room = set[int](), MOST_KEPT_BYTES
    for index in sorted(range(len(notes)), key=lambda each: (isinstance(notes[each], Standing), each), reverse=True):
        if len(kept) < MOST_KEPT and sizes[index] <= room:
            kept.add(index)
            room -= sizes[index]
    return [notes[index] for index in sorted(kept)]


def _row_of(use: Use) -> Attempt:
    return Attempt("cache", "", "hit", file=use.file, model=use.model, bytes=use.saved_bytes, timestamp=use.timestamp)


def _counted(uses: Sequence[Use]) -> list[tuple[str, int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for use in uses:
        count, last = counts.get(use.model, (0, 0))
        counts[use.model] = (count + use.count, max(last, use.timestamp))
    return [(model, count, last) for model, (count, last) in counts.items()]
