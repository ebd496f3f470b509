"""Content that several models have: rot in it is rot in all of them, and so is its repair.

Responsible for: marking and re-linking every model path of a content at once (C1, I30).
Leaves to others: finding rot, and fetching what is wrong (`filefetch`, `audit`).
"""

import os
from contextlib import suppress
from dataclasses import replace

from modelcache.model import Digest
from modelcache.store import blobs, links
from modelcache.store.disk import disk_errors
from modelcache.store.installed import Installed, InstalledFile, Stamp
from modelcache.store.layout import Layout
from modelcache.store.registry import Registry, installed_under, status_of


def sharing(layout: Layout, sha256: str) -> list[Installed]:
    """Every model that has this content."""
    return [one for one in installed_under(layout.models) if any(file.sha256 == sha256 for file in one.files)]


def distrust(layout: Layout, registry: Registry, sha256: str, place: str) -> None:
    """The file at `place` has rotted: nothing that is the same file is a hit, or available, until it is repaired."""
    for record in sharing(layout, sha256):
        marked = record
        for file in record.files:
            if file.sha256 == sha256 and is_same_file(record.place(file), place):
                marked = marked.with_file(file.distrusted())
        if marked != record:
            marked.write()
            registry.marked(record.id, record.version, "error")


def relink(layout: Layout, registry: Registry, sha256: Digest) -> None:
    """Makes every model path of this content the blob again: a model path is what users open.

    What somebody changed there is set aside first, for him to look at. Raises StoreError.
    """
    for record in sharing(layout, sha256.hex):
        changed = record
        for file in record.files:
            if file.sha256 == sha256.hex:
                changed = changed.with_file(_relinked(layout, file, record.place(file)))
        if changed != record:
            changed.write()
        registry.marked(record.id, record.version, status_of(changed))


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
