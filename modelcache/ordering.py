"""Turns what a user says into an `Order`.

Responsible for: URLs, names of catalogs, manifests and ids of installed models, what is known of their digests, which
files are chosen, mirrors and outputs. Leaves to others: refs of hubs (`hubs`), whether all of it is here (`hits`),
fetching (`download`). Nothing here writes, or asks the network.
"""

import math
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase

from modelcache import catalog
from modelcache.errors import ModelNotAvailableError, NotFoundError, UsageError
from modelcache.hubs import known_meaning, order_of_hub, without_unknown
from modelcache.model import Digest, Manifest, ModelFile, version_of
from modelcache.names import file_name_of
from modelcache.order import Order
from modelcache.outcome import UNVERIFIED
from modelcache.refs import Ref
from modelcache.store.blobs import find
from modelcache.store.installed import NEVER, InstalledFile
from modelcache.store.layout import Layout
from modelcache.store.shelf import Shelf, is_same_ref
from modelcache.wish import Wish

MOST_NAMED = 10
URL_ID = "url--"  # how the id of a URL begins


def _for_ever(_ref: Ref) -> float:
    return math.inf


def order_of(
    shelf: Shelf,
    ref: str | Manifest,
    wish: Wish,
    meaning: Manifest | None = None,
    fresh_s: Callable[[Ref], float] = _for_ever,
) -> Order:
    """Raises UsageError, ModelNotAvailableError for an id that is not installed, or NotFoundError for a file that a
    model does not have.

    Of a ref of a hub: `meaning` is what it has just said; else what it said in the last `fresh_s` seconds counts.
    """

    def meaning_of(ref: Ref) -> Manifest | None:
        return meaning or known_meaning(shelf, ref, fresh_s(ref))

    if isinstance(ref, Manifest):
        if wish.digests or wish.size is not None:
            raise UsageError("a manifest brings its own digests and sizes")
        order = _order_of_manifest(shelf, ref)
    elif (parsed := _parsed(shelf, ref)).url:
        order = _order_of_url(shelf, parsed, wish)
    elif parsed.scheme and (parsed.path or not (wish.digests or wish.size is not None)):
        order = order_of_hub(shelf, parsed, wish, meaning_of(parsed))
    elif wish.digests or wish.size is not None:
        raise UsageError("a digest or size goes with one file, not with a model")
    elif entry := catalog.find(shelf.layout.catalogs, parsed.id):
        order = _order_of_entry(shelf, entry, parsed, wish, meaning_of)
    else:
        order = _order_of_id(shelf, parsed)
    order = order if order.asks else without_unknown(replace(order, files=_chosen(order, wish.chosen)))
    return replace(
        order,
        files=mirrored(order.files, wish.mirrors, is_url=order.id.startswith(URL_ID)),
        headers=wish.headers,
        output=_output(shelf.layout.root, wish, order.single),
        cached=wish.cached,
        strict=wish.strict,
        require_digest=wish.require_digest,
        prefer=wish.prefer,
    )


def _parsed(shelf: Shelf, text: str) -> Ref:
    """UsageError; of one file of a model with a short name it says how that is asked for."""
    try:
        return Ref.parse(text)
    except UsageError as error:
        name, _, path = text.partition("/")
        with suppress(UsageError):
            if path and name in {*shelf.registry.ids(), *catalog.ids(shelf.layout.catalogs)}:
                error.next_step = f"files of it are chosen with --files: `{name} --files {path}`"
        raise


def _order_of_url(shelf: Shelf, ref: Ref, wish: Wish) -> Order:
    known = () if wish.digests else _known(shelf, ref)
    digests = wish.digests or tuple(Digest("sha256", entry.sha256) for entry in known)
    file = ModelFile(file_name_of(ref.url), wish.size, digests, (ref.url,))
    sha256 = file.digest() or (find(shelf.layout, file) if digests else None)
    version = sha256.hex[:12] if sha256 else ""
    return Order(ref.shown, ref.id, version, (file,), single=True, known=known)


def _known(shelf: Shelf, ref: Ref) -> tuple[InstalledFile, ...]:
    """What the file was last time: it has to be the same now, whoever vouched for it then."""
    record = shelf.record(ref)
    if record and len(record.files) == 1:
        return record.files
    first_use = shelf.registry.first_use(ref.id)
    return (InstalledFile(file_name_of(ref.url), first_use, "first_use", UNVERIFIED, NEVER),) if first_use else ()


def _chosen(order: Order, patterns: tuple[str, ...]) -> tuple[ModelFile, ...]:
    """The files that one of the patterns fits (`*` also stands for a `/`, a folder for what is in it)."""
    if not patterns:
        return order.files
    if order.single:
        raise UsageError("files are chosen of a model; this is one file")
    fitting = {pattern: _fitting(order, pattern) for pattern in patterns}
    if vain := [pattern for pattern, paths in fitting.items() if not paths]:
        more = f" and {len(vain) - MOST_NAMED:,} more" if len(vain) > MOST_NAMED else ""
        raise NotFoundError(f"{order.ref} has no file {', '.join(vain[:MOST_NAMED])}{more}", next_step="check the name")
    return tuple(file for file in order.files if any(file.path in paths for paths in fitting.values()))


def _fitting(order: Order, pattern: str) -> set[str]:
    return {file.path for file in order.files if fnmatchcase(file.path, pattern + "*" * pattern.endswith("/"))}


def _order_of_entry(
    shelf: Shelf, entry: catalog.Entry, asked: Ref, wish: Wish, meaning_of: Callable[[Ref], Manifest | None]
) -> Order:
    """Of a catalog: without a version its default, else the newest that is here."""
    label = asked.version or entry.default_version
    if not label and "" not in entry.versions and (here := shelf.record(asked)) and not here.missing:
        return _order_of_id(shelf, asked)
    label = label or entry.latest
    ref = entry.ref_of(label)
    if ref is None:
        if shelf.at(entry.id, label):
            return _order_of_id(shelf, asked)
        versions = ", ".join(filter(None, entry.versions))
        hint = f"its catalog has {versions}" if versions else "its catalog has one: leave it out, or name a commit"
        if whole := shelf.whole(asked):
            hint = f"name the whole version: {whole}"
        raise NotFoundError(f"{entry.id} has no version {label}", next_step=hint)
    order = order_of_hub(shelf, ref, wish, meaning_of(ref))
    alias = label if label in entry.versions and label else order.alias
    is_aside = entry.default_label not in (None, label)
    return _selected(replace(order, alias=alias, is_listed=True, is_aside=is_aside), entry)


def _selected(order: Order, entry: catalog.Entry) -> Order:
    """Of the files of a hub those that the catalog names, with what it says of them."""
    if order.asks or not entry.files:
        return replace(order, files=tuple(map(entry.hinted, order.files)))
    lacking = tuple(pattern for pattern in entry.optional if not _fitting(order, pattern))
    wanted = _chosen(order, (*entry.files, *(each for each in entry.optional if each not in lacking)))
    return replace(order, files=tuple(map(entry.hinted, wanted)), lacking=lacking)


def _order_of_manifest(shelf: Shelf, manifest: Manifest) -> Order:
    ref = manifest.ref or manifest.id
    known = _known_by_path(shelf, manifest, ref)
    files = tuple(
        replace(file, digests=(Digest("sha256", entry.sha256),)) if (entry := known.get(file.path)) else file
        for file in manifest.files
    )
    version = manifest.version or _version_of(shelf.layout, files)
    return Order(ref, manifest.id, version, files, single=False, proof="listed", known=tuple(known.values()))


def _known_by_path(shelf: Shelf, manifest: Manifest, ref: str) -> dict[str, InstalledFile]:
    """What the files that nothing is listed for were last time, in this version: they have to be the same now."""
    bare = {file.path for file in manifest.files if not file.digests and not file.pieces}
    record = shelf.record(Ref(manifest.id, manifest.version)) if bare else None
    if record is None or not is_same_ref(record, ref):
        return {}
    return {entry.path: entry for entry in record.files if entry.path in bare}


def _version_of(layout: Layout, files: tuple[ModelFile, ...]) -> str:
    """The version that the bytes tell; empty if the SHA-256 of a file is not known."""
    digests = {file.path: digest.hex for file in files if (digest := file.digest() or find(layout, file))}
    return version_of(digests) if len(digests) == len(files) else ""


def _order_of_id(shelf: Shelf, ref: Ref) -> Order:
    """A model that is installed: its record tells the digests and where the files came from."""
    record = shelf.record(ref)
    if record is None or record.missing:
        names = ", ".join(catalog.ids(shelf.layout.catalogs)[:MOST_NAMED])
        usual = f"fetch it by its URL, or with --manifest; by name there are {names}"
        if record is None:
            raise shelf.unknown(ref, next_step=usual)
        raise ModelNotAvailableError(ref.id, record.version, "error", next_step=usual)
    return Order(record.ref, record.id, record.version, record.wanted(), single=False, known=record.files)


def mirrored(files: tuple[ModelFile, ...], mirrors: Sequence[str], *, is_url: bool) -> tuple[ModelFile, ...]:
    """With more sources: the mirror of a URL is another URL of that file, that of a model a folder with its files."""
    if not mirrors:
        return files
    from urllib.parse import quote

    def urls_of(path: str) -> tuple[str, ...]:
        return tuple(mirrors if is_url else (f"{mirror.rstrip('/')}/{quote(path)}" for mirror in mirrors))

    return tuple(replace(file, urls=(*file.urls, *urls_of(file.path))) for file in files)


def _output(root: str, wish: Wish, single: bool) -> str:
    """The absolute place, checked before anything is fetched."""
    if wish.output is None:
        if not wish.cached:
            raise UsageError("without the cache an output is needed: pass --output")
        return ""
    place = os.path.abspath(os.path.expanduser(wish.output))
    if not wish.output or (single and wish.output.endswith(os.sep)):
        raise UsageError(f"{wish.output!r} is a folder; the output of one file is a file")
    real, inside = _real(place, single), os.path.realpath(root)
    if os.path.commonpath((inside, real)) == inside:
        raise UsageError(f"{place} is inside the cache; the output goes elsewhere")
    if fault := _fault_of(place, single):
        raise UsageError(f"{place} is {fault}")
    return place


def _real(place: str, single: bool) -> str:
    """Where bytes would really go: a file replaces a link, a folder is filled through it."""
    if not single:
        return os.path.realpath(place)
    folder, name = os.path.split(place)
    return os.path.join(os.path.realpath(folder), name)


def _fault_of(place: str, single: bool) -> str:
    """Why it cannot be replaced by a file, or filled as a folder; empty if it can."""
    try:
        there = os.stat(place)
    except OSError:
        return "" if single or not os.path.lexists(place) else "a link that leads nowhere; the output is a folder"
    if not single:
        return "" if stat.S_ISDIR(there.st_mode) else "a file; the output of a model is a folder"
    if stat.S_ISDIR(there.st_mode):
        return "" if os.path.islink(place) else "a folder; the output of one file is a file"
    return "" if stat.S_ISREG(there.st_mode) else "a device or a pipe, which is not to be replaced by a file"
