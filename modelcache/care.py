"""Looks after what is installed, whichever root it is in: reading it, mending it, keeping
it, taking it away; and its logs.

Responsible for: what is shown and told meanwhile, and one report of it all. Leaves to others: what is wrong with a
file (`audit`), making it right (`mending`), what goes (`store.removal`, `cleaning`, `maintenance`).
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelcache.dispatch import Show
from modelcache.errors import ModelNotAvailableError, StoreError
from modelcache.events import Fact
from modelcache.order import Workshop
from modelcache.outcome import Audit
from modelcache.refs import Ref
from modelcache.roots import Held, Roots
from modelcache.rows import Report, joined
from modelcache.runtime import STOP_WITHIN_S
from modelcache.wish import Wish

if TYPE_CHECKING:
    import threading


def verify(chosen: Iterable[Held], *, strict: bool, progress: Show) -> Report:
    """Reads every byte of these models; one row a file."""
    from modelcache.audit import Manner, verify
    from modelcache.transfer.control import Control

    audits: list[Audit] = []
    with _gathered(progress, "Verify", models := list(chosen)) as show:
        for held in models:
            with _shown(show, held) as shop:
                audits += verify(shop, held[1], Control(), Manner(strict))
    return Report("verified files", tuple(audit.to_row() for audit in audits), notes=_lacking(models))


def repair(chosen: Iterable[Held], wish: Wish, progress: Show) -> Report:
    """Makes these models right again; one row a file that was wrong."""
    from modelcache.mending import repair

    rows: list[dict[str, object]] = []
    with _gathered(progress, "Repair", models := list(chosen)) as show:
        for held in models:
            with _shown(show, held) as shop:
                rows += repair(shop, held[1], wish)
    return Report("repaired files", tuple(rows), notes=_lacking(models))


def _lacking(models: Iterable[Held]) -> tuple[str, ...]:
    """What no repair brings, for it was never fetched: notes, with the fetch that does."""
    from modelcache.findings import incomplete

    return tuple(note for runtime, record in models for note in incomplete(runtime.shelf, [record]))


def clean(roots: Roots, *, dry_run: bool, foreign: bool, stop: "threading.Event | None") -> Report:
    """Every root. One that cannot be written to is left out, with a note; StoreError where that is all of them."""
    from modelcache.cleaning import clean

    cleaned: list[Report] = []
    refused: list[StoreError] = []
    for runtime in roots.readable():
        try:
            cleaned.append(clean(runtime.shop, runtime.state, dry_run=dry_run, foreign=foreign, stop=stop))
        except StoreError as error:
            refused.append(error)
    if not cleaned:
        raise refused[-1]
    whole = joined(cleaned)
    return replace(
        whole, title=cleaned[-1].title, notes=(*whole.notes, *(f"left out: {error.message}" for error in refused))
    )


def refresh(roots: Roots, models: Collection[str], stop: "threading.Event | None") -> Report:
    """Asks hubs again; one row a branch or tag."""
    import threading

    from modelcache.renewal import renewed

    stop = stop or threading.Event()
    rows = [row for runtime in roots.all() for row in renewed(runtime.shelf, runtime.shop, models, stop)]
    failed = sum(row["outcome"] == "failed" for row in rows)
    none = "no model here has any"
    return Report("what branches and tags mean", tuple(rows), hidden=("whole",), findings=failed, none=none)


def _gathered(progress: Show, what: str, chosen: Sequence[Held]) -> AbstractContextManager[Show]:
    from modelcache.progress.show import gathered

    ids = {record.id for _, record in chosen}
    return gathered(progress if ids else False, f"{what} {ids.pop() if len(ids) == 1 else f'{len(ids):,} models'}")


@contextmanager
def _shown(progress: Show, held: Held) -> Iterator[Workshop]:
    """The workshop, while the events of a model are shown."""
    from modelcache.progress.show import shown

    runtime, record = held
    with shown(progress, runtime.shop.dispatcher, record.id, {file.path: max(0, file.size) for file in record.files}):
        yield runtime.shop


def pin(roots: Roots, ref: Ref) -> Report:
    """Where the model is; where it is not yet, in the root that takes it, and whatever version comes. One row."""
    holder = roots.holder(ref)
    is_here = holder.shelf.record(ref) is not None
    runtime, version = holder if is_here else roots.writable(), _version_of(roots, ref)
    runtime.shelf.marks.pin(ref.id, version)
    return Report("pinned", ({"model": ref.id, "version": version, "here": is_here},))


def unpin(roots: Roots, ref: Ref) -> Report:
    """In every root; one row if it was pinned in any. What a ref of a hub pinned before it was here is the whole id."""
    version = _version_of(roots, ref)
    named = {version} if ref.version or ref.revision or not ref.scheme else {version, ""}
    was = {one for one in named for runtime in roots.all() if runtime.shelf.marks.unpin(ref.id, one)}
    rows = tuple({"model": ref.id, "version": one} for one in sorted(was))
    return Report("unpinned", rows, none="it was not pinned")


def _version_of(roots: Roots, ref: Ref) -> str:
    """The one that is meant: by a version, a tag or a branch, or by a ref of a hub that names none, if that is here.
    Empty for an id: all of them."""
    shelf = roots.holder(ref).shelf
    if ref.version or ref.revision:
        return shelf.present(ref).version
    record = shelf.record(ref) if ref.scheme else None
    return record.version if record else ""


def remove(roots: Roots, ref: Ref) -> Report:
    """Takes a version away, or all of an id, in the root that has them; one row each, with the bytes freed."""
    from modelcache.store.removal import remove

    runtime, rows = roots.holder(ref), list[dict[str, Any]]()
    records, shop = runtime.shelf.remains(ref), runtime.shop
    for record in records:
        size = remove(shop.layout, shop.registry, record)
        rows.append({"model": record.id, "version": record.version, "size": size, "path": record.folder})
        message = f"{record.id}@{record.version} is removed"
        shop.dispatcher.publish(Fact("removed", record.id, message, version=record.version, path=record.folder))
    shop.dispatcher.drain(STOP_WITHIN_S)
    left = [version for version in shop.registry.versions(ref.id) if version not in {row["version"] for row in rows}]
    stay = f"{len(left)} other version{' stays' if len(left) == 1 else 's stay'}"
    each = tuple(row | {"left": left} for row in rows)
    return Report("removed", each, hidden=("path", "left"), notes=(stay,) if left else ())


def reset(roots: Roots, model: str) -> Report:
    """Takes all of an id away, in every root; one row for each thing that was removed."""
    from modelcache.maintenance import reset

    rows: list[dict[str, Any]] = []
    for runtime in roots.all():
        try:
            records = runtime.shelf.remains(Ref(model))
        except ModelNotAvailableError:
            records = []
        rows += reset(runtime.shop, runtime.state, model, records)
        runtime.shop.dispatcher.drain(STOP_WITHIN_S)
    return Report(f"{model} is reset", tuple(rows))


def logs(roots: Roots, model: str) -> Report:
    """One row an event, oldest first: of one model, or of all where it is empty."""
    from modelcache.logbook import Logbook

    shelves = [runtime.shelf for runtime in roots.all()]
    books = [Logbook(runtime.shelf.layout.logs) for runtime in roots.all()]
    rows = [row for book in books for one in ([model] if model else book.models()) for row in book.read(one)]
    if model and not rows and not any(shelf.record(Ref(model)) for shelf in shelves):
        raise roots.own.shelf.unknown(Ref(model))
    return Report(f"log of {model or 'all models'}", tuple(sorted(rows, key=lambda row: str(row["timestamp"]))))
