"""Whether refs still mean what they meant, asked while their users go on with what is here (product B11).

Responsible for: one question after another in one thread, none about the same ref again within a minute, and its end
with the process. What is said counts from the next fetch on. Leaves to others: asking (`resolving`), fetching.
"""

import logging
import threading
import time
from collections.abc import Callable

from modelcache.errors import ModelCacheError, PausedError
from modelcache.events import Fact, FactType
from modelcache.order import Order, Workshop
from modelcache.resolving import asked, kept
from modelcache.store.locks import Patience, Subject, locked
from modelcache.transfer.control import Control

log = logging.getLogger(__name__)

AGAIN_S = 60.0
STOP_S = 0.2


class Refresher:
    """Of one process. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._control = Control()  # of the thread
        self._thread: threading.Thread | None = None
        self._left: list[tuple[Order, str]] = []
        self._not_before: dict[str, float] = {}  # by ref

    def begin(self, order: Order, known: str, shop: Callable[[], Workshop]) -> None:
        """Asks what `order.asks` means by now; `known` is the version that it meant. Returns at once.

        Where no thread can be had, nobody is asked this time.
        """
        assert order.asks is not None
        ref, now = f"{order.id} {order.asks.shown}", time.monotonic()
        with self._guard:
            if now < self._not_before.get(ref, now):
                return
            self._not_before[ref] = now + AGAIN_S
            self._left.append((order, known))
            if self._thread is None:
                self._start(shop)

    def _start(self, shop: Callable[[], Workshop]) -> None:
        control = Control()
        thread = threading.Thread(target=self._run, args=(shop, control), name="modelcache-refresh", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._left = []
        else:
            self._thread, self._control = thread, control

    def end(self, timeout_s: float) -> None:
        """Waits until nothing is asked any more, not longer than that; what is asked then is given up."""
        thread, control = self._thread, self._control
        if thread is not None:
            thread.join(timeout_s)
            control.stop(PausedError("nobody waits for it any more"))
            thread.join(STOP_S)

    def _run(self, shop: Callable[[], Workshop], control: Control) -> None:
        while True:
            with self._guard:
                if not self._left or control.stopped:
                    self._thread, self._left = None, []
                    return
                order, known = self._left.pop(0)
            try:
                _ask(order, known, shop(), control)
            except ModelCacheError:
                pass  # then what it meant is what it means
            except Exception as error:  # noqa: BLE001 - a bug: the others are asked all the same
                log.warning("%s: a bug in modelcache: %s", order.id, type(error).__name__)  # its text may hold anything


def _ask(order: Order, known: str, shop: Workshop, control: Control) -> None:
    """LockedError while somebody fetches it: who does asks for himself."""
    manifest = asked(order, shop, control, _tell_nobody)
    with locked(shop.layout.model_lock(order.id), Subject(order.id, known), Patience(0.0)):
        kept(order, shop, manifest)
    if manifest.version != known:
        message = f"{manifest.ref} has changed to {manifest.version}: the next fetch brings it"
        shop.dispatcher.publish(Fact("newer", order.id, message, version=manifest.version))


def _tell_nobody(_kind: FactType, _message: str, _source: str) -> None:
    """No download runs whose stage this could be."""
