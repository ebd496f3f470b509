"""Turns what a user says into an `Order`.

Responsible for: URLs, refs of hubs, manifests and ids of installed models, what is known of their digests, which files
are chosen, mirrors and outputs; and whether all of it is here already. Leaves to others: fetching (`download`),
asking hubs (`resolving`), settings (`wiring`). Nothing here writes, or asks the network.
"""

import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from modelcache import catalog
from modelcache.errors import ModelNotAvailableError, NotFoundError, UsageError, VerificationError
from modelcache.model import Digest, Manifest, ModelFile, version_of
from modelcache.names import file_name_of
from modelcache.order import Order
from modelcache.outcome import UNVERIFIED, File, Model
from modelcache.refs import Ref
from modelcache.settings import Settings
from modelcache.store.blobs import agrees, find
from modelcache.store.installed import NEVER, Installed, InstalledFile
from modelcache.store.layout import Layout
from modelcache.store.resolved import Resolved
from modelcache.store.shelf import Shelf, is_same_ref
from modelcache.urls import checked_url

MOST_NAMED = 10
URL_ID = "url--"  # how the id of a URL begins


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user says about a ref, checked as far as it can be without the ref. `headers` may hold secrets."""

    digests: tuple[Digest, ...] = ()
    size: int | None = None
    output: str | None = None
    mirrors: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    cached: bool = True
    strict: bool = False
    require_digest: bool = False
    prefer: str = ""
    chosen: tuple[str, ...] = ()  # patterns of file names; none: all

    def __post_init__(self) -> None:
        if self.prefer:
            Settings(prefer=self.prefer)  # UsageError for none of the kinds
        if self.size is not None and not 0 <= self.size < 2**63:
            raise UsageError(f"size {self.size} is not a number of bytes")
        for mirror in self.mirrors:
            checked_url(mirror)
        for name, value in self.headers.items():
            if not (isinstance(name, str) and isinstance(value, str)):
                raise UsageError(f"header {name!r}: its name and its value must be text")


def digests_of(sha256: str | None, checksum: str | None) -> tuple[Digest, ...]:
    """UsageError for what is malformed, and for two of one kind that differ."""
    given = [Digest.parse(sha256, "sha256")] if sha256 is not None else []
    given += [Digest.parse(checksum)] if checksum is not None else []
    distinct = tuple(dict.fromkeys(given))
    if len({digest.algorithm for digest in distinct}) < len(distinct):
        raise UsageError("sha256 and checksum contradict each other")
    return distinct


def _for_ever(_ref: Ref) -> float:
    return math.inf


def chosen_of(files: Iterable[str] | str) -> tuple[str, ...]:
    """Patterns of file names; UsageError for what is none."""
    patterns = (files,) if isinstance(files, str) else tuple(files)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise UsageError(f"{pattern!r} is no pattern of file names")
    return patterns


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
    if isinstance(ref, Manifest):
        if wish.digests or wish.size is not None:
            raise UsageError("a manifest brings its own digests and sizes")
        order = _order_of_manifest(shelf, ref)
    elif (parsed := Ref.parse(ref)).url:
        order = _order_of_url(shelf, parsed, wish)
    elif parsed.scheme and (parsed.path or not (wish.digests or wish.size is not None)):
        order = _order_of_hub(shelf, parsed, wish, meaning or known_meaning(shelf, parsed, fresh_s(parsed)))
    elif wish.digests or wish.size is not None:
        raise UsageError("a digest or size goes with one file, not with a model")
    elif entry := catalog.find(shelf.layout.catalogs, parsed.id):
        order = _order_of_entry(shelf, entry, parsed, wish, meaning, fresh_s)
    else:
        order = _order_of_id(shelf, parsed)
    files = order.files if order.asks else _chosen(order, wish.chosen)
    return replace(
        order,
        files=mirrored(files, wish.mirrors, is_url=order.id.startswith(URL_ID)),
        headers=wish.headers,
        output=_output(shelf.layout.root, wish, order.single),
        cached=wish.cached,
        strict=wish.strict,
        require_digest=wish.require_digest,
        prefer=wish.prefer,
    )


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


def _order_of_hub(shelf: Shelf, ref: Ref, wish: Wish, meaning: Manifest | None) -> Order:
    """Without a meaning, it is to be asked about. What is installed of the version is wanted as it was proven then."""
    called = "\0".join((ref.revision or ref.alias, ref.path, *wish.chosen))
    blank = Order(
        ref.base, ref.id, "", (), single=bool(ref.path), proof="listed", alias=ref.alias, called=called, pinned=True
    )
    if meaning is None:
        return replace(blank, asks=ref)
    listed = [_given(file, wish) for file in meaning.files if ref.path in ("", file.path)]
    if not listed:
        raise NotFoundError(f"{ref.base} has no file {ref.path}", next_step="check the name")
    record = shelf.at(ref.id, meaning.version)
    known = record.by_path() if record and is_same_ref(record, ref.base) else {}
    matched = [(file, known[file.path]) for file in listed if file.path in known]
    same = {file.path: entry for file, entry in matched if _is_same(shelf.layout, file, entry)}
    files = tuple(
        replace(file, digests=(Digest("sha256", same[file.path].sha256), *wish.digests)) if file.path in same else file
        for file in listed
    )
    return replace(blank, version=meaning.version, files=files, known=tuple(same.values()))


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
    """What the hub said lately. Where it may be ever so old, what is installed will do."""
    known = Resolved(shelf.layout).manifest(ref, within_s)
    if known is None and math.isinf(within_s) and (record := shelf.named(ref)) and not record.missing:
        return Manifest(ref.id, record.version, ref.base, _files_of(record)) if is_same_ref(record, ref.base) else None
    return known


def _files_of(record: Installed) -> tuple[ModelFile, ...]:
    return tuple(
        ModelFile(file.path, file.size if file.size >= 0 else None, (Digest("sha256", file.sha256),), file.urls)
        for file in record.files
    )


def _is_same(layout: Layout, file: ModelFile, entry: InstalledFile) -> bool:
    """Whether what is recorded of a file was proven to be the one that is listed; a rotten one has no size.

    Who made the record is not asked: a bundle, or another tool's cache, may call anything by the name of a commit.
    """
    size = file.size if entry.size < 0 else entry.size
    return agrees(layout, file, entry.sha256, -1 if size is None else size)


def _chosen(order: Order, patterns: tuple[str, ...]) -> tuple[ModelFile, ...]:
    """The files that one of the patterns fits (`*` also stands for a `/`, a folder for what is in it)."""
    if not patterns:
        return order.files
    if order.single:
        raise UsageError("files are chosen of a model; this is one file")
    fitting = {pattern: _fitting(order, pattern) for pattern in patterns}
    if vain := [pattern for pattern, paths in fitting.items() if not paths]:
        raise NotFoundError(f"{order.ref} has no file {vain[0]}", next_step="check the name")
    return tuple(file for file in order.files if any(file.path in paths for paths in fitting.values()))


def _fitting(order: Order, pattern: str) -> set[str]:
    return {file.path for file in order.files if fnmatchcase(file.path, pattern + "*" * pattern.endswith("/"))}


def _order_of_entry(
    shelf: Shelf,
    entry: catalog.Entry,
    asked: Ref,
    wish: Wish,
    meaning: Manifest | None,
    fresh_s: Callable[[Ref], float],
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
        raise NotFoundError(f"{entry.id} has no version {label}", next_step=hint)
    order = _order_of_hub(shelf, ref, wish, meaning or known_meaning(shelf, ref, fresh_s(ref)))
    order = replace(order, alias=label if label in entry.versions and label else order.alias, is_listed=True)
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
        version = record.version if record else ref.version or None
        error = ModelNotAvailableError(ref.id, version, "error" if record else "not_installed")
        names = ", ".join(catalog.ids(shelf.layout.catalogs)[:MOST_NAMED])
        error.next_step = f"fetch it by its URL, or with --manifest; by name there are {names}"
        raise error
    return Order(record.ref, record.id, record.version, _files_of(record), single=False, known=record.files)


def mirrored(files: tuple[ModelFile, ...], mirrors: Sequence[str], *, is_url: bool) -> tuple[ModelFile, ...]:
    """With more sources: the mirror of a URL is another URL of that file, that of a model a folder with its files."""
    if not mirrors:
        return files
    from urllib.parse import quote

    def urls_of(path: str) -> tuple[str, ...]:
        return tuple(mirrors if is_url else (f"{mirror.rstrip('/')}/{quote(path)}" for mirror in mirrors))

    return tuple(replace(file, urls=(*file.urls, *urls_of(file.path))) for file in files)


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
    entries = {entry.path: entry for entry in record.files}
    files = []
    for wanted in order.files:
        entry = entries.get(wanted.path)
        if entry is None or not agrees(layout, wanted, entry.sha256, entry.size):
            return None
        verified = order.vouched(wanted)[1] if wanted.digests else entry.verified
        if verified != entry.verified == UNVERIFIED or (verified == UNVERIFIED and order.require_digest):
            return None  # somebody vouches for it now: to be recorded; or nobody does, which is to be said
        place = record.place(entry)
        if entry.stamp.judge(place) != "right":
            return None
        files.append(File(place, entry.path, entry.size, entry.sha256, "hit", verified, "cache", version=order.version))
    return files[0] if order.single else Model(order.ref, order.id, order.version, folder, tuple(files), order.lacking)


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
