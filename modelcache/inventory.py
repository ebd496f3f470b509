"""What is installed: where it is, and lists of it.

Responsible for: one row a model or a file, and why a model is not available. Leaves to others: finding a record
(`store.shelf`), doing something with what it names (`care`).
"""

import warnings
from typing import Any, get_args

from modelcache import catalog
from modelcache.errors import ModelCacheError, ModelNotAvailableError, Reason, UsageError
from modelcache.findings import completing
from modelcache.outcome import File, Model
from modelcache.refs import Ref, scheme_of_id
from modelcache.roots import Roots
from modelcache.rows import MOST_ROWS, MOST_TITLE, Report
from modelcache.runtime import Runtime
from modelcache.store.installed import Installed, InstalledFile, Proof
from modelcache.store.locks import is_held
from modelcache.store.shelf import Shelf
from modelcache.units import in_units

HIDDEN = ("languages", "default_version", "used_at", "verified_at", "proof")


def path_of(roots: Roots, ref: Ref) -> str:
    """Where a model or a file is, which stays for an hour. ModelNotAvailableError says why it is not."""
    part = _at_hand(roots, ref)
    return part.place(part.files[0]) if ref.path or ref.url else part.folder


def model_at(roots: Roots, ref: Ref) -> Model:
    """What is here of a model, as a fetch would give it. ModelNotAvailableError as of `path_of`."""
    record = _at_hand(roots, ref)
    files = tuple(_file(record, each) for each in record.files)
    return Model(record.ref, record.id, record.version, record.folder, files)


def _file(record: Installed, each: InstalledFile) -> File:
    place, version = record.place(each), record.version
    return File(place, each.path, each.size, each.sha256, "hit", each.verified, "cache", version=version)


def names(roots: Roots) -> list[str]:
    """What models here can be called by: their ids and refs."""
    return sorted({name for _, record in roots.models() for name in (record.id, record.ref)})


def _at_hand(roots: Roots, ref: Ref) -> Installed:
    """The record of a model, or as much of it as tells of one file."""
    runtime, record, part = _ready(roots, ref)
    shelf = runtime.shelf
    if not shelf.marks.used(record.id, record.version):  # somebody may be evicting it: see `hits`
        if is_held(shelf.layout.model_lock(record.id)):
            raise shelf.unknown(ref, "downloading")
        runtime, record, part = _ready(roots, ref)
    _warn_of_catalogs(runtime.shelf, ref, record)
    return part


def _ready(roots: Roots, ref: Ref) -> tuple[Runtime, Installed, Installed]:
    """The root that has it, its record, and as much of that as is asked for."""
    runtime = roots.holder(ref)
    record = runtime.shelf.record(ref)
    if record is None:
        raise runtime.shelf.unknown(ref, _why_not(runtime, ref.id))
    part = record.only(ref.path) if ref.path else record
    if not (part.files or part.missing):
        raise ModelNotAvailableError(record.id, record.version, "not_installed")
    is_ready = part.condition() == "right" if ref.path else runtime.shelf.status(record) == "ready"
    if not is_ready:
        raise _not_right(runtime.shelf, part)
    return runtime, record, part


def _not_right(shelf: Shelf, part: Installed) -> ModelNotAvailableError:
    """Why a model, or a file of one, that has a record is not available, and what helps."""
    if part.is_incomplete:
        return ModelNotAvailableError(part.id, part.version, "error", next_step=completing(shelf, part))
    is_distrusted = part.missing or any(file.is_distrusted for file in part.files)
    is_changed = part.condition() == "changed" and not is_distrusted
    return ModelNotAvailableError(part.id, part.version, "verifying" if is_changed else "error")


def _warn_of_catalogs(shelf: Shelf, ref: Ref, record: Installed) -> None:
    """What a name means, only its catalog says: where that is wrong, whoever uses a guess has to know."""
    if ref.version or ref.scheme or ref.url or scheme_of_id(record.id) or not Ref.of_hub(record.ref):
        return
    try:
        catalog.find(shelf.layout.catalogs, ref.id)
    except UsageError as error:
        text = f"{error.line()}; until then {ref.id} is {record.version[:12]}, as when it was fetched"
        warnings.warn(text, stacklevel=5)


def _why_not(runtime: Runtime, model_id: str) -> Reason:
    """Why a model without a record is not available."""
    mine = [one for one in runtime.running if one.order.id == model_id]
    if any(not one.has_ended for one in mine) or is_held(runtime.shelf.layout.model_lock(model_id)):
        return "downloading"
    return "error" if mine and mine[-1].state in ("paused", "failed") else "not_installed"


def models(roots: Roots) -> Report:
    """One row a version. StoreError where they cannot be listed and there is no fallback."""
    shelves: dict[str, Shelf] = {}
    rows = []
    for runtime, record in roots.models():
        if runtime.root not in shelves:
            shelves[runtime.root] = runtime.shelf.as_now()
        rows.append(_row_of(shelves[runtime.root], record))
    return Report("installed models", tuple(rows), hidden=HIDDEN)


def overview(roots: Roots) -> str:
    """What a notebook shows of a cache, as mark-up; a sentence where it cannot be read."""
    from modelcache.markup import framed, name

    try:
        report = models(roots)
        size = sum(row["size"] for row in report)
        count = "1 model" if len(report) == 1 else f"{len(report):,} models"
        told = f"<p>{count}, {in_units(size)}</p>{report.to_markup(MOST_ROWS)}"
    except ModelCacheError as error:
        told = f'<p class="bad">{name(error.line(), MOST_TITLE)}</p>'
    return framed(f'<h3>Model cache</h3><p class="soft">{name(roots.own.root, MOST_TITLE)}</p>{told}')


def _row_of(shelf: Shelf, record: Installed) -> dict[str, Any]:
    entry = shelf.entry(Ref(record.id))
    return {
        "model": record.id, "version": record.version, "files": len(record.files),
        "size": sum(max(0, file.size) for file in record.files), "status": shelf.status(record),
        "called": sorted(name for name, meant in shelf.registry.aliases(record.id).items() if meant == record.version),
        "pinned": shelf.marks.is_pinned(record.id, record.version), "task": entry.task if entry else "",
        "ref": record.ref, "languages": list(entry.languages) if entry else [],
        "default_version": entry.default_version if entry else "",
        "used_at": round(1000 * shelf.marks.last_used(record)) or None, "verified_at": _verified_at(record),
        "proof": max((file.proof for file in record.files), key=get_args(Proof).index, default=""),
    }  # fmt: skip


def _verified_at(record: Installed) -> int | None:
    """When all of it was right, as far as it is known: what was verified longest ago counts."""
    moments = [0 if file.is_distrusted else file.stamp.verified_at for file in record.files]
    return max(0, min(moments, default=0)) or None


def info(roots: Roots, ref: Ref) -> Report:
    """One row a file. Raises ModelNotAvailableError."""
    record = roots.holder(ref).shelf.present(ref)
    entry = roots.own.shelf.entry(Ref(record.id))
    told = [entry.task, ", ".join(entry.languages)] if entry else []
    title = "; ".join(filter(None, (f"{record.id}@{record.version} from {record.ref}, in {record.folder}", *told)))
    model = {
        "model": record.id, "version": record.version, "ref": record.ref,
        "status": roots.holder(ref).shelf.status(record),
    }  # fmt: skip
    rows = tuple(_file_row(record, file) | model for file in record.files)
    return Report(title, rows, hidden=("proof", "path", *model))


def _file_row(record: Installed, file: InstalledFile) -> dict[str, Any]:
    place = record.place(file)
    return {
        "file": file.path, "size": file.size, "sha256": file.sha256, "verified": file.verified, "proof": file.proof,
        "verified_at": file.stamp.verified_at, "condition": file.stamp.judge(place), "path": place,
    }  # fmt: skip
