"""Gives what was asked for: at once where it is here, else by a download.

Responsible for: hits, which cost a stat a file; where a download writes; and waiting for it. Leaves to others: what is
meant and whether it is here (`ordering`), carrying a download out (`download`), the roots (`roots`).
A hit imports no network library, and hashes nothing.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelcache.configuration import settings_for
from modelcache.dispatch import Show, Subscriber
from modelcache.errors import ModelNotAvailableError, NotFoundError, StoreError, UsageError
from modelcache.hits import hit, kept_hit
from modelcache.model import Manifest
from modelcache.order import Order
from modelcache.ordering import order_of
from modelcache.othertools import is_offline
from modelcache.outcome import File, Model
from modelcache.refs import Ref
from modelcache.roots import Roots
from modelcache.runtime import STOP_WITHIN_S, Runtime
from modelcache.settings import Settings
from modelcache.store.resolved import Resolved
from modelcache.wish import Wish

if TYPE_CHECKING:
    from modelcache.download import Download

Result = Model | File


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked, and the root that is to have it."""

    runtime: Runtime
    ref: str | Manifest
    wish: Wish

    def order(self, meaning: Manifest | None = None) -> Order:
        """`meaning` is what a hub has just said. Raises as `order_of`."""
        order = order_of(self.runtime.shelf, self.ref, self.wish, meaning, self._fresh_s)
        if order.asks and is_offline(order.asks.scheme):
            error = ModelNotAvailableError(order.id, order.asks.version or order.asks.alias, "not_installed")
            error.next_step = "its hub is not asked, for HF_HUB_OFFLINE is set: unset it to fetch"
            raise error
        return order

    def at_hand(self, progress: Show) -> tuple[Order, Result | None]:
        """What is wanted, and that, if it is here.

        What a hub said too long ago will do for what is here; whether it still says so is asked beside (product B11).
        """
        runtime, order = self.runtime, self.order()
        if order.asks is None or not order.cached or not self._fresh_s(order.asks):
            return order, self._hit(order)
        with suppress(NotFoundError):  # its hub may have it by now
            older = order_of(runtime.shelf, self.ref, self.wish)
            if (here := self._hit(older)) is not None and not self._is_behind(older, order.asks):
                self._look_again(order, older.version, progress)
                return older, here
        return order, None

    def _is_behind(self, older: Order, asks: Ref) -> bool:
        """Whether more is known of it than what is here: another version, or files that are missing."""
        said = Resolved(self.runtime.shelf.layout).version(asks)
        return bool(older.missing) or said not in ("", older.version)

    def _look_again(self, order: Order, known: str, progress: Show) -> None:
        """Asks beside what runs whether what the order asks for is still the version that is known."""
        from modelcache.progress.show import subscriber_for
        from modelcache.refresh import Question

        self.runtime.look_again(Question(order, known, self.order, subscriber_for(progress, order.id)))

    def renewed(self, meaning: Manifest | None) -> tuple[Order, Result | None]:
        """The same, once a hub has been asked, or another process has ended. Nobody evicts it: its lock is held."""
        order, shelf = self.order(meaning), self.runtime.shelf
        here = hit(order, shelf.layout)
        if here is not None and order.cached and self.wish.counted:
            shelf.marks.used(order.id, here.version)
        return order, here

    def _hit(self, order: Order) -> Result | None:
        shelf = self.runtime.shelf
        return kept_hit(order, shelf) if self.wish.counted else hit(order, shelf.layout)

    def check(self, order: Order) -> None:
        """UsageError where the id stands for something else already. What it stands for in a catalog, that says."""
        if order.cached and not order.is_listed:
            self.runtime.shelf.check_ref(order.id, order.ref)

    def _fresh_s(self, ref: Ref) -> float:
        """How long what a hub has said of a ref counts."""
        if is_offline(ref.scheme):
            return math.inf
        if not ref.alias:
            return 0.0  # a version is for ever
        return settings_for(self.runtime.root, self.runtime.overrides).manifest_ttl


def fetched(roots: Roots, ref: str | Manifest, wish: Wish, progress: Show) -> Result:
    """Waits until it is here. Raises as a download ends."""
    here = _at_once(roots, ref, wish, progress)
    return waited(begun(roots, ref, wish, progress, waits=True)) if here is None else here


async def afetched(roots: Roots, ref: str | Manifest, wish: Wish, progress: Show) -> Result:
    """The same, in an event loop; but a pause is waited through. The loop waits for no disk."""
    from asyncio import to_thread

    here = await to_thread(_at_once, roots, ref, wish, progress)
    if here is not None:
        return here
    # What is cancelled by then has begun nothing. A panel has to appear in the thread that calls, for it is its cell's.
    return await _under_way(*await to_thread(_made, roots, ref, wish, progress, waits=False))


def _at_once(roots: Roots, ref: str | Manifest, wish: Wish, progress: Show) -> Result | None:
    """What is here, where nobody listens to how it comes."""
    order, here = Request(roots.own, ref, wish).at_hand(progress)
    if here is None or callable(progress) or roots.own.has_subscribers:
        return None
    roots.own.count(order, here)
    return here


def begun(roots: Roots, ref: str | Manifest, wish: Wish, progress: Show, *, waits: bool = False) -> "Download":
    """Under way, or ended already where everything is here. What has to be written goes where that can be.

    `waits`: whoever calls does nothing else before the end.
    """
    return _under_way(*_made(roots, ref, wish, progress, waits=waits))


def _made(
    roots: Roots, ref: str | Manifest, wish: Wish, progress: Show, *, waits: bool
) -> "tuple[Runtime, Download, Subscriber | None]":
    """Not begun yet, or ended already; and what shows it."""
    from modelcache.progress.show import subscriber_for

    request = Request(roots.own, ref, wish)
    order, here = request.at_hand(progress)
    if here is None and (other := roots.fallback()):
        request = replace(request, runtime=other)
        order, here = request.at_hand(progress)
    show = subscriber_for(progress, order.id, {file.path: file.size for file in order.files}, waits=waits)
    download = _download(request, order, here, show)
    if here is not None:
        download.be_ready(here)
    elif order.cached:
        with suppress(StoreError):  # whoever writes there first says so
            request.runtime.make_root()
    return request.runtime, download, show


def _download(request: Request, order: Order, here: Result | None, show: Subscriber | None) -> "Download":
    from modelcache.again import to_text
    from modelcache.download import Download

    runtime = request.runtime
    if here is None and order.cached:
        request.check(order)
        runtime.check_at_start()
    if request.wish.counted:
        runtime.count(order, here)
    return Download(order, runtime.shop, request.renewed, show, to_text(request.ref, request.wish))


def _under_way(runtime: Runtime, download: "Download", show: Subscriber | None) -> "Download":
    """Begun, unless it has ended, and known to this process."""
    from modelcache.progress.show import appear

    runtime.runs(download)
    if not download.has_ended:
        download.begin()
        with _paused_by_interrupt(download):
            appear(show, download.order.name or download.order.ref, download)
    return download


def waited(download: "Download") -> Result:
    """Its result. An interrupt pauses it."""
    with _paused_by_interrupt(download):
        return download.result()


@contextmanager
def _paused_by_interrupt(download: "Download") -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        download.pause()
        download.wait_stopped(STOP_WITHIN_S)
        interrupt.kept_bytes = download.kept_bytes  # type: ignore[attr-defined]
        interrupt.add_note(f"{download.kept_bytes:,} bytes kept; fetch it again to go on")
        raise


def check_order(runtime: Runtime, ref: str | Manifest, wish: Wish) -> None:
    """UsageError for what a fetch would refuse at once."""
    request = Request(runtime, ref, wish)
    request.check(request.order())
    if runtime.shop.settings.shared:
        runtime.make_root()


# -- in other forms ---------------------------------------------------------------------------------------------------


def laid_out(roots: Roots, ref: str | Manifest, wish: Wish, progress: Show, layout: str, output: str | None) -> Model:
    """Fetches a whole model, then writes it into the output as another program keeps it."""
    from modelcache.layouts import checked_layout, write_ollama

    if not isinstance(ref, str) or not output or wish.chosen:
        raise UsageError("a layout takes a whole model of a registry, and an output")
    place = checked_layout(layout, ref)
    model = fetched(roots, ref, wish, progress)
    assert isinstance(model, Model)
    return replace(model, path=write_ollama(model, output, place))


def unpacked(archive: Result, output: str | None, settings: Settings) -> str:
    """The folder that it is unpacked into; one that an earlier call made beside the archive is as good."""
    from modelcache.unpack import UnpackLimits, stem_of, unpack

    if not isinstance(archive, File):
        raise UsageError("one archive is unpacked, not a model of several files")
    beside = os.path.join(os.path.dirname(archive.path), stem_of(archive.name))
    folder = os.path.abspath(os.path.expanduser(output)) if output is not None else beside
    if output is None and os.path.isdir(folder):
        return folder
    limits = UnpackLimits(total_bytes=settings.unpack_most, entries=settings.unpack_entries)
    unpack(archive.path, folder, name=archive.name, limits=limits)
    return folder
