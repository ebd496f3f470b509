"""Reads what is installed, says which bytes are wrong, and repairs only those.

Responsible for: telling whole, corrupt, missing and unreadable apart; never deleting (what has rotted is set aside);
re-linking every model that shares a repaired file. Leaves to others: moving bytes (`transfer`), scheduling.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from modelcache.errors import ModelCacheError, StoreError
from modelcache.events import Fact
from modelcache.model import Digest, ModelFile, PieceDigests, Span
from modelcache.order import Workshop
from modelcache.outcome import Audit
from modelcache.pieces import Pieces
from modelcache.store import blobs, links
from modelcache.store.disk import disk_errors
from modelcache.store.installed import Installed, InstalledFile, Stamp
from modelcache.store.locks import locked
from modelcache.store.partial import Partial
from modelcache.store.registry import installed_under
from modelcache.transfer.control import Control
from modelcache.transfer.transfer import Transfer

NEVER = Stamp(-1, -1, -1, 0)  # looks like no file: a fetch reads it again, `path` says that it is not available


def verify(shop: Workshop, record: Installed, control: Control) -> list[Audit]:
    """Reads every file of a model. Refreshes the stamps of what is right; what is not is never a hit again."""
    audits = []
    for file in record.files:
        control.check()
        audit, stamp = _audit(shop, record, file)
        audits.append(audit)
        if stamp != file.stamp:
            _restamp(shop, record, file, stamp)
    for path in record.missing:
        place = os.path.join(record.folder, path)
        audits.append(Audit(record.id, record.version, path, place, 0, "missing", reason="never fetched"))
    sound = all(audit.finding == "whole" for audit in audits)
    shop.registry.marked(record.id, record.version, "ready" if sound else "error")
    return audits


def _audit(shop: Workshop, record: Installed, file: InstalledFile) -> tuple[Audit, Stamp]:
    """The finding, and the stamp that the record is to have after it."""
    place = record.place(file)
    sha256 = Digest("sha256", file.sha256)
    blank = Audit(record.id, record.version, file.path, place, max(0, file.size), "whole")
    known = blobs.load_pieces(shop.layout, sha256, file.size)
    try:
        stamp = Stamp.of(place)
        length = known.size if known else shop.settings.piece_size
        reading = blobs.read_back(place, (sha256,), length)
    except FileNotFoundError:
        return replace(blank, finding="missing", reason="the file is gone"), replace(NEVER, size=file.size)
    except StoreError as error:
        return replace(blank, finding="unreadable", reason=error.message), file.stamp
    if reading.wrong is None:
        if known is None:
            with suppress(StoreError):
                blobs.note(shop.layout, reading.digests, reading.pieces)
        return blank, stamp
    wrong = blobs.wrong_spans(reading, known, file.size) if known else []
    reason = "the bytes are not what they were" if known else "no piece digests tell where"
    return replace(blank, finding="corrupt", wrong=tuple(wrong), reason=reason), replace(NEVER, size=file.size)


def _restamp(shop: Workshop, record: Installed, file: InstalledFile, stamp: Stamp) -> None:
    """In every model that has this content: they share the bytes, rotten or sound."""
    sharing = [record] if stamp.inode >= 0 else _sharing(shop, file.sha256)
    for each in {one.folder: one for one in [record, *sharing]}.values():
        now = Installed.read(each.folder) or each
        for entry in now.files:
            if entry.sha256 == file.sha256 and (each.folder == record.folder or _same_bytes(now, entry, record, file)):
                now = now.with_file(replace(entry, stamp=stamp))
        now.write()


def _same_bytes(one: Installed, entry: InstalledFile, other: Installed, file: InstalledFile) -> bool:
    try:
        return os.path.samefile(one.place(entry), other.place(file))
    except OSError:
        return False


def _sharing(shop: Workshop, sha256: str) -> list[Installed]:
    return [one for one in installed_under(shop.layout.models) if any(file.sha256 == sha256 for file in one.files)]


class Repairer:
    """Makes one corrupt or missing file right again, moving only what is wrong."""

    def __init__(self, shop: Workshop, headers: Mapping[str, str], mirrors: tuple[str, ...], control: Control) -> None:
        self._shop = shop
        self._headers = headers
        self._mirrors = mirrors
        self._control = control

    def row(self, record: Installed, audit: Audit) -> dict[str, object]:
        """`repair`, with a failure as a row: one file that no source has does not stop the others."""
        row: dict[str, object] = {
            "model": audit.model,
            "version": audit.version,
            "file": audit.path,
            "size": audit.size,
        }
        blank = {"repaired": False, "bytes_fetched": 0, "source": "", "set_aside": "", "reason": "", "kind": ""}
        try:
            return row | blank | {"repaired": True} | self.repair(record, audit)
        except StoreError:
            raise
        except ModelCacheError as error:
            return row | blank | {"reason": error.line(), "kind": error.kind}

    def repair(self, record: Installed, audit: Audit) -> dict[str, object]:
        """Raises as a fetch does; then nothing that was good is lost, and what was rotten stays marked."""
        shop, layout = self._shop, self._shop.layout
        entry = record.file(audit.path)
        if entry is None:
            raise ModelCacheError(f"{audit.path} is not recorded", next_step=f"fetch {record.id} again")
        sha256 = Digest("sha256", entry.sha256)
        size = max(0, audit.size)
        pieces = blobs.load_pieces(layout, sha256, size)
        file = ModelFile(entry.path, size, (sha256,), (*entry.urls, *self._mirrors), pieces)
        key = f"sha256-{sha256.hex}"
        with locked(layout.lock(key), entry.path, shop.settings.lock_timeout, lambda: None, self._control.check):
            transfer = self._fetch(file, audit, key)
            aside = blobs.set_aside(layout, audit.place) if audit.finding == "corrupt" else ""
            blobs.commit(layout, transfer.partial)
        self._relink(sha256)
        message = f"{entry.path} is repaired; {transfer.received:,} of {size:,} bytes were fetched"
        shop.dispatcher.publish(
            Fact("repaired", record.id, message, entry.path, transfer.source, record.version, record.folder)
        )
        return {"bytes_fetched": transfer.received, "source": transfer.source_kind, "set_aside": aside}

    def _fetch(self, file: ModelFile, audit: Audit, key: str) -> Transfer:
        shop = self._shop
        partial = Partial.open(shop.layout.partials, key, file, window=shop.settings.window)
        sources = shop.sources(file, self._headers, shop.settings)
        try:
            good = _good_spans(file.pieces, file.size or 0, audit)
            if audit.finding == "corrupt" and good and not partial.resumed_bytes:
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
            self._shop.dispatcher.publish(Fact(kind, audit.model, message, audit.path, source))  # type: ignore[arg-type]

        return tell

    def _relink(self, sha256: Digest) -> None:
        """Every model path whose inode is not the blob's: a model path is what users open."""
        layout = self._shop.layout
        for record in _sharing(self._shop, sha256.hex):
            changed = record
            for entry in record.files:
                if entry.sha256 == sha256.hex:
                    links.link(layout.blob(sha256), record.place(entry))
                    with disk_errors(record.place(entry)):
                        changed = changed.with_file(replace(entry, stamp=Stamp.of(record.place(entry))))
            changed.write()
            sound = all(file.stamp.inode >= 0 for file in changed.files) and not changed.missing
            self._shop.registry.marked(record.id, record.version, "ready" if sound else "error")


def _good_spans(pieces: PieceDigests | None, size: int, audit: Audit) -> list[Span]:
    if pieces is None:
        return []
    every = Pieces(size, pieces.size)
    return [every.span(index) for index in range(len(every)) if every.span(index) not in audit.wrong]
