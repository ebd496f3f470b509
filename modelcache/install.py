"""Gives fetched files their names: in the store, at the output, in the record and in the registry, in that order.

Responsible for: that what a kill leaves between two of these steps is mended by the next fetch from the disk alone.
Leaves to others: proving the bytes, which happened before.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence

from modelcache.errors import VerificationError
from modelcache.events import FactType
from modelcache.names import joined
from modelcache.order import Fetched, Order, Workshop
from modelcache.outcome import File, Model
from modelcache.store import blobs, links
from modelcache.store.disk import make_directories
from modelcache.store.installed import Installed, InstalledFile, Stamp
from modelcache.urls import without_secrets

Tell = Callable[..., None]


def version_of(digests: Mapping[str, str]) -> str:
    """The version that only the bytes can tell, from SHA-256 by path.

    Of one file the start of its digest, of several that of the digest of their list (product H, `checksum_sha256`).
    """
    if len(digests) == 1:
        return next(iter(digests.values()))[:12]
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def install(order: Order, shop: Workshop, fetched: Sequence[Fetched], tell: Tell) -> Model | File:
    """Returns what the user asked for. Files of the order that are not among `fetched` are noted as missing.

    Raises StoreError; then what is named so far stays, and was proven.
    """
    version = order.version or version_of({one.file.path: one.sha256.hex for one in fetched})
    folder = order.output
    if order.cached:
        folder = shop.layout.model(order.id, version)
        _into_models(order, shop, fetched, Installed(order.id, version, order.ref, (), folder), tell)
    if order.output:
        _into_output(order, shop, fetched, version)
    files = tuple(_file(order, one, folder) for one in fetched)
    return files[0] if order.single else Model(order.ref, order.id, version, order.output or folder, files)


def _file(order: Order, one: Fetched, folder: str) -> File:
    place = order.output_of(one.file) if order.output else joined(folder, one.file.path)
    return File(
        place, one.file.path, one.size, one.sha256.hex, one.status, one.verified(order.proof), one.source,
        one.bytes_fetched, one.bytes_resumed,
    )  # fmt: skip


def _into_models(order: Order, shop: Workshop, fetched: Sequence[Fetched], record: Installed, tell: Tell) -> None:
    known = Installed.read(record.folder)
    updated = shop.registry.default(order.id) is not None
    for file in known.files if known else ():
        record = record.with_file(file)
    for one in fetched:
        target = joined(record.folder, one.file.path)
        before = known.file(one.file.path) if known else None
        if before and before.stamp.judge(target) == "changed":
            blobs.set_aside(shop.layout, target)  # somebody edited it, or it has rotted: for him to look at
        links.link(shop.layout.blob(one.sha256), target)
        record = record.with_file(_entry(order, one, target))
    here = {file.path for file in record.files}
    record = record.lacking(file.path for file in order.files if file.path not in here)
    if record == known and shop.registry.versions(order.id).get(record.version) == "ready":
        return
    record.write()
    unproven = fetched[0].sha256.hex if order.single and fetched[0].proof(order.proof) == "first_use" else None
    shop.registry.installed(record, unproven)
    if not record.missing:
        kind: FactType = "updated" if updated else "installed"
        tell(kind, f"{order.id}@{record.version} is installed", path=record.folder)


def _into_output(order: Order, shop: Workshop, fetched: Sequence[Fetched], version: str) -> None:
    record = Installed(order.id, version, order.ref, (), order.output)
    if not order.single:
        make_directories(order.output, 0o777)
    for one in fetched:
        target = order.output_of(one.file)
        if order.cached and not _is_right(target, one, shop.settings.piece_size):
            links.copy(shop.layout.blob(one.sha256), target, one.sha256)
        if not order.single:
            record = record.with_file(_entry(order, one, target))
    if not order.single:
        record.write()


def _is_right(path: str, one: Fetched, piece_size: int) -> bool:
    """Whether the output is there already: read from end to end, for nobody recorded how it looked."""
    if os.path.islink(path) or not os.path.isfile(path) or os.stat(path).st_size != one.size:
        return False
    return blobs.read_back(path, (one.sha256,), piece_size).wrong is None


def _entry(order: Order, one: Fetched, path: str) -> InstalledFile:
    stamp = Stamp.of(path)
    if stamp.size != one.size:
        raise VerificationError(f"{path} changed while it was installed", next_step="run again")
    urls = tuple(without_secrets(url) for url in one.file.urls)
    return InstalledFile(one.file.path, one.sha256.hex, one.proof(order.proof), one.verified(order.proof), stamp, urls)
