"""Reads what is installed, says which bytes are wrong, and repairs only those.

Responsible for: telling whole, corrupt, missing and unreadable apart; never deleting (what has rotted is set aside);
re-linking every model that shares a repaired file. Leaves to others: moving bytes (`transfer`), scheduling.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from modelcache.errors import ModelCacheError, StoreError
from modelcache.events import Fact
from modelcache.model import Digest, ModelFile
from modelcache.order import Order, Workshop
from modelcache.ordering import URL_ID, Wish, mirrored
from modelcache.outcome import Audit
from modelcache.store import blobs, records, sharing
from modelcache.store.claim import forget
from modelcache.store.installed import Installed, InstalledFile, Stamp
from modelcache.store.layout import Layout, key_of
from modelcache.store.locks import Patience, Subject, locked
from modelcache.store.partial import Partial
from modelcache.store.registry import status_of
from modelcache.transfer.control import Control
from modelcache.transfer.transfer import Transfer

WRITE_EVERY_S = 2.0


def verify(shop: Workshop, record: Installed, control: Control) -> list[Audit]:
    """Reads every file of a model. Refreshes the stamps of what is right; what is not is never a hit again.

    Works where nothing can be written, too: then only the findings tell.
    """
    audits = []
    findings = _Findings(shop, record)
    try:
        for file in record.files:
            control.check()
            audit, stamp = _audit(shop, record, file, control)
            audits.append(audit)
            findings.add(file, stamp)
    finally:
        with suppress(StoreError):
            findings.write()
    for path in record.missing:
        place = os.path.join(record.folder, path)
        audits.append(Audit(record.id, record.version, path, place, 0, "missing", reason="never fetched"))
    return audits


class _Findings:
    """What was found and is not recorded yet: a kill costs the findings of `WRITE_EVERY_S`."""

    def __init__(self, shop: Workshop, record: Installed) -> None:
        self._shop = shop
        self._record = record
        self._stamps: list[tuple[InstalledFile, Stamp | None]] = []
        self._due = time.monotonic() + WRITE_EVERY_S

    def add(self, file: InstalledFile, stamp: Stamp | None) -> None:
        """`file` as it was recorded before it was read; None for the stamp of one that is not right."""
        self._stamps.append((file, stamp))
        if time.monotonic() >= self._due:
            with suppress(StoreError):
                self.write()

    def write(self) -> None:
        """What is rotten here is so in every model that has the same file."""
        stamps, self._stamps, self._due = self._stamps, [], time.monotonic() + WRITE_EVERY_S
        rotten = [(file.sha256, self._record.place(file)) for file, stamp in stamps if stamp is None]
        if rotten:
            sharing.distrust_all(self._shop.layout, self._shop.registry, rotten)
        with records.changing(self._shop.layout):
            now = Installed.read(self._record.folder)
            if now is not None:
                changed = now.with_files(_still_true(now, stamps))
                if changed != now:
                    changed.write()
                self._shop.registry.marked(now.id, now.version, status_of(changed))


def _still_true(now: Installed, stamps: list[tuple[InstalledFile, Stamp | None]]) -> list[InstalledFile]:
    """What somebody else recorded since a file was read stays, unless it is right only there."""
    entries = now.by_path()
    found = []
    for file, stamp in stamps:
        entry = entries.get(file.path)
        if stamp is not None and entry == file:
            found.append(replace(file, stamp=stamp))
        elif stamp is None and entry is not None and entry.sha256 == file.sha256:
            found.append(entry.distrusted())
    return found


def _audit(shop: Workshop, record: Installed, file: InstalledFile, control: Control) -> tuple[Audit, Stamp | None]:
    """The finding, and the stamp of a file that is whole."""
    place = record.place(file)
    sha256 = Digest("sha256", file.sha256)
    blank = Audit(record.id, record.version, file.path, place, max(0, file.size), "whole")
    known = blobs.load_pieces(shop.layout, sha256, file.size)
    try:
        stamp = Stamp.of(place)
        length = known.size if known else shop.settings.piece_size
        reading = blobs.read_back(place, (sha256,), length, control.check)
    except FileNotFoundError:
        return replace(blank, finding="missing", reason="the file is gone"), None
    except StoreError as error:
        return replace(blank, finding="unreadable", reason=error.message), None
    if reading.wrong is None:
        if known != reading.pieces:  # what was recorded of them is wrong, if anything was
            with suppress(StoreError):
                blobs.note(shop.layout, reading.digests, reading.pieces)
        return blank, stamp
    wrong = blobs.wrong_spans(reading, known, file.size) if known else []
    reason = "the bytes are not what they were" if known else "no piece digests tell where"
    return replace(blank, finding="corrupt", wrong=tuple(wrong), reason=reason), None


def repair(shop: Workshop, record: Installed, wish: Wish) -> list[dict[str, object]]:
    """Reads a model and mends what is wrong with it; a row for each file that was.

    A file that no source has does not stop the others. Raises StoreError and LockedError.
    """
    control = Control()
    repairer = Repairer(shop, record, wish, control)
    return [repairer.row(audit) for audit in verify(shop, record, control) if audit.finding != "whole"]


class Repairer:
    """Makes the files of one model right again, moving only what is wrong."""

    def __init__(self, shop: Workshop, record: Installed, wish: Wish, control: Control) -> None:
        self._shop = shop
        self._record = record
        self._control = control
        files = tuple(
            ModelFile(file.path, max(0, file.size), (Digest("sha256", file.sha256),), file.urls)
            for file in record.files
        )
        files = mirrored(files, wish.mirrors, is_url=record.id.startswith(URL_ID))
        self._order = Order(record.ref, record.id, record.version, files, single=False, headers=wish.headers)

    def row(self, audit: Audit) -> dict[str, object]:
        """`repair`, with a failure as a row."""
        blank = {"repaired": False, "bytes_fetched": 0, "source": "", "set_aside": "", "reason": "", "kind": ""}
        row: dict[str, object] = {
            "model": audit.model, "version": audit.version, "file": audit.path, "size": audit.size, **blank,
        }  # fmt: skip
        try:
            return row | {"repaired": True} | self.repair(audit)
        except StoreError:
            raise
        except ModelCacheError as error:
            return row | {"reason": error.line(), "kind": error.kind}

    def repair(self, audit: Audit) -> dict[str, object]:
        """Raises as a fetch does; then nothing that was good is lost, and what was rotten stays marked."""
        shop, layout = self._shop, self._shop.layout
        file = next((file for file in self._order.files if file.path == audit.path), None)
        if file is None:
            raise ModelCacheError(f"{audit.path} was never fetched", next_step="fetch the model again")
        sha256 = file.digests[0]
        pieces = blobs.load_pieces(layout, sha256, file.size or 0)
        if audit.finding != "corrupt" or (pieces and blobs.good_spans(audit.wrong, pieces, file.size or 0)):
            file = replace(file, pieces=pieces)  # where not one piece matches, the pieces may be what is wrong
        subject = Subject(audit.model, audit.version, audit.path)
        patience = Patience(shop.settings.lock_timeout, wait=self._control.wait)
        key = key_of(file)
        with locked(layout.lock(key), subject, patience):
            is_known_wrong = sharing.is_same_file(audit.place, layout.blob(sha256))
            is_in_store = not is_known_wrong and blobs.is_right(layout, sha256)
            transfer = None if is_in_store else self._fetch(file, audit)
            aside = blobs.set_aside(layout, audit.place) if audit.finding == "corrupt" else ""
            if transfer:
                _commit(layout, transfer.partial)
            forget(layout.partials, key)
            sharing.relink(layout, shop.registry, sha256)
        received = transfer.received if transfer else 0
        message = f"{audit.path} is repaired; {received:,} of {audit.size:,} bytes were fetched"
        self._tell(audit)("repaired", message, transfer.source if transfer else "cache")
        return {
            "bytes_fetched": received, "source": transfer.source_kind if transfer else "cache", "set_aside": aside
        }  # fmt: skip

    def _fetch(self, file: ModelFile, audit: Audit) -> Transfer:
        """Returns with the partial proven and open."""
        shop = self._shop
        partial = Partial.open(
            shop.layout.partials, key_of(file), file,
            window=shop.settings.window, piece_size=shop.settings.piece_size,
        )  # fmt: skip
        sources = shop.sources(file, self._order.headers_for(file), shop.settings)
        try:
            good = blobs.good_spans(audit.wrong, file.pieces, file.size or 0) if file.pieces else []
            if audit.finding == "corrupt" and good:
                partial.seed(audit.place, good)
            transfer = Transfer(file, partial, sources, shop.settings, self._control, self._tell(audit))
            transfer.run()
        except BaseException:
            partial.close()
            raise
        finally:
            for source in sources:
                source.close()
        return transfer

    def _tell(self, audit: Audit) -> Callable[..., None]:
        def tell(kind: str, message: str, source: str) -> None:
            record = self._record
            fact = Fact(kind, record.id, message, audit.path, source, record.version, record.folder)  # type: ignore[arg-type]
            self._shop.dispatcher.publish(fact)

        return tell


def _commit(layout: Layout, partial: Partial) -> None:
    try:
        blobs.commit(layout, partial)
    finally:
        partial.close()
