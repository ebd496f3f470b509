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
from modelcache.outcome import UNVERIFIED, File, Model
from modelcache.store import blobs, links, records
from modelcache.store.disk import check_no_links, make_output_directories
from modelcache.store.installed import Installed, InstalledFile, Stamp
from modelcache.urls import without_secrets

Tell = Callable[..., None]


def _nothing() -> None:
    pass


def version_of(digests: Mapping[str, str]) -> str:
    """The version that only the bytes can tell, from SHA-256 by path.

    Of one file the start of its digest, of several that of the digest of their list (product H, `checksum_sha256`).
    """
    if len(digests) == 1:
        return next(iter(digests.values()))[:12]
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def install(
    order: Order, shop: Workshop, fetched: Sequence[Fetched], tell: Tell, tick: Callable[[], None] = _nothing
) -> Model | File:
    """Returns what the user asked for. Files of the order that are not among `fetched` are noted as missing.

    Raises StoreError; then what is named so far stays, and was proven. `tick` is called for each file, and now and
    then while one is copied; it may raise to give up.
    """
    version = order.version
    if order.single or not version:  # what was known of a single file before may have been a guess
        version = version_of({one.file.path: one.sha256.hex for one in fetched})
    folder = order.output
    if order.cached:
        folder = shop.layout.model(order.id, version)
        _into_models(order, shop, fetched, Installed(order.id, version, order.ref, (), folder), tell, tick)
    if order.output:
        _into_output(order, shop, fetched, version, tick)
    files = tuple(_file(order, one, folder) for one in fetched)
    return files[0] if order.single else Model(order.ref, order.id, version, order.output or folder, files)


def _file(order: Order, one: Fetched, folder: str) -> File:
    place = order.output_of(one.file) if order.output else joined(folder, one.file.path)
    return File(
        place, one.file.path, one.size, one.sha256.hex, one.status, order.vouched(one.file)[1], one.source,
        one.bytes_fetched, one.bytes_resumed,
    )  # fmt: skip


def _into_models(
    order: Order,
    shop: Workshop,
    fetched: Sequence[Fetched],
    blank: Installed,
    tell: Tell,
    tick: Callable[[], None],
) -> None:
    check_no_links(shop.layout.root, blank.folder)
    known = Installed.read(blank.folder)
    seen = known.by_path() if known else {}
    mended = False
    entries = []
    for one in fetched:
        tick()
        target = joined(blank.folder, one.file.path)
        check_no_links(shop.layout.root, os.path.dirname(target))
        before = seen.get(one.file.path)
        if before and before.stamp.judge(target) != "right":
            mended = mended or before.sha256 == one.sha256.hex
            if not before.is_distrusted and os.path.lexists(target):
                blobs.set_aside(shop.layout, target)  # somebody edited it: for him to look at
        links.link(shop.layout.blob(one.sha256), target)
        looked_at = None if one.is_new else one.before or before
        entries.append((looked_at, _entry(order, one, target, before)))
    unproven = order.single and order.vouched(fetched[0].file)[1] == UNVERIFIED
    default = shop.registry.default(order.id)
    with records.changing(shop.layout):
        old, new = _record(order, shop, blank, entries, fetched[0].sha256.hex if unproven else None)
    event = "repaired" if mended else _event(old, new, default)
    if event and new != old and not new.missing:
        tell(event, f"{order.id}@{blank.version} is {event}", path=blank.folder, version=blank.version)


def _record(
    order: Order,
    shop: Workshop,
    blank: Installed,
    entries: Sequence[tuple[InstalledFile | None, InstalledFile]],
    first_use: str | None,
) -> tuple[Installed | None, Installed]:
    """Puts the entries, each with what was recorded before it was looked at, into what the record says by now.

    Returns the record that was there, and the one that is.
    """
    known = Installed.read(blank.folder)
    now = known.by_path() if known else {}
    wanted = {file.path for file in order.files} | set(known.missing if known else ())
    mine = [file for seen, file in entries if not records.is_overtaken(now.get(file.path), seen, file)]
    record = blank.with_files((*now.values(), *mine))
    record = record.lacking(sorted(wanted - {file.path for file in record.files}))
    if record == known and shop.registry.versions(order.id).get(record.version) == "ready":
        return known, record
    record.write()
    shop.registry.installed(record, first_use)
    return known, record


def _event(known: Installed | None, record: Installed, default: str | None) -> FactType | None:
    """What the new record means to whoever has the model loaded (product C6)."""
    if known is None or known.missing:
        return "installed" if default is None else "updated"
    same = [(file.path, file.sha256) for file in known.files] == [(file.path, file.sha256) for file in record.files]
    return None if same else "updated"


def _into_output(
    order: Order, shop: Workshop, fetched: Sequence[Fetched], version: str, tick: Callable[[], None]
) -> None:
    entries = []
    if not order.single:
        make_output_directories(order.output)
    for one in fetched:
        tick()
        target = order.output_of(one.file)
        if order.cached and not _is_right(target, one, shop.settings.piece_size, tick):
            links.copy(shop.layout.blob(one.sha256), target, one.sha256, tick=tick)
        if not order.single:
            entries.append(_entry(order, one, target, None))
    if not order.single:
        Installed(order.id, version, order.ref, (), order.output).with_files(entries).write()


def _is_right(path: str, one: Fetched, piece_size: int, tick: Callable[[], None]) -> bool:
    """Whether the output is there already: read from end to end, for nobody recorded how it looked."""
    if os.path.islink(path) or not os.path.isfile(path) or os.stat(path).st_size != one.size:
        return False
    return blobs.read_back(path, (one.sha256,), piece_size, tick).wrong is None


def _entry(order: Order, one: Fetched, path: str, before: InstalledFile | None) -> InstalledFile:
    proof, verified = order.vouched(one.file)
    stamp = Stamp.of(path)
    if stamp.size != one.size:
        raise VerificationError(f"{path} changed while it was installed", next_step="run again")
    if before and not one.was_read and before.stamp.judge(path) == "right":
        stamp = before.stamp  # nothing was read: it was verified when it was verified
    urls = tuple(without_secrets(url) for url in one.file.urls)
    return InstalledFile(one.file.path, one.sha256.hex, proof, verified, stamp, urls)
