"""Takes a version of a model away, and only those blobs that nobody else has (I30).

Responsible for: the order registry, record, files, blobs: what a kill leaves is never half a model that looks whole.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from modelcache.model import Digest
from modelcache.store.disk import disk_errors, remove_tree
from modelcache.store.installed import RECORD, Installed
from modelcache.store.layout import Layout
from modelcache.store.locks import Patience, Subject, locked
from modelcache.store.registry import Registry, installed_under


def remove(layout: Layout, registry: Registry, record: Installed) -> int:
    """Returns how many bytes of blobs were freed. Raises StoreError; running it again goes on.

    LockedError while somebody fetches that model.
    """
    with locked(layout.model_lock(record.id), Subject(record.id, record.version), Patience(0.0)):
        return _remove(layout, registry, record)


def _remove(layout: Layout, registry: Registry, record: Installed) -> int:
    registry.removed(record.id, record.version)
    with disk_errors(record.folder):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(record.folder, RECORD))
        remove_tree(record.folder)
        with suppress(OSError):
            os.rmdir(os.path.dirname(record.folder))  # of the id, if this was its last version
    return _sweep(layout, {file.sha256 for file in record.files})


def drop(layout: Layout, record: Installed, paths: Iterable[str]) -> Installed:
    """Takes single files away from a version; returns its record without them. Raises StoreError."""
    gone = [file for file in record.files if file.path in set(paths)]
    kept = replace(record, files=tuple(file for file in record.files if file not in gone))
    kept.write()
    for file in gone:
        with disk_errors(record.place(file)), suppress(FileNotFoundError):
            os.unlink(record.place(file))
    _sweep(layout, {file.sha256 for file in gone})
    return kept


def _sweep(layout: Layout, digests: set[str]) -> int:
    """Removes those of these blobs that no record names."""
    kept = {file.sha256 for other in installed_under(layout.models) for file in other.files}
    return sum(_remove_blob(layout, sha256) for sha256 in digests - kept)


def _remove_blob(layout: Layout, hexdigest: str) -> int:
    sha256 = Digest("sha256", hexdigest)
    blob = layout.blob(sha256)
    with disk_errors(blob), suppress(FileNotFoundError):
        size = os.lstat(blob).st_size
        os.unlink(blob)
        with suppress(FileNotFoundError):
            os.unlink(layout.pieces(sha256))
        return size
    return 0
