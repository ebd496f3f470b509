"""Asks hubs again what the branches and tags mean that models here were fetched by, one after another.

Responsible for: which of them, and one row for each. What is said counts from the next fetch on; nothing is fetched.
Leaves to others: asking (`resolving`), a single question beside a fetch (`refresh`), fetching.
"""

import threading
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from modelcache.errors import LockedError, ModelCacheError, PausedError, UsageError
from modelcache.events import FactType
from modelcache.order import Order, Workshop
from modelcache.othertools import is_offline
from modelcache.refs import Ref
from modelcache.resolving import asked, kept_beside
from modelcache.store.resolved import Resolved
from modelcache.store.shelf import Shelf
from modelcache.transfer.control import Control


class _Told(Control):
    """Stopped by an event of somebody else's."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop

    def check(self) -> None:
        if self._stop.is_set():
            raise PausedError("it was told to stop")
        super().check()

    def wait(self, seconds: float) -> None:
        self._stop.wait(max(0.0, seconds))
        self.check()


def renewed(shelf: Shelf, shop: Workshop, models: Collection[str], stop: threading.Event) -> Iterator[dict[str, Any]]:
    """One row a branch or tag, of these models or, where none is named, of all: what it means by now.

    `outcome` is same, newer, busy (somebody fetches it, and asks) or failed, with the reason; `whole` tells whether all
    that a version of it lists is here, or was wanted. Hubs that must not be asked are left out. A `stop` ends it.
    """
    for ref in _asked_about(shelf, models):
        if stop.is_set():
            return
        row: dict[str, Any] = {
            "model": ref.id, "ref": ref.shown, "version": Resolved(shop.layout).version(ref), "outcome": "same",
            "whole": _is_whole(shelf, ref), "reason": "",
        }  # fmt: skip
        try:
            version = _asked_again(ref, row["version"], shop, stop)
        except LockedError:
            row |= {"outcome": "busy"}
        except PausedError:
            return
        except ModelCacheError as error:
            row |= {"outcome": "failed", "reason": error.message}
        else:
            row |= {"outcome": "same" if version == row["version"] else "newer", "version": version}
        yield row


def _asked_about(shelf: Shelf, models: Collection[str]) -> list[Ref]:
    """The branches and tags of what is here. What a file calls so, and could not be, is none."""
    bases = {record.id: record.ref for record in shelf.all() if not models or record.id in models}
    found = []
    for model_id, base in sorted(bases.items()):
        for alias in sorted(Resolved(shelf.layout).aliases(model_id)):
            try:
                ref = Ref.parse(replace(Ref.parse(base), revision=alias).shown)
            except UsageError:
                continue
            if ref.scheme and ref.id == model_id and ref.alias == alias and not is_offline(ref.scheme):
                found.append(ref)
    return found


def _is_whole(shelf: Shelf, ref: Ref) -> bool:
    """Of the version that it meant or, where that is not here yet, of the one that is."""
    resolved = Resolved(shelf.layout)
    version = resolved.version(ref)
    record = (shelf.at(ref.id, version) if version else None) or shelf.record(Ref(ref.id))
    listed = resolved.manifest(replace(ref, version=record.version), 0.0) if record else None
    if record is None or listed is None:
        return False
    wanted = {file.path for file in record.files}.union(record.missing)
    return all(file.path in wanted for file in listed.files)


def _asked_again(ref: Ref, known: str, shop: Workshop, stop: threading.Event) -> str:
    """The version that it means by now."""
    order = Order(ref.base, ref.id, "", (), single=False, proof="listed", asks=ref)
    manifest = asked(order, shop, _Told(stop), _tell_nobody)
    kept_beside(order, known, shop, manifest)
    return manifest.version


def _tell_nobody(_kind: FactType, _message: str, _source: str) -> None:
    """No download runs whose stage this could be."""
