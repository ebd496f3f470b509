"""From what users call a model to what it consists of, by asking its hub.

Responsible for: one request at a time that a pause ends at once, its deadline and that of all together, trying again as
the rules of `retry` say, telling what happens, and keeping the answer for the next time.
Leaves to others: speaking with the hub (`remotes`), what the answer is used for (`hubs`, `errand`).
"""

import random
import threading
import time
from collections.abc import Callable

from modelcache.dispatch import Subscriber
from modelcache.errors import (
    AbortedError,
    AllSourcesFailedError,
    ModelCacheError,
    PausedError,
    SourceError,
    SourceFailure,
    StoreError,
    TransientError,
)
from modelcache.events import Fact, FactType
from modelcache.history import Attempt
from modelcache.model import Manifest
from modelcache.order import Order, Workshop
from modelcache.refs import Ref
from modelcache.remotes.resolver import Resolver
from modelcache.remotes.source import Abort
from modelcache.retry import Backoff, Budget
from modelcache.store.layout import Layout
from modelcache.store.locks import Patience, Subject, locked
from modelcache.store.resolved import Resolved
from modelcache.transfer.control import Control
from modelcache.units import as_age

LOOK_S = 0.05
TOO_SLOW = "it has not said in time all that the model consists of"
_OTHERWISE = "name another version of it, or tell those who publish it"  # what it says stays so

Tell = Callable[[FactType, str, str], None]  # (type, message, source)


def asked(order: Order, shop: Workshop, control: Control, tell: Tell) -> Manifest:
    """What `order.asks` means by now.

    Raises NotFoundError, AllSourcesFailedError, UsageError, or PausedError when the control was stopped.
    """
    assert order.asks is not None
    resolver = shop.resolver(order.asks, order.headers)
    try:
        return _Asking(order.asks, resolver, shop, control, tell).answer()
    finally:
        resolver.close()


def kept(order: Order, shop: Workshop, manifest: Manifest) -> None:
    """Keeps the answer for the next time; for the holder of the lock of the model. StoreError."""
    assert order.asks is not None
    Resolved(shop.layout).save(order.asks, manifest)


def kept_beside(
    order: Order, known: str, shop: Workshop, manifest: Manifest, subscriber: Subscriber | None = None
) -> None:
    """Keeps the answer to a question that no fetch asked, and tells it where it is another version than was `known`.

    LockedError while somebody fetches the model: who does asks for himself. StoreError.
    """
    with locked(shop.layout.model_lock(order.id), Subject(order.id, known), Patience(0.0)):
        kept(order, shop, manifest)
    if manifest.version != known:
        message = f"{manifest.ref} has changed to {manifest.version}: the next fetch brings it"
        shop.dispatcher.publish(Fact("newer", order.id, message, version=manifest.version), subscriber)


def stale_text(order: Order, layout: Layout, error: ModelCacheError) -> str:
    """Why what a ref meant last is what it means, though it is time to ask; `error` says what came of asking."""
    assert order.asks is not None
    reason = "; ".join(filter(None, (error.message, error.next_step)))
    if isinstance(error, AllSourcesFailedError):
        reason = "; ".join(f"{failure.source}: {failure.reason}" for failure in error.failures)
    has_answered = error.kind not in (TransientError.kind, PausedError.kind)
    what = "the answer of its hub cannot be used" if has_answered else "its hub could not be asked"
    said_at = Resolved(layout).said_at(order.asks)
    age = f"what it meant {as_age(time.time() - said_at / 1000)} ago" if said_at else "what is here of it"
    return f"{what} ({reason}); this is {age}"


def older_text(newer: str, here: str, error: ModelCacheError) -> str:
    """Why a version is given that is not what its ref means by now."""
    return (
        f"the newer {newer[:12]} is known, and could not be fetched ({error.message}); this is {here[:12]}, from before"
    )


class _Asking:
    def __init__(self, ref: Ref, resolver: Resolver, shop: Workshop, control: Control, tell: Tell) -> None:
        self._ref = ref
        self._resolver = resolver
        self._shop = shop
        self._control = control
        self._tell = tell
        self._until = time.monotonic() + shop.settings.resolve_timeout

    def answer(self) -> Manifest:
        settings = self._shop.settings
        budget = Budget(settings.attempts_per_source, settings.requests_for_nothing)
        backoff = Backoff(settings.backoff, settings.backoff_factor)
        while True:
            self._tell("resolving", f"Pulling manifest from {self._resolver.name}...", self._resolver.name)
            try:
                return self._once()
            except SourceError as error:
                self._failed(error, budget.failures + 1)
                wish_s = error.retry_after_s if isinstance(error, TransientError) else None
                may_again = isinstance(error, TransientError) and budget.failed(0)
                pause_s = wish_s if wish_s is not None else backoff.delay_s(budget.failures, random.random())  # noqa: S311
                is_too_long = (wish_s or 0) > settings.retry_after_most or time.monotonic() + pause_s > self._until
                if not may_again or is_too_long:
                    raise self._explained(error) from error
                self._control.wait(pause_s)

    def _once(self) -> Manifest:
        """In a thread of its own, so that a stop need not wait for it: a name that does not resolve holds it."""
        abort, over = Abort(), threading.Event()
        results: list[Manifest | BaseException] = []

        def work() -> None:
            try:
                results.append(self._resolver.resolve(self._ref, abort))
            except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
                results.append(error)
            over.set()

        try:
            threading.Thread(target=work, name="modelcache-resolver", daemon=True).start()
        except RuntimeError as error:
            raise StoreError(f"no thread: {error}", next_step="end some programs") from error
        try:
            while not over.wait(LOOK_S):
                self._control.check()
                if time.monotonic() > self._until:
                    raise SourceError(TOO_SLOW, next_step="try later, or raise the setting resolve_timeout")
                if time.monotonic() > abort.until:
                    raise TransientError("no complete reply in time")
        except BaseException:
            abort.fire()
            raise
        result = results[0]
        if isinstance(result, AbortedError):
            self._control.check()
        if isinstance(result, BaseException):
            raise result
        return result

    def _failed(self, error: SourceError, number: int) -> None:
        name, kind = self._resolver.name, self._resolver.kind
        self._tell("source_failed", error.message, name)
        self._shop.dispatcher.note(
            Attempt(
                kind, name, "error", model=self._ref.id, attempt=number, error_type=error.kind,
                error_message=error.message, http_status=error.status,
            )
        )  # fmt: skip

    def _explained(self, error: SourceError) -> ModelCacheError:
        """A refusal that names the model speaks for itself; anything else is told with where it happened."""
        if error.kind == "not_found" and error.message.startswith(self._ref.base):
            return error
        failed = AllSourcesFailedError(
            self._ref.shown, (SourceFailure(self._resolver.name, error.message, error.kind),)
        )
        failed.next_step = error.next_step or ("" if failed.again else _OTHERWISE)
        return failed
