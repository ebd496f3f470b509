"""The cache: the object users hold.

Responsible for: what can be asked of it, in words; each method leaves the rest to a module. Leaves to others: the roots
(`roots`), fetching (`fetching`), going on, pausing, cancelling (`steering`), what is installed (`inventory`) and
looking after it (`care`, `cleaning`, `doctor`), what was done (`past`). Making a Cache does no I/O; a hit imports no
network library and hashes nothing.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

from modelcache.configuration import checked, root_of
from modelcache.dispatch import Show
from modelcache.errors import ModelCacheError, ModelNotAvailableError, UsageError
from modelcache.fetching import afetched, begun, check_order, fetched, laid_out, unpacked, waited
from modelcache.model import Manifest
from modelcache.names import checked_path
from modelcache.outcome import File, Model
from modelcache.refs import Ref
from modelcache.roots import Roots, model_of, ref_of
from modelcache.rows import Report, joined
from modelcache.settings import Settings
from modelcache.wish import Wish, wish_of

if TYPE_CHECKING:
    from threading import Event
    from typing import TypedDict, Unpack

    from modelcache.archives.bundle import Readable
    from modelcache.download import Download
    from modelcache.exporting import Sink
    from modelcache.history import DownloadRecord

    class _Options(TypedDict, total=False):
        """What every fetch may be told; `Cache.fetch` says what it means."""

        output: "Path | None"
        mirrors: Iterable[str]
        headers: Mapping[str, str] | None
        progress: Show
        cache: bool
        strict: bool
        require_digest: bool
        prefer: str

    class _OfOneFile(_Options, total=False):
        checksum: str | None
        size: int | None


MOST_NAMED = 10
Path = str | os.PathLike[str]


class Cache:
    """A store of models under `root` (default: MODELCACHE_HOME, else the platform's cache folder).

    `settings` are those of `modelcache.settings.Settings`; they come before the environment and the configuration
    file; UsageError for wrong ones. All methods may be called from any thread, and from a child after a fork.
    """

    def __init__(self, root: Path | None = None, **settings: Any) -> None:
        self.root = root_of(root)
        self._roots = Roots(self.root, checked(settings))
        self._runtime = self._roots.own
        self._ends_live: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"Cache({self.root!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows: what is installed."""
        from modelcache.inventory import overview

        return overview(self._roots)

    # -- fetching -----------------------------------------------------------------------------------------------------

    @overload
    def fetch(
        self, ref: str | Manifest, *, wait: Literal[False], sha256: str | None = ..., unpack: Literal[False] = ...,
        files: Iterable[str] | str = ..., **options: "Unpack[_OfOneFile]",
    ) -> "Download": ...  # fmt: skip

    @overload
    def fetch(
        self, ref: Manifest, *, wait: Literal[True] = ..., files: Iterable[str] | str = ...,
        **options: "Unpack[_Options]",
    ) -> Model: ...  # fmt: skip

    @overload
    def fetch(
        self, ref: str, *, sha256: str, wait: Literal[True] = ..., unpack: bool = ..., **options: "Unpack[_OfOneFile]"
    ) -> File: ...

    @overload
    def fetch(
        self, ref: str | Manifest, *, sha256: str | None = ..., wait: Literal[True] = ..., unpack: bool = ...,
        files: Iterable[str] | str = ..., layout: str = ..., **options: "Unpack[_OfOneFile]",
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
        wish = wish_of(
            sha256, checksum, size, None if unpack or layout else place, mirrors, headers, cache, strict,
            require_digest, prefer, files,
        )  # fmt: skip
        if layout:
            return laid_out(self._roots, ref, wish, progress, layout, place)
        if not wait:
            return self.begin(ref, wish, progress)
        result = fetched(self._roots, ref, wish, progress)
        if unpack:
            folder = self.unpack(result, place)
            assert isinstance(result, File)
            return replace(result, unpacked=folder)
        return result

    @overload
    async def afetch(
        self, ref: Manifest, *, files: Iterable[str] | str = ..., **options: "Unpack[_Options]"
    ) -> Model: ...

    @overload
    async def afetch(self, ref: str, *, sha256: str, **options: "Unpack[_OfOneFile]") -> File: ...

    @overload
    async def afetch(
        self, ref: str | Manifest, *, sha256: str | None = ..., files: Iterable[str] | str = ...,
        **options: "Unpack[_OfOneFile]",
    ) -> Model | File: ...  # fmt: skip

    async def afetch(self, ref: str | Manifest, *, progress: Show = None, **options: Any) -> Model | File:
        """`fetch` in an event loop, which is free meanwhile: in a notebook the buttons of the panel work.

        Takes what `fetch` takes, but for `wait`, `unpack` and `layout`, and raises as it does; but a pause is no end:
        it is waited until somebody goes on, or cancels. A task that is cancelled pauses the download: what was written
        is kept, and the next fetch goes on from there.
        """
        if refused := sorted({"wait", "unpack", "layout"} & set(options)):
            raise UsageError(f"afetch takes no {refused[0]}")
        return await afetched(self._roots, ref, wish_of(**options), progress)

    def begin(self, ref: str | Manifest, wish: Wish, progress: Show) -> "Download":
        """What `fetch(wait=False)` gives, for a wish that was made before."""
        return begun(self._roots, ref, wish, progress)

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
        return unpacked(fetched, None if output is None else os.fspath(output), self.settings)

    # -- what is installed --------------------------------------------------------------------------------------------

    def path(self, model: str, version: str | None = None) -> str:
        """Where a model is; of a URL, or a file of a model, where that file is. No network, nothing is read but stats.

        Raises ModelNotAvailableError with the reason: not_installed, downloading, verifying (it changed since it
        was verified: fetch or verify it), error (it is corrupt or incomplete, or fetching it was paused or failed).
        """
        from modelcache.inventory import path_of

        return path_of(self._roots, ref_of(model, version))

    def __getitem__(self, model: str) -> Model:
        """What is installed of it, as `fetch` gives it; no network, and nothing is read but stats.

        KeyError where it is not installed; ModelNotAvailableError, as from `path`, where it is and something is wrong.
        """
        from modelcache.inventory import model_at

        try:
            return model_at(self._roots, model_of(model))
        except ModelNotAvailableError as error:
            if error.reason != "not_installed":
                raise
            some = [*self]
            more = f" and {len(some) - MOST_NAMED:,} more" if len(some) > MOST_NAMED else ""
            raise KeyError(f"{error.line()}; here are: {', '.join(some[:MOST_NAMED]) or 'none'}{more}") from error

    def __iter__(self) -> Iterator[str]:
        """What models here can be called by: their ids and refs. StoreError where they cannot be listed."""
        from modelcache.inventory import names

        return iter(names(self._roots))

    def __contains__(self, model: str) -> bool:
        """Whether it is installed, and nothing is known to be wrong with it."""
        try:
            return bool(self[model])
        except (KeyError, ModelNotAvailableError):
            return False

    def _ipython_key_completions_(self) -> list[str]:
        """What can be typed after `cache["`."""
        with suppress(ModelCacheError):
            return [*self]
        return []

    def models(self) -> Report:
        """What is installed: one row a version, with what a catalog says of it; `status` is ready, incomplete (files
        were never fetched) or error. `used_at` is when it was last asked for, `verified_at` when the file of it was
        that was not verified for the longest (ms since 1970, None for never), `proof` who vouched for what is least
        certain: given, listed, cid or first_use. StoreError where it cannot be read."""
        from modelcache.inventory import models

        return models(self._roots)

    def info(self, model: str, version: str | None = None) -> Report:
        """One row a file. Raises ModelNotAvailableError."""
        from modelcache.inventory import info

        return info(self._roots, model_of(model, version))

    def verify(
        self, model: str | None = None, version: str | None = None, *, strict: bool = False, progress: Show = None
    ) -> Report:
        """Reads every byte of a model, or of all. Rows tell whole, corrupt (and which bytes), missing, unreadable.

        A file is right if each piece has the digest that was recorded when its SHA-256 was proven; where one has not,
        or none is known, its SHA-256 decides. `strict`: its SHA-256 alone. `progress` as in `fetch`.
        """
        from modelcache.care import verify

        return verify(self._roots.chosen(model, version), strict=strict, progress=progress)

    def sweep(
        self,
        *,
        share: str | float = "1/30",
        older_than: str | float = "10d",
        time_limit: str | float = 0,
        rate_limit: str | int = 0,
        strict: bool = False,
        repair: bool = False,
        also: Iterable[str] = (),
        progress: Show = None,
        stop: "Event | None" = None,
        clock: Callable[[], float] | None = None,
    ) -> Report:
        """Verifies what is due: what was verified longest ago comes first, and each run goes on behind the last one.

        share: how much of all bytes, `1/30`, 0.1 or `full`.
        older_than: what was verified less long ago is left, `10d` or seconds.
        time_limit: after so long no file is begun, `1h` or seconds; 0: no limit.
        rate_limit: bytes/s at most, `50M`; 0: as fast as it goes.
        strict: by SHA-256, not by pieces. repair: mends at once what has rotted in the store.
        also: other places, which are only read: `hf`, `ollama`, a cache of theirs, a folder with a manifest.
        progress: as in `fetch`. stop: ends it within a buffer. clock: seconds since 1970.

        One row a file that was read, or that an earlier run found wrong; `findings` of the report counts those somebody
        has to act upon. Raises LockedError while another sweep is at it, UsageError for a place that is none.
        """
        from modelcache.sweeps.sweep import Plan, sweep

        plan = Plan.parsed(share, older_than, time_limit, rate_limit, strict=strict, repairs=repair, also=also)
        return sweep([runtime.shop for runtime in self._roots.all()], plan, progress, stop, clock)

    def refresh(self, models: Sequence[str] = (), *, stop: "Event | None" = None) -> Report:
        """Asks hubs what the branches and tags mean by now that models here were fetched by; of these ids, or of all.

        Nothing is fetched: the next fetch brings what is newer. One row each: `outcome` is same, newer, busy or failed,
        which is a finding. `stop` ends it between two, and gives up what is asked.
        """
        from modelcache.care import refresh

        return refresh(self._roots, models, stop)

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
        from modelcache.care import repair

        wish = Wish(mirrors=tuple(mirrors), headers=dict(headers or {}))
        if (wish.headers or wish.mirrors) and len(models) != 1:
            raise UsageError("headers and mirrors go with one model: name it")
        roots = self._roots
        chosen = [held for model in models for held in roots.chosen(model)] if models else roots.corrupt()
        return repair(chosen, wish, progress)

    def remove(self, model: str, version: str | None = None) -> Report:
        """Takes a model away: all versions of an id, or the one that is named (`version`, or `model@version`). A ref of
        a hub names one, too: what its branch or tag means, main or latest where it says none.

        One row a version, with the bytes freed (what other models share stays) and the versions that are left. Raises
        LockedError while it is being fetched, ModelNotAvailableError if there is no such model or version. Removing
        again goes on where an error came.
        """
        from modelcache.care import remove

        return remove(self._roots, model_of(model, version))

    def add(self, path: Path, model: str, version: str = "1", *, replace: bool = False) -> Model:
        """Takes a file or a folder of this disk into the store, as a copy (a reflink where the disk can). Links in
        it are left out: they may lead anywhere.

        UsageError if that version is here with other bytes, unless `replace`.
        """
        from modelcache.adopt import adopt

        checked_path(model, parts=1), checked_path(version, parts=1)
        runtime = self._roots.writable()
        runtime.shelf.check_ref(model, model)
        return adopt(runtime.shop, os.path.abspath(os.fspath(path)), model, version, replace=replace)

    def export_bundle(self, models: Sequence[str], output: "Path | Sink", *, progress: Show = None) -> Report:
        """Writes models (`id`, `id@version`, or the URL of one) to one file for machines without network: `output`,
        replaced if it is there, or a binary stream. One row a model.

        Each byte is proven as it is written. VerificationError where one has rotted, ModelNotAvailableError,
        LockedError, StoreError; then there is no file. `progress` as in `fetch`.
        """
        from modelcache.exporting import export

        if not models:
            raise UsageError("name the models to export")
        chosen = [(runtime.shop, record) for model in models for runtime, record in self._roots.chosen(model)]
        place = os.path.abspath(os.path.expanduser(output)) if isinstance(output, (str, os.PathLike)) else output
        return export(chosen, place, progress)

    def import_bundle(self, source: "Path | Readable", *, progress: Show = None) -> tuple[Model, ...]:
        """Takes in the models of a bundle, a file or a binary stream, which is read once.

        Each model is here as soon as all its files are proven; those that are in the store already are not read again
        from the bundle. VerificationError for a bundle that is damaged, cut short or hostile, UsageError where a
        version is here with other files, LockedError, StoreError; what was proven by then stays.
        """
        from modelcache.importing import opened, take_in

        runtime = self._roots.writable()
        with opened(source) as bundle:
            return take_in(runtime.shop, runtime.shelf, bundle, progress)

    def adopt(self, source: Path, *, progress: Show = None) -> Report:
        """Takes what other tools have downloaded into the store, as the models that a fetch would have made of it.

        `source` is "hf", "ollama" or a folder: a cache of Hugging Face or a store of Ollama. Nothing there is changed,
        each byte is read once, and nothing is copied where the disk can do without. One row a file: its `outcome` is
        taken, here (already), wrong (its bytes are not what its name says), left (it cannot be used) or absent (it
        belongs to the model and is not there), `copied` whether its bytes are on the disk twice now. `progress` as in
        `fetch`.

        A folder may also be one repository of a cache of Hugging Face, `models--org--name`.

        Raises UsageError for a ref, a root of modelcache or a folder of something else, StoreError where there is no
        such folder.
        """
        from modelcache.adoption import adopt, tier_at

        tier = tier_at(os.fspath(source))
        runtime = self._roots.writable()
        return adopt(runtime.shop, runtime.shelf, tier, progress)

    # -- care ---------------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """As they are in this process. UsageError for a wrong one."""
        return self._runtime.shop.settings

    @property
    def queue_paths(self) -> tuple[str, str]:
        """Of the file that holds what waits to be fetched, and of its lock."""
        layout = self._runtime.shelf.layout
        return layout.queue, layout.lock("queue")

    def check_order(self, ref: str | Manifest, wish: Wish) -> None:
        """UsageError for what `fetch` would refuse at once."""
        check_order(self._runtime, ref, wish)

    def check_at_start(self) -> Report:
        """What earlier runs left unfinished, one row each; what is of no use is removed. Once a process: then nothing.

        The first fetch does it by itself. A row: model, file, size (bytes here), total, can_resume, cleaned, and text.
        """
        return self._runtime.check_at_start()

    def pin(self, model: str, version: str | None = None) -> Report:
        """`clean` takes no version of this model away to make room, or not the one that is named, until `unpin`. A ref
        of a hub names one, as in `remove`; where it is not here yet, whatever version comes is kept.

        One row: `version` is empty for all of them, and `here` tells whether it is here: a model need not be yet, a
        version has to be (ModelNotAvailableError). Raises StoreError where nothing can be written.
        """
        from modelcache.care import pin

        return pin(self._roots, model_of(model, version))

    def unpin(self, model: str, version: str | None = None) -> Report:
        """No row if it was not pinned. Raises ModelNotAvailableError, StoreError."""
        from modelcache.care import unpin

        return unpin(self._roots, model_of(model, version))

    def clean(self, *, dry_run: bool = False, foreign: bool = False, stop: "Event | None" = None) -> Report:
        """Removes what is nobody's and too old: unfinished downloads, what had rotted, logs, leftovers, free locks.
        Then models that nobody asked for in `unused_age`, and over the `disk_budget` the least recently used.

        The ages are settings: `stale_partial_age`, `quarantine_age`, `log_age`, `temporary_age`. One row a find, with
        the bytes it takes; a dry run lists exactly what a run would remove. What is in use stays, whatever its age.
        `foreign`: also what other tools began to download into `tiers`, and have not gone on with for a day.
        `stop`: ends it before the next find.
        """
        from modelcache.care import clean

        return clean(self._roots, dry_run=dry_run, foreign=foreign, stop=stop)

    def reset(self, model: str) -> Report:
        """Takes a model back to where it was before its first fetch: no version, nothing unfinished, no error.

        One row for each thing that was removed, with the bytes freed; files that other models share stay. Raises
        LockedError while it is being fetched.
        """
        from modelcache.care import reset

        return reset(self._roots, model_of(model).id)

    def doctor(self) -> Report:
        """What is wrong with this cache, one row a finding, with the command that helps; changes nothing.

        A row: level (wrong; note: worth knowing), check, finding, fix. Raises nothing.
        """
        from modelcache.doctor import Examination

        return joined([Examination(runtime.shelf, runtime.overrides).report() for runtime in self._roots.all()])

    def logs(self, model: str | None = None) -> Report:
        """What happened, to one model or to all: one row an event, oldest first."""
        from modelcache.care import logs

        return logs(self._roots, Ref.parse(model).id if model else "")

    # -- what was done ------------------------------------------------------------------------------------------------

    def downloads(self, *statuses: str) -> Report:
        """One row a download, the latest first; only those of these statuses: pending, in_progress, resuming, paused,
        failed, success. What no living process carries out is paused. StoreError where nothing here can be read."""
        from modelcache.steering import downloads

        self._roots.readable()
        return downloads(self._roots, statuses)

    @property
    def running(self) -> "tuple[Download, ...]":
        """The downloads of this process that have not ended, the oldest first. Costs nothing: it looks at no disk."""
        return tuple(self._roots.running())

    def download(self, download_id: str) -> "DownloadRecord":
        """How a download stands. Raises UnknownDownloadError."""
        from modelcache.steering import found

        return found(self._roots, download_id)[1]

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
        from modelcache.steering import resume

        download = resume(self._roots, download_id, headers, progress)
        if wait and download is not None:
            waited(download)
        return self.download(download_id)

    def pause(self, download_id: str) -> "DownloadRecord":
        """Pauses a download of this process, or of whoever runs the queue, until `resume`. Every byte is kept.

        What has ended stays as it is. Raises UnknownDownloadError, and LockedError while another process is at it.
        """
        from modelcache.steering import pause

        pause(self._roots, download_id)
        return self.download(download_id)

    def cancel(self, download_id: str) -> "DownloadRecord":
        """Removes what is not complete of a download; its record then says failed. What is ready stays.

        The queue forgets it, too.

        Raises UnknownDownloadError, and LockedError while another process is at it.
        """
        from modelcache.steering import cancel

        cancel(self._roots, download_id)
        return self.download(download_id)

    def usage(self) -> Report:
        """One row a model, with how often it was asked for: the most requested first."""
        from modelcache import past

        return past.usage([runtime.state for runtime in self._roots.all()])

    def health(self) -> Report:
        """One row a gateway, with how it has done lately."""
        from modelcache import past

        return past.health((self._roots.fallback() or self._runtime).state)

    def report(self, since: str = "24h", by: str | None = None) -> Report:
        """How well fetching went since then: one row a layer, gateway, model or day, or `by` one of these alone.

        `since` is a time as `24h`, `7d` or `4w`, or an ISO date. A row: group, key, total, success (with what was here
        already), error, success_rate, latency_p50_ms and latency_p95_ms (to the first byte), throughput_bps (bytes/s
        of one connection), bytes (fetched), bytes_saved_cache, bytes_saved_resume; None where nothing was measured.
        `to_html` writes a page with plots. What had to be left out, as damaged rows, is in `notes`, and never raises.
        UsageError for what `since` or `by` cannot mean.
        """
        from modelcache.reporting.report import report

        return report(self._runtime.state.place, self._runtime.shelf, since, by)

    def publish_metrics(
        self,
        *,
        since: str = "30d",
        parquet: bool = False,
        stop: "Event | None" = None,
        clock: Callable[[], float] | None = None,
    ) -> Report:
        """Writes reports into `reports_dir`: sheets of each day, a page about the time since then, Prometheus's text.

        One row a file, each replaced as a whole. Days that were missed are caught up on, and files older than
        `metrics_age` go. A day's sheets stay, which is a finding, where they have rows that no database has any more.
        What had to be left out of the metrics is in `notes`. stop: ends it after the file it is at.
        clock: seconds since 1970. Where nothing can be written to our own root it is about the fallback, and in there.
        UsageError where the extra `parquet` is missing, StoreError where the folder cannot
        be written to; then what was written by then stays.
        """
        from modelcache.reporting.publishing import Wishes, publish

        settings, runtime = self.settings, self._roots.fallback() or self._runtime
        wishes = Wishes(settings.reports_dir, since, parquet, settings.metrics_age)
        now_ms = round(1000 * clock()) if clock else None
        return publish(runtime.state, runtime.shelf, wishes, now_ms, stop.is_set if stop else bool)

    # -- events and ending --------------------------------------------------------------------------------------------

    def on_event(self, subscriber: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Calls the function with every event (product H), from one thread. Returns a function that ends it."""
        ends = [runtime.shop.dispatcher.subscribe(subscriber) for runtime in self._roots.all()]

        def unsubscribe() -> None:
            for end in ends:
                end()

        return unsubscribe

    def dashboard(self) -> Any:
        """What this cache has and does, live in a notebook: see `modelcache.dashboard`."""
        from importlib import import_module

        return import_module("modelcache.notebook.dashboard").dashboard(self)  # a face: it is above this

    def shows_live(self, end: Callable[[], None]) -> None:
        """For what shows this cache live: the one before ends now, and this one when the next comes."""
        before, self._ends_live = self._ends_live, end
        if before is not None:
            before()

    def close(self) -> None:
        """Pauses what runs, and returns when nothing is written any more, within 2 s."""
        self._roots.close()
