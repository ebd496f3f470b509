"""Takes files of this disk into the store.

Responsible for: reading them once, copying (or reflinking) them as blobs, and giving them a model's names.
The originals are never changed, and share no inode with the store (I5).
"""

import os

from modelcache.errors import StoreError, UsageError
from modelcache.install import install
from modelcache.manifests import paths_below
from modelcache.model import ModelFile
from modelcache.names import check_conflicts, checked_path
from modelcache.order import Fetched, Order, Workshop
from modelcache.outcome import Model
from modelcache.store import blobs, links
from modelcache.store.installed import Installed


def adopt(shop: Workshop, path: str, model: str, version: str, *, replace: bool) -> Model:
    """Nothing is visible until all is copied. UsageError where that version is here with other bytes; StoreError."""
    folder, names = _files(path)
    check_conflicts(names)
    readings = {name: blobs.read_back(os.path.join(folder, name), (), shop.settings.piece_size) for name in names}
    here = Installed.read(shop.layout.model(model, version))
    if here and not replace:
        now = {file.path: file.sha256 for file in here.files}
        if now != {name: reading.sha256.hex for name, reading in readings.items()}:
            raise UsageError(
                f"{model}@{version} is here with other files", next_step="pass --replace or another --version"
            )
    fetched = []
    for name, reading in readings.items():
        if not blobs.exists(shop.layout, reading.sha256):
            links.copy(os.path.join(folder, name), shop.layout.blob(reading.sha256), reading.sha256, blobs.MODE)
            blobs.note(shop.layout, reading.digests, reading.pieces)
        file = ModelFile(name, reading.size, (reading.sha256,))
        fetched.append(Fetched(file, reading.sha256, reading.size, "linked", "cache"))
    order = Order(model, model, version, tuple(one.file for one in fetched), single=False)
    result = install(order, shop, fetched, lambda *_, **__: None)
    assert isinstance(result, Model)
    return result


def _files(path: str) -> tuple[str, list[str]]:
    """A folder, and the names of files in it that are meant."""
    if os.path.isdir(path):
        names = sorted(paths_below(path))
        if not names:
            raise UsageError(f"{path} holds no files")
        return path, names
    if not os.path.exists(path):
        raise StoreError(f"{path} is not there", next_step="check the path")
    folder, name = os.path.split(path)
    return folder, [checked_path(name, parts=1)]
