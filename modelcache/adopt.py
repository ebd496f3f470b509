"""Takes files of this disk into the store.

Responsible for: reading them once, copying (or reflinking) them as blobs, and giving them a model's names.
The originals are never changed, and share no inode with the store (I5).
"""

import os
from collections.abc import Callable

from modelcache.errors import StoreError, UsageError
from modelcache.events import Fact, FactType
from modelcache.install import install
from modelcache.manifests import ADOPT, left_out, paths_below
from modelcache.model import ModelFile
from modelcache.names import check_conflicts, checked_path
from modelcache.order import Fetched, Order, Workshop
from modelcache.outcome import Model
from modelcache.store import blobs, links
from modelcache.store.disk import check_no_links, make_directories
from modelcache.store.gate import await_sweep
from modelcache.store.installed import Installed, Stamp
from modelcache.store.locks import Patience, Subject, locked
from modelcache.store.removal import drop

DRAIN_S = 1.0


def adopt(shop: Workshop, path: str, model: str, version: str, *, replace: bool) -> Model:
    """Nothing is visible until all is copied. UsageError where that version is here with other bytes; StoreError."""
    folder, names = _files(path)
    check_conflicts(names)
    readings = {name: blobs.read_back(os.path.join(folder, name), (), shop.settings.piece_size) for name in names}
    files = tuple(ModelFile(name, reading.size, (reading.sha256,)) for name, reading in readings.items())
    order = Order(model, model, version, files, single=False)
    with locked(shop.layout.model_lock(model), Subject(model, version), Patience(0.0)):
        await_sweep(shop.layout, Patience(shop.settings.lock_timeout))
        here = Installed.read(shop.layout.model(model, version))
        now = {file.path: file.sha256 for file in here.files} if here else {}
        if here and not replace and now != {file.path: file.digests[0].hex for file in files}:
            raise UsageError(
                f"{model}@{version} is here with other files", next_step="pass --replace or another --version"
            )
        stamps = {name: _copy(shop, os.path.join(folder, name), reading) for name, reading in readings.items()}
        shop.sharing.write()
        fetched = [
            Fetched(file, file.digests[0], file.size or 0, "linked", "cache", stamp=stamps[file.path]) for file in files
        ]
        result = install(order, shop, fetched, _tell(shop, order))
        if here and (stale := set(now) - set(names)):
            drop(shop.layout, Installed.read(here.folder) or here, stale)
    shop.dispatcher.drain(DRAIN_S)
    assert isinstance(result, Model)
    return result


def _copy(shop: Workshop, path: str, reading: blobs.Reading) -> Stamp:
    """Makes it a blob, and returns how that looked when it was proven. One that is there already is read first."""
    layout = shop.layout
    blob = layout.blob(reading.sha256)
    if here := blobs.proven(layout, reading.sha256):
        return here
    was_rotten = blobs.exists(layout, reading.sha256)
    if was_rotten:
        shop.sharing.distrust(reading.sha256.hex, blob)
        blobs.set_aside(layout, blob)
    check_no_links(layout.root, os.path.dirname(blob))
    make_directories(os.path.dirname(blob))
    stamp = links.copy(path, blob, reading.sha256, blobs.MODE)
    blobs.note(layout, reading.digests, reading.pieces)
    if was_rotten:
        shop.sharing.repaired(reading.sha256, stamp)
    return stamp


def _tell(shop: Workshop, order: Order) -> Callable[..., None]:
    def tell(kind: FactType, message: str, *, path: str, version: str) -> None:
        shop.dispatcher.publish(Fact(kind, order.id, message, version=version, path=path))

    return tell


def _files(path: str) -> tuple[str, list[str]]:
    """A folder, and the names of files in it that are meant."""
    if os.path.isdir(path):
        names = sorted(paths_below(path))
        if not names:
            raise UsageError(f"{path} holds no files (links do not count)", next_step=ADOPT if left_out(path) else "")
        return path, names
    if not os.path.exists(path):
        raise StoreError(f"{path} is not there", next_step="check the path")
    folder, name = os.path.split(path)
    if os.path.islink(path):
        raise UsageError(f"{path} is a link", next_step="name the file that it leads to")
    return folder, [checked_path(name, parts=1)]
