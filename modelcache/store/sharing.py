"""Content that several models have: rot in it is rot in all of them, and so is its repair.

Responsible for: marking and re-linking every model path of a content at once (C1, I30).
Leaves to others: finding rot, and fetching what is wrong (`filefetch`, `audit`).
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from modelcache.model import Digest
from modelcache.store import blobs, links, records
from modelcache.store.disk import disk_errors
from modelcache.store.installed import Installed, InstalledFile, Stamp
from modelcache.store.layout import Layout
from modelcache.store.registry import Registry, installed_under, status_of


def sharing(layout: Layout, sha256: str) -> list[Installed]:
    """Every model that has this content."""
    return [one for one in installed_under(layout.models) if any(file.sha256 == sha256 for file in one.files)]


def distrust(layout: Layout, registry: Registry, sha256: str, place: str) -> None:
    """The file at `place` has rotted: nothing that is the same file is a hit, or available, until it is repaired."""
    distrust_all(layout, registry, ((sha256, place),))


def distrust_all(layout: Layout, registry: Registry, rotten: Iterable[tuple[str, str]]) -> None:
    """The same for many files at once, each with its SHA-256: every record is read and written once."""
    places: dict[str, list[str]] = {}
    for sha256, place in rotten:
        places.setdefault(sha256, []).append(place)
    with records.changing(layout):
        for record in installed_under(layout.models):
            marked = [
                file.distrusted() for file in record.files
                if any(is_same_file(record.place(file), place) for place in places.get(file.sha256, ()))
            ]  # fmt: skip
            changed = record.with_files(marked)
            if changed != record:
                changed.write()
            if marked:
                registry.marked(record.id, record.version, "error")


def relink(layout: Layout, registry: Registry, sha256: Digest) -> None:
    """Makes every model path of this content the blob again: a model path is what users open.

    What somebody changed there is set aside first, for him to look at. Raises StoreError.
    """
    for record in sharing(layout, sha256.hex):
        mine = [
            (file, _relinked(layout, file, record.place(file))) for file in record.files if file.sha256 == sha256.hex
        ]
        _put(layout, registry, record, mine)


def _put(
    layout: Layout, registry: Registry, record: Installed, mine: Iterable[tuple[InstalledFile, InstalledFile]]
) -> None:
    """Records what these files, seen like that before, are now; of the others what was recorded meanwhile stays."""
    with records.changing(layout):
        now = Installed.read(record.folder)
        if now is None:
            return
        entries = now.by_path()
        files = [
            file for seen, file in mine
            if (entry := entries.get(file.path)) is not None and entry.sha256 == file.sha256
            and not records.is_overtaken(entry, seen, file)
        ]  # fmt: skip
        changed = now.with_files(files)
        if changed != now:
            changed.write()
        registry.marked(now.id, now.version, status_of(changed))


def _relinked(layout: Layout, file: InstalledFile, place: str) -> InstalledFile:
    blob = layout.blob(Digest("sha256", file.sha256))
    if is_same_file(place, blob) and file.stamp.judge(place) == "right":
        return file
    if not file.is_distrusted and file.stamp.judge(place) == "changed" and not is_same_file(place, blob):
        blobs.set_aside(layout, place)
    links.link(blob, place)
    with disk_errors(place):
        return replace(file, stamp=Stamp.of(place))


def is_same_file(one: str, other: str) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.lstat(one), os.lstat(other))
    return False
