"""Writes installed models to one file, a bundle, for machines without network.

Responsible for: proving every byte while it is written; that nobody takes the files away meanwhile; all or nothing.
Leaves to others: the form (`archives.bundle`), taking it in elsewhere (`importing`).

Nothing in a bundle tells when or where it was made: the same models give the same bytes.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Protocol, Self

from modelcache.archives.bundle import END, Member
from modelcache.dispatch import Show
from modelcache.errors import (
    AGAIN,
    LockedError,
    ModelNotAvailableError,
    Reason,
    StoreError,
    UsageError,
    VerificationError,
)
from modelcache.events import Fact
from modelcache.findings import completing
from modelcache.model import MAX_ALIASES, MAX_MANIFEST_BYTES, Digest, Manifest, ModelFile
from modelcache.order import Fetched, Workshop
from modelcache.progress.show import gathered, shown
from modelcache.rows import Report
from modelcache.sampling import Sampler
from modelcache.store import blobs
from modelcache.store.disk import READ, check_room, chunks_of, disk_errors
from modelcache.store.gate import await_sweep
from modelcache.store.installed import Installed
from modelcache.store.links import replaced
from modelcache.store.locks import Patience, Pulse, Subject, locked
from modelcache.store.shelf import Shelf
from modelcache.store.watch import Watch
from modelcache.store.writeback import WriteBack
from modelcache.task import Passing, Task

Shelved = tuple[Workshop, Installed]  # a version of a model, and the store that it is in


class Sink(Protocol):
    """What a bundle can be written to: a binary file."""

    def write(self, content: memoryview, /) -> int | None: ...
    def flush(self) -> None: ...


def export(chosen: Sequence[Shelved], output: str | Sink, progress: Show) -> Report:
    """Writes these models to the file at `output`, replacing it, or to a stream; one row a model.

    Raises VerificationError for a file that has rotted, ModelNotAvailableError for a model that is not whole,
    StoreError and LockedError. Then there is no new file; a stream has no end, so nobody takes it for whole.
    """
    by_name = {(record.id, record.version): (shop, record) for shop, record in chosen}
    with ExitStack() as guards, gathered(progress, "Export") as show:
        shops = {record.id: shop for shop, record in chosen}
        pulses = [_guard(guards, shops[model], model, show) for model in sorted(shops)]
        items = [_Item.of(*by_name[name]) for name in sorted(by_name)]
        with _opened(output, sum(item.size for item in items)) as (sink, name):
            _Export(sink, name, pulses).write(items, show)
    return Report("exported models", tuple(item.to_row() for item in items))


def _guard(guards: ExitStack, shop: Workshop, model: str, progress: Show) -> Pulse:
    """Nobody removes, or sweeps away, what we read. LockedError where another process has the model for too long."""
    layout, settings, lock = shop.layout, shop.settings, shop.layout.model_lock(model)
    watch = Watch(layout, layout.partials, (), lambda words: shop.dispatcher.publish(Fact("waiting", model, words)))
    with (
        shown(progress, shop.dispatcher, model, {}),
        suppress(StoreError),  # who may only read this store cannot lock it: what is gone then is an error
    ):
        patience = Patience(settings.lock_timeout, watch.look)
        guards.enter_context(locked(lock, Subject(model), patience))
        await_sweep(layout, Patience(settings.lock_timeout))
    return Pulse(lock)


@contextmanager
def _opened(output: str | Sink, size: int) -> Iterator[tuple[Sink, str]]:
    """What to write to, and what people call it."""
    if not isinstance(output, str):
        yield output, "the output"
        return
    if os.path.lexists(output) and not os.path.isfile(output):
        raise UsageError(f"{output} is not a file", next_step="name a file, or - for the standard output")
    if not os.path.isdir(os.path.dirname(output)):
        raise StoreError(f"{os.path.dirname(output)} is no folder", next_step="make it, or name another one")
    with replaced(output, "bundle") as (fd, _):
        check_room(os.path.dirname(output), size)
        yield _File(fd), output


class _File:
    """A file whose bytes get onto the disk behind the writer, so that the last sync is short."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._write_back = WriteBack()

    def write(self, content: memoryview) -> int:
        count = os.write(self._fd, content)
        self._write_back.wrote(self._fd, count)
        return count

    def flush(self) -> None:
        self._write_back.finish(self._fd)


@dataclass(frozen=True, slots=True)
class _Item:
    """One model, as it is while nobody can change it."""

    shop: Workshop
    record: Installed
    manifest: Manifest
    listing: bytes  # the manifest as it is written

    @classmethod
    def of(cls, shop: Workshop, before: Installed) -> Self:
        """UsageError for one with too many files, ModelNotAvailableError."""
        record = Installed.read(before.folder)
        if record is None or record.missing or not record.files or any(file.size < 0 for file in record.files):
            advice = completing(Shelf(shop.layout), record) if record and record.is_incomplete else ""
            reason: Reason = "error" if record else "not_installed"
            raise ModelNotAvailableError(before.id, before.version, reason, next_step=advice)
        by_path = record.by_path()
        files = tuple(
            ModelFile(path, by_path[path].size, (Digest("sha256", by_path[path].sha256),), by_path[path].urls)
            for path in sorted(by_path)
        )
        meant = shop.registry.aliases(record.id)
        aliases = sorted(alias for alias, version in meant.items() if version == record.version)[:MAX_ALIASES]
        pieced = tuple(_with_pieces(shop, file) for file in files)
        manifest = Manifest(record.id, record.version, record.ref, pieced, tuple(aliases))
        listing = _listing(manifest)
        if len(listing) > MAX_MANIFEST_BYTES:
            listing = _listing(replace(manifest, files=files))  # pieces are a help, files are not to be left out
        if len(listing) > MAX_MANIFEST_BYTES:
            raise UsageError(f"{record.id} has too many files for a bundle: their list is {len(listing):,} bytes")
        return cls(shop, record, manifest, listing)

    @property
    def size(self) -> int:
        return len(self.listing) + self.manifest.total_bytes

    @property
    def name(self) -> str:
        return f"{self.record.id}@{self.record.version}"

    def place(self, file: ModelFile) -> str:
        """The blob; where that is gone, the model's own link to it. ModelNotAvailableError."""
        for place in (self.shop.layout.blob(file.digests[0]), f"{self.record.folder}/{file.path}"):
            if os.path.isfile(place) and not os.path.islink(place):
                return place
        raise ModelNotAvailableError(self.record.id, self.record.version, "error")

    def rotten(self, file: ModelFile, place: str) -> VerificationError:
        """The error; from here on nobody takes the file for right."""
        with suppress(StoreError, LockedError):
            self.shop.sharing.distrust(file.digests[0].hex, place)
            self.shop.sharing.write()
        repair = f"`modelcache repair {self.record.id}@{self.record.version}`"
        error = VerificationError(f"{self.name}: {file.path} has rotted", next_step=f"run {repair}")
        error.again = AGAIN
        return error

    def to_row(self) -> dict[str, object]:
        return {
            "model": self.record.id, "version": self.record.version, "files": len(self.manifest.files),
            "size": self.manifest.total_bytes,
        }  # fmt: skip


def _with_pieces(shop: Workshop, file: ModelFile) -> ModelFile:
    """One piece alone would say what the digest says."""
    pieces = blobs.load_pieces(shop.layout, file.digests[0], file.size or 0)
    return replace(file, pieces=pieces) if pieces and len(pieces) > 1 else file


def _listing(manifest: Manifest) -> bytes:
    return json.dumps(manifest.to_json(), separators=(",", ":")).encode()


class _Export:
    """Writes a bundle, once."""

    def __init__(self, sink: Sink, name: str, pulses: Sequence[Pulse]) -> None:
        self._sink = sink
        self._name = name
        self._pulses = pulses
        self._written: set[Digest] = set()

    def write(self, items: Sequence[_Item], progress: Show) -> None:
        for item in items:
            sha256 = Digest("sha256", hashlib.sha256(item.listing).hexdigest())
            member = Member("manifest", sha256, len(item.listing))
            self._put(member.header + item.listing + bytes(member.padding))
        for item in items:
            sizes = {file.path: file.size for file in item.manifest.files}
            with (
                shown(progress, item.shop.dispatcher, item.record.id, sizes),
                Sampler(item.shop.dispatcher, item.record.id, len(sizes)) as sampler,
            ):
                for file in item.manifest.files:
                    self._file(item, file, sampler)
        self._put(END)
        with disk_errors(self._name):
            self._sink.flush()

    def _file(self, item: _Item, file: ModelFile, sampler: Sampler) -> None:
        task, passing, sha256 = Task(file), Passing(self._pulses), file.digests[0]
        task.begin(passing)
        task.hear("verifying")
        sampler.follow(task)
        if sha256 not in self._written:
            self._blob(item, file, passing)
            self._written.add(sha256)
        task.end(Fetched(file, sha256, file.size or 0, "hit", "cache"))
        sampler.end(task)

    def _blob(self, item: _Item, file: ModelFile, passing: Passing) -> None:
        member, place = Member("blob", file.digests[0], file.size or 0), item.place(file)
        hashed = hashlib.sha256()
        self._put(member.header)
        with disk_errors(place):
            fd = os.open(place, READ | os.O_NONBLOCK)
            try:
                for chunk in chunks_of(fd, 0, member.size + 1):  # of a file that has grown, one byte too many
                    hashed.update(chunk)
                    self._put(chunk)
                    passing.checked += len(chunk)
            finally:
                os.close(fd)
        if hashed.hexdigest() != member.sha256.hex:
            raise item.rotten(file, place)
        self._put(bytes(member.padding))

    def _put(self, content: bytes | memoryview) -> None:
        left = memoryview(content)
        with disk_errors(self._name):
            while left:
                count = self._sink.write(left)
                if count is None:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                left = left[count:]
