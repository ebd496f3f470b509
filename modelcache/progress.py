"""Progress for people: bars in a terminal, lines where there is none.

Responsible for: showing events on stderr, per file and for the whole model. Runs in the dispatcher's thread, so a
slow terminal slows no download. Leaves to `events`: what is told. tqdm is imported when the first bar is drawn.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TextIO
from urllib.parse import urlsplit

from modelcache.dispatch import Dispatcher, Show, Subscriber
from modelcache.errors import UsageError
from modelcache.units import as_clock, in_units, part_of, short

Sizes = Mapping[str, int | None]  # of each file of the model, None while unknown

TOLD = (
    "resolving", "newer", "stale", "waiting", "resumed", "source_failed", "piece_failed", "restarted", "repaired",
)  # the end is for whoever asked  # fmt: skip
ENDS = {"success": "done", "completed": "done", "paused": "paused", "error": "failed"}
LINE_EVERY_S = 10.0
DRAIN_S = 1.5
SPEED_OVER_MS = 5000
MODES = ("auto", "text", "off")


def subscriber_for(progress: Show, model: str, sizes: Sizes | None = None, *, facts: bool = False) -> Subscriber | None:
    """What shows the events of one model (of all, where `model` is empty), or None for silence.

    `progress` None: bars if stderr is a terminal. True: bars, or a line now and then where it is none; with
    `facts` or MODELCACHE_PROGRESS=text also one for all that happens. A function: that function.
    `sizes` are those of the files, for the sum of a model of several.
    MODELCACHE_PROGRESS is auto, text (lines) or off; UsageError for anything else.
    """
    if callable(progress):
        return _only(model, progress)
    mode = os.environ.get("MODELCACHE_PROGRESS", "auto")
    if mode not in MODES:
        raise UsageError(f"MODELCACHE_PROGRESS = {mode!r}: one of {', '.join(MODES)}")
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if sys.stderr is None or progress is False or mode == "off" or (progress is None and not terminal):
        return None
    bars = terminal and mode == "auto" and os.environ.get("TERM") != "dumb"
    return _only(model, Bars(sizes) if bars else Lines(sys.stderr, sizes=sizes, facts=facts or mode == "text"))


def _only(model: str, show: Subscriber) -> Subscriber:
    def filtered(event: dict[str, Any]) -> None:
        if not model or event.get("modelId", model) == model:
            show(event)

    return filtered


@contextmanager
def shown(progress: Show, dispatcher: Dispatcher, model: str, sizes: Sizes) -> Iterator[None]:
    """While the block runs, what happens to one model is shown, to the last event of it. `progress` as above."""
    show = subscriber_for(progress, model, sizes)
    unsubscribe = dispatcher.subscribe(show) if show else lambda: None
    try:
        yield
    finally:
        dispatcher.drain(DRAIN_S)
        unsubscribe()


class _Sum:
    """The bytes of a whole model, from the samples of its files."""

    def __init__(self, sizes: Sizes | None) -> None:
        self._sizes = dict(sizes or {})
        self._expected = 0
        self._here: dict[str, int] = {}

    @property
    def here(self) -> int:
        return sum(self._here.values())

    @property
    def total(self) -> int | None:
        """None while the size of a file is unknown."""
        known = [size for size in self._sizes.values() if size is not None]
        return self._expected or sum(known) if len(known) == len(self._sizes) else None

    def expect(self, total: int) -> None:
        """Its files are known only now: so many bytes in all."""
        self._expected = 0 if self._sizes else total

    def add(self, event: dict[str, Any], resumed: bool = False) -> int:
        """Takes a sample of a file; returns how many of its bytes did not come, but were here."""
        file, here = event["file"], event["bytesDownloaded"]
        before = here - self._here.get(file, 0) if resumed or file not in self._here else 0
        self._here[file] = here
        self._sizes[file] = event["totalBytes"] or self._sizes.get(file)
        return before


class _Gauge:
    """How far, and how fast in the last seconds, a stall included; at the end, in all the time."""

    def __init__(self, here: int = 0) -> None:
        self.here = self._before = here
        self._samples: deque[tuple[int, int]] = deque()  # (ms, bytes that came since the beginning)
        self._began_ms = 0

    def move(self, here: int, at_ms: int, before: int = 0) -> None:
        """`before` of these bytes did not come, they were here."""
        self._before += before
        if here < self.here:  # bytes proved wrong: what they took is no speed
            self._samples.clear()
            self._before = min(self._before, here)
        self.here = here
        self._began_ms = self._began_ms or at_ms
        self._samples.append((at_ms, here - self._before))
        while at_ms - self._samples[0][0] > SPEED_OVER_MS:
            self._samples.popleft()

    def columns(self, total: int, *, ended: bool = False) -> tuple[str, str, str]:
        """How much, how fast, how long still; each may be empty."""
        if not self._samples:
            return "", "", ""
        (since, before), (now, came) = self._samples[0], self._samples[-1]
        if ended:
            since, before = self._began_ms, 0
        speed = 1000 * (came - before) / (now - since) if now > since else 0.0
        rate = f"{in_units(speed)}/s" if speed else ""
        left = f"{as_clock((total - self.here) / speed)} left" if speed and total and not ended else ""
        return part_of(self.here, total), rate, left


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
        self._sum = _Sum(sizes)
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
            self._write(_sentence(event))
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
        note = "verifying" if is_read else _host(event["gateway"])
        before = here - bar.gauge.here if resumed else 0
        bar.move(here, total, event["timestamp"], note, before, matters=is_whole)
        if ended or event["status"] == "error":
            self._end(file, "done" if ended else "wrong" if event["source"] == "cache" else "failed")

    def _draw_sum(self, event: dict[str, Any], resumed: bool) -> None:
        before = self._sum.add(event, resumed)
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
            self._bars[file] = self._new_bar(_Gauge(here), name, max(self._width, len(name)))
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

        def __init__(self, gauge: _Gauge, name: str, width: int) -> None:
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


class Lines:
    """A line every ten seconds while a download runs and, with `facts`, one when something happens."""

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        sizes: Sizes | None = None,
        *,
        facts: bool = True,
    ) -> None:
        self._stream = stream
        self._told = (*TOLD, "file_ready") if facts else ("resolving", "newer", "stale", "waiting")
        self._clock = clock
        self._last = clock()
        self._sum = _Sum(sizes)

    def __call__(self, event: dict[str, Any]) -> None:
        if event["type"] == "manifest_pulled":
            self._sum.expect(event["total_size"])
        if event["type"] in self._told:
            self._print(_sentence(event))
        elif event["type"] == "model_download_progress" and event["file"]:
            self._sum.add(event)
            if self._clock() - self._last >= LINE_EVERY_S:
                self._last = self._clock()
                self._print(self._state(event))

    def _state(self, event: dict[str, Any]) -> str:
        """How far the file is, or the model if it has several."""
        files, total, speed = event["totalFiles"], self._sum.total, event["downloadSpeed"]
        name = f"{event['modelId']}: {event['completedFiles']} of {files} files" if files > 1 else event["file"]
        share = f" ({100 * self._sum.here // total} %)" if total else ""
        left = f", {as_clock((total - self._sum.here) / speed)} left" if total and speed else ""
        comma = "," if files > 1 else ":"
        return f"{name}{comma} {part_of(self._sum.here, total or 0)}{share}, {in_units(speed)}/s{left}"

    def _print(self, sentence: str) -> None:
        print(sentence, file=self._stream, flush=True)


def _sentence(event: dict[str, Any]) -> str:
    where, message = event["file"] or event["modelId"], event["message"]
    if message.startswith(where):
        return str(message)
    source = "" if event["type"] in ("file_ready", "resolving") else _host(event["gateway"])
    return ": ".join(part for part in (where, source, message) if part)


def _of_all(files: int) -> str:
    return f"all {files:,} files"


def _host(gateway: str) -> str:
    """Where a source is, as far as it matters to people: the path is the file's."""
    return urlsplit(gateway).netloc or gateway
