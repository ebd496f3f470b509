"""Puts what the metrics say into a folder, where people and programs find it (product E3, H).

    downloads-YYYY-MM-DD.csv   one row an attempt of that day (UTC); with Parquet also .parquet
    summary-YYYY-MM-DD.csv     what they come to, by layer, gateway, model and day
    report.html                the page, about the last weeks
    modelcache.prom            for the textfile collector of node_exporter

Rules:
1. Each file is replaced as a whole or stays as it was. Doing it twice changes nothing but what happened meanwhile.
2. A day is written until it is over. One that was missed, with its attempts still kept, is caught up on.
3. What is older than `metrics_age` goes, and nothing that does not have such a name.
4. The sheets of a day are not replaced by ones that lack rows they had: databases get lost, and what they said is then
   nowhere else. Such a day is left as it was, with a finding.

Responsible for: these. Leaves to others: what is in the files.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from modelcache.errors import LockedError
from modelcache.events import now_ms as wall_ms
from modelcache.history import Attempt
from modelcache.reporting.holdings import holdings, size_of
from modelcache.reporting.overview import SUMMARY, Overview, gateway_of
from modelcache.reporting.page import Facts, page_of
from modelcache.reporting.prometheus import exposition
from modelcache.reporting.window import HOUR_MS, Window, day_of, iso
from modelcache.rows import Report
from modelcache.sheets import write_csv, write_parquet
from modelcache.state.hauls import Hauls
from modelcache.state.place import Place
from modelcache.state.state import State
from modelcache.store.disk import (
    check_no_links,
    chosen_by,
    make_directories,
    make_output_directories,
    output_mode,
    replacing,
)
from modelcache.store.layout import Layout
from modelcache.store.leftovers import entries_of, remove_temporary, removed, temporary_in
from modelcache.store.modes import is_shared
from modelcache.store.shelf import Shelf

_DOWNLOADS, _SUMMARY, _PAGE, _COUNTERS = "downloads", "summary", "report.html", "modelcache.prom"
_ATTEMPT = Attempt("", "", "hit").to_row("") | {"timestamp": "", "http_status": 0}
DOWNLOADS = tuple(_ATTEMPT)
_SAMPLES = {  # with a value of the right type in each column
    DOWNLOADS: _ATTEMPT,
    SUMMARY: dict.fromkeys(SUMMARY, 0) | {"group": "", "key": "", "success_rate": 0.0},
}
_TELLING = ("timestamp", "bytes", "resumed_bytes", "attempt")  # of a row: what a sheet of any version has just so
LATE_MS = HOUR_MS  # so much later a row of a day may still come
_DATED = re.compile(r"(?:downloads|summary)-([0-9]{4}-[0-9]{2}-[0-9]{2})\.(?:csv|parquet)")
_TEMPORARY = re.compile(r"\.(?:downloads-.*|summary-.*|report\.html|modelcache\.prom)\.[0-9a-f]{8}\.tmp")


@dataclass(frozen=True, slots=True)
class Wishes:
    """`folder` is where to, if not `reports` in the root (`reports/UID` in a group's, `reports/HOST` on a network
    disk), `since` what the page is about; files stay for `age_s`."""

    folder: str
    since: str
    parquet: bool
    age_s: float


def publish(state: State, shelf: Shelf, wishes: Wishes, now_ms: int | None, is_stopped: Callable[[], bool]) -> Report:
    """One row a file that was written, or removed for its age, or left as it was: that is a finding, with its `reason`.

    When it is stopped, what is written by then stays. What had to be left out of the metrics is in the notes.
    UsageError where the extra `parquet` is missing; StoreError where the folder is full or cannot be written to.
    """
    press = _Press(state, shelf, wishes, wall_ms() if now_ms is None else now_ms)
    for work in press.works():
        if is_stopped():
            break
        work()
    rows, findings = tuple(press.rows), sum(bool(row["reason"]) for row in press.rows)
    columns = ("file", "size", "removed", "reason")
    return Report("published", rows, findings=findings, columns=columns, notes=press.hauls.faults)


def _folder_of(layout: Layout, place: Place) -> str:
    """Of whoever knows no more than what it did, so that no file has two writers: of each account in a root that a
    group shares, of each host where none sees the database of another."""
    if not place.is_in(layout.root):
        return os.path.join(layout.reports, place.name)
    return os.path.join(layout.reports, str(os.geteuid())) if is_shared(layout.root) else layout.reports


class _Press:
    def __init__(self, state: State, shelf: Shelf, wishes: Wishes, now_ms: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.hauls = Hauls(state.place, now_ms)
        self._state = state
        self._shelf = shelf
        self._wishes = wishes
        self._now_ms = now_ms
        self._window = Window.since(wishes.since, now_ms)
        self._is_ours = not wishes.folder
        self._chosen_by = "MODELCACHE_HOME or reports_dir" if self._is_ours else "reports_dir"
        self._folder = os.path.expanduser(wishes.folder) or _folder_of(shelf.layout, state.place)

    def works(self) -> Iterator[Callable[[], None]]:
        yield self._begin
        for day in self._days():
            if lost := self._lost(day):
                yield partial(self._leave, day, lost)
                continue
            for path in self._files(day):
                yield partial(self._put_day, day, path)
        yield self._put_page
        yield self._put_counters
        yield self._remove_old

    def _begin(self) -> None:
        with chosen_by(self._chosen_by):
            if self._is_ours:
                check_no_links(self._shelf.layout.root, self._folder)
            (make_directories if self._is_ours else make_output_directories)(self._folder)

    # -- a day --------------------------------------------------------------------------------------------------------

    def _days(self) -> list[str]:
        oldest_ms = self._now_ms - int(1000 * self._wishes.age_s)
        kept = {day for day in self.hauls.days(max(0, oldest_ms), self._now_ms) if day >= day_of(max(0, oldest_ms))}
        return sorted(day for day in kept | {day_of(self._now_ms)} if not self._is_final(day))

    def _is_final(self, day: str) -> bool:
        """It was written after the day was over. A date that is yet to come tells nothing: a clock was ahead (I14)."""
        over_ms, latest_ms = Window.day(day).stop_ms + LATE_MS, self._now_ms + LATE_MS
        try:
            return all(over_ms <= 1000 * os.stat(path).st_mtime <= latest_ms for path in self._files(day))
        except OSError:
            return False

    def _files(self, day: str) -> list[str]:
        kinds = ("csv", "parquet") if self._wishes.parquet else ("csv",)
        return [os.path.join(self._folder, f"{name}-{day}.{kind}") for name in (_DOWNLOADS, _SUMMARY) for kind in kinds]

    def _lost(self, day: str) -> int:
        """How many rows of its sheet no database has any more."""
        lost = _told_by(self._files(day)[0])
        if lost:
            lost.subtract(map(_telling, self._attempts(day)))
        return sum((+lost).values())

    def _leave(self, day: str, lost: int) -> None:
        path = self._files(day)[0]
        why = f"left as it was: {lost:,} of its rows are in no database any more; move it away to have the rest written"
        self._tell(path, os.stat(path).st_size, reason=why)

    def _put_day(self, day: str, path: str) -> None:
        is_summary = os.path.basename(path).startswith(_SUMMARY)
        columns, rows = (SUMMARY, self._summary(day)) if is_summary else (DOWNLOADS, self._attempts(day))
        with self._written(path) as stream:
            if path.endswith(".parquet"):
                write_parquet(stream, columns, rows, _SAMPLES[columns])
            else:
                write_csv(stream, columns, rows)

    def _attempts(self, day: str) -> Iterator[dict[str, Any]]:
        window = Window.day(day)
        for row in self.hauls.attempts(window.start_ms, min(window.stop_ms, self._now_ms)):
            yield _as_told(row)

    def _summary(self, day: str) -> Iterator[dict[str, Any]]:
        window = Window.day(day)
        return Overview(window, self.hauls.between(window.start_ms, min(window.stop_ms, self._now_ms))).rows()

    # -- now ----------------------------------------------------------------------------------------------------------

    def _put_page(self) -> None:
        window = self._window
        overview = Overview(window, self.hauls.between(window.start_ms, window.stop_ms, window.step_ms))
        held = holdings(self._shelf, self._now_ms)
        self._state.keep_size(held.size)
        root, host = self._shelf.layout.root, self._state.place.host
        facts = Facts(root, host, overview, held, self.hauls.sizes(), self.hauls.faults, self.hauls.is_partial)
        with self._written(os.path.join(self._folder, _PAGE)) as stream:
            stream.write(page_of(facts).encode(errors="replace"))

    def _put_counters(self) -> None:
        text = exposition(self.hauls, self._now_ms, size_of(self._shelf.layout, self._now_ms).bytes)
        with self._written(os.path.join(self._folder, _COUNTERS)) as stream:
            stream.write(text.encode(errors="replace"))

    @contextmanager
    def _written(self, path: str) -> Iterator[BinaryIO]:
        with chosen_by(self._chosen_by), replacing(path, None if self._is_ours else output_mode()) as stream:
            yield stream
        self._tell(path, os.stat(path).st_size)

    def _tell(self, path: str, size: int, *, removed: bool = False, reason: str = "") -> None:
        self.rows.append({"file": path, "size": size, "removed": removed, "reason": reason})

    # -- the end ------------------------------------------------------------------------------------------------------

    def _remove_old(self) -> None:
        """Also what a kill left half-written."""
        oldest = day_of(max(0, self._now_ms - int(1000 * self._wishes.age_s)))
        for entry in entries_of(self._folder):
            dated = _DATED.fullmatch(entry.name)
            if dated and dated[1] < oldest and entry.is_file(follow_symlinks=False):
                self._tell(entry.path, removed(entry.path), removed=True)
        for path in temporary_in(self._folder):
            if _TEMPORARY.fullmatch(os.path.basename(path)):
                with suppress(LockedError):
                    remove_temporary(path)


def _as_told(row: Mapping[str, Any]) -> dict[str, Any]:
    """What nobody could measure is empty: no server answered, or not one byte came from anywhere."""
    told = {**row, "timestamp": iso(row["timestamp"]), "gateway": gateway_of(row["layer"], row["gateway"])}
    told["http_status"] = row["http_status"] or None
    if row["status"] != "success" and not row["http_status"]:
        told["latency_ms"] = row["latency_ms"] or None
    return told


def _telling(row: Mapping[str, Any]) -> int:
    """Small: a day may have millions of rows."""
    return hash(tuple(str(row[name]) for name in _TELLING))


def _told_by(path: str) -> Counter[int]:
    """The rows of a sheet of ours; what cannot be read as such tells nothing."""
    told: Counter[int] = Counter()
    with suppress(OSError, csv.Error):
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace", newline="") as stream:
                told.update(_telling(row) for row in csv.DictReader(stream) if all(map(row.get, _TELLING)))
    return told
