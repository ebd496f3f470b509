"""One file of an order: found where it is already, or fetched and proven.

Responsible for: looking before fetching, the lock of its content, room on the disk, repairing a copy that has rotted,
and committing to the store or straight to the output.
Leaves to others: moving bytes (`transfer`), names and records (`install`).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TypeVar

from modelcache.errors import (
    AllSourcesFailedError,
    LockedError,
    ModelCacheError,
    StoreError,
    TakenOverError,
    VerificationError,
)
from modelcache.events import FactType
from modelcache.history import Attempt, rotten
from modelcache.model import Digest, ModelFile, Span
from modelcache.names import cut
from modelcache.order import Fetched, Order, Workshop
from modelcache.outcome import Status
from modelcache.store import blobs, links
from modelcache.store.claim import forget, found, result_of_others
from modelcache.store.disk import (
    BUFFER,
    check_no_links,
    check_room,
    disk_errors,
    make_directories,
    make_output_directories,
    output_mode,
    remove_tree,
)
from modelcache.store.installed import InstalledFile
from modelcache.store.intake import Taken
from modelcache.store.layout import Layout, key_of
from modelcache.store.locks import Holder, Patience, Pulse, Subject, locked
from modelcache.store.partial import Partial
from modelcache.store.sharing import sharing
from modelcache.store.watch import Far, Watch
from modelcache.tiers import Tiers
from modelcache.transfer.control import Control
from modelcache.transfer.transfer import Transfer
from modelcache.units import in_bytes

T = TypeVar("T")
TellFile = Callable[[FactType, str, str], None]  # (type, message, source)


class FileFetch:
    """Runs once, in its caller's thread. `transfer` is there while bytes move, `watch` once somebody else has it.

    `checked` are the bytes that were read where the file is already; `taken` is what a tier had.
    """

    def __init__(self, order: Order, file: ModelFile, shop: Workshop, control: Control, tell: TellFile) -> None:
        self.transfer: Transfer | None = None
        self.watch: Watch | None = None
        self.checked = 0
        self.taken: Taken | None = None
        self._pulse: Pulse | None = None
        self._order = order
        self._file = file
        self._shop = shop
        self._control = control
        self._tell = tell
        self._tiers = Tiers(shop, file, tell)
        self._rotten: _Rotten | None = None
        self._before: InstalledFile | None = None

    def run(self) -> Fetched:
        """Returns the file proven and at hand. Raises ModelCacheError; then a later run goes on from what is kept."""
        if not self._order.cached:
            return self._into_output()
        self._before = self._entry()
        must_read = self._order.strict or self._order.output  # what is copied out must be right when it is (I5)
        fetched = (None if must_read else self._recorded()) or self._into_store()
        if self._shop.sharing.is_due:
            with suppress(StoreError, LockedError):  # what others share stays unavailable then, until it is fetched
                self._shop.sharing.write()
        return fetched

    def look(self) -> Fetched | None:
        """The file proven, if it is here already or in a tier: no source is asked. Raises as `run` does."""
        self._before = self._entry()
        if here := self._recorded():
            return here
        layout, key = self._shop.layout, key_of(self._file)
        with self._lock(layout.lock(key), layout.partials):
            found = self._from_blob() or self._from_tier()
            if found:
                forget(layout.partials, key)
            if found and self._rotten:
                self._shop.sharing.repaired(found.sha256, found.stamp)
        return found

    def pulse(self) -> int:
        """How many bytes were read and hashed by now, which whoever waits for the file is shown."""
        transfer = self.transfer
        done = self.checked + (transfer.partial.hashed_bytes if transfer else 0)
        if self._pulse:
            self._pulse.show(done)
        return done

    # -- what is here already -----------------------------------------------------------------------------------------

    def _entry(self) -> InstalledFile | None:
        """What is recorded of the file."""
        return self._shop.records.entry(self._folder(), self._file.path) if self._order.version else None

    def _folder(self) -> str:
        return self._shop.layout.model(self._order.id, self._order.version)

    def _recorded(self) -> Fetched | None:
        """It is in place and looks as it did when it was last verified: nothing is read."""
        entry = self._before
        if entry is None or entry.stamp.judge(f"{self._folder()}/{entry.path}") != "right":
            return None
        sha256 = Digest("sha256", entry.sha256)
        layout = self._shop.layout
        if not blobs.agrees(layout, self._file, entry.sha256, entry.size) or not blobs.exists(layout, sha256):
            return None
        return Fetched(self._file, sha256, entry.size, "hit", "cache", stamp=entry.stamp)

    def _from_blob(self) -> Fetched | None:
        """A blob of that digest is proven anew before it gets another name; a rotten one is set aside."""
        layout = self._shop.layout
        sha256 = blobs.find(layout, self._file)
        if sha256 is None:
            return self._from_link()
        self._tell("verifying", "the content is in the store already", "cache")
        stamp = blobs.stamp_of(layout.blob(sha256))
        known = blobs.load_pieces(layout, sha256, stamp.size)
        reading = self._read(layout.blob(sha256), (sha256, *self._file.digests), known.size if known else 0)
        if reading.sha256 != sha256:
            self._rotten = _Rotten.found(self._shop, sha256, reading, self._file)
            if not (self._before and self._before.is_distrusted):  # else that was told already
                self._note(rotten(self._file.path, self._order.id))
            self._tell("piece_failed", f"the stored copy has rotted; it is kept as {self._rotten.aside}", "cache")
            return None
        if reading.wrong is not None and self._file.digest() is None:
            return None  # an alias that lies: who knows what else was meant
        _check_expected(self._file, reading)
        with suppress(StoreError):
            blobs.note(layout, reading.digests, reading.pieces)
        entry = self._before
        status: Status = "hit" if entry and entry.sha256 == sha256.hex else "linked"
        return Fetched(self._file, sha256, reading.size, status, "cache", stamp=stamp)

    def _from_link(self) -> Fetched | None:
        """The blob is gone, the model's own link to it is not: read from end to end, it is the blob again."""
        layout, entry = self._shop.layout, self._before
        if entry is None or not blobs.agrees(layout, self._file, entry.sha256, entry.size):
            return None
        place, sha256 = f"{self._folder()}/{entry.path}", Digest("sha256", entry.sha256)
        if entry.stamp.judge(place) == "missing" or (stamp := blobs.stamp_of(place)).inode != entry.stamp.inode:
            return None  # not what was installed
        self._tell("verifying", "the model has the content still", "cache")
        reading = self._read(place, (sha256, *self._file.digests))
        if reading.wrong is not None:
            with suppress(StoreError, LockedError):
                self._shop.sharing.distrust(sha256.hex, place)
            return None
        check_no_links(layout.root, os.path.dirname(layout.blob(sha256)))
        stamp = links.link(place, layout.blob(sha256), sha256, stamp)
        with suppress(StoreError):
            blobs.note(layout, reading.digests, reading.pieces)
        return Fetched(self._file, sha256, reading.size, "hit", "cache", stamp=stamp)

    def _from_tier(self) -> Fetched | None:
        """Another cache on this disk has it: proven like any other source's, and not touched."""
        self.checked = 0
        found = self._tiers.take(self._tick)
        if found is None:
            return None
        kind, taken = found
        self.taken = taken
        status: Status = "repaired" if self._rotten else "linked"
        sha256, size = taken.reading.sha256, taken.reading.size
        return Fetched(self._file, sha256, size, status, "cache", stamp=taken.stamp, tier=kind)

    def _at_output(self, output: str) -> Fetched | None:
        """The output is there already and, read from end to end, right."""
        if not self._file.digests or os.path.islink(output) or not os.path.isfile(output):
            return None
        if self._file.size not in (None, os.stat(output).st_size):
            return None
        reading = self._read(output, self._file.digests)
        return None if reading.wrong else Fetched(self._file, reading.sha256, reading.size, "hit", "cache")

    def _from_store(self, output: str) -> Fetched | None:
        """A copy of what the store has, for an output that leaves nothing there."""
        sha256 = self._file.digest()
        if sha256 is None or len(self._file.digests) > 1:
            return None
        if blobs.exists(self._shop.layout, sha256):
            self._tell("verifying", "the content is in the store already", "cache")
            if copied := self._copied(self._shop.layout.blob(sha256), output, sha256):
                return copied  # else it has rotted: for a repair to find
        return next(filter(None, (self._copied(place, output, sha256) for place in self._tiers.places())), None)

    def _copied(self, place: str, output: str, sha256: Digest) -> Fetched | None:
        with suppress(VerificationError):
            links.copy(place, output, sha256, tick=self._control.check)
            return Fetched(self._file, sha256, os.stat(output).st_size, "linked", "cache")
        return None

    def _read(self, path: str, expected: tuple[Digest, ...], piece_size: int = 0) -> blobs.Reading:
        self.checked = 0
        return blobs.read_back(path, expected, piece_size or self._shop.settings.piece_size, self._tick)

    def _tick(self) -> None:
        """One more buffer was read."""
        self._control.check()
        self.checked += BUFFER

    # -- into the store, or the output --------------------------------------------------------------------------------

    def _into_store(self) -> Fetched:
        layout = self._shop.layout
        key = key_of(self._file)
        with self._lock(layout.lock(key), layout.partials):
            here = self._from_blob()
            if here is not None:
                forget(layout.partials, key)
                return here
            try:
                fetched = self._from_tier() or self._committed(key)
            except (VerificationError, AllSourcesFailedError) as error:
                if not (self._rotten and self._rotten.is_doubtful(self._file) and error.kind == VerificationError.kind):
                    raise
                self._tell("restarted", "the piece digests kept here may be wrong: the digest of the whole decides", "")
                self._rotten = _Rotten(self._rotten.aside, [], self._file)
                fetched = self._committed(key)
            forget(layout.partials, key)
            if self._rotten:
                self._shop.sharing.repaired(fetched.sha256, fetched.stamp)
            return fetched

    def _committed(self, key: str) -> Fetched:
        layout = self._shop.layout
        with self._partial(layout.partials, key) as partial:
            digests = self._transfer(partial)
            fetched = self._fetched(partial, digests["sha256"])
            try:
                stamp = blobs.commit(layout, partial, self._control.check)
            except TakenOverError as error:
                stamp = self._of_others(
                    layout.partials, key, error, lambda: blobs.proven(layout, fetched.sha256, self._control.check)
                )
            return replace(fetched, stamp=stamp)

    def _into_output(self) -> Fetched:
        output = self._order.output_of(self._file)
        base, key = base_of(self._order, self._file, self._shop.layout), key_of(self._file)
        make_output_directories(os.path.dirname(output))
        make_directories(base)
        lock = os.path.join(base, "lock")
        try:
            with self._lock(lock, base):
                here = self._at_output(output) or self._from_store(output)
                if here is None:
                    with self._partial(base, key) as partial:
                        digests = self._transfer(partial)
                        here = self._fetched(partial, digests["sha256"])
                        self._commit_output(partial, output, here)
                forget(base, key)
        finally:
            _sweep(base, lock)
        return here

    def _commit_output(self, partial: Partial, output: str, fetched: Fetched) -> None:
        try:
            partial.commit(output, output_mode())
        except TakenOverError as error:
            base, key = os.path.dirname(partial.folder), key_of(self._file)
            self._of_others(base, key, error, lambda: self._proven_output(output, fetched.sha256))

    def _proven_output(self, output: str, sha256: Digest) -> bool | None:
        """True, or None where it is not what it should be."""
        is_file = not os.path.islink(output) and os.path.isfile(output)
        return True if is_file and self._read(output, (sha256,)).wrong is None else None

    def _of_others(self, base: str, key: str, error: TakenOverError, look: Callable[[], T | None]) -> T:
        """The result of whoever took these bytes over: they were proven, so it is known what to look for (I12)."""
        self._tell("waiting", "waiting for another process, which has taken this download over", "")
        result = result_of_others(base, key, self._shop.settings.lock_timeout, self._control.wait, look)
        if result is None:
            raise error
        return result

    @contextmanager
    def _lock(self, path: str, base: str) -> Iterator[None]:
        order = self._order
        watch = Watch(self._shop.layout, base, (self._file,), lambda message: self._tell("waiting", message, ""))

        def look(holder: Holder) -> Far:
            self.watch = watch
            return watch.look(holder)

        subject = Subject(order.id, order.version, self._file.path)
        with locked(path, subject, Patience(self._shop.settings.lock_timeout, look, self._control.wait)):
            self._pulse = Pulse(path)
            yield

    @contextmanager
    def _partial(self, base: str, key: str) -> Iterator[Partial]:
        settings = self._shop.settings
        self._control.check()
        file = self._rotten.file if self._rotten else self._file
        piece_size = settings.piece_size if self._order.cached else None  # the store keeps them, an output has no place
        partial = Partial.open(base, key, file, window=settings.window, piece_size=piece_size, model=self._order.id)
        try:
            if self._rotten and self._rotten.good:
                partial.seed(self._rotten.aside, self._rotten.good)
            self._tiers.go_on(partial, self._control.check)
            yield partial
        except ModelCacheError as error:
            error.kept_bytes = error.kept_bytes or partial.written_bytes
            partial.leave()
            raise
        finally:
            partial.close()

    def _transfer(self, partial: Partial) -> dict[str, Digest]:
        _check_room(partial)
        shop = self._shop
        file = self._rotten.file if self._rotten else self._file
        sources = shop.sources_by_health(self._order, file, self._control.wait, self._note)
        try:
            self.transfer = Transfer(
                file, partial, sources, shop.settings, self._control, self._tell, shop.throttle, self._note
            )
            return self.transfer.run()
        finally:
            for source in sources:
                source.close()

    def _note(self, attempt: Attempt) -> None:
        if self._order.cached:
            self._shop.dispatcher.note(replace(attempt, model=self._order.id))

    def _fetched(self, partial: Partial, sha256: Digest) -> Fetched:
        assert self.transfer is not None and partial.size is not None
        resumed = partial.resumed_bytes
        status: Status = "repaired" if self._rotten else "resumed" if resumed else "fetched"
        return Fetched(
            self._file, sha256, partial.size, status, self.transfer.source_kind, self.transfer.received, resumed
        )


class _Rotten:
    """A stored copy that is not what it was: `aside`, with its `good` spans, and `file` with digests of pieces."""

    def __init__(self, aside: str, good: list[Span], file: ModelFile) -> None:
        self.aside = aside
        self.good = good
        self.file = file

    def is_doubtful(self, wanted: ModelFile) -> bool:
        """Whether it is only the store that says what its pieces are."""
        return self.file.pieces is not None and wanted.pieces is None

    @classmethod
    def found(cls, shop: Workshop, sha256: Digest, reading: blobs.Reading, file: ModelFile) -> "_Rotten":
        """Nothing that shares the copy is available from here on."""
        layout = shop.layout
        with suppress(StoreError, LockedError):
            shop.sharing.distrust(sha256.hex, layout.blob(sha256))
        aside = blobs.set_aside(layout, layout.blob(sha256))
        size = file.size or _size_of(layout, sha256) or reading.size
        pieces = blobs.load_pieces(layout, sha256, size)
        if pieces is None or pieces.size != reading.pieces.size:
            return cls(aside, [], file)
        wrong = blobs.wrong_spans(reading, pieces, size)
        good = blobs.good_spans(wrong, pieces, size)
        if not good:
            pieces = file.pieces  # not one matches: they may be what is wrong, the digest of the whole decides
        return cls(aside, good, replace(file, size=size, pieces=pieces))


def _size_of(layout: Layout, sha256: Digest) -> int | None:
    """What the records say that a content's size was before it rotted."""
    files = (file for one in sharing(layout, sha256.hex) for file in one.files)
    return next((file.size for file in files if file.sha256 == sha256.hex and file.size >= 0), None)


def base_of(order: Order, file: ModelFile, layout: Layout) -> str:
    """The folder of the file's partials: the store's, else a hidden one beside the output."""
    if order.cached:
        return layout.partials
    folder, name = os.path.split(order.output_of(file))
    return os.path.join(folder, f".{cut(name)}.modelcache")


def discard(order: Order, file: ModelFile, shop: Workshop) -> None:
    """Removes what is not complete, unless somebody else is at it."""
    base, key = base_of(order, file, shop.layout), key_of(file)
    lock = shop.layout.lock(key) if order.cached else os.path.join(base, "lock")
    if not found(base, key):
        return
    with suppress(LockedError), locked(lock, Subject(order.id, order.version, file.path), Patience(0.0)):
        for name in found(base, key):
            with disk_errors(base):
                remove_tree(os.path.join(base, name))
    if not order.cached:
        _sweep(base, lock)


def _sweep(base: str, lock: str) -> None:
    """Takes the hidden folder beside an output away, if nothing is kept in it."""
    with suppress(OSError):
        if set(os.listdir(base)) <= {os.path.basename(lock)}:
            os.unlink(lock)
            os.rmdir(base)


def _check_expected(file: ModelFile, reading: blobs.Reading) -> None:
    """The content that one digest names is not what the other things say that are expected of it."""
    if reading.wrong is not None:
        raise VerificationError(
            f"{file.path}: the file with that sha256 is not {reading.wrong}",
            next_step="check the digests that are expected: you gave them, or its manifest",
        )
    if file.size not in (None, reading.size):
        raise VerificationError(
            f"{file.path}: the file with that digest has {in_bytes(reading.size)}, not {file.size:,}",
            next_step="check the size that is expected: you gave it, or its manifest",
        )


def _check_room(partial: Partial) -> None:
    if partial.size is not None:
        missing = sum(Span(*span).size for span in partial.missing()) - partial.reserved_bytes
        check_room(os.path.dirname(partial.folder), missing)  # not the folder: somebody may be taking it over
