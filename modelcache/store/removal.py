"""Takes a version of a model away, and only those blobs that nobody else has (I30).

Responsible for: the order files, blobs, registry, record. What a kill leaves is never half a model that looks whole,
and its record tells the next removal what is left to do.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from modelcache.model import Digest
from modelcache.store import records
from modelcache.store.disk import disk_errors, link_towards, remove_tree
from modelcache.store.installed import Installed, InstalledFile
from modelcache.store.intake import is_foreign
from modelcache.store.layout import Layout
from modelcache.store.locks import Patience, Subject, locked
from modelcache.store.marks import Marks
from modelcache.store.registry import Registry, installed_under


def _nothing() -> None:
    pass


def remove(layout: Layout, registry: Registry, record: Installed, check: Callable[[], None] = _nothing) -> int:
    """Returns how many bytes of blobs were freed. Raises StoreError; running it again goes on.

    LockedError while somebody fetches that model. `check` is called when nobody can do so; it may raise to give up.
    """
    with locked(layout.model_lock(record.id), Subject(record.id, record.version), Patience(0.0)):
        check()
        return _remove(layout, registry, record)


def _remove(layout: Layout, registry: Registry, record: Installed) -> int:
    _unlink(layout, record, record.files)
    freed = _sweep(layout, {file.sha256 for file in record.files}, record.folder)
    registry.removed(record.id, record.version)
    Marks(layout).forget(record.id, record.version)
    with records.changing(layout), disk_errors(record.folder):  # nobody puts a record into a folder that goes
        remove_tree(link_towards(layout.root, record.folder) or record.folder)
        with suppress(OSError):
            os.rmdir(os.path.dirname(record.folder))  # of the id, if this was its last version
            remove_tree(link_towards(layout.root, layout.catalog(record.id)) or layout.catalog(record.id))
    return freed


def drop(layout: Layout, record: Installed, paths: Iterable[str]) -> Installed:
    """Takes single files away from a version; returns its record without them. Raises StoreError."""
    unwanted = set(paths)
    with records.changing(layout):
        record = Installed.read(record.folder) or record
        gone = [file for file in record.files if file.path in unwanted]
        kept = replace(record, files=tuple(file for file in record.files if file.path not in unwanted))
        kept.write()
    _unlink(layout, record, gone)
    _sweep(layout, {file.sha256 for file in gone}, "")
    return kept


def _unlink(layout: Layout, record: Installed, files: Iterable[InstalledFile]) -> None:
    """Where a symlink leads out of the store, it is the symlink that goes: what is behind it is not ours (I17)."""
    for file in files:
        place = record.place(file)
        with disk_errors(place), suppress(FileNotFoundError):
            os.unlink(link_towards(layout.root, place) or place)


def _sweep(layout: Layout, digests: set[str], folder: str) -> int:
    """Removes those of these blobs that no record names but the one in `folder`."""
    others = (other for other in installed_under(layout.models) if other.folder != folder)
    kept = {file.sha256 for other in others for file in other.files}
    return sum(_remove_blob(layout, sha256) for sha256 in digests - kept)


def _remove_blob(layout: Layout, hexdigest: str) -> int:
    sha256 = Digest("sha256", hexdigest)
    blob = layout.blob(sha256)
    if link_towards(layout.root, os.path.dirname(blob)):
        return 0  # behind a symlink nothing is ours
    with disk_errors(blob), suppress(FileNotFoundError):
        status = os.lstat(blob)
        if status.st_nlink > 1 and _is_below(layout.models, status.st_ino):
            return 0  # of a model whose record cannot be read
        is_kept = is_foreign(layout, hexdigest, blob)  # by the tool whose file it is as well
        os.unlink(blob)
        for known in (layout.pieces(sha256), layout.foreign(sha256)):
            with suppress(FileNotFoundError):
                os.unlink(known)
        return 0 if is_kept else status.st_size
    return 0


def _is_below(folder: str, inode: int) -> bool:
    """Whether a file in this tree has the inode. OSError where that cannot be told."""
    waiting = [folder]
    while waiting:
        for entry in list(os.scandir(waiting.pop())):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif entry.inode() == inode:
                return True
    return False
