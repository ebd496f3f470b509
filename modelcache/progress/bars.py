"""Progress in a terminal: a bar for each file at work, and one for the whole model.

Responsible for: showing events on stderr. Runs in the dispatcher's thread, so a slow terminal slows no download. tqdm
is imported when the first bar is drawn.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from modelcache.progress.gauge import Gauge, Sizes, Sum
from modelcache.progress.lines import TOLD, host, sentence
from modelcache.units import short

ENDS = {"success": "done", "completed": "done", "paused": "paused", "error": "failed"}
PERCENT, SHARE, RATE, LEFT = 8, 18, 12, 10  # columns: of "name: 100%||" what follows the name, and of each number
LEAST_BAR = 2


@dataclass(frozen=True, slots=True)
class Room:
    """What one line of a terminal has room for. It depends on nothing that changes, so that all bars are alike."""

    name: int  # the columns of the name
    numbers: int  # how many of: how much, how fast, how long still
    note: int  # the columns of the note; 0: it takes the place of the last number, where it matters

    @classmethod
    def of(cls, columns: int, name: int) -> Self:
        """`name` is how long the longest one is."""
        name = min(name, max(8, columns * 30 // 100))
        left = columns - name - PERCENT - LEAST_BAR
        numbers = 0
        for width in (SHARE, RATE, LEFT):
            if left < width:
                return cls(name, numbers, 0)
            numbers, left = numbers + 1, left - width
        return cls(name, numbers, min(15 if columns < 110 else 22, left - 1) if left > 10 else 0)

    def state(self, numbers: Sequence[str], note: str, matters: bool) -> str:
        """The text after the bar. What `matters` is shown where a host would not be."""
        shown = list(numbers[: self.numbers])
        if shown and not self.note and matters and self.numbers > 1:
            shown[-1] = note
        padded = [text.rjust(width - 1) for text, width in zip(shown, (SHARE, RATE, LEFT), strict=False)]
        return " ".join([*padded, short(note, self.note).ljust(self.note)] if self.note else padded)


class Bars:
    """A bar per file at work, and one for the whole when a model has several. Facts are written above them."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        self._sum = Sum(sizes)
        several = [_of_all(len(sizes))] if sizes and len(sizes) > 1 else []
        self._width = max((len(name) for name in (*(sizes or ()), *several)), default=0)
        self._bars: dict[str, Any] = {}  # by file; the whole is ""
        self._new_bar: Callable[..., Any] | None = None
        self._resumed: set[str] = set()  # files whose next sample begins with what was here

    def __call__(self, event: dict[str, Any]) -> None:
        if event["type"] == "resumed":
            self._resumed.add(event["file"])
        if event["type"] == "manifest_pulled":
            self._sum.expect(event["total_size"])
        if event["type"] in TOLD:
            self._write(sentence(event))
        elif event["type"] == "model_download_progress":
            self._draw(event)

    def _draw(self, event: dict[str, Any]) -> None:
        file, ended, several = event["file"], event["status"] == "success", event["totalFiles"] > 1
        if not file:  # of the whole model: it is over, or gets its names
            if event["done"]:
                self._finish(ENDS.get(event["status"], event["status"]))
            return
        resumed = file in self._resumed
        self._resumed.discard(file)
        if several:
            self._draw_sum(event, resumed)
        if several and ended and file not in self._bars:
            return  # it was here, or so small that its bar would only flash: the sum counts it
        here, total = event["bytesDownloaded"], event["totalBytes"]
        bar = self._bar(file, file, here)
        is_whole = bool(total) and here >= total
        is_read = is_whole or event["source"] == "cache"  # bytes that are here move no more
        note = "verifying" if is_read else host(event["gateway"])
        before = here - bar.gauge.here if resumed else 0
        bar.move(here, total, event["timestamp"], note, before, matters=is_whole)
        if ended or event["status"] == "error":
            self._end(file, "done" if ended else "wrong" if event["source"] == "cache" else "failed")

    def _draw_sum(self, event: dict[str, Any], resumed: bool) -> None:
        before = self._sum.hear(event, resumed)
        bar = self._bar("", _of_all(event["totalFiles"]))
        note = f"{event['completedFiles']} done"
        bar.move(self._sum.here, self._sum.total or 0, event["timestamp"], note, before)

    def _finish(self, end: str) -> None:
        """The model's last event: no bar stays, whatever became of it."""
        for file in sorted(self._bars, reverse=True):  # the whole is the last
            self._end(file, end)

    def _end(self, file: str, note: str) -> None:
        """The bar becomes a line above the others, and those move up: no gap, no remains."""
        places = sorted(abs(bar.pos) for bar in self._bars.values())
        self._bars.pop(file).end(note)
        for bar, place in zip(sorted(self._bars.values(), key=lambda bar: abs(bar.pos)), places, strict=False):
            bar.settle(place)

    def _bar(self, file: str, name: str, here: int = 0) -> Any:
        """The bar of a file; a new one if it has none yet. (A tqdm without a total has no truth value.)"""
        self._new_bar = self._new_bar or _bar_class()
        if file not in self._bars:
            self._bars[file] = self._new_bar(Gauge(here), name, max(self._width, len(name)))
        return self._bars[file]

    def _write(self, sentence: str) -> None:
        from tqdm import tqdm

        tqdm.write(sentence, file=sys.stderr)


def _bar_class() -> Callable[..., Any]:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        """A tqdm that shows what a gauge says: its own speed would count what was here, and no stall."""

        monitor_interval = 0  # a thread that would outlive the download
        note = ""
        matters = False
        ended = False

        def __init__(self, gauge: Gauge, name: str, width: int) -> None:
            self.gauge, self.name, self.width = gauge, name, width
            super().__init__(dynamic_ncols=True, file=sys.stderr)

        def move(self, here: int, total: int, at_ms: int, note: str, before: int = 0, *, matters: bool = False) -> None:
            self.gauge.move(here, at_ms, before)
            self.n, self.total, self.note, self.matters = here, total or None, note, matters
            self.refresh()

        def display(self, msg: str | None = None, pos: int | None = None) -> Any:
            """Leaves the cursor at the margin: a terminal writes ^C where it is, at the end of a line into the next."""
            drawn = super().display(msg, pos)
            self.fp.write("\r")
            self.fp.flush()
            return drawn

        def settle(self, place: int) -> None:
            if abs(self.pos) != place:
                self.clear()
                self.pos = -place
            self.refresh()

        def end(self, note: str) -> None:
            self.note, self.matters, self.ended = note, True, True
            self.close()

        @property
        def format_dict(self) -> Any:
            """What tqdm draws: the line as wide as the terminal is now, and no wider."""
            given = super().format_dict
            room = Room.of(given["ncols"] or 80, self.width)
            total = int(self.total or 0)
            state = room.state(self.gauge.columns(total, ended=self.ended), self.note, self.matters)
            name = short(self.name, room.name).ljust(room.name)
            line = "{l_bar}{bar}|{state}" if total else "{desc}: {state}"
            return {**given, "prefix": name, "bar_format": line, "state": state}

    return Bar


def _of_all(files: int) -> str:
    return f"all {files:,} files"
