"""What a notebook shows while something is fetched or verified, and what stays of it.

Responsible for: the one thread that paints, and what can be pressed when. What is told only marks the panel as changed,
so that no download waits for a front end. Leaves to others: what is known (`board`), the words at the end (`endings`),
how it looks (`drawn`), where it is painted (`surfaces`).
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from modelcache.progress import drawn
from modelcache.progress.board import Board, View
from modelcache.progress.drawn import Line, Phase
from modelcache.progress.endings import ending
from modelcache.progress.gauge import Sizes
from modelcache.progress.lines import host
from modelcache.progress.surfaces import Bundle, Html, Output, Picture, Surface, Widgets

if TYPE_CHECKING:
    from modelcache.download import Download, End

log = logging.getLogger(__name__)
Level = Literal["widget", "html"]
PAINTED_WITHIN_S = 3.0
ASKED = {"Pause": "pausing…", "Cancel": "cancelling…"}  # until it has happened
BUTTONS: dict[Phase, tuple[str, ...]] = {
    "running": ("Pause", "Cancel"), "paused": ("Resume", "Cancel"), "failed": ("Retry", "Cancel"),
}  # fmt: skip
STILL = "was under way when this was shown; a panel that moves needs widgets here, or MODELCACHE_PROGRESS=html"


class Panel:
    """Hears events, of one model if that is named. Nothing is displayed before `appear`.

    `waits`: the cell that called waits for the end. Nothing can be pressed meanwhile, and what stays is not alive.
    """

    def __init__(self, model: str, sizes: Sizes | None, level: Level, *, waits: bool) -> None:
        self._model = model
        self._level = level
        self._waits = waits
        self._sizes = sizes
        self._board = Board(sizes)
        self._output = Output()
        self._surface: Surface | None = None  # while it is alive
        self._download: Download | None = None
        self._title = ""
        self._asked = ""  # what was pressed, until it shows
        self._turning = threading.Lock()  # held while it ends, and while it begins again
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._last: Line | None = None  # how it ended
        self._stays = False  # alive though it ended: it can be gone on with here
        self._painter: threading.Thread | None = None
        self._is_refused = False  # the front end has, once
        self._began, self._ran_s = 0.0, 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        """In the dispatcher's thread, or where it happens."""
        if event["type"] == "download_complete" or (self._model and event["modelId"] != self._model):
            return
        if event["type"] == "started":
            self._go_on()
        self._board.hear(event)
        self._changed.set()

    # -- its life -----------------------------------------------------------------------------------------------------

    def appear(self, title: str) -> None:
        """Displays it in the cell that calls."""
        self._title = title
        self._guarded(self._paint)
        self._begin()

    def follow(self, title: str, download: "Download") -> None:
        """The same, for a download: its state is shown from now on, and each of its ends."""
        self._title, self._download = title, download
        try:
            if not download.has_ended:
                self.appear(title)
        finally:  # also where the stop button came in between
            download.when_ended(self._ended)

    def end(self, line: Line, *, stays: bool = False) -> None:
        """Returns when that is painted, by whoever paints."""
        with self._turning:
            self._ran_s = self.ran_s
            painter, self._painter, self._began = self._painter, None, 0.0
            self._last, self._stays, self._asked = line, stays, ""
            self._stop.set()
        if painter is not None and painter.is_alive():
            painter.join(PAINTED_WITHIN_S)
        else:
            self._guarded(self._paint_end)

    @property
    def view(self) -> View:
        return self._board.view()

    @property
    def ran_s(self) -> float:
        """Without the time in which it was paused."""
        return self._ran_s + (time.monotonic() - self._began if self._began else 0.0)

    def _ended(self, end: "End") -> None:
        assert self._download is not None
        how_on = "run the cell again" if self._waits else "" if self._level == "widget" else "call its resume()"
        files = [file for file in self._download.files if file.source not in ("", "cache")]
        hosts = tuple(dict.fromkeys([*self.view.hosts, *(host(file.gateway) for file in files)]))
        line = ending(self._title, end, self._download.progress, hosts, self.ran_s, how_on)
        self.end(line, stays=not self._waits and line.phase in BUTTONS)

    # -- painting -----------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Where somebody goes on with what had ended. What is told may be late: by then it is over again, for good."""
        with self._turning:
            self._asked = ""
            if self._last is None or self._download is None or self._download.is_over:
                return
            if self._last.phase == "cancelled":  # it begins anew
                self._board = Board(self._sizes)
            self._begin()

    def _begin(self) -> None:
        self._last, self._began, self._stop = None, time.monotonic(), threading.Event()
        painter = threading.Thread(target=self._run, args=(self._stop,), name="modelcache-panel", daemon=True)
        try:
            painter.start()
            self._painter = painter
        except RuntimeError as error:  # the end is painted all the same
            log.warning("a panel does not move: %s", error)

    def _run(self, stop: threading.Event) -> None:
        hz = Widgets.hz if self._level == "widget" else Html.hz
        while not stop.wait(1 / hz):
            if self._changed.is_set():
                self._changed.clear()
                self._guarded(self._paint)
        self._guarded(self._paint_end)

    def _guarded(self, paint: Callable[[], None]) -> None:
        """A front end that refuses costs the picture, and not the download."""
        try:
            paint()
        except Exception:
            if not self._is_refused:
                log.exception("a panel could not be painted")
            self._is_refused = True

    def _paint(self) -> None:
        picture = self._picture()
        if self._surface is None:
            self._surface = self._new_surface(picture)
        self._surface.paint(picture)

    def _paint_end(self) -> None:
        if self._last is None:  # it goes on already
            return
        if self._stays:
            self._paint()
            return
        self._output.put(_bundle(self._last))
        if self._surface is not None:
            self._surface.close()
            self._surface = None

    def _new_surface(self, picture: Picture) -> Surface:
        if self._level == "widget":
            try:
                return Widgets(self._output, self._buttons(), picture)
            except Exception:  # ipywidgets that are there, and broken
                log.warning("a panel has no widgets", exc_info=True)
                self._level = "html"
        return Html(self._output)

    def _buttons(self) -> dict[str, Callable[[], None]]:
        download = self._download
        if download is None or self._waits:
            return {}
        acts = {"Pause": download.pause, "Resume": download.resume, "Retry": download.retry, "Cancel": download.cancel}
        return {word: partial(self._press, word, act) for word, act in acts.items()}

    def _press(self, word: str, act: Callable[[], None]) -> None:
        """In whichever thread the kernel has for it."""
        self._asked = ASKED.get(word, "")
        self._changed.set()
        act()

    def _picture(self) -> Picture:
        view = self._board.view()
        line = self._last or Line(self._title, self._doing(view), "running")
        buttons = BUTTONS.get(line.phase, ()) if self._download and not self._waits else ()
        if line.phase != "running":  # it says what was noted
            view = replace(view, note="; ".join(line.more))
        still = _bundle(Line(self._title, STILL, "running"))
        return Picture(drawn.status(line), drawn.files(view), drawn.plain_files(line, view), still, buttons)

    def _doing(self, view: View) -> str:
        words = self._asked or (self._download.state_text.replace("...", "…") if self._download else "")
        is_counted = view.files > 1 or (view.files and not self._download)
        several = f"{view.done:,} of {view.files:,} files" if is_counted else ""
        return " ".join(filter(None, (words, several)))


def _bundle(line: Line) -> Bundle:
    return {"text/html": drawn.summary(line), "text/plain": drawn.plain(line)}
