"""A dashboard that follows its cache: one thread that reads and paints, and what can be pressed.

Responsible for: when each part is read. What runs is looked at twice a second, which costs nothing; the lists are read
every ten seconds, and when something began, ended or was done; the store when it has changed, by whichever process,
but for no more than a tenth of the time, and else for no more than a hundredth of it. Leaves to others: what is read
(`overview`), the widgets (`view`), where they are displayed (`dashboard`).
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from modelcache.caching import Cache
from modelcache.notebook import overview
from modelcache.notebook.controls import Works
from modelcache.notebook.deeds import Deeds
from modelcache.notebook.overview import Overview
from modelcache.notebook.view import View

LOOK_S = 0.5
LISTS_EVERY_S = 10.0
STORE_EVERY_S = 60.0
CHANGING, AT_REST = 10, 100  # the store is read again after so many times the time it took
END_WITHIN_S = 5.0
log = logging.getLogger(__name__)


class Reader:
    """What is known of a cache, read again when it is due."""

    def __init__(self, cache: Cache, clock: Callable[[], float]) -> None:
        began, self._mark = clock(), overview.mark(cache)
        self.now = overview.overview(cache)
        self._cache = cache
        self._clock = clock
        self._read_at = self._store_at = clock()
        self._store_took_s = self._store_at - began
        self._is_changed = False  # the store, since it was read

    def read(self, *, anew: bool) -> None:
        """`anew` where something was done just now."""
        ran = {one.id for one in self.now.running.rows}
        self.now = replace(self.now, running=overview.running(self._cache))
        has_ended = bool(ran - {one.id for one in self.now.running.rows})
        has_changed = has_ended or anew or ran != {one.id for one in self.now.running.rows}
        self._is_changed |= has_ended or anew
        if has_changed or self._clock() - self._read_at >= LISTS_EVERY_S:
            self.now = replace(self.now, lists=overview.lists(self._cache))
            self._read_at = self._clock()
            self._is_changed |= overview.mark(self._cache) != self._mark
        if self._clock() - self._store_at >= self._store_every_s:
            self._read_store()

    @property
    def _store_every_s(self) -> float:
        if self._is_changed:
            return CHANGING * self._store_took_s
        return max(STORE_EVERY_S, AT_REST * self._store_took_s)

    def _read_store(self) -> None:
        began, self._is_changed = self._clock(), False
        self._mark = overview.mark(self._cache)  # before: what changes meanwhile is another change
        self.now = replace(self.now, store=overview.store(self._cache))
        self._store_at = self._clock()
        self._store_took_s = self._store_at - began


class Live:
    """Widgets of one cache; `root` is the one to display. `end` ends the thread and closes all of them."""

    def __init__(self, cache: Cache, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = Reader(cache, clock)
        self._woken = threading.Event()
        self._ends = threading.Event()
        self.works = Works(self._woken.set, clock)
        self.view = View(Deeds(cache), self.works)
        self.view.paint(self.now)
        self._seen = 0  # works that have ended
        self._thread = threading.Thread(target=self._run, name="modelcache-dashboard", daemon=True)
        self._thread.start()

    @property
    def now(self) -> Overview:
        return self._reader.now

    def end(self) -> None:
        """Returns when nothing is painted any more. What was begun goes on."""
        self._ends.set()
        self._woken.set()
        self._thread.join(END_WITHIN_S)
        self.view.close()

    def _run(self) -> None:
        while not self._ends.is_set():
            is_woken = self._woken.wait(LOOK_S)
            self._woken.clear()
            try:
                if not self._ends.is_set():
                    self._round(is_woken)
            except Exception:  # the next round may do better
                log.exception("the dashboard could not be painted")

    def _round(self, is_woken: bool) -> None:
        ended = self.works.ended
        if is_woken:
            self.view.paint(self.now)  # what was pressed shows at once, whatever reading costs
        self._reader.read(anew=ended != self._seen)
        self._seen = ended
        self.view.paint(self.now)
