"""Makes models right again, moving only the bytes that are wrong.

Responsible for: what is known good of a rotten file, setting it aside, that nobody is given what cannot be mended, and
one row for each file.
Leaves to others: finding what is wrong (`audit`), moving bytes (`transfer`), re-linking every model that shares a
repaired file (`store.sharing`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial as bound

from modelcache.audit import read, sampler_of
from modelcache.errors import (
    AllSourcesFailedError,
    LockedError,
    ModelCacheError,
    NotFoundError,
    SourceError,
    StoreError,
    UsageError,
    VerificationError,
)
from modelcache.events import Fact, FactType
from modelcache.history import Attempt
from modelcache.model import Digest, ModelFile
from modelcache.order import Fetched, Order, Workshop
from modelcache.ordering import URL_ID, mirrored
from modelcache.outcome import Audit
from modelcache.remotes.source import Source
from modelcache.sampling import Sampler
from modelcache.store import blobs
from modelcache.store.claim import forget
from modelcache.store.disk import BUFFER
from modelcache.store.installed import Installed, Stamp
from modelcache.store.layout import Layout, key_of
from modelcache.store.locks import Patience, Pulse, Subject, locked
from modelcache.store.partial import Partial
from modelcache.store.sharing import Sharing, is_same_file, keep_as_blob, withhold
from modelcache.store.watch import Watch
from modelcache.task import Task
from modelcache.transfer.control import Control
from modelcache.transfer.transfer import Transfer
from modelcache.verdict import Expected, judged
from modelcache.wish import Wish


def repair(shop: Workshop, record: Installed, wish: Wish) -> list[dict[str, object]]:
    """Reads a model and mends what is wrong with it; a row for each file that was.

    A file that no source has does not stop the others. Raises StoreError and LockedError; what was repaired by then
    is in the store.
    """
    control = Control()
    with sampler_of(shop, record) as sampler:
        repairer = Repairer(shop, record, wish, control, sampler)
        wrong = [audit for audit in read(shop, record, control, sampler) if audit.finding != "whole"]
        try:
            rows = [repairer.row(audit) for audit in wrong]
        except BaseException:
            with suppress(StoreError, LockedError):
                repairer.write()
            raise
        repairer.write()
    return rows


class _Mending:
    """One wrong file: what is found of it, and what moves its bytes."""

    def __init__(self, audit: Audit, file: ModelFile, control: Control, pulse: Pulse) -> None:
        self.audit = audit
        self._control = control
        self._pulse = pulse
        self.task = Task(file)
        self.transfer: Transfer | None = None
        self.watch: Watch | None = None
        self.checked = 0

    def tick(self) -> None:
        """One more buffer was read."""
        self._control.check()
        self.checked += BUFFER

    def pulse(self) -> int:
        done = self.checked + (self.transfer.partial.hashed_bytes if self.transfer else 0)
        self._pulse.show(done)
        return done


class Repairer:
    """Makes the files of one model right again, moving only what is wrong."""

    def __init__(self, shop: Workshop, record: Installed, wish: Wish, control: Control, sampler: Sampler) -> None:
        self._shop = shop
        self._sampler = sampler
        self._record = record
        self._control = control
        self._sharing = Sharing(shop.layout, shop.registry)
        self._repaired: list[Fact] = []  # not told yet
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
        file = next((file for file in self._order.files if file.path == audit.path), None)
        if file is None:
            error = NotFoundError(f"{audit.path} was never fetched", next_step="fetch the model once more")
            return row | {"reason": error.line(), "kind": error.kind}
        mending = _Mending(audit, file, self._control, Pulse(self._shop.layout.lock(key_of(file))))
        try:
            with self._told(mending.task):
                return row | {"repaired": True} | self._repair(mending, file)
        except StoreError:
            raise
        except ModelCacheError as error:
            return row | {"reason": error.line(), "kind": error.kind}

    @contextmanager
    def _told(self, task: Task) -> Iterator[None]:
        """While it is worked at, and at its end, subscribers are told how far it is."""
        self._sampler.follow(task)
        try:
            yield
        except BaseException as error:
            task.end(None, error)
            raise
        finally:
            self._sampler.end(task)

    def _repair(self, mending: _Mending, file: ModelFile) -> dict[str, object]:
        """Raises as a fetch does; then nothing that was good is lost, and what was rotten stays marked."""
        shop, layout, audit = self._shop, self._shop.layout, mending.audit
        sha256 = file.digests[0]
        pieces = blobs.load_pieces(layout, sha256, file.size or 0)
        if audit.finding != "corrupt" or (pieces and blobs.good_spans(audit.wrong, pieces, file.size or 0)):
            file = replace(file, pieces=pieces)  # where not one piece matches, the pieces may be what is wrong
        subject = Subject(audit.model, audit.version, audit.path)
        patience = Patience(shop.settings.lock_timeout, wait=self._control.wait)
        key = key_of(file)
        with locked(layout.lock(key), subject, patience):
            mending.task.begin(mending)
            is_known_wrong = is_same_file(audit.place, layout.blob(sha256))
            proven = None if is_known_wrong else blobs.proven(layout, sha256, mending.tick)
            transfer = None if proven else self._fetch_or_withhold(file, mending)
            aside = blobs.set_aside(layout, audit.place) if audit.finding == "corrupt" else ""
            if transfer:
                proven = _commit(layout, transfer.partial, self._control)
            forget(layout.partials, key)
        assert proven is not None
        self._sharing.repaired(sha256, proven)
        source, received = (transfer.source_kind, transfer.received) if transfer else ("cache", 0)
        mending.task.end(Fetched(file, sha256, proven.size, "repaired", source, received))
        message = f"{audit.path} is repaired; {received:,} of {audit.size:,} bytes were fetched"
        self._repaired.append(self._fact(audit, "repaired", message, transfer.source if transfer else "cache"))
        if self._sharing.is_due:
            self.write()
        return {"bytes_fetched": received, "source": source, "set_aside": aside}

    def write(self) -> None:
        """Makes model paths of what was repaired so far the blobs again, and tells of it. StoreError, LockedError."""
        self._sharing.write()
        told, self._repaired = self._repaired, []
        for fact in told:
            self._shop.dispatcher.publish(fact)

    def _fetch_or_withhold(self, file: ModelFile, mending: _Mending) -> Transfer:
        """The caller holds the lock of the content."""
        try:
            return self._fetch(file, mending)
        except (SourceError, AllSourcesFailedError, VerificationError, UsageError):
            layout, sha256 = self._shop.layout, file.digests[0]
            if mending.audit.finding == "corrupt":
                keep_as_blob(layout, mending.audit.place, sha256)
            if judged(layout.blob(sha256), Expected((sha256,)), mending.tick).finding == "corrupt":  # still
                withhold(layout, self._record, sha256)
            raise

    def _fetch(self, file: ModelFile, mending: _Mending) -> Transfer:
        """Returns with the partial proven and open. Piece digests that only the store vouches for may be wrong, too."""
        try:
            return self._transferred(file, mending)
        except (VerificationError, AllSourcesFailedError) as error:
            if file.pieces is None or error.kind != VerificationError.kind:
                raise
        message = "the piece digests kept here may be wrong: the digest of the whole decides"
        self._tell(mending, "restarted", message, "")
        return self._transferred(replace(file, pieces=None), mending)

    def _transferred(self, file: ModelFile, mending: _Mending) -> Transfer:
        audit = mending.audit
        shop = self._shop
        partial = Partial.open(
            shop.layout.partials, key_of(file), file,
            window=shop.settings.window, piece_size=shop.settings.piece_size, model=audit.model,
        )  # fmt: skip
        sources: Sequence[Source] = ()
        try:
            sources = shop.sources_by_health(self._order, file, self._control.wait, self._note)
            good = blobs.good_spans(audit.wrong, file.pieces, file.size or 0) if file.pieces else []
            if audit.finding == "corrupt" and good:
                partial.seed(audit.place, good)
                self._tell(mending, "resumed", f"{partial.written_bytes:,} bytes are right and stay", "")
            tell = bound(self._tell, mending)
            transfer = Transfer(file, partial, sources, shop.settings, self._control, tell, shop.throttle, self._note)
            mending.transfer = transfer
            transfer.run()
        except BaseException:
            partial.leave()
            raise
        finally:
            for source in sources:
                source.close()
        return transfer

    def _note(self, attempt: Attempt) -> None:
        self._shop.dispatcher.note(replace(attempt, model=self._record.id))

    def _tell(self, mending: _Mending, kind: FactType, message: str, source: str) -> None:
        mending.task.hear(kind)
        self._shop.dispatcher.publish(self._fact(mending.audit, kind, message, source))

    def _fact(self, audit: Audit, kind: FactType, message: str, source: str) -> Fact:
        record = self._record
        return Fact(kind, record.id, message, audit.path, source, record.version, record.folder)


def _commit(layout: Layout, partial: Partial, control: Control) -> Stamp:
    try:
        return blobs.commit(layout, partial, control.check)
    finally:
        partial.close()
