"""The cache: the object users hold.

Responsible for: turning what a user says into an `Order`, hits, and everything that is asked of installed models.
Leaves to others: fetching (`download`), reading and repairing (`audit`), where settings and sources come from
(`wiring`). Making a Cache does no I/O; a hit imports no network library and hashes nothing.
"""

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelcache.errors import ModelNotAvailableError, Reason, UsageError
from modelcache.install import version_of
from modelcache.model import Digest, Manifest, ModelFile, Ref
from modelcache.names import checked_path, file_name_of
from modelcache.order import Order, Workshop
from modelcache.outcome import File, Model
from modelcache.report import Report
from modelcache.store.installed import Installed, Proof
from modelcache.store.layout import Layout
from modelcache.store.registry import Registry, installed_under
from modelcache.urls import checked_url
from modelcache.wiring import root_of, settings_for, sources_for

if TYPE_CHECKING:
    from modelcache.download import Download

Show = bool | Callable[[dict[str, Any]], None] | None
STOP_WITHIN_S = 2.0


class Cache:
    """A store of models under `root` (default: MODELCACHE_HOME, else the platform's cache folder).

    `settings` are those of `modelcache.settings.Settings`; they come before the environment and the configuration
    file. All methods may be called from any thread, and from a child after a fork.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        self.root = root_of(root)
        self._overrides = settings
        self._guard = threading.Lock()
        self._shop: Workshop | None = None
        self._pid = 0
        self._running: list[Download] = []

    def __repr__(self) -> str:
        return f"Cache({self.root!r})"

    # -- fetching -----------------------------------------------------------------------------------------------------

    def fetch(
        self,
        ref: str | Manifest,
        *,
        sha256: str | None = None,
        checksum: str | None = None,
        size: int | None = None,
        output: str | os.PathLike[str] | None = None,
        mirrors: Iterable[str] = (),
        headers: Mapping[str, str] | None = None,
        progress: Show = None,
        wait: bool = True,
        cache: bool = True,
        strict: bool = False,
        require_digest: bool = False,
    ) -> "Model | File | Download":
        """Gives a verified local path, from here or from whichever source works.

        ref: a URL, the id of an installed model, or a Manifest.
        sha256, checksum: what the file must be, as hex or `ALGORITHM:HEX`.
        size: its size in bytes.
        output: where to put it as well: a file for a URL (replaced if it exists), a folder for a model.
        mirrors: further URLs of the same file; for a manifest, URLs of folders that hold its files.
        headers: sent to the origin of the first URL and to no other.
        progress: None shows a bar where stderr is a terminal, True always, False never; a function gets each event.
        wait: False returns the running Download at once, unless everything is here.
        cache: False puts the file at `output` alone.
        strict: reads what is here from end to end instead of trusting its stamp.
        require_digest: refuses what nothing can be verified against.

        Returns a File for a URL, a Model otherwise. Raises AllSourcesFailedError, VerificationError, StoreError,
        LockedError, PausedError or UsageError; whatever was written is kept, and the next call goes on from there.
        """
        order = self._order(ref, _digests(sha256, checksum), size, tuple(mirrors))
        place = _output(order, output, cache)
        order = replace(
            order, headers=dict(headers or {}), output=place, cached=cache, strict=strict, require_digest=require_digest
        )
        hit = self._hit(order)
        if hit is not None:
            return hit
        download = self._begin(order, progress)
        if not wait:
            return download
        try:
            return download.result()
        except KeyboardInterrupt:
            download.pause()
            download.wait_stopped(STOP_WITHIN_S)
            raise

    def _begin(self, order: Order, progress: Show) -> "Download":
        from modelcache.download import Download
        from modelcache.progress import subscriber_for

        sizes = {file.path: file.size for file in order.files}
        download = Download(order, self._workshop(), subscriber_for(progress, order.id, sizes))
        with self._guard:
            self._running = [*(one for one in self._running if not one.has_ended), download]
        return download

    def _order(
        self, ref: str | Manifest, digests: tuple[Digest, ...], size: int | None, mirrors: tuple[str, ...]
    ) -> Order:
        if isinstance(ref, Manifest):
            if digests or size is not None:
                raise UsageError("a manifest brings its own digests and sizes")
            return _order_of_manifest(ref, mirrors)
        parsed = Ref.parse(ref)
        if parsed.url:
            return self._order_of_url(parsed, digests, size, mirrors)
        if digests or size is not None:
            raise UsageError("a digest or size goes with a URL, not with the id of a model")
        return self._order_of_id(parsed, mirrors)

    def _order_of_url(self, ref: Ref, digests: tuple[Digest, ...], size: int | None, mirrors: tuple[str, ...]) -> Order:
        if size is not None and not 0 <= size < 2**63:
            raise UsageError(f"size {size} is not a number of bytes")
        proof: Proof = "given"
        if not digests:
            recorded = self._registry.recorded(ref.id)
            digests, proof = ((Digest("sha256", recorded),), "first_use") if recorded else ((), "given")
        urls = (ref.url, *(checked_url(mirror) for mirror in mirrors))
        file = ModelFile(file_name_of(ref.url), size, digests, urls)
        return Order(ref.shown, ref.id, self._version(file), (file,), single=True, proof=proof)

    def _version(self, file: ModelFile) -> str:
        """Of a file, as far as its digests tell."""
        sha256 = file.digest()
        if sha256 is None and file.digests:
            from modelcache.store.blobs import find

            sha256 = find(self._layout, file)
        return sha256.hex[:12] if sha256 else ""

    def _order_of_id(self, ref: Ref, mirrors: tuple[str, ...]) -> Order:
        """A model that is installed, or was: its record tells the digests and where the files came from."""
        record = self._record(ref)
        if record is None:
            raise ModelNotAvailableError(ref.id, ref.version or None, "not_installed")
        files = tuple(
            ModelFile(file.path, max(0, file.size), (Digest("sha256", file.sha256),), file.urls)
            for file in record.files
        )
        return _mirrored(Order(record.ref, record.id, record.version, files, single=False, proof="listed"), mirrors)

    def _hit(self, order: Order) -> Model | File | None:
        """Everything is in place and looks as it did when it was last verified: one stat a file, no hash."""
        if order.strict or not order.version or (order.output and order.single):
            return None
        folder = order.output or self._layout.model(order.id, order.version)
        record = Installed.read(folder)
        if record is None or record.missing:
            return None
        files = []
        for wanted in order.files:
            entry = record.file(wanted.path)
            if entry is None or not _agrees(wanted, entry.sha256, order.version, order.single):
                return None
            place = record.place(entry)
            if entry.stamp.judge(place) != "right":
                return None
            files.append(File(place, entry.path, entry.size, entry.sha256, "hit", entry.verified, "cache"))
        return files[0] if order.single else Model(order.ref, order.id, order.version, folder, tuple(files))

    def unpack(self, fetched: File | Model, output: str | os.PathLike[str] | None = None) -> str:
        """Unpacks an archive that was fetched into one new folder: `output`, else one beside it, called by its stem.

        Returns the folder; one that an earlier call made beside the archive is returned as it is. UsageError for a
        model or a file of another kind, VerificationError for a damaged or dangerous archive.
        """
        from modelcache.unpack import UnpackLimits, stem_of, unpack

        if not isinstance(fetched, File):
            raise UsageError("one archive is unpacked, not a model of several files")
        beside = os.path.join(os.path.dirname(fetched.path), stem_of(fetched.name))
        folder = os.path.abspath(os.fspath(output)) if output else beside
        if not output and os.path.isdir(folder):
            return folder
        settings = self._workshop().settings
        limits = UnpackLimits(total_bytes=settings.unpack_most, entries=settings.unpack_entries)
        unpack(fetched.path, folder, name=fetched.name, limits=limits)
        return folder

    # -- what is installed --------------------------------------------------------------------------------------------

    def path(self, model: str, version: str | None = None) -> str:
        """Where a model is; of a URL, where its file is. No network, nothing is read but stats.

        Raises ModelNotAvailableError with the reason: not_installed, downloading, verifying (it changed since it
        was verified: fetch or verify it), error (it is corrupt or incomplete).
        """
        ref = _with_version(Ref.parse(model), version)
        record = self._record(ref)
        if record is None:
            reason: Reason = "downloading" if self._is_running(ref.id) else "not_installed"
            raise ModelNotAvailableError(ref.id, ref.version or None, reason)
        condition = record.condition()
        if condition != "right" or self._registry.versions(record.id).get(record.version, "ready") != "ready":
            changed = condition == "changed" and all(file.stamp.inode >= 0 for file in record.files)
            raise ModelNotAvailableError(record.id, record.version, "verifying" if changed else "error")
        return record.place(record.files[0]) if ref.url else record.folder

    def models(self) -> Report:
        """What is installed: one row a version."""
        rows = []
        for record in installed_under(self._layout.models):
            status = self._registry.versions(record.id).get(record.version, "ready")
            rows.append(
                {
                    "model": record.id, "version": record.version, "files": len(record.files),
                    "size": sum(max(0, file.size) for file in record.files),
                    "status": status if record.condition() == "right" else "error", "ref": record.ref,
                }
            )  # fmt: skip
        return Report("installed models", tuple(rows))

    def info(self, model: str, version: str | None = None) -> Report:
        """One row a file. Raises ModelNotAvailableError."""
        record = self._present(_with_version(Ref.parse(model), version))
        rows = [
            {
                "file": file.path, "size": file.size, "sha256": file.sha256, "verified": file.verified,
                "proof": file.proof, "verified_at": file.stamp.verified_at,
                "condition": file.stamp.judge(record.place(file)), "path": record.place(file),
            }
            for file in record.files
        ]  # fmt: skip
        return Report(f"{record.id}@{record.version} from {record.ref}", tuple(rows))

    def verify(self, model: str | None = None, version: str | None = None) -> Report:
        """Reads every byte of a model, or of all. Rows tell whole, corrupt (and which bytes), missing, unreadable."""
        from modelcache.audit import verify
        from modelcache.transfer.control import Control

        records = [self._present(_with_version(Ref.parse(model), version))] if model else self._all()
        audits = [audit for record in records for audit in verify(self._workshop(), record, Control())]
        return Report("verified files", tuple(audit.to_row() for audit in audits))

    def check(self, manifest: Manifest, folder: str | os.PathLike[str]) -> Report:
        """Whether a folder holds what the manifest lists. A file that was verified before costs one stat."""
        from modelcache.check import check

        return check(manifest, os.fspath(folder))

    def repair(
        self,
        models: Sequence[str] = (),
        *,
        headers: Mapping[str, str] | None = None,
        mirrors: Iterable[str] = (),
        progress: Show = None,
    ) -> Report:
        """Makes models right again, fetching only the pieces that are wrong; without names, all that are known corrupt.

        Rows say what was done to each file; `repaired` is False where no source had it, with the reason.
        """
        from modelcache.audit import Repairer, verify
        from modelcache.progress import subscriber_for
        from modelcache.transfer.control import Control

        shop, control = self._workshop(), Control()
        subscriber = subscriber_for(progress, "")
        unsubscribe = shop.dispatcher.subscribe(subscriber) if subscriber else _nothing
        records = [self._present(Ref.parse(model)) for model in models] if models else self._corrupt()
        repairer = Repairer(shop, headers or {}, tuple(checked_url(url) for url in mirrors), control)
        try:
            audits = [(record, audit) for record in records for audit in verify(shop, record, control)]
            rows = [
                repairer.row(record, audit)
                for record, audit in audits
                if audit.finding in ("corrupt", "missing", "unreadable")
            ]
            shop.dispatcher.drain(STOP_WITHIN_S)
        finally:
            unsubscribe()
        return Report("repaired files", tuple(rows))

    def remove(self, model: str, version: str | None = None) -> int:
        """Takes a version of a model away (the default one, if none is named). Returns the bytes freed."""
        from modelcache.events import Fact
        from modelcache.store.removal import remove

        record = self._present(_with_version(Ref.parse(model), version))
        shop = self._workshop()
        freed = remove(shop.layout, shop.registry, record)
        shop.dispatcher.publish(
            Fact(
                "removed",
                record.id,
                f"{record.id}@{record.version} is removed",
                version=record.version,
                path=record.folder,
            )
        )
        shop.dispatcher.drain(STOP_WITHIN_S)
        return freed

    def add(self, path: str | os.PathLike[str], model: str, version: str = "1", *, replace: bool = False) -> Model:
        """Takes a file or a folder of this disk into the store, as a copy (a reflink where the disk can).

        UsageError if that version is here with other bytes, unless `replace`.
        """
        from modelcache.adopt import adopt

        checked_path(model, parts=1), checked_path(version, parts=1)
        return adopt(self._workshop(), os.path.abspath(os.fspath(path)), model, version, replace=replace)

    # -- events and ending --------------------------------------------------------------------------------------------

    def on_event(self, subscriber: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Calls the function with every event (product H), from one thread. Returns a function that ends it."""
        return self._workshop().dispatcher.subscribe(subscriber)

    def close(self) -> None:
        """Pauses what runs, and returns when nothing is written any more, within 2 s."""
        if self._pid == os.getpid():
            for download in self._running:
                download.pause()
            for download in self._running:
                download.wait_stopped(STOP_WITHIN_S)

    # -- inside -------------------------------------------------------------------------------------------------------

    @property
    def _layout(self) -> Layout:
        return Layout(self.root)

    @property
    def _registry(self) -> Registry:
        layout = self._layout
        return Registry(layout.registry, layout.models, layout.lock("registry"))

    def _workshop(self) -> Workshop:
        """One per process: a child after a fork inherits neither threads nor locks nor connections."""
        if self._pid != os.getpid():
            self._guard = threading.Lock()  # the inherited one may be held by a thread that does not exist here
            self._pid, self._shop, self._running = os.getpid(), None, []
        with self._guard:
            if self._shop is None:
                import atexit

                from modelcache.dispatch import Dispatcher

                settings = settings_for(self.root, self._overrides)
                self._shop = Workshop(self._layout, self._registry, settings, Dispatcher(), sources_for)
                atexit.register(self.close)
            return self._shop

    def _record(self, ref: Ref) -> Installed | None:
        version = ref.version or self._registry.default(ref.id)
        return Installed.read(self._layout.model(ref.id, version)) if version else None

    def _present(self, ref: Ref) -> Installed:
        record = self._record(ref)
        if record is None:
            raise ModelNotAvailableError(ref.id, ref.version or None, "not_installed")
        return record

    def _all(self) -> list[Installed]:
        return list(installed_under(self._layout.models))

    def _corrupt(self) -> list[Installed]:
        """What an earlier verify found wrong, and what is missing or changed since."""
        return [
            record
            for record in self._all()
            if record.condition() != "right" or self._registry.versions(record.id).get(record.version) == "error"
        ]

    def _is_running(self, model_id: str) -> bool:
        return self._pid == os.getpid() and any(one.order.id == model_id and not one.has_ended for one in self._running)


def _nothing() -> None:
    pass


def _digests(sha256: str | None, checksum: str | None) -> tuple[Digest, ...]:
    given = [Digest.parse(sha256, "sha256")] if sha256 else []
    given += [Digest.parse(checksum)] if checksum else []
    return tuple(dict.fromkeys(given))


def _output(order: Order, output: str | os.PathLike[str] | None, cache: bool) -> str:
    """The absolute place, checked before anything is fetched."""
    if output is None:
        if not cache:
            raise UsageError("without the cache an output is needed: pass --output")
        return ""
    place = os.path.abspath(os.path.expanduser(os.fspath(output)))
    if order.single and os.path.isdir(place) and not os.path.islink(place):
        raise UsageError(f"{place} is a folder; the output of one file is a file")
    if not order.single and os.path.lexists(place) and not os.path.isdir(place):
        raise UsageError(f"{place} is a file; the output of a model is a folder")
    return place


def _order_of_manifest(manifest: Manifest, mirrors: tuple[str, ...]) -> Order:
    digests = {file.path: digest.hex for file in manifest.files if (digest := file.digest())}
    version = manifest.version
    if not version and len(digests) == len(manifest.files):
        version = version_of(digests)
    order = Order(manifest.ref or manifest.id, manifest.id, version, manifest.files, single=False, proof="listed")
    return _mirrored(order, mirrors)


def _mirrored(order: Order, mirrors: tuple[str, ...]) -> Order:
    """Mirrors of a model are folders."""
    from urllib.parse import quote

    bases = [checked_url(mirror).rstrip("/") for mirror in mirrors]
    files = tuple(
        replace(file, urls=(*file.urls, *(f"{base}/{quote(file.path)}" for base in bases))) for file in order.files
    )
    return replace(order, files=files) if bases else order


def _agrees(wanted: ModelFile, sha256: str, version: str, single: bool) -> bool:
    """Whether a recorded file is what is wanted, as far as digests tell."""
    digest = wanted.digest()
    if digest is not None:
        return digest.hex == sha256
    return bool(wanted.digests) and single and sha256.startswith(version)


def _with_version(ref: Ref, version: str | None) -> Ref:
    return replace(ref, version=checked_path(version, parts=1)) if version else ref
