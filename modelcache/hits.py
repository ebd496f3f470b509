"""Whether what is wanted is here already, and looks as it did when it was last verified.

Responsible for: the answer, at one stat a file: no byte is read; and that what it names is not evicted in that moment.
Leaves to others: what is wanted (`ordering`), reading what is here (`filefetch`), what goes (`eviction`).
"""

from modelcache.model import ModelFile
from modelcache.order import Order
from modelcache.outcome import UNVERIFIED, File, Model
from modelcache.store.blobs import agrees
from modelcache.store.installed import Installed, InstalledFile
from modelcache.store.layout import Layout
from modelcache.store.locks import is_held
from modelcache.store.shelf import Shelf, is_same_ref


def hit(order: Order, layout: Layout) -> Model | File | None:
    """Everything is in place and looks as it did when it was last verified: one stat a file, no hash."""
    if order.asks or order.strict or not order.version or (order.output and order.single):
        return None
    folder = order.output or layout.model(order.id, order.version)
    record = Installed.read(folder)
    if record is None or record.version != order.version or not is_same_ref(record, order.ref):
        return None
    if record.missing and not order.pinned:
        return None
    entries, files = record.by_path(), []
    for wanted in order.files:
        file = _as_verified(order, wanted, record, entries.get(wanted.path), layout)
        if file is None:
            return None
        files.append(file)
    if order.single:
        return files[0]
    return Model(order.ref, order.id, order.version, folder, tuple(files), order.lacking, order.missing)


def kept_hit(order: Order, shelf: Shelf) -> Model | File | None:
    """The same, which stays for an hour. None also where somebody may be evicting it: whoever does so holds the lock of
    the model, and has taken its mark away."""
    here = hit(order, shelf.layout)
    if here is None or not order.cached or shelf.marks.used(order.id, here.version):
        return here
    return None if is_held(shelf.layout.model_lock(order.id)) else hit(order, shelf.layout)


def _as_verified(
    order: Order, wanted: ModelFile, record: Installed, entry: InstalledFile | None, layout: Layout
) -> File | None:
    """One file, if it is what is wanted, vouched for as it was, and untouched since."""
    if entry is None or not agrees(layout, wanted, entry.sha256, entry.size):
        return None
    verified = order.vouched(wanted)[1] if wanted.digests else entry.verified
    if verified != entry.verified == UNVERIFIED or (verified == UNVERIFIED and order.require_digest):
        return None  # somebody vouches for it now: to be recorded; or nobody does, which is to be said
    place = record.place(entry)
    if entry.stamp.judge(place) != "right":
        return None
    return File(place, entry.path, entry.size, entry.sha256, "hit", verified, "cache", version=order.version)
