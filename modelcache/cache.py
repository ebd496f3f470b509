"""The cache: the object users hold.

Responsible for: what can be asked of it. Leaves to others: what belongs to one process (`runtime`), what is meant and
whether it is here (`ordering`), fetching (`download`), reading and mending (`audit`, `mending`), looking after the
store (`maintenance`, `doctor`), what was done (`past`). Making a Cache does no I/O; a hit imports no network library
and hashes nothing.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

from modelcache.errors import LockedError, ModelNotAvailableError, NotFoundError, Reason, StoreError, UsageError
from modelcache.history import UNFINISHED
from modelcache.model import Manifest
from modelcache.names import checked_path
from modelcache.order import Order, Workshop
from modelcache.ordering import Wish, chosen_of, digests_of, hit, order_of
from modelcache.outcome import File, Model
from modelcache.refs import Ref
from modelcache.rows import Report
from modelcache.runtime import STOP_WITHIN_S, Runtime
from modelcache.settings import Settings
from modelcache.store.installed import Installed
from modelcache.store.layout import Layout
from modelcache.store.locks import is_held
from modelcache.store.shelf import Shelf
from modelcache.wiring import checked, fallback_for, is_offline, root_of, settings_for

if TYPE_CHECKING:
    from modelcache.archives.bundle import Readable
    from modelcache.download import Download
    from modelcache.exporting import Sink
    from modelcache.history import DownloadRecord

Path = str | os.PathLike[str]
Show = bool | Callable[[dict[str, Any]], None] | None


class Cache:
    """A store of models under `root` (default: MODELCACHE_HOME, else the platform's cache folder).

    `settings` are those of `modelcache.settings.Settings`; they come before the environment and the configuration
    file; UsageError for wrong ones. All methods may be called from any thread, and from a child after a fork.
    """

    def __init__(self, root: Path | None = None, **settings: Any) -> None:
        self.root = root_of(root)
        self._overrides = checked(settings)
        self._shelf = Shelf(Layout(self.root))
        self._runtime = Runtime(self.root, self._shelf, self._overrides)
        self._fallback: Cache | None = None

    def __repr__(self) -> str:
        return f"Cache({self.root!r})"

    # -- fetching -----------------------------------------------------------------------------------------------------

    @overload
    def fetch(
        self, ref: str | Manifest, *, sha256: str | None = ..., checksum: str | None = ..., size: int | None = ...,
        output: Path | None = ..., mirrors: Iterable[str] = ..., headers: Mapping[str, str] | None = ...,
        progress: Show = ..., wait: Literal[False], cache: bool = ..., strict: bool = ..., require_digest: bool = ...,
        unpack: Literal[False] = ..., prefer: str = ..., files: Iterable[str] | str = ...,
    ) -> "Download": ...  # fmt: skip

    @overload
    def fetch(
        self, ref: Manifest, *, output: Path | None = ..., mirrors: Iterable[str] = ...,
        headers: Mapping[str, str] | None = ..., progress: Show = ..., wait: Literal[True] = ..., cache: bool = ...,
        strict: bool = ..., require_digest: bool = ..., prefer: str = ..., files: Iterable[str] | str = ...,
    ) -> Model: ...  # fmt: skip

    @overload
    def fetch(
        self, ref: str, *, sha256: str, checksum: str | None = ..., size: int | None = ...,
        output: Path | None = ..., mirrors: Iterable[str] = ..., headers: Mapping[str, str] | None = ...,
        progress: Show = ..., wait: Literal[True] = ..., cache: bool = ..., strict: bool = ...,
        require_digest: bool = ..., unpack: bool = ..., prefer: str = ...,
    ) -> File: ...  # fmt: skip

    @overload
    def fetch(
        self, ref: str | Manifest, *, sha256: str | None = ..., checksum: str | None = ..., size: int | None = ...,
        output: Path | None = ..., mirrors: Iterable[str] = ..., headers: Mapping[str, str] | None = ...,
        progress: Show = ..., wait: Literal[True] = ..., cache: bool = ..., strict: bool = ...,
        require_digest: bool = ..., unpack: bool = ..., prefer: str = ..., files: Iterable[str] | str = ...,
        layout: str = ...,
    ) -> Model | File: ...  # fmt: skip

    def fetch(
        self,
        ref: str | Manifest,
        *,
        sha256: str | None = None,
        checksum: str | None = None,
        size: int | None = None,
        output: Path | None = None,
        mirrors: Iterable[str] = (),
        headers: Mapping[str, str] | None = None,
        progress: Show = None,
        wait: bool = True,
        cache: bool = True,
        strict: bool = False,
        require_digest: bool = False,
        unpack: bool = False,
        prefer: str = "",
        files: Iterable[str] | str = (),
        layout: str = "",
    ) -> "Model | File | Download":
        """Gives a verified local path, from here or from whichever source works.

        ref: a URL, `hf:org/name[@revision][/path]`, `ollama:name[:tag]`, `oci://host/repository[:tag]`, a name of a
            catalog, the id of an installed model, or a Manifest.
        sha256, checksum: what the file must be, as hex or `ALGORITHM:HEX`.
        size: its size in bytes.
        output: where to put it as well: a file for a URL (replaced if it exists), a folder for a model.
        mirrors: further URLs of the same file; for a manifest, URLs of folders that hold its files.
        headers: sent to the origin of the first URL and to no other.
        progress: None shows a bar where stderr is a terminal, True always, False never; a function gets each event.
        wait: False returns the Download at once; it may have ended already.
        cache: False puts the file at `output` alone.
        strict: reads what is here from end to end instead of trusting its stamp.
        require_digest: refuses what nothing can be verified against.
        unpack: unpacks the archive into a new folder, `output` or one beside it: `file.unpacked`.
        prefer: the kind of source to ask first: cache, ipfs, huggingface, http, oci, peer or object.
        files: of a model only those that fit one of these patterns, as `*.safetensors`.
        layout: "ollama" makes `output` a folder of models as Ollama keeps them, with this one in it.

        Returns a File for a URL and for a ref with a path, a Model otherwise. Raises AllSourcesFailedError,
        NotFoundError, VerificationError, StoreError, LockedError, PausedError or UsageError; whatever was written is
        kept, and the next call goes on from there.
        """
        place = None if output is None else os.fspath(output)
        if (unpack or layout) and not (wait and cache):
            raise UsageError(f"{'unpacking' if unpack else 'a layout'} waits for the file and needs the cache")
        wish = Wish(
            digests_of(sha256, checksum), size, None if unpack or layout else place, tuple(mirrors),
            dict(headers or {}), cache, strict, require_digest, prefer, chosen_of(files),
        )  # fmt: skip
        if layout:
            return self._laid_out(ref, wish, progress, layout, place)
        if not wait:
            return self.begin(ref, wish, progress)
        result = self._fetched(ref, wish, progress)
        if unpack:
            folder = self.unpack(result, place)
            assert isinstance(result, File)
            return replace(result, unpacked=folder)
        return result

    def _fetched(self, ref: str | Manifest, wish: Wish, progress: Show) -> Model | File:
        order, here = self._at_hand(ref, wish)
        somebody_listens = callable(progress) or self._runtime.has_subscribers
        if here is not None and not somebody_listens:
            self._runtime.count(order, here)
            return here
        return self._waited(self.begin(ref, wish, progress))

    def _laid_out(self, ref: str | Manifest, wish: Wish, progress: Show, layout: str, output: str | None) -> Model:
        """Fetches the whole model, then writes it into the output as another program keeps it."""
        from modelcache.layouts import checked_layout, write_ollama

        if not isinstance(ref, str) or not output or wish.chosen:
            raise UsageError("a layout takes a whole model of a registry, and an output")
        place = checked_layout(layout, ref)
        model = self._fetched(ref, wish, progress)
        assert isinstance(model, Model)
        return replace(model, path=write_ollama(model, output, place))

    def _waited(self, download: "Download") -> Model | File:
        """Its result. An interrupt pauses it."""
        try:
            return download.result()
        except KeyboardInterrupt as interrupt:
            download.pause()
            download.wait_stopped(STOP_WITHIN_S)
            interrupt.kept_bytes = download.kept_bytes  # type: ignore[attr-defined]
            interrupt.add_note(f"{download.kept_bytes:,} bytes kept; fetch it again to go on")
            raise

    def begin(self, ref: str | Manifest, wish: Wish, progress: Show) -> "Download":
        """What `fetch(wait=False)` gives, for a wish that was made before."""
        from modelcache.again import to_text
        from modelcache.download import Download
        from modelcache.progress import subscriber_for

        order, here = self._at_hand(ref, wish)
        other = None if here else self._elsewhere()
        if other is not None:
            return other.begin(ref, wish, progress)
        if here is None and order.cached:
            self._check_ref(order)
            self.check_at_start()

        def renew(meaning: Manifest | None) -> tuple[Order, Model | File | None]:
            again = self._order(ref, wish, meaning)
            return again, hit(again, self._shelf.layout)

        self._runtime.count(order, here)
        show = subscriber_for(progress, order.id, {file.path: file.size for file in order.files})
        download = Download(order, self._runtime.shop, renew, show, to_text(ref, wish))
        self._runtime.runs(download)
        if here is None:
            if order.cached:
                with suppress(StoreError):  # whoever writes there first says so
                    self._runtime.make_root()
            download.begin()
        else:
            download.be_ready(here)
        return download

    @property
    def limit_rate(self) -> int:
        """Bytes/s that all downloads of this cache share, in this process; 0: as fast as it goes. May be set while
        they run."""
        return self._runtime.shop.throttle.rate

    @limit_rate.setter
    def limit_rate(self, rate: int) -> None:
        self._runtime.shop.throttle.rate = checked({"limit_rate": rate})["limit_rate"]

    def unpack(self, fetched: File | Model, output: Path | None = None) -> str:
        """Unpacks an archive that was fetched into one new folder: `output`, else one beside it, called by its stem.

        Returns the folder; one that an earlier call made beside the archive is returned as it is. UsageError for a
        model or a file of another kind, VerificationError for a damaged or dangerous archive.
        """
        from modelcache.unpack import UnpackLimits, stem_of, unpack

        if not isinstance(fetched, File):
            raise UsageError("one archive is unpacked, not a model of several files")
        beside = os.path.join(os.path.dirname(fetched.path), stem_of(fetched.name))
        folder = os.path.abspath(os.path.expanduser(os.fspath(output))) if output is not None else beside
        if output is None and os.path.isdir(folder):
            return folder
        settings = self._runtime.shop.settings
        limits = UnpackLimits(total_bytes=settings.unpack_most, entries=settings.unpack_entries)
        unpack(fetched.path, folder, name=fetched.name, limits=limits)
        return folder

    # -- what is installed --------------------------------------------------------------------------------------------

    def path(self, model: str, version: str | None = None) -> str:
        """Where a model is; of a URL, where its file is. No network, nothing is read but stats.

        Raises ModelNotAvailableError with the reason: not_installed, downloading, verifying (it changed since it
        was verified: fetch or verify it), error (it is corrupt or incomplete, or fetching it was paused or failed).
        """
        ref = _ref_of(model, version)
        cache = self._holder(ref)
        record = cache._shelf.record(ref)
        if record is None:
            version = ref.version or ref.alias or None
            raise ModelNotAvailableError(ref.id, version, cache._why_not(ref.id))
        if cache._shelf.status(record) != "ready":
            distrusted = record.missing or any(file.is_distrusted for file in record.files)
            changed = record.condition() == "changed" and not distrusted
            raise ModelNotAvailableError(record.id, record.version, "verifying" if changed else "error")
        if not ref.path:
            return record.place(record.files[0]) if ref.url else record.folder
        file = record.file(ref.path)
        if file is None:
            raise ModelNotAvailableError(record.id, record.version, "not_installed")
        return record.place(file)

    def models(self) -> Report:
        """What is installed: one row a version, with what a catalog says of it. StoreError where it cannot be read."""
        rows = [
            {
                "model": record.id, "version": record.version, "files": len(record.files),
                "size": sum(max(0, file.size) for file in record.files), "status": cache._shelf.status(record),
                "task": entry.task if entry else "", "ref": record.ref,
                "languages": list(entry.languages) if entry else [],
                "default_version": entry.default_version if entry else "",
            }
            for cache, record in self._all()
            for entry in [cache._shelf.entry(Ref(record.id))]
        ]  # fmt: skip
        return Report("installed models", tuple(rows), hidden=("languages", "default_version"))

    def info(self, model: str, version: str | None = None) -> Report:
        """One row a file. Raises ModelNotAvailableError."""
        ref = _model_of(model, version)
        record = self._holder(ref)._shelf.present(ref)
        rows = [
            {
                "file": file.path, "size": file.size, "sha256": file.sha256, "verified": file.verified,
                "proof": file.proof, "verified_at": file.stamp.verified_at,
                "condition": file.stamp.judge(record.place(file)), "path": record.place(file),
            }
            for file in record.files
        ]  # fmt: skip
        entry = self._shelf.entry(Ref(record.id))
        told = [entry.task, ", ".join(entry.languages)] if entry else []
        title = "; ".join(filter(None, (f"{record.id}@{record.version} from {record.ref}, in {record.folder}", *told)))
        return Report(title, tuple(rows), hidden=("proof", "path"))

    def verify(
        self, model: str | None = None, version: str | None = None, *, strict: bool = False, progress: Show = None
    ) -> Report:
        """Reads every byte of a model, or of all. Rows tell whole, corrupt (and which bytes), missing, unreadable.

        A file is right if each piece has the digest that was recorded when its SHA-256 was proven; where one has not,
        or none is known, its SHA-256 decides. `strict`: its SHA-256 alone. `progress` as in `fetch`.
        """
        from modelcache.audit import verify
        from modelcache.transfer.control import Control

        audits = []
        for cache, record in self._chosen(model, version):
            with cache._shown(progress, record) as shop:
                audits += verify(shop, record, Control(), strict=strict)
        return Report("verified files", tuple(audit.to_row() for audit in audits))

    def check(self, manifest: Manifest, folder: Path) -> Report:
        """Whether a folder holds what the manifest lists. A file that was verified before costs one stat."""
        from modelcache.check import check

        return check(manifest, os.path.expanduser(os.fspath(folder)))

    def repair(
        self,
        models: Sequence[str] = (),
        *,
        headers: Mapping[str, str] | None = None,
        mirrors: Iterable[str] = (),
        progress: Show = None,
    ) -> Report:
        """Makes models right again, fetching only the pieces that are wrong; without names, all that are known corrupt.

        `headers` and `mirrors` are for one model, which is named, as in `fetch`. Rows say what was done to each file;
        `repaired` is False where no source had it, with the reason.
        """
        from modelcache.mending import repair

        wish = Wish(mirrors=tuple(mirrors), headers=dict(headers or {}))
        if (wish.headers or wish.mirrors) and len(models) != 1:
            raise UsageError("headers and mirrors go with one model: name it")
        chosen = [one for model in models for one in self._chosen(model, None)] if models else self._corrupt()
        rows: list[dict[str, object]] = []
        for cache, record in chosen:
            with cache._shown(progress, record) as shop:
                rows += repair(shop, record, wish)
        return Report("repaired files", tuple(rows))

    def remove(self, model: str, version: str | None = None) -> int:
        """Takes a model away: all versions of an id, or the one that is named (`version`, or `model@version`); of a hub
        the one that its ref means.

        Returns the bytes freed; what other models share stays. Raises LockedError while it is being fetched,
        ModelNotAvailableError if there is no such model or version. Removing again goes on where an error came.
        """
        from modelcache.events import Fact
        from modelcache.store.removal import remove

        ref = _model_of(model, version)
        cache = self._holder(ref)
        records, shop, freed = cache._shelf.remains(ref), cache._runtime.shop, 0
        for record in records:
            freed += remove(shop.layout, shop.registry, record)
            message = f"{record.id}@{record.version} is removed"
            shop.dispatcher.publish(Fact("removed", record.id, message, version=record.version, path=record.folder))
        shop.dispatcher.drain(STOP_WITHIN_S)
        return freed

    def add(self, path: Path, model: str, version: str = "1", *, replace: bool = False) -> Model:
        """Takes a file or a folder of this disk into the store, as a copy (a reflink where the disk can). Links in
        it are left out: they may lead anywhere.

        UsageError if that version is here with other bytes, unless `replace`.
        """
        from modelcache.adopt import adopt

        checked_path(model, parts=1), checked_path(version, parts=1)
        cache = self._elsewhere() or self
        cache._shelf.check_ref(model, model)
        cache._runtime.make_root()
        return adopt(cache._runtime.shop, os.path.abspath(os.fspath(path)), model, version, replace=replace)

    def export_bundle(self, models: Sequence[str], output: "Path | Sink", *, progress: Show = None) -> Report:
        """Writes models (`id`, `id@version`, or the URL of one) to one file for machines without network: `output`,
        replaced if it is there, or a binary stream. One row a model.

        Each byte is proven as it is written. VerificationError where one has rotted, ModelNotAvailableError,
        LockedError, StoreError; then there is no file. `progress` as in `fetch`.
        """
        from modelcache.exporting import export

        if not models:
            raise UsageError("name the models to export")
        chosen = [(cache._runtime.shop, record) for model in models for cache, record in self._chosen(model, None)]
        place = os.path.abspath(os.path.expanduser(output)) if isinstance(output, (str, os.PathLike)) else output
        return export(chosen, place, progress)

    def import_bundle(self, source: "Path | Readable", *, progress: Show = None) -> tuple[Model, ...]:
        """Takes in the models of a bundle, a file or a binary stream, which is read once.

        Each model is here as soon as all its files are proven; those that are in the store already are not read again
        from the bundle. VerificationError for a bundle that is damaged, cut short or hostile, UsageError where a
        version is here with other files, LockedError, StoreError; what was proven by then stays.
        """
        from modelcache.importing import opened, take_in

        cache = self._elsewhere() or self
        cache._runtime.make_root()
        with opened(source) as bundle:
            return take_in(cache._runtime.shop, cache._shelf, bundle, progress)

    def adopt(self, source: Path, *, progress: Show = None) -> Report:
        """Takes what other tools have downloaded into the store, as the models that a fetch would have made of it.

        `source` is "hf", "ollama" or a folder: a cache of Hugging Face or a store of Ollama. Nothing there is changed,
        each byte is read once, and nothing is copied where the disk can do without. One row a file: its `outcome` is
        taken, here (already), wrong (its bytes are not what its name says), left (it cannot be used) or absent (it
        belongs to the model and is not there), `copied` whether its bytes are on the disk twice now. `progress` as in
        `fetch`.

        Raises UsageError for a root of modelcache, StoreError where there is no such folder.
        """
        from modelcache.adoption import adopt
        from modelcache.foreign.root import Root
        from modelcache.wiring import tier_of

        tier = tier_of(os.fspath(source))
        if not os.path.isdir(tier.name):
            raise StoreError(f"{tier.name} is no folder", next_step="name the folder of the other tool's cache")
        if isinstance(tier, Root):
            raise UsageError(f"{tier.name} is a root of modelcache", next_step="name it in the setting tiers")
        cache = self._elsewhere() or self
        cache._runtime.make_root()
        return adopt(cache._runtime.shop, cache._shelf, tier, progress)

    # -- care ---------------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """As they are in this process. UsageError for a wrong one."""
        return self._runtime.shop.settings

    @property
    def queue_paths(self) -> tuple[str, str]:
        """Of the file that holds what waits to be fetched, and of its lock."""
        layout = self._shelf.layout
        return layout.queue, layout.lock("queue")

    def check_order(self, ref: str | Manifest, wish: Wish) -> None:
        """UsageError for what `fetch` would refuse at once."""
        order = self._order(ref, wish)
        if order.cached:
            self._check_ref(order)
        if self.settings.shared:
            self._runtime.make_root()

    def check_at_start(self) -> Report:
        """What earlier runs left unfinished, one row each; what is of no use is removed. Once a process: then nothing.

        The first fetch does it by itself. A row: model, file, size (bytes here), total, can_resume, cleaned, and text.
        """
        if not (self._runtime.is_first_look() and _holds_anything(self._shelf.layout.partials)):
            return Report("unfinished downloads", ())
        from modelcache.maintenance import check_at_start

        return check_at_start(self._runtime.shop)

    def clean(self, *, dry_run: bool = False) -> Report:
        """Removes what is nobody's and too old: unfinished downloads, what had rotted, logs, leftovers, free locks.

        The ages are settings: `stale_partial_age`, `quarantine_age`, `log_age`, `temporary_age`. One row a find, with
        the bytes it takes; a dry run lists exactly what a run would remove. What is in use stays, whatever its age.
        """
        from modelcache.maintenance import clean

        reports = [clean(cache._runtime.shop, cache._runtime.state, dry_run=dry_run) for cache in self._caches()]
        return Report(reports[0].title, tuple(row for report in reports for row in report))

    def reset(self, model: str) -> Report:
        """Takes a model back to where it was before its first fetch: no version, nothing unfinished, no error.

        One row for each thing that was removed, with the bytes freed; files that other models share stay. Raises
        LockedError while it is being fetched.
        """
        from modelcache.maintenance import reset

        ref = Ref(_model_of(model).id)
        rows: list[dict[str, Any]] = []
        for cache in self._caches():
            shop = cache._runtime.shop
            try:
                records = cache._shelf.remains(ref)
            except ModelNotAvailableError:
                records = []
            rows += reset(shop, cache._runtime.state, ref.id, records)
            shop.dispatcher.drain(STOP_WITHIN_S)
        return Report(f"{ref.id} is reset", tuple(rows))

    def doctor(self) -> Report:
        """What is wrong with this cache, one row a finding, with the command that helps; changes nothing.

        A row: level (wrong; note: worth knowing), check, finding, fix. Raises nothing.
        """
        from modelcache.doctor import Examination

        reports = [Examination(cache._shelf, cache._overrides).report() for cache in self._caches()]
        return Report(reports[0].title, tuple(row for report in reports for row in report))

    def logs(self, model: str | None = None) -> Report:
        """What happened, to one model or to all: one row an event, oldest first."""
        from modelcache.logbook import Logbook

        books = [Logbook(cache._shelf.layout.logs) for cache in self._caches()]
        chosen = Ref.parse(model).id if model else ""
        rows = [row for book in books for one in ([chosen] if chosen else book.models()) for row in book.read(one)]
        return Report(f"log of {chosen or 'all models'}", tuple(sorted(rows, key=lambda row: str(row["timestamp"]))))

    # -- what was done ------------------------------------------------------------------------------------------------

    def downloads(self, status: str | None = None) -> Report:
        """One row a download, the latest first; only those of a status: pending, in_progress, resuming, paused, failed
        or success. What no living process carries out is paused."""
        from modelcache import past

        return past.downloads(self._runtime.state, self._shelf, status)

    def download(self, download_id: str) -> "DownloadRecord":
        """How a download stands. Raises UnknownDownloadError."""
        from modelcache import past

        return past.download(self._runtime.state, self._shelf, download_id)

    def resume(
        self,
        download_id: str,
        *,
        headers: Mapping[str, str] | None = None,
        progress: Show = None,
        wait: bool = True,
    ) -> "DownloadRecord":
        """Goes on with a download that was paused, failed, or whose process has ended; what is ready is left alone.

        Headers and passwords are never kept: give them again. Raises as `fetch` does, UnknownDownloadError for an id
        that there is not, UsageError where what was asked is not known any more.
        """
        from modelcache import past
        from modelcache.again import parsed

        record = self.download(download_id)
        if record.status == "success":
            return record
        past.pause_in_queue(self._shelf, download_id, False)
        download = self._runtime.find(download_id)
        if download is not None:
            download.resume()
        else:
            ref, wish = parsed(self._runtime.state.request_of(download_id))
            download = self.begin(ref, replace(wish, headers=dict(headers or {})), progress)
        if wait:
            self._waited(download)
        return self.download(download_id)

    def pause(self, download_id: str) -> "DownloadRecord":
        """Pauses a download of this process, or of whoever runs the queue, until `resume`. Every byte is kept.

        What has ended stays as it is. Raises UnknownDownloadError, and LockedError while another process is at it.
        """
        from modelcache import past

        record = self.download(download_id)
        is_queued = record.status != "success" and past.pause_in_queue(self._shelf, download_id, True)
        download = self._runtime.find(download_id)
        if download is not None:
            download.pause()
            download.wait_stopped(STOP_WITHIN_S)
        elif record.status in UNFINISHED and not is_queued:
            raise LockedError(f"{record.model} is being fetched by another process", next_step="press Ctrl-C there")
        return self.download(download_id)

    def cancel(self, download_id: str) -> "DownloadRecord":
        """Removes what is not complete of a download; its record then says failed. What is ready stays.

        The queue forgets it, too.

        Raises UnknownDownloadError, and LockedError while another process is at it.
        """
        from modelcache import past

        record = self.download(download_id)
        if record.status == "success":
            return record
        download = self._runtime.find(download_id)
        if download is not None:
            download.cancel()
            download.wait_stopped(STOP_WITHIN_S)
        else:
            past.forget(self._runtime.state, self._shelf, self._runtime.shop, record)
        past.take_out_of_queue(self._shelf, download_id)
        return self.download(download_id)

    def usage(self) -> Report:
        """One row a model, with how often it was asked for: the most requested first."""
        from modelcache import past

        return past.usage(self._runtime.state)

    def health(self) -> Report:
        """One row a gateway, with how it has done lately."""
        from modelcache import past

        return past.health(self._runtime.state)

    # -- events and ending --------------------------------------------------------------------------------------------

    def on_event(self, subscriber: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Calls the function with every event (product H), from one thread. Returns a function that ends it."""
        ends = [cache._runtime.shop.dispatcher.subscribe(subscriber) for cache in self._caches()]

        def unsubscribe() -> None:
            for end in ends:
                end()

        return unsubscribe

    def close(self) -> None:
        """Pauses what runs, and returns when nothing is written any more, within 2 s."""
        if self._fallback:
            self._fallback.close()
        self._runtime.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _order(self, ref: str | Manifest, wish: Wish, meaning: Manifest | None = None) -> Order:
        order = order_of(self._shelf, ref, wish, meaning, self._fresh_s)
        if order.asks and is_offline(order.asks.scheme):
            error = ModelNotAvailableError(order.id, order.asks.version or order.asks.alias, "not_installed")
            error.next_step = "its hub is not asked, for HF_HUB_OFFLINE is set: unset it to fetch"
            raise error
        return order

    def _at_hand(self, ref: str | Manifest, wish: Wish) -> tuple[Order, Model | File | None]:
        """What is wanted, and that, if it is here.

        What a hub said too long ago will do for what is here; whether it still says so is asked beside (product B11).
        """
        order = self._order(ref, wish)
        if order.asks is None or not order.cached or not self._fresh_s(order.asks):
            return order, hit(order, self._shelf.layout)
        with suppress(NotFoundError):  # its hub may have it by now
            older = order_of(self._shelf, ref, wish)
            if (here := hit(older, self._shelf.layout)) is not None:
                self._runtime.look_again(order, older.version)
                return older, here
        return order, None

    def _check_ref(self, order: Order) -> None:
        """UsageError where the id stands for something else already. What it stands for in a catalog, that says."""
        if not order.is_listed:
            self._shelf.check_ref(order.id, order.ref)

    def _fresh_s(self, ref: Ref) -> float:
        """How long what a hub has said of a ref counts."""
        if is_offline(ref.scheme):
            return math.inf
        return settings_for(self.root, self._overrides).manifest_ttl if ref.alias else 0.0  # a version is for ever

    def _elsewhere(self) -> "Cache | None":
        """The cache to use where nothing can be written here (product A8)."""
        if self._fallback is None and (place := fallback_for(self.root)):
            self._fallback = Cache(place, **self._overrides)
        return self._fallback

    def _caches(self) -> "list[Cache]":
        other = self._elsewhere()
        return [self, other] if other else [self]

    def _all(self) -> "list[tuple[Cache, Installed]]":
        """Every model. StoreError where they cannot be listed and there is no fallback."""
        caches = self._caches()
        if len(caches) == 1:
            self._shelf.check_readable()
        return [(cache, record) for cache in caches for record in cache._shelf.all()]

    def _holder(self, ref: Ref) -> "Cache":
        """The cache that has a model: this one, unless only the fallback has it."""
        if self._shelf.record(ref) is None and (other := self._elsewhere()):
            return other
        return self

    def _chosen(self, model: str | None, version: str | None) -> "list[tuple[Cache, Installed]]":
        """One model, or all."""
        if model is None:
            return self._all()
        ref = _model_of(model, version)
        cache = self._holder(ref)
        return [(cache, cache._shelf.present(ref))]

    def _corrupt(self) -> "list[tuple[Cache, Installed]]":
        return [(cache, record) for cache, record in self._chosen(None, None) if cache._shelf.status(record) != "ready"]

    @contextmanager
    def _shown(self, progress: Show, record: Installed) -> Iterator[Workshop]:
        """The workshop, while the events of a model are shown."""
        from modelcache.progress import shown

        shop, sizes = self._runtime.shop, {file.path: max(0, file.size) for file in record.files}
        with shown(progress, shop.dispatcher, record.id, sizes):
            yield shop

    def _why_not(self, model_id: str) -> Reason:
        """Why a model without a record is not available."""
        mine = [one for one in self._runtime.running if one.order.id == model_id]
        if any(not one.has_ended for one in mine) or is_held(self._shelf.layout.model_lock(model_id)):
            return "downloading"
        return "error" if mine and mine[-1].state in ("paused", "failed") else "not_installed"


def _ref_of(model: str, version: str | None) -> Ref:
    ref = Ref.parse(model)
    return replace(ref, version=checked_path(version, parts=1)) if version else ref


def _model_of(model: str, version: str | None = None) -> Ref:
    """UsageError where one file is named: what is done to it is done to the whole model."""
    ref = _ref_of(model, version)
    if ref.path:
        raise UsageError(f"{ref.shown} is one file of a model", next_step=f"name the model: {ref.base}")
    return ref


def _holds_anything(folder: str) -> bool:
    try:
        return bool(os.listdir(folder))
    except OSError:
        return False
