"""What a panel knows: how far each file is, and all of them, from events.

Responsible for: rules on values: which rows are shown, sums, speeds, states. Leaves to others: what it looks like
(`drawn`), when it is painted (`panel`).
"""

import threading
from collections import Counter
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any, Literal

from modelcache.progress.gauge import Gauge, Sizes, Sum
from modelcache.progress.lines import host, sentence

MOST_ROWS = 12
NOTES = ("waiting", "source_failed", "piece_failed", "restarted", "repaired", "stale")  # told below the rows
MOVES = ("source_tried", "resumed", "manifest_pulled", "file_ready")  # nobody waits any more

FileState = Literal["waiting", "downloading", "verifying", "done", "paused", "failed"]
RANK: dict[FileState, int] = {
    "failed": 0, "paused": 0, "downloading": 0, "verifying": 0, "waiting": 1, "done": 2,
}  # fmt: skip
Event = dict[str, Any]
Key = tuple[str, str]  # model and file


@dataclass(frozen=True, slots=True)
class Row:
    """One file, or all of them. `size` is 0 while it is not known; the columns are texts, and may be empty."""

    name: str
    state: FileState
    here: int = 0
    size: int = 0
    amount: str = ""
    speed: str = ""
    left: str = ""
    host: str = ""

    @property
    def percent(self) -> str:
        """`100 %` only where it is all; nothing where it has not begun."""
        is_known = self.size and (self.here or self.state != "waiting")
        return f"{100 * min(self.here, self.size) // self.size} %" if is_known else ""


@dataclass(frozen=True, slots=True)
class View:
    """What is to be seen now. `hidden` files have no row, `hidden_done` of them are done."""

    rows: tuple[Row, ...]
    whole: Row
    files: int = 0
    done: int = 0
    failed: int = 0
    hidden: int = 0
    hidden_done: int = 0
    note: str = ""
    hosts: tuple[str, ...] = ()


class Rows:
    """A row a file, in the order in which they first came, and what all of them come to.

    Asking costs by what was put since, and not by how many there are: a model may have a hundred thousand files.
    """

    def __init__(self) -> None:
        self._placed: dict[Key, tuple[int, Row]] = {}
        self._ranked: dict[int, list[tuple[int, Key]]] = {rank: [] for rank in sorted(set(RANK.values()))}  # heaps
        self._unsized = 0
        self.size = 0
        self.states = Counter[FileState]()

    def __len__(self) -> int:
        return len(self._placed)

    @property
    def is_sized(self) -> bool:
        """Whether the size of all of them is known."""
        return not self._unsized

    def get(self, key: Key) -> Row | None:
        return self._placed[key][1] if key in self._placed else None

    def put(self, key: Key, row: Row) -> None:
        place, before = self._placed.get(key, (len(self._placed), None))
        self._placed[key] = place, row
        self._count(row, 1)
        if before is not None:
            self._count(before, -1)
        if before is None or RANK[before.state] != RANK[row.state]:
            heappush(self._ranked[RANK[row.state]], (place, key))

    def _count(self, row: Row, by: int) -> None:
        self.states[row.state] += by
        self.size += by * row.size
        self._unsized += by * (not row.size and row.state != "done")

    def first(self, most: int) -> tuple[Row, ...]:
        """All in their order; of too many those that run or failed, then those that wait."""
        if len(self._placed) <= most:
            return tuple(row for _, row in self._placed.values())
        found: list[Row] = []
        for rank in self._ranked:
            found += self._of_rank(rank, most - len(found))
        return tuple(found)

    def _of_rank(self, rank: int, most: int) -> list[Row]:
        """What has another rank by now goes from the heap when it comes up."""
        heap, found = self._ranked[rank], dict[Key, int]()
        while heap and len(found) < most:
            place, key = heappop(heap)
            if RANK[self._placed[key][1].state] == rank:
                found[key] = place
        for key, place in found.items():
            heappush(heap, (place, key))
        return [self._placed[key][1] for key in found]


class Board:
    """Hears events in any thread, and only keeps the newest; whoever paints works out what they say.

    `sizes` are those of the files of the one model, as far as they are known; None where more models may come.
    """

    def __init__(self, sizes: Sizes | None) -> None:
        self._lock = threading.Lock()
        self._newest: dict[Key, Event] = {}  # since it was looked at, here and in the next two
        self._first: dict[Key, Event] = {}  # the first of each since its bytes were counted: they were here
        self._goes_on: set[Key] = set()
        self._status: dict[Key, str] = {}
        self._resumed: set[Key] = set()
        self._counts: dict[str, tuple[int, int]] = {}  # of each model: files that are done, and all
        self._note = ""
        self._expected = 0
        self._sizes = sizes
        self._sum = Sum({})
        self._gauge = Gauge()
        self._gauges: dict[Key, Gauge] = {}  # of what is not done
        self._rows: Rows | None = None  # from the first look on
        self._hosts: dict[str, None] = {}  # those that brought bytes, in the order of their first

    # -- in any thread ------------------------------------------------------------------------------------------------

    def hear(self, event: Event) -> None:
        with self._lock:
            if event["type"] == "model_download_progress":
                self._hear_sample(event)
            else:
                self._hear_fact(event)

    def _hear_sample(self, event: Event) -> None:
        key = self._key(event)
        self._counts[event["modelId"]] = event["completedFiles"], event["totalFiles"]
        is_known = key in self._status
        if not key[1] or (is_known and event["status"] == "attempting" and not event["bytesDownloaded"]):
            return  # of the whole; or it goes on and has not looked yet how much is here
        if not is_known or key in self._resumed:
            self._resumed.discard(key)
            self._first[key] = event
        self._newest[key], self._status[key] = event, event["status"]

    def _hear_fact(self, event: Event) -> None:
        kind = event["type"]
        if kind == "resumed":
            self._resumed.add(self._key(event))
        elif kind == "manifest_pulled":
            self._expected = event["total_size"]
            self._counts[event["modelId"]] = 0, event["layers"]
        elif kind == "started":  # what had stopped goes on
            stopped = {key for key, status in self._status.items() if status in ("paused", "error")}
            self._goes_on |= stopped
            self._status.update(dict.fromkeys(stopped, "attempting"))
            for key in stopped & self._newest.keys():
                self._newest[key] = {**self._newest[key], "status": "attempting"}
        if kind in NOTES:
            self._note = sentence(event)
        elif kind in MOVES:
            self._note = ""

    def _key(self, event: Event) -> Key:
        """Of one model a file has its path alone: it has a row before the model is told of."""
        return event["modelId"] if self._sizes is None else "", event["file"]

    # -- in the painter's thread --------------------------------------------------------------------------------------

    def view(self) -> View:
        with self._lock:
            rows = self._rows = self._rows or self._all_waiting()
            for key in self._goes_on:
                if row := rows.get(key):
                    rows.put(key, replace(row, state="waiting", speed="", left=""))
            for key in sorted(self._newest):
                if key in self._first:
                    self._move(key, self._first[key], was_here=True)
                self._move(key, self._newest[key])
                rows.put(key, self._row(key, self._newest[key]))
            for noted in (self._goes_on, self._newest, self._first):
                noted.clear()
            return self._seen(rows)

    def _all_waiting(self) -> Rows:
        """In the order of the model."""
        rows = Rows()
        for path, size in (self._sizes or {}).items():
            rows.put(("", path), Row(path, "waiting", 0, size or 0))
        return rows

    def _seen(self, rows: Rows) -> View:
        done, files = (sum(counts) for counts in zip((0, 0), *self._counts.values(), strict=True))
        files = max(files, len(rows))
        shown = rows.first(MOST_ROWS)
        shown_done = sum(row.state == "done" for row in shown)
        hidden = files - len(shown)
        whole = self._whole(rows, files)
        return View(
            shown,
            whole,
            files,
            done,
            rows.states["failed"],
            hidden,
            max(0, done - shown_done),
            self._note,
            tuple(self._hosts),
        )

    def _move(self, key: Key, event: Event, *, was_here: bool = False) -> None:
        here, at_ms = event["bytesDownloaded"], event["timestamp"]
        gauge = self._gauges.setdefault(key, Gauge())
        gauge.move(here, at_ms, here - gauge.here if was_here else 0)
        before = self._sum.add("/".join(key), here, event["totalBytes"], was_here)
        self._gauge.move(self._sum.here, at_ms, before)
        if here and event["source"] not in ("", "cache"):
            self._hosts[host(event["gateway"])] = None

    def _row(self, key: Key, event: Event) -> Row:
        here, size, state = event["bytesDownloaded"], event["totalBytes"], _state(event)
        amount, speed, left = self._gauges[key].columns(size)
        if state == "done":
            del self._gauges[key]
        if state == "waiting" and not here:
            amount = ""
        if state != "downloading":
            speed = left = ""
        name = f"{key[0]}/{key[1]}" if self._sizes is None else key[1]
        source = "" if event["source"] == "cache" else host(event["gateway"])
        return Row(name, state, here, size, amount, speed, left, source)

    def _whole(self, rows: Rows, files: int) -> Row:
        order: tuple[FileState, ...] = ("downloading", "verifying", "failed", "paused", "waiting")
        state = next((each for each in order if rows.states[each]), "done" if len(rows) else "waiting")
        size = rows.size if len(rows) >= files and rows.is_sized else self._expected
        amount, speed, left = self._gauge.columns(size)
        if state != "downloading":
            speed = left = ""
        return Row(f"all {files:,} files", state, self._sum.here, size, amount, speed, left)


def _state(event: Event) -> FileState:
    status, here, size = event["status"], event["bytesDownloaded"], event["totalBytes"]
    if status in ("success", "completed"):
        return "done"
    if status in ("error", "paused"):
        return "failed" if status == "error" else "paused"
    if status == "attempting":
        return "waiting"
    return "verifying" if event["source"] == "cache" or 0 < size <= here else "downloading"
