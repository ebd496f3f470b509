"""One try at a download, from the lock of its model to its name.

Responsible for: that only one process works for a model, and what is wanted by then: another may have fetched it, or
its hub says what it consists of. Leaves to others: fetching it (`modelfetch`), trying again (`download`).
"""

import errno
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from modelcache.announcing import Announcer
from modelcache.errors import (
    AllSourcesFailedError,
    ModelCacheError,
    NotFoundError,
    StoreError,
    TransientError,
    VerificationError,
)
from modelcache.events import FactType
from modelcache.hubs import installed_meaning, known_meaning, pinned_here
from modelcache.model import Manifest
from modelcache.modelfetch import ModelFetch
from modelcache.order import Order, Workshop
from modelcache.outcome import File, Model
from modelcache.resolving import asked, kept, older_text, stale_text
from modelcache.states import State
from modelcache.store.blobs import find
from modelcache.store.disk import store_error
from modelcache.store.gate import await_sweep
from modelcache.store.locks import Holder, Patience, Pulse, Subject, locked
from modelcache.store.shelf import Shelf
from modelcache.store.watch import Far, Watch
from modelcache.tally import Tally
from modelcache.transfer.control import Control

Result = Model | File
Renew = Callable[[Manifest | None], tuple[Order, Result | None]]


class Errand:
    """Used once, by one thread. `renew` tells what is wanted, and what is here, by the time that is asked."""

    def __init__(self, tally: Tally, shop: Workshop, control: Control, announcer: Announcer, renew: Renew) -> None:
        self._tally = tally
        self._shop = shop
        self._control = control
        self._announcer = announcer
        self._renew = renew

    def run(self) -> Result:
        """Returns when all of it is here. Raises whatever came in between."""
        with self._alone() as pulse:
            # Somebody else may have fetched it, and ended before we came to the lock.
            result = self._renewed(None) if self._tally.order.cached else None
            if result is None:
                result = self._obtained(pulse)
            self._name_version()
        return result

    # -- the lock -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[Pulse | None]:
        """Holds the lock of the model. What needs no store needs none."""
        order, shop = self._tally.order, self._shop
        if not order.cached:
            yield None
            return

        def tell(message: str) -> None:
            self._announcer.tell("waiting", message, order.name)

        watch = Watch(shop.layout, shop.layout.partials, order.files, tell, order.id)
        patience = Patience(shop.settings.lock_timeout, lambda holder: self._look(watch, holder), self._control.wait)
        lock = shop.layout.model_lock(order.id)
        with locked(lock, Subject(order.id, order.version, name=order.name), patience):
            await_sweep(shop.layout, Patience(shop.settings.lock_timeout, wait=self._control.wait))
            yield Pulse(lock)

    def _look(self, watch: Watch, holder: Holder) -> Far:
        """Shows how far the process is that has the model: bars move while we wait."""
        if self._tally.order.asks:
            self._learn(watch)
        for task in self._tally.tasks:
            task.watch = watch
        far = watch.look(holder)
        self._announcer.moved()
        return far

    def _learn(self, watch: Watch) -> None:
        """What it is about is known once the holder has asked the hub: then it can be shown."""
        order, _ = self._renew(None)
        if order.files:
            self._tally.follow(order)
            watch.follow(order.files)

    # -- what is wanted -----------------------------------------------------------------------------------------------

    def _obtained(self, pulse: Pulse | None) -> Result:
        self._tally.stage = State.RESOLVING
        self._announcer.begins()
        if self._tally.order.asks and (here := self._known_and_here()) is not None:
            return here
        self._announcer.plan()
        self._check_order()
        try:
            return self._fetched(pulse)
        except AllSourcesFailedError as error:
            return self._from_before(error) or self._fetched(pulse)

    def _fetched(self, pulse: Pulse | None) -> Result:
        return ModelFetch(self._tally, self._shop, self._control, self._announcer, pulse).run()

    def _from_before(self, error: AllSourcesFailedError) -> Result | None:
        """What a branch meant before, where nobody can be reached who has what it means now; else raises the error.

        None where that is in the store, and only an output is missing.
        """
        wanted, shelf = self._tally.order, Shelf(self._shop.layout)
        is_out_of_reach = error.kind == TransientError.kind and wanted.cached and wanted.meant and wanted.meant.alias
        known = installed_meaning(shelf, wanted.meant) if is_out_of_reach and wanted.meant else None
        if known is None or known.version == wanted.version:
            raise error
        try:
            order, result = self._renew(known)
        except NotFoundError:
            raise error from None
        if result is None and not all(find(shelf.layout, file) for file in order.files):
            raise error
        self._tally.follow(order)
        if result is not None:
            self._tally.found(result)
        self._announcer.tell("stale", older_text(wanted.version, order.version, error))
        return result

    def _known_and_here(self) -> Result | None:
        """Asks what is wanted; that, if all of it is here. An answer is kept once it has proved to be of use."""
        asking = self._tally.order
        try:
            meaning = self._meaning()
        except NotFoundError as error:
            assert asking.asks is not None
            if name := pinned_here(Shelf(self._shop.layout), asking.asks):
                error.message += f", but {name} is here and works without the hub"
            raise
        except AllSourcesFailedError as error:
            return self._here_as_it_was(error)
        try:
            result = self._renewed(meaning)
        except NotFoundError as error:  # a file that is wanted is not listed any more
            return self._here_as_it_was(error)
        if asking.cached:
            with suppress(StoreError):  # whoever writes there next says so
                kept(asking, self._shop, meaning)
        return result

    def _here_as_it_was(self, error: ModelCacheError) -> Result | None:
        """Where its hub gives no answer that is of use, what was here last will do; else raises the error."""
        asking = self._tally.order
        assert asking.asks is not None
        known = known_meaning(Shelf(self._shop.layout), asking.asks, math.inf) if asking.cached else None
        if known is None:
            raise error
        try:
            result = self._renewed(known)
        except NotFoundError:
            raise error from None
        if result is None and not self._is_in_store():
            raise error
        self._announcer.tell("stale", stale_text(asking, self._shop.layout, error))
        return result

    def _meaning(self) -> Manifest:
        """Asks the hub what is wanted."""

        def tell(kind: FactType, message: str, source: str) -> None:
            self._tally.where = source
            self._announcer.tell(kind, message, source=source)

        return asked(self._tally.order, self._shop, self._control, tell)

    def _renewed(self, meaning: Manifest | None) -> Result | None:
        """What is wanted may be known better now; that, if all of it is here."""
        order, result = self._renew(meaning)
        self._tally.follow(order)
        if result is not None:
            self._tally.found(result)
        return result

    def _is_in_store(self) -> bool:
        """Whether no byte has to be fetched: only an output, or a name, is missing."""
        layout = self._shop.layout
        return all(find(layout, file) for file in self._tally.order.files)

    def _check_order(self) -> None:
        """What would be in vain is refused before anything is fetched."""
        order = self._tally.order
        if order.require_digest and (unvouched := order.unvouched()):
            raise VerificationError(
                f"nothing is known to verify {unvouched[0]} against",
                next_step="pass --sha256 or --checksum, or a manifest with digests",
            )
        if order.output:
            _check_writable(os.path.dirname(order.output) if order.single else order.output)

    def _name_version(self) -> None:
        """From here on the tag or branch means the version that is here."""
        order = self._tally.order
        if order.cached and order.alias:
            self._shop.registry.aliased(order.id, [order.alias], order.version)


def _check_writable(folder: str) -> None:
    """StoreError if nothing can be written below `folder`, whatever of it is there already."""
    while not os.path.lexists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise store_error(NotADirectoryError(errno.ENOTDIR, "not a directory"), folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        is_read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        raise store_error(OSError(errno.EROFS if is_read_only else errno.EACCES, "not writable"), folder)
