"""What is wanted of a ref of a hub, by what the hub said of it last, or just now.

Responsible for: what is to be asked, what is listed, and what of it was proven before. Leaves to others: asking
(`resolving`), keeping the answers (`store.resolved`), refs of any other kind (`ordering`).
"""

import math
from dataclasses import replace

from modelcache.errors import NotFoundError, VerificationError
from modelcache.model import Digest, Manifest, ModelFile
from modelcache.order import Order
from modelcache.refs import Ref
from modelcache.store.blobs import agrees
from modelcache.store.installed import InstalledFile
from modelcache.store.layout import Layout
from modelcache.store.resolved import Resolved
from modelcache.store.shelf import Shelf, is_same_ref
from modelcache.wish import Wish


def order_of_hub(shelf: Shelf, ref: Ref, wish: Wish, meaning: Manifest | None) -> Order:
    """Without a meaning, it is to be asked about. What is installed of the version is wanted as it was proven then."""
    called = "\0".join((ref.revision or ref.alias, ref.path, *wish.chosen))
    blank = Order(
        ref.base, ref.id, "", (), single=bool(ref.path), proof="listed", alias=ref.alias, called=called, pinned=True
    )
    if meaning is None:
        return replace(blank, asks=ref)
    listed = [_given(file, wish) for file in meaning.files if ref.path in ("", file.path)]
    if not listed:
        is_folder = any(file.path.startswith(ref.path + "/") for file in meaning.files)
        hint = f"it is a folder: name {replace(ref, path='').shown} --files '{ref.path}/*'" if is_folder else ""
        raise NotFoundError(f"{ref.base} has no file {ref.path}", next_step=hint or "check the name")
    record = shelf.at(ref.id, meaning.version)
    known = record.by_path() if record and is_same_ref(record, ref.base) else {}
    matched = [(file, known[file.path]) for file in listed if file.path in known]
    same = {file.path: entry for file, entry in matched if _is_same(shelf.layout, file, entry)}
    files = tuple(
        replace(file, digests=(Digest("sha256", same[file.path].sha256), *wish.digests)) if file.path in same else file
        for file in listed
    )
    return replace(blank, version=meaning.version, files=files, known=tuple(same.values()), meant=ref)


def _given(file: ModelFile, wish: Wish) -> ModelFile:
    """With what the user says of it as well. VerificationError where that is something else than what is listed."""
    listed, given = ({digest.algorithm: digest for digest in each} for each in (file.digests, wish.digests))
    if wish.size not in (None, file.size) or any(listed.get(name, digest) != digest for name, digest in given.items()):
        raise VerificationError(
            f"{file.path}: its hub lists another digest or size than the one that was given",
            next_step="check what you gave, and the revision",
        )
    return replace(file, digests=tuple((listed | given).values())) if given else file


def known_meaning(shelf: Shelf, ref: Ref, within_s: float) -> Manifest | None:
    """What the hub said lately. Where it may be ever so old, what is installed will do, and comes before what is not.

    Of a file that is known to be missing, its path is all that the record tells.
    """
    resolved = Resolved(shelf.layout)
    known = resolved.manifest(ref, within_s)
    if not math.isinf(within_s) or (known and shelf.at(ref.id, known.version)):
        return known
    return installed_meaning(shelf, ref) or known


def installed_meaning(shelf: Shelf, ref: Ref) -> Manifest | None:
    """What the version consists of that was fetched by this ref last; None where none is here."""
    record = shelf.named(ref)
    if record is None or not is_same_ref(record, ref.base):
        return None
    listed = Resolved(shelf.layout).manifest(replace(ref, version=record.version), math.inf)
    missing = tuple(ModelFile(path) for path in record.missing)
    return listed or Manifest(ref.id, record.version, ref.base, (*record.wanted(), *missing))


def without_unknown(order: Order) -> Order:
    """Without the files that belong to a model of a hub, and of which nobody here knows more. NotFoundError where none
    is left."""
    unknown = tuple(file.path for file in order.files if order.pinned and not file.urls and not file.digests)
    if unknown and len(unknown) == len(order.files):
        raise NotFoundError(f"{unknown[0]} of {order.ref} is not here", next_step="fetch it when its hub can be asked")
    return replace(order, files=tuple(file for file in order.files if file.path not in unknown), missing=unknown)


def pinned_here(shelf: Shelf, ref: Ref) -> str:
    """The ref of the very version that is here, which needs no hub; empty where none is here, or not all of it."""
    record = shelf.named(ref)
    if record is None or record.missing or not is_same_ref(record, ref.base):
        return ""
    return replace(ref, version=record.version, revision=record.version).shown


def _is_same(layout: Layout, file: ModelFile, entry: InstalledFile) -> bool:
    """Whether what is recorded of a file was proven to be the one that is listed; a rotten one has no size.

    Who made the record is not asked: a bundle, or another tool's cache, may call anything by the name of a commit.
    """
    size = file.size if entry.size < 0 else entry.size
    return agrees(layout, file, entry.sha256, -1 if size is None else size)
