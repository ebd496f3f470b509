"""Gives fetched files their names: in the store, at the output, in the record and in the registry, in that order.

Responsible for: that what a kill leaves between two of these steps is mended by the next fetch from the disk alone.
Leaves to others: proving the bytes, which happened before.
"""

import os
from collections.abc import Callable, Sequence

from modelcache.errors import AGAIN, LostError, VerificationError
from modelcache.events import FactType
from modelcache.model import version_of
from modelcache.names import joined
from modelcache.order import Fetched, Order, Workshop
from modelcache.outcome import UNVERIFIED, File, Model
from modelcache.store import blobs, links, records
from modelcache.store.disk import check_no_links, make_output_directories
from modelcache.store.installed import Installed, InstalledFile, Stamp
from modelcache.store.marks import Marks
from modelcache.urls import without_secrets

Tell = Callable[..., None]


def _nothing() -> None:
    pass


def install(
    order: Order, shop: Workshop, fetched: Sequence[Fetched], tell: Tell, tick: Callable[[], None] = _nothing
) -> Model | File:
    """Returns what the user asked for. Files of the order that are not among `fetched` are noted as missing, unless the
    version lacked nothing before: a selection is ready by itself.

    Raises StoreError; then what is named so far stays, and was proven. LostError names the files of which something
    else became since they were proven: they are to be fetched again. `tick` is called for each file, and now and
    then while one is copied; it may raise to give up.
    """
    version = order.version
    if not version or (order.single and not order.pinned):  # what was known of a file may have been a guess
        version = version_of({one.file.path: one.sha256.hex for one in fetched})
    folder = order.output
    if order.cached:
        folder = shop.layout.model(order.id, version)
        _into_models(order, shop, fetched, Installed(order.id, version, order.ref, (), folder), tell, tick)
    if order.output:
        _into_output(order, shop, fetched, version, tick)
    files = tuple(_file(order, one, folder, version) for one in fetched)
    if order.single:
        return files[0]
    return Model(order.ref, order.id, version, order.output or folder, files, order.lacking, order.missing)


def _file(order: Order, one: Fetched, folder: str, version: str) -> File:
    place = order.output_of(one.file) if order.output else joined(folder, one.file.path)
    return File(
        place, one.file.path, one.size, one.sha256.hex, one.status, order.vouched(one.file)[1], one.source,
        one.bytes_fetched, one.bytes_resumed, version=version,
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
    entries: list[InstalledFile] = []
    lost: list[str] = []
    for one in fetched:
        tick()
        target = joined(blank.folder, one.file.path)
        check_no_links(shop.layout.root, os.path.dirname(target))
        stamp, before = one.stamp, seen.get(one.file.path)
        is_wrong = before is not None and before.stamp.judge(target) != "right"
        mended = mended or (is_wrong and before is not None and before.sha256 == one.sha256.hex)
        if stamp.judge(target) != "right":
            if before and is_wrong and not before.is_distrusted and os.path.lexists(target):
                blobs.set_aside(shop.layout, target)  # somebody edited it: for him to look at
            try:
                stamp = links.link(shop.layout.blob(one.sha256), target, one.sha256, stamp)
            except LostError:
                lost.append(one.file.path)
                continue
        entries.append(_entry(order, one, stamp))
    lost += [entry.path for entry in entries if entry.stamp.judge(joined(blank.folder, entry.path)) != "right"]
    if lost:
        raise LostError(*lost)
    unproven = order.single and not order.pinned and order.vouched(fetched[0].file)[1] == UNVERIFIED
    default = shop.registry.default(order.id)
    with records.changing(shop.layout):
        old, new = _record(order, shop, blank, entries, fetched[0].sha256.hex if unproven else None)
    Marks(shop.layout).used(order.id, blank.version)
    event = "repaired" if mended else _event(old, new, default)
    if event and new != old and not new.missing:
        tell(event, f"{order.id}@{blank.version} is {event}", path=blank.folder, version=blank.version)


def _record(
    order: Order,
    shop: Workshop,
    blank: Installed,
    entries: Sequence[InstalledFile],
    first_use: str | None,
) -> tuple[Installed | None, Installed]:
    """Puts the entries into what the record says by now; returns the record that was there, and the one that is."""
    known = Installed.read(blank.folder)
    now = known.by_path() if known else {}
    wanted = set(known.missing if known else ())
    if known is None or known.missing:  # what is ready as it is stays so, whatever more could not be had
        wanted |= {file.path for file in order.files}
    record = blank.with_files((*now.values(), *entries))
    record = record.lacking(sorted(wanted - {file.path for file in record.files}))
    if record == known and shop.registry.versions(order.id).get(record.version) == "ready":
        return known, record
    record.write()
    shop.registry.installed(record, first_use, is_aside=order.is_aside)
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
        stamp = _right(target, one, tick) if order.cached else Stamp.of(target)
        stamp = stamp or links.copy(shop.layout.blob(one.sha256), target, one.sha256, tick=tick)
        entries.append(_entry(order, one, stamp))
    if not order.single:
        Installed(order.id, version, order.ref, (), order.output).with_files(entries).write()


def _right(path: str, one: Fetched, tick: Callable[[], None]) -> Stamp | None:
    """How the output looked if it is there already: read from end to end, for nobody recorded that."""
    if os.path.islink(path) or not os.path.isfile(path) or os.stat(path).st_size != one.size:
        return None
    stamp = blobs.stamp_of(path)
    return None if blobs.read_back(path, (one.sha256,), 0, tick).wrong else stamp


def _entry(order: Order, one: Fetched, stamp: Stamp) -> InstalledFile:
    """What was proven, and how it looked then."""
    proof, verified = order.vouched(one.file)
    if stamp.size != one.size:
        error = VerificationError(f"{one.file.path} changed while it was installed")
        error.again = AGAIN
        raise error
    urls = tuple(without_secrets(url) for url in one.file.urls)
    return InstalledFile(one.file.path, one.sha256.hex, proof, verified, stamp, urls)
