"""What a root is in one process: its models, and threads, locks, connections and what runs.

Responsible for: making them when they are first needed, making them anew in a child after a fork, which inherits none
of them, and ending them. Leaves to others: using them (`fetching`, `inventory`, `caching`), settings and sources
(`wiring`, `configuration`).
"""

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from modelcache.configuration import settings_for
from modelcache.errors import UsageError
from modelcache.history import Use
from modelcache.order import Order, Workshop
from modelcache.outcome import File, Model
from modelcache.rows import Report
from modelcache.settings import MOST_S
from modelcache.state.uses import Uses
from modelcache.store.disk import check_no_links, make_directories, make_root
from modelcache.store.layout import Layout
from modelcache.store.shelf import Shelf
from modelcache.wiring import Sources, tiers_for

if TYPE_CHECKING:
    from modelcache.download import Download
    from modelcache.refresh import Question, Refresher
    from modelcache.state.state import State

STOP_WITHIN_S = 1.5
TELL_S = 0.5  # of it, to say what was given up


class Runtime:
    """Of one root. Making it does nothing; all methods may be called from any thread."""

    def __init__(self, root: str, overrides: Mapping[str, Any]) -> None:
        self.root = root
        self.shelf = Shelf(Layout(root))
        self.overrides = overrides
        self._guard = threading.Lock()
        self._shop: Workshop | None = None
        self._state: State | None = None
        self._uses = Uses()
        self._writes_uses = False
        self._pid = 0
        self._was_checked = False
        self._running: list[Download] = []
        self._refresher: Refresher | None = None

    @property
    def shop(self) -> Workshop:
        """UsageError for a wrong setting, StoreError where a folder of the store is a link."""
        self._adopt_process()
        with self._guard:
            if self._shop is None:
                self._shop = self._new_shop()
            return self._shop

    def _new_shop(self) -> Workshop:
        import atexit

        from modelcache.dispatch import Dispatcher
        from modelcache.logbook import Logbook
        from modelcache.state.state import State
        from modelcache.throttle import Throttle

        shelf, dispatcher = self.shelf, Dispatcher()
        for folder in shelf.layout.folders:
            check_no_links(self.root, folder)
        settings = settings_for(self.root, self.overrides)
        sources = Sources(settings)
        self._state = State(self.root, self._uses, settings.metrics_age, shared=settings.shared)
        dispatcher.attach(Logbook(shelf.layout.logs))
        dispatcher.attach(self._state)
        atexit.register(self.close)
        return Workshop(
            shelf.layout,
            shelf.registry,
            settings,
            dispatcher,
            sources,
            sources.resolver,
            Throttle(settings.limit_rate),
            scores=self._state.scores,
            tiers=tiers_for(settings, self.root),
        )

    def make_root(self) -> None:
        """Raises UsageError where the root is to be a group's and is not, StoreError."""
        if self.shop.settings.shared:
            make_root(self.root)
        else:
            make_directories(self.root)

    @property
    def has_subscribers(self) -> bool:
        return self._shop is not None and self._shop.dispatcher.has_subscribers

    @property
    def state(self) -> "State":
        """With all that is known so far written."""
        self.shop.dispatcher.drain(STOP_WITHIN_S)
        assert self._state is not None
        self._state.close()
        return self._state

    def check_at_start(self) -> Report:
        """What earlier runs left unfinished, once in each process: then nothing."""
        self._adopt_process()
        with self._guard:
            is_first, self._was_checked = not self._was_checked, True
        if not is_first or not _holds_anything(self.shelf.layout.partials):
            return Report("unfinished downloads", ())
        from modelcache.maintenance import check_at_start

        return check_at_start(self.shop)

    # -- what runs ----------------------------------------------------------------------------------------------------

    @property
    def running(self) -> "list[Download]":
        """Downloads of this process, those that have ended lately included."""
        return self._running if self._pid == os.getpid() else []

    def runs(self, download: "Download") -> None:
        with self._guard:
            self._running = [*(one for one in self._running if not one.has_ended), download]

    def find(self, download_id: str) -> "Download | None":
        return next((one for one in self.running if one.id == download_id), None)

    def count(self, order: Order, here: Model | File | None) -> None:
        """One request more. It is written with what is written next, or at the end."""
        if not order.cached:
            return
        files = () if here is None else here.files if isinstance(here, Model) else (here,)
        self._uses.count(Use(order.id, order.name, sum(file.size for file in files), is_hit=here is not None))
        if not self._writes_uses:
            import atexit

            self._writes_uses = True
            atexit.register(self._write_uses)

    def look_again(self, question: "Question") -> None:
        """Asks beside what runs whether something is still the version that is known."""
        from modelcache.refresh import Refresher

        self._adopt_process()
        with self._guard:
            if self._refresher is None:
                import atexit

                self._refresher = Refresher()
                atexit.register(self.close)
            refresher = self._refresher
        refresher.begin(question, lambda: self.shop)

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Pauses what runs, and returns when nothing is written any more, within 2 s."""
        if self._pid == os.getpid():
            self._stop()
        if self._writes_uses:
            self._write_uses()

    def _stop(self) -> None:
        end = time.monotonic() + STOP_WITHIN_S
        for download in self._running:
            download.interrupt()
        for download in self._running:
            download.wait_stopped(max(0.0, end - time.monotonic()))
        if self._refresher is not None:
            self._refresher.end(max(0.0, end - TELL_S - time.monotonic()))
        if self._shop is not None:
            self._shop.dispatcher.drain(max(0.0, end - time.monotonic()))
        if self._state is not None:
            self._state.close()

    def _write_uses(self) -> None:
        with suppress(UsageError, KeyboardInterrupt):  # Ctrl-C at the very end costs counts, and shows no traceback
            from modelcache.state.state import State

            self._adopt_process()
            state = self._state or State(self.root, self._uses, MOST_S)
            state.close()

    def _adopt_process(self) -> None:
        if self._pid != os.getpid():
            self._guard = threading.Lock()  # the inherited one may be held by a thread that does not exist here
            self._pid, self._shop, self._state, self._running = os.getpid(), None, None, []
            self._was_checked, self._refresher = False, None


def _holds_anything(folder: str) -> bool:
    try:
        return bool(os.listdir(folder))
    except OSError:
        return False
