"""One file of an order: found where it is already, or fetched and proven.

Responsible for: looking before fetching, the lock of its content, room on the disk, and committing to the store or
straight to the output. Leaves to others: moving bytes (`transfer`), names and records (`download`).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from modelcache.errors import ModelCacheError, StoreError
from modelcache.events import FactType
from modelcache.model import Digest, ModelFile, Span
from modelcache.order import Fetched, Order, Workshop
from modelcache.store import blobs
from modelcache.store.disk import disk_errors, make_directories, output_mode
from modelcache.store.installed import Installed
from modelcache.store.layout import key_of
from modelcache.store.locks import locked
from modelcache.store.partial import Partial, found
from modelcache.transfer.control import Control
from modelcache.transfer.transfer import Transfer

TellFile = Callable[[FactType, str, str], None]  # (type, message, source)


class FileFetch:
    """Runs once, in its caller's thread. `transfer` is there while bytes move."""

    def __init__(self, order: Order, file: ModelFile, shop: Workshop, control: Control, tell: TellFile) -> None:
        self.transfer: Transfer | None = None
        self._order = order
        self._file = file
        self._shop = shop
        self._control = control
        self._tell = tell

    def run(self) -> Fetched:
        """Returns the file proven and at hand. Raises ModelCacheError; then a later run goes on from what is kept."""
        if not self._order.cached:
            return self._into_output()
        must_read = self._order.strict or self._order.output  # what is copied out must be right when it is (I5)
        return (None if must_read else self._recorded()) or self._into_store()

    def _recorded(self) -> Fetched | None:
        """It is in place and looks as it did when it was last verified: nothing is read."""
        if not self._order.version:
            return None
        record = Installed.read(self._shop.layout.model(self._order.id, self._order.version))
        entry = record.file(self._file.path) if record else None
        if record is None or entry is None or entry.stamp.judge(record.place(entry)) != "right":
            return None
        sha256 = Digest("sha256", entry.sha256)
        wanted = self._file.digest()
        if (wanted and wanted != sha256) or not blobs.exists(self._shop.layout, sha256):
            return None
        return Fetched(self._file, sha256, entry.size, "hit")

    def _into_store(self) -> Fetched:
        layout = self._shop.layout
        key = key_of(self._file)
        with self._lock(layout.lock(key), layout.partials, key):
            here = self._from_blob()
            if here is not None:
                return here
            with self._partial(layout.partials, key) as partial:
                digests = self._transfer(partial)
                fetched = self._fetched(partial, digests["sha256"])
                blobs.commit(layout, partial)
            return fetched

    def _from_blob(self) -> Fetched | None:
        """A blob of that digest is proven anew before it gets another name; a rotten one is set aside."""
        layout = self._shop.layout
        sha256 = blobs.find(layout, self._file)
        if sha256 is None:
            return None
        self._tell("verifying", "the content is in the store already", "cache")
        reading = blobs.read_back(layout.blob(sha256), (*self._file.digests, sha256), self._shop.settings.piece_size)
        if reading.wrong is None:
            with suppress(StoreError):
                blobs.note(layout, reading.digests, reading.pieces)
            return Fetched(self._file, reading.sha256, reading.size, "linked", "cache")
        aside = blobs.set_aside(layout, layout.blob(sha256))
        self._tell("piece_failed", f"the stored copy has rotted; it is kept as {aside}", "cache")
        return None

    def _into_output(self) -> Fetched:
        output = self._order.output_of(self._file)
        folder, name = os.path.split(output)
        base = os.path.join(folder, f".{name[:150]}.modelcache")
        key = key_of(self._file)
        make_directories(folder, 0o777)
        make_directories(base)
        lock = os.path.join(base, "lock")
        try:
            with self._lock(lock, base, key):
                here = self._at_output(output)
                if here is None:
                    with self._partial(base, key) as partial:
                        digests = self._transfer(partial)
                        here = self._fetched(partial, digests["sha256"])
                        partial.commit(output, output_mode())
        finally:
            if not found(base, key):
                with suppress(OSError):
                    os.unlink(lock)
                    os.rmdir(base)
        return here

    def _at_output(self, output: str) -> Fetched | None:
        """The output is there already and, read from end to end, right."""
        if not self._file.digests or os.path.islink(output) or not os.path.isfile(output):
            return None
        if self._file.size not in (None, os.stat(output).st_size):
            return None
        reading = blobs.read_back(output, self._file.digests, self._shop.settings.piece_size)
        return None if reading.wrong else Fetched(self._file, reading.sha256, reading.size, "hit")

    @contextmanager
    def _lock(self, path: str, base: str, key: str) -> Iterator[None]:
        def progress() -> object:
            with suppress(OSError):
                return [os.stat(os.path.join(base, name, "journal")).st_size for name in found(base, key)]
            return None

        with locked(path, self._file.path, self._shop.settings.lock_timeout, progress, self._control.check):
            yield

    @contextmanager
    def _partial(self, base: str, key: str) -> Iterator[Partial]:
        settings = self._shop.settings
        self._control.check()
        partial = Partial.open(base, key, self._file, window=settings.window, piece_size=settings.piece_size)
        try:
            yield partial
        except ModelCacheError as error:
            error.kept_bytes = error.kept_bytes or partial.written_bytes
            raise
        finally:
            partial.close()

    def _transfer(self, partial: Partial) -> dict[str, Digest]:
        _check_room(partial)
        shop = self._shop
        sources = shop.sources(self._file, self._order.headers, shop.settings)
        try:
            self.transfer = Transfer(self._file, partial, sources, shop.settings, self._control, self._tell)
            return self.transfer.run()
        finally:
            for source in sources:
                source.close()

    def _fetched(self, partial: Partial, sha256: Digest) -> Fetched:
        assert self.transfer is not None and partial.size is not None
        resumed = partial.resumed_bytes
        return Fetched(
            self._file, sha256, partial.size, "resumed" if resumed else "fetched", self.transfer.source_kind,
            self.transfer.received, resumed,
        )  # fmt: skip


def _check_room(partial: Partial) -> None:
    """Says that the disk is too small before an hour is spent on filling it; writing may fail all the same (I25)."""
    if partial.size is None:
        return
    missing = sum(Span(*span).size for span in partial.missing())
    with disk_errors(partial.path):
        disk = os.statvfs(partial.folder)
    free = disk.f_bavail * disk.f_frsize
    if missing > free:
        raise StoreError(
            f"{partial.folder}: the disk has room for {free:,} bytes, {missing:,} are needed",
            next_step="free space, then run again to go on",
        )
