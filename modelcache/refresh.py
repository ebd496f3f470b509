"""Whether refs still mean what they meant, asked while their users go on with what is here (product B11).

Responsible for: one question after another in one thread, none about the same ref again within a minute, and its end
with the process. What is said counts from the next fetch on. Leaves to others: asking (`resolving`), fetching.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from modelcache.dispatch import Subscriber
from modelcache.errors import (
    AllSourcesFailedError,
    ModelCacheError,
    PausedError,
    SourceError,
    SourceFailure,
    TransientError,
    VerificationError,
)
from modelcache.events import Fact, FactType
from modelcache.model import Manifest
from modelcache.order import Order, Workshop
from modelcache.resolving import asked, kept_beside, stale_text
from modelcache.transfer.control import Control

log = logging.getLogger(__name__)

AGAIN_S = 60.0
STOP_S = 0.2


@dataclass(frozen=True, slots=True)
class Question:
    """What `order.asks` means by now; `known` is the version that it meant, and that is used meanwhile.

    `renew` makes an order of the answer, or raises NotFoundError where that lacks a file that is wanted. `subscriber`
    is told what came of it, besides those of all events.
    """

    order: Order
    known: str
    renew: Callable[[Manifest], object]
    subscriber: Subscriber | None = None


class Refresher:
    """Of one process. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._control = Control()  # of the thread
        self._thread: threading.Thread | None = None
        self._left: list[Question] = []
        self._not_before: dict[str, float] = {}  # by ref

    def begin(self, question: Question, shop: Callable[[], Workshop]) -> None:
        """Asks. Returns at once; where no thread can be had, nobody is asked this time."""
        order = question.order
        assert order.asks is not None
        ref, now = f"{order.id} {order.asks.shown}", time.monotonic()
        with self._guard:
            if now < self._not_before.get(ref, now):
                return
            self._not_before[ref] = now + AGAIN_S
            self._left.append(question)
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
            control.stop(PausedError("no answer so far"))
            thread.join(STOP_S)

    def _run(self, shop: Callable[[], Workshop], control: Control) -> None:
        while True:
            with self._guard:
                if not self._left:
                    self._thread = None
                    return
                question = self._left.pop(0)
            try:
                _ask(question, shop(), control)
            except ModelCacheError:
                pass  # then what it meant is what it means
            except Exception as error:  # noqa: BLE001 - a bug: the others are asked all the same
                name = question.order.id
                log.warning("%s: a bug in modelcache: %s", name, type(error).__name__)  # its text may hold anything


def _ask(question: Question, shop: Workshop, control: Control) -> None:
    """LockedError while somebody fetches it: who does asks for himself. StoreError."""
    order, failures = question.order, list[SourceFailure]()

    def hear(kind: FactType, message: str, source: str) -> None:
        if kind == "source_failed":
            failures[:] = [SourceFailure(source, message, TransientError.kind)]

    try:
        control.check()
        manifest = asked(order, shop, control, hear)
        question.renew(manifest)
    except (SourceError, AllSourcesFailedError, VerificationError, PausedError) as error:
        given_up = isinstance(error, PausedError) and failures
        reason = AllSourcesFailedError(order.ref, tuple(failures)) if given_up else error
        stale = Fact("stale", order.id, stale_text(order, shop.layout, reason), version=question.known)
        shop.dispatcher.publish(stale, question.subscriber)
        return
    kept_beside(order, question.known, shop, manifest, question.subscriber)
