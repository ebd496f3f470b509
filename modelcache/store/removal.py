"""Takes a version of a model away, and only those blobs that nobody else has (I30).

Responsible for: the order registry, record, files, blobs: what a kill leaves is never half a model that looks whole.
"""

import os
from contextlib import suppress

from modelcache.model import Digest
from modelcache.store.disk import disk_errors, remove_tree
from modelcache.store.installed import RECORD, Installed
from modelcache.store.layout import Layout
from modelcache.store.registry import Registry, installed_under


def remove(layout: Layout, registry: Registry, record: Installed) -> int:
    """Returns how many bytes of blobs were freed. Raises StoreError; running it again goes on."""
    registry.removed(record.id, record.version)
    with disk_errors(record.folder):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(record.folder, RECORD))
        remove_tree(record.folder)
        with suppress(OSError):
            os.rmdir(os.path.dirname(record.folder))  # of the id, if this was its last version
    kept = {file.sha256 for other in installed_under(layout.models) for file in other.files}
    return sum(_remove_blob(layout, sha256) for sha256 in {file.sha256 for file in record.files} - kept)


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
