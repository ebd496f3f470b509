"""What a panel knows: how far each file is, and all of them, from events.

Responsible for: rules on values: which rows are shown, sums, speeds, states. Leaves to others: what it looks like
(`drawn`), when it is painted (`panel`).
"""

import threading
from dataclasses import dataclass
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
    hidden: int = 0
    hidden_done: int = 0
    note: str = ""
    hosts: tuple[str, ...] = ()


class Board:
    """Hears events in the dispatcher's thread, and only keeps the newest; whoever paints works out what they say.

    `sizes` are those of the files of the one model, as far as they are known; None where more models may come.
    """

    def __init__(self, sizes: Sizes | None) -> None:
        self._lock = threading.Lock()
        self._newest: dict[Key, Event] = {}
        self._first: dict[Key, Event] = {}  # the first of each since its bytes were counted: they were here
        self._resumed: set[Key] = set()
        self._moved: set[Key] = set()
        self._counts: dict[str, tuple[int, int]] = {}  # of each model: files that are done, and all
        self._note = ""
        self._expected = 0
        self._sizes = sizes
        self._sum = Sum({})
        self._gauge = Gauge()
        self._gauges: dict[Key, Gauge] = {}
        self._rows: dict[Key, Row] = {}
        self._hosts: dict[str, None] = {}  # those that brought bytes, in the order of their first

    # -- in the dispatcher's thread -----------------------------------------------------------------------------------

    def hear(self, event: Event) -> None:
        with self._lock:
            if event["type"] == "model_download_progress":
                self._hear_sample(event)
            else:
                self._hear_fact(event)

    def _hear_sample(self, event: Event) -> None:
        key = (event["modelId"], event["file"])
        self._counts[key[0]] = event["completedFiles"], event["totalFiles"]
        known = self._newest.get(key)
        if not key[1] or (known and event["status"] == "attempting" and not event["bytesDownloaded"]):
            return  # of the whole; or it goes on and has not looked yet how much is here
        if known is None or key in self._resumed:
            self._resumed.discard(key)
            self._first[key] = event
        self._newest[key] = event
        self._moved.add(key)

    def _hear_fact(self, event: Event) -> None:
        kind = event["type"]
        if kind == "resumed":
            self._resumed.add((event["modelId"], event["file"]))
        elif kind == "manifest_pulled":
            self._expected = event["total_size"]
            self._counts[event["modelId"]] = 0, event["layers"]
        elif kind == "started":  # what had stopped goes on
            for key, known in self._newest.items():
                if known["status"] in ("paused", "error"):
                    self._newest[key] = {**known, "status": "attempting"}
                    self._moved.add(key)
        if kind in NOTES:
            self._note = sentence(event)
        elif kind in MOVES:
            self._note = ""

    # -- in the painter's thread --------------------------------------------------------------------------------------

    def view(self) -> View:
        with self._lock:
            for key in sorted(self._moved):
                if key in self._first:
                    self._move(key, self._first[key], was_here=True)
                self._move(key, self._newest[key])
                self._rows[key] = self._row(key, self._newest[key])
            self._first.clear()
            self._moved.clear()
            return self._seen()

    def _seen(self) -> View:
        rows = self._listed()
        done, files = (sum(counts) for counts in zip((0, 0), *self._counts.values(), strict=True))
        files = max(files, len(rows))
        shown = _chosen(rows)
        shown_done = sum(row.state == "done" for row in shown)
        hidden = files - len(shown)
        whole = self._whole(rows, files)
        return View(shown, whole, files, done, hidden, max(0, done - shown_done), self._note, tuple(self._hosts))

    def _move(self, key: Key, event: Event, *, was_here: bool = False) -> None:
        here, at_ms = event["bytesDownloaded"], event["timestamp"]
        gauge = self._gauges.setdefault(key, Gauge())
        gauge.move(here, at_ms, here - gauge.here if was_here else 0)
        before = self._sum.add("/".join(key), here, event["totalBytes"], was_here)
        self._gauge.move(self._sum.here, at_ms, before)
        if here and event["source"] not in ("", "cache"):
            self._hosts[host(event["gateway"])] = None

    def _listed(self) -> list[Row]:
        """In the order of the model; files that nothing was told of yet wait."""
        models = {model for model, _ in self._rows}
        if self._sizes is None or len(models) > 1:
            return list(self._rows.values())
        model = next(iter(models), "")
        listed = [self._rows.get((model, path)) or _waiting(path, size) for path, size in self._sizes.items()]
        return [*listed, *(row for (_, path), row in self._rows.items() if path not in self._sizes)]

    def _row(self, key: Key, event: Event) -> Row:
        here, size, state = event["bytesDownloaded"], event["totalBytes"], _state(event)
        amount, speed, left = self._gauges[key].columns(size)
        if state == "waiting" and not here:
            amount = ""
        if state != "downloading":
            speed = left = ""
        name = f"{key[0]}/{key[1]}" if self._sizes is None else key[1]
        source = "" if event["source"] == "cache" else host(event["gateway"])
        return Row(name, state, here, size, amount, speed, left, source)

    def _whole(self, rows: list[Row], files: int) -> Row:
        states = {row.state for row in rows}
        order: tuple[FileState, ...] = ("downloading", "verifying", "failed", "paused", "waiting")
        state = next((each for each in order if each in states), "done" if rows else "waiting")
        size = self._size(rows, files)
        amount, speed, left = self._gauge.columns(size)
        if state != "downloading":
            speed = left = ""
        return Row(f"all {files:,} files", state, self._sum.here, size, amount, speed, left)

    def _size(self, rows: list[Row], files: int) -> int:
        """Of all files; 0 while it is not known."""
        if len(rows) >= files and all(row.size or row.state == "done" for row in rows):
            return sum(row.size for row in rows)
        return self._expected


def _state(event: Event) -> FileState:
    status, here, size = event["status"], event["bytesDownloaded"], event["totalBytes"]
    if status in ("success", "completed"):
        return "done"
    if status in ("error", "paused"):
        return "failed" if status == "error" else "paused"
    if status == "attempting":
        return "waiting"
    return "verifying" if event["source"] == "cache" or 0 < size <= here else "downloading"


def _waiting(path: str, size: int | None) -> Row:
    return Row(path, "waiting", 0, size or 0)


def _chosen(rows: list[Row]) -> tuple[Row, ...]:
    """In the order of the model; of too many those that run or failed, then those that wait."""
    return tuple(sorted(rows, key=lambda row: RANK[row.state])[:MOST_ROWS] if len(rows) > MOST_ROWS else rows)
