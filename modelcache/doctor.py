"""What is wrong with a cache, and the command that helps: one line a finding (product G9).

Responsible for: looking at everything that earlier runs, other programs and this machine's settings can have spoilt,
without changing any of it, and without ever failing itself: what cannot be looked at is a finding, too.
Leaves to others: what is around it (`surroundings`), mending it (`maintenance`, `cleaning`, `mending`).
"""

import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from typing import Any, Literal

from modelcache.catalog import ids
from modelcache.configuration import PREFIX, settings_for
from modelcache.errors import ModelCacheError, StoreError
from modelcache.findings import Finding, command, fetch_of, quoted, quoted_some, some
from modelcache.rows import Report
from modelcache.settings import HUGGING_FACE, OLLAMA, Settings
from modelcache.state.place import Place, is_on_network
from modelcache.store import leftovers
from modelcache.store.disk import CREATE, SHARE, disk_errors, random_name, read_small, store_error
from modelcache.store.installed import RECORD, Installed
from modelcache.store.intake import is_foreign
from modelcache.store.locks import Holder, is_held
from modelcache.store.marks import FUTURE_S
from modelcache.store.modes import is_shared
from modelcache.store.owner import Owner, is_suspended
from modelcache.store.shelf import Shelf
from modelcache.surroundings import network, other_caches, tokens
from modelcache.units import as_age, in_bytes
from modelcache.urls import without_secrets
from modelcache.wiring import tier_of

LEAST_FREE = 1 << 30  # bytes; below that hardly any model fits
LEAST_FILES = 1000
PAST_S = 1_735_689_600  # 2025: before this package was written
OTHER_VARIABLES = ("HOME", "CONFIG", "FALLBACK", "PROGRESS", "OLLAMA_REGISTRY")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Examination:
    """Looks at one cache. Every check is a generator of findings."""

    def __init__(self, shelf: Shelf, overrides: Mapping[str, Any]) -> None:
        self._shelf = shelf
        self._layout = shelf.layout
        self._root = shelf.layout.root
        self._overrides = overrides
        self._settings = Settings()

    def report(self) -> Report:
        checks = (
            self._settings_are_right, self._catalogs_are_sound, self._variables_are_known, self._proxies,
            self._root_can_be_written, self._there_is_room, self._is_local, self._folders_are_ours,
            self._nobody_else_may_write, self._is_shared, self._clock_is_right, self._registry_is_sound,
            self._records_are_sound, self._models_are_whole, self._partials, self._locks, self._leftovers,
            self._tiers, self._other_caches, self._network, tokens,
        )  # fmt: skip
        findings = []
        for check in checks:
            name = check.__name__.strip("_").replace("_", " ")
            try:
                findings += list(check())
            except ModelCacheError as error:
                findings.append(Finding("wrong", name, error.message, error.next_step))
            except OSError as error:
                refusal = store_error(error, str(error.filename or self._root))
                findings.append(Finding("wrong", name, refusal.message, refusal.next_step))
        return Report(f"examination of {self._root}", tuple(asdict(finding) for finding in findings))

    # -- settings -----------------------------------------------------------------------------------------------------

    def _settings_are_right(self) -> Iterator[Finding]:
        self._settings = settings_for(self._root, self._overrides)
        yield from ()

    def _catalogs_are_sound(self) -> Iterator[Finding]:
        ids(self._layout.catalogs)
        yield from ()

    def _variables_are_known(self) -> Iterator[Finding]:
        known = {PREFIX + name for name in OTHER_VARIABLES}
        known |= {PREFIX + setting.name.upper() for setting in fields(Settings)}
        for name in sorted(os.environ):
            if name.startswith(PREFIX) and name not in known:
                yield Finding("note", "settings", f"{name} is no setting: it does nothing", f"unset {name}")

    def _proxies(self) -> Iterator[Finding]:
        for name in sorted(os.environ):
            if name.lower() in PROXIES and os.environ[name]:
                given = os.environ[name]
                has_scheme = "//" in given or name.lower() == "no_proxy"  # a proxy may do without one
                value = without_secrets(given if has_scheme else f"//{given}").removeprefix("//")
                yield Finding("note", "proxy", f"{name} is set: {value}", f"unset {name}, if it is not wanted")

    # -- the place ----------------------------------------------------------------------------------------------------

    def _root_can_be_written(self) -> Iterator[Finding]:
        place = self._root
        while not os.path.lexists(place) and os.path.dirname(place) != place:
            place = os.path.dirname(place)
        if not os.path.isdir(place):
            yield Finding("wrong", "root", f"{place} is no folder", "move it away, or set MODELCACHE_HOME")
        elif not os.access(place, os.W_OK | os.X_OK):
            yield Finding(
                "wrong",
                "root",
                f"{place} cannot be written to",
                f"chmod u+rwx {quoted(place)}, or set MODELCACHE_HOME",
            )
        elif place == self._root:
            yield from self._probe()

    def _probe(self) -> Iterator[Finding]:
        """Writes a few bytes, which tells more than asking for permission; and what time the disk has."""
        path = os.path.join(self._root, f".probe.{random_name(4)}.tmp")
        with disk_errors(self._root):
            fd = os.open(path, CREATE, 0o600)
            try:
                os.write(fd, bytes(4096))
                os.fsync(fd)
                skew_s = os.fstat(fd).st_mtime - time.time()
            finally:
                os.close(fd)
                os.unlink(path)
        if abs(skew_s) > FUTURE_S:
            yield Finding(
                "wrong", "clock", f"the clock of the disk differs by {skew_s:+.0f} s", "set the clock: timedatectl"
            )

    def _there_is_room(self) -> Iterator[Finding]:
        if not os.path.isdir(self._root):
            return
        disk = os.statvfs(self._root)
        free = disk.f_bavail * disk.f_frsize
        wanted = sum(max(0, (one.total or 0) - one.size) for one in leftovers.unfinished(self._layout))
        if free < max(LEAST_FREE, wanted):
            needed = f", {wanted:,} are needed for what is unfinished" if wanted else ""
            yield Finding("wrong", "space", f"the disk has {free:,} bytes left{needed}", "modelcache clean")
        if disk.f_files > 0 and disk.f_favail < LEAST_FILES:
            yield Finding("wrong", "space", f"the disk takes only {disk.f_favail:,} more files", "modelcache clean")

    def _is_local(self) -> Iterator[Finding]:
        if is_on_network(self._root):
            where = os.path.dirname(Place.of(self._root).database)
            text = f"{self._root} is on another machine: records of downloads are kept in {where}"
            yield Finding("note", "network disk", text, "set MODELCACHE_HOME to a local disk, if this one is slow")

    def _folders_are_ours(self) -> Iterator[Finding]:
        for path in [*self._layout.folders, self._layout.logs, os.path.dirname(self._layout.registry) + "/state"]:
            if os.path.islink(path):
                yield Finding(
                    "wrong", "links", f"{path} is a link: nothing is written through it", f"rm {quoted(path)}"
                )
            elif os.path.lexists(path) and not os.path.isdir(path):
                yield Finding("wrong", "folders", f"{path} is no folder", f"rm {quoted(path)}")
        links = [path for path, mode in self._everything("models", "blobs") if stat.S_ISLNK(mode)]
        if links:
            yield Finding("wrong", "links", f"{some(links)}: links where files should be", f"rm {quoted_some(links)}")

    def _nobody_else_may_write(self) -> Iterator[Finding]:
        for path in [self._root, *self._layout.folders]:
            with suppress(FileNotFoundError):
                mode = os.stat(path).st_mode
                if not stat.S_ISDIR(mode):
                    continue
                if mode & stat.S_IWOTH:
                    yield Finding("wrong", "modes", f"everybody may write to {path}", f"chmod o-w {quoted(path)}")
                elif not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                    yield Finding("wrong", "modes", f"{path} cannot be used", f"chmod u+rwx {quoted(path)}")
        blobs = [path for path, mode in self._everything("blobs") if stat.S_ISREG(mode) and mode & 0o222]
        blobs = [path for path in blobs if not os.path.basename(path).startswith(".")]
        blobs = [path for path in blobs if not is_foreign(self._layout, os.path.basename(path), path)]
        if blobs:
            yield Finding(
                "wrong", "modes", f"{some(blobs)}: files of models can be written to", f"chmod a-w {quoted_some(blobs)}"
            )

    def _is_shared(self) -> Iterator[Finding]:
        if self._settings.shared and os.path.isdir(self._root) and not is_shared(self._root):
            text = f"shared = true, but {self._root} is not a group's: other accounts cannot use it"
            yield Finding("wrong", "modes", text, SHARE.format(quoted(self._root)))
        for path in self._layout.folders if is_shared(self._root) else ():
            if os.path.isdir(path) and not is_shared(path):
                text = f"{path} is not the group's that shares the rest"
                yield Finding("wrong", "modes", text, SHARE.format(quoted(path)))

    def _tiers(self) -> Iterator[Finding]:
        for place in self._settings.tiers:
            folder = tier_of(place).name
            if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
                text = f"{folder} cannot be read: what is there is fetched all the same"
                yield Finding("note", "tiers", text, f"chmod u+rx {quoted(folder)}, or take it out of tiers")
            elif not os.path.isdir(folder) and place not in (HUGGING_FACE, OLLAMA):
                yield Finding("note", "tiers", f"{folder} is not there, or no folder", "correct the setting tiers")

    def _other_caches(self) -> Iterator[Finding]:
        tiers = tuple(map(tier_of, self._settings.tiers))
        yield from other_caches(tiers, Place.of(self._root).looks)

    def _network(self) -> Iterator[Finding]:
        yield from network(self._settings)

    def _everything(self, *tops: str) -> Iterator[tuple[str, int]]:
        """Path and mode of everything below folders of the root, links not followed."""
        for top in tops:
            waiting = [os.path.join(self._root, top)]
            while waiting:
                for entry in leftovers.entries_of(waiting.pop()):
                    with suppress(FileNotFoundError):  # gone meanwhile
                        yield entry.path, entry.stat(follow_symlinks=False).st_mode
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)

    def _clock_is_right(self) -> Iterator[Finding]:
        now = time.time()
        if now < PAST_S:
            yield Finding("wrong", "clock", f"it is {time.strftime('%Y-%m-%d')} here", "set the clock: timedatectl")
        soon = now + FUTURE_S
        late = [one.folder for one in leftovers.unfinished(self._layout) if one.touched_at > soon]
        for folder in (self._root, self._layout.logs, self._layout.models, os.path.dirname(self._layout.lock(""))):
            late += [
                one.path for one in leftovers.entries_of(folder) if one.stat(follow_symlinks=False).st_mtime > soon
            ]
        if late:
            yield Finding(
                "note",
                "clock",
                f"{some(late)}: from the future; the clock was or is wrong",
                "set the clock: timedatectl",
            )

    # -- what is installed --------------------------------------------------------------------------------------------

    def _registry_is_sound(self) -> Iterator[Finding]:
        path = self._layout.registry
        if os.path.lexists(path) and not _is_registry(path):
            yield Finding(
                "wrong", "registry", f"{path} is garbage; the records tell all the same", f"rm -r {quoted(path)}"
            )
        for model in self._shelf.registry.ids():
            for version in self._shelf.registry.versions(model):
                if self._shelf.at(model, version) is None:
                    name = leftovers.shown(f"{model}@{version}")
                    yield Finding(
                        "wrong", "registry", f"{name} is registered, but has no record", command("reset", model)
                    )

    def _records_are_sound(self) -> Iterator[Finding]:
        for model in leftovers.entries_of(self._layout.models):
            for version in leftovers.entries_of(model.path):
                name, record = f"{model.name}@{version.name}", Installed.read(version.path)
                if record is not None and (record.id, record.version) == (model.name, version.name):
                    continue
                remedy = f"fetch it again, or {command('rm', name)}"
                if os.path.lexists(os.path.join(version.path, RECORD)):
                    yield Finding("wrong", "records", f"the record of {leftovers.shown(name)} is garbage", remedy)
                elif not is_held(self._layout.lock("model-" + model.name)):
                    yield Finding("note", "records", f"{leftovers.shown(name)} was never finished", remedy)

    def _models_are_whole(self) -> Iterator[Finding]:
        for record in self._shelf.all():
            name = f"{record.id}@{record.version}"
            is_ready = self._shelf.status(record) == "ready"
            if record.missing:
                text = f"{name} is incomplete: lacks {some(list(record.missing))}"
                yield Finding("note", "models", text, fetch_of(self._shelf, record))
            bad = [file.path for file in record.files if file.is_distrusted]
            gone = [file.path for file in record.files if file.stamp.judge(record.place(file)) == "missing"]
            changed = record.condition() == "changed" and not bad
            if bad or gone:
                what = f"{some(bad)} corrupt" if bad else f"{some(gone)} missing"
                yield Finding("wrong", "models", f"{name}: {what}", command("repair", name))
            elif changed:
                yield Finding("wrong", "models", f"{name} changed since it was verified", command("verify", name))
            elif not is_ready and not record.missing:
                yield Finding("wrong", "models", f"{name} was found to be wrong", command("verify", name))

    # -- what earlier runs left ---------------------------------------------------------------------------------------

    def _partials(self) -> Iterator[Finding]:
        for one in leftovers.unfinished(self._layout):
            idle_s = time.time() - one.touched_at
            what = f"unfinished download of {one.model} ({in_bytes(one.size)})"
            if one.is_in_use:
                continue
            if one.is_hopeless:
                yield Finding("wrong", "partials", f"{what}: nothing in it can be used", "modelcache clean")
            elif idle_s > self._settings.stale_partial_age:
                yield Finding("wrong", "partials", f"{what}, not touched for {as_age(idle_s)}", "modelcache clean")
            else:
                yield Finding("note", "partials", what, f"fetch it again to go on, or {command('reset', one.model)}")

    def _locks(self) -> Iterator[Finding]:
        folder = os.path.dirname(self._layout.lock(""))
        for entry in leftovers.entries_of(folder):
            if not entry.name.endswith(".lock"):
                continue
            if not entry.is_file(follow_symlinks=False):
                yield Finding("wrong", "locks", f"{entry.path} is no lock file", "modelcache clean")
            elif is_held(entry.path):
                holder = Holder.of(entry.path)
                here = Owner.here(holder.pid) if holder.pid else None
                level: Literal["wrong", "note"] = (
                    "wrong" if here and holder.owns(here) and is_suspended(holder.pid) else "note"
                )
                yield Finding(level, "locks", f"{leftovers.shown(entry.name)} is held by {holder}", holder.advice())
            elif os.path.lexists(entry.path + ".json"):
                yield Finding(
                    "note", "locks", f"{leftovers.shown(entry.name)}: its holder was killed", "modelcache clean"
                )

    def _leftovers(self) -> Iterator[Finding]:
        old = [
            path for path in leftovers.temporary(self._layout, deep=True)
            if time.time() - _changed_at(path) > self._settings.temporary_age
        ]  # fmt: skip
        if old:
            yield Finding("note", "leftovers", f"{some(old)}: left by a kill", "modelcache clean")
        aside = [entry.path for entry in leftovers.entries_of(self._layout.quarantine)]
        if aside:
            size = sum(leftovers.size_of(path) for path in aside)
            yield Finding(
                "note", "quarantine", f"{some(aside)} had rotted ({in_bytes(size)})", "modelcache clean, in time"
            )


def _is_registry(path: str) -> bool:
    """Also one of a newer version: whoever reads it says so."""
    try:
        data = json.loads(read_small(path) or b"")
    except (StoreError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and isinstance(data.get("format"), int) and isinstance(data.get("models"), dict)


def _changed_at(path: str) -> float:
    with suppress(OSError):
        return os.lstat(path).st_ctime
    return time.time()
