"""Brings what other tools have downloaded into the store, as the models that a fetch would have made of it.

Responsible for: one version at a time: proving its files where they are, naming them, and keeping what its hub said.
Nothing is asked for over the network, and nothing is changed where the files are.
Leaves to others: what a tool's folders mean (`foreign`), proving (`filefetch`), names and records (`install`).
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from modelcache.dispatch import Show
from modelcache.errors import LockedError, NotFoundError, StoreError, UsageError, VerificationError, told
from modelcache.events import Fact, FactType
from modelcache.filefetch import FileFetch
from modelcache.foreign.hubcache import HubCache
from modelcache.foreign.root import Root
from modelcache.foreign.tier import Abandoned, Found, Left, Tier
from modelcache.install import install
from modelcache.model import ModelFile, Span
from modelcache.order import Order, Workshop
from modelcache.progress.show import gathered, shown
from modelcache.refs import Ref
from modelcache.rows import Report
from modelcache.sampling import Sampler
from modelcache.settings import HUGGING_FACE, OLLAMA
from modelcache.store.gate import await_sweep
from modelcache.store.locks import Patience, Subject, locked
from modelcache.store.resolved import Resolved
from modelcache.store.shelf import Shelf
from modelcache.task import Task
from modelcache.transfer.control import Control
from modelcache.wiring import tier_of

DRAIN_S = 1.0
_SOURCES = "name hf, ollama, a folder with models--org--name in it, one of those, or a store of Ollama"
_OWNERS = {HUGGING_FACE: "Hugging Face", OLLAMA: "Ollama"}
Outcome = Literal["taken", "here", "wrong", "left", "absent"]


@dataclass(frozen=True, slots=True)
class _Places:
    """A tier of exactly these files."""

    found: Found
    name: str = ""
    kind: str = "adopted"

    def find(self, file: ModelFile) -> str | None:
        return self.found.places.get(file.path)

    def models(self) -> Iterator[Found | Left]:
        yield self.found

    def abandoned(self) -> Iterator[Abandoned]:
        yield from ()

    def begun(self, _file: ModelFile) -> tuple[str, list[Span]] | None:
        return None


def tier_at(source: str) -> Tier:
    """What `source` calls: hf, ollama, a folder of theirs, or one repository. UsageError for a root of modelcache, a
    ref, or a folder of something else; NotFoundError where there is no cache of hf or ollama; StoreError."""
    tier = tier_of(source)
    if not os.path.isdir(tier.name) and re.match("[a-z]+:", source):
        raise UsageError(f"{Ref.parse(source).shown} is no folder", next_step=_SOURCES)
    if not os.path.isdir(tier.name) and (owner := _OWNERS.get(source)):
        raise NotFoundError(f"there is no cache of {owner} at {tier.name}", next_step="name its folder")
    if not os.path.isdir(tier.name):
        raise StoreError(f"{tier.name} is no folder", next_step="name the folder of the other tool's cache")
    if isinstance(tier, Root):
        raise UsageError(f"{tier.name} is a root of modelcache", next_step="name it in the setting tiers")
    if isinstance(tier, HubCache) and source != HUGGING_FACE and tier.is_empty:
        raise UsageError(f"{tier.name} is no cache of another tool", next_step=_SOURCES)
    return tier


def adopt(shop: Workshop, shelf: Shelf, tier: Tier, progress: Show) -> Report:
    """One row a file: taken, here (already), wrong (its bytes are not what its name says), left (it cannot be used),
    absent (it belongs to the model and is not there: a fetch brings it), with the reason.

    Raises StoreError; what was adopted by then stays.
    """
    rows: list[dict[str, Any]] = []
    with gathered(progress, f"Adopt from {tier.name}") as show:
        for found in tier.models():
            if isinstance(found, Left):
                rows.append(_row("", "", found.name, "left", found.reason))
            else:
                rows += _Adoption(shop, shelf, found).rows(show)
        shop.dispatcher.drain(DRAIN_S)
    return Report(f"adopted from {tier.name}", tuple(rows), hidden=("path",))


class _Adoption:
    """Of one version."""

    def __init__(self, shop: Workshop, shelf: Shelf, found: Found) -> None:
        self._shop = replace(shop, tiers=(_Places(found),))
        self._shelf = shelf
        self._found = found
        ref = found.ref
        self._order = Order(ref.base, ref.id, ref.version, found.files, single=False, proof="listed", pinned=True)
        self._complaint = ""

    def rows(self, progress: Show) -> list[dict[str, Any]]:
        found, order = self._found, self._order
        try:
            self._shelf.check_ref(order.id, order.ref)
            with locked(self._shop.layout.model_lock(order.id), Subject(order.id, order.version), Patience(0.0)):
                rows = self._taken(progress)
        except (UsageError, LockedError) as error:
            return [self._row("", "left", error.message)]
        rows += [self._row(left.name, "left", left.reason) for left in found.left]
        known = {row["file"] for row in rows}
        absent = [file for file in found.whole.files if file.path not in known] if found.whole else []
        return rows + [self._row(file.path, "absent", "a fetch brings it", file.size or 0) for file in absent]

    def _taken(self, progress: Show) -> list[dict[str, Any]]:
        """The caller holds the lock of the model."""
        order, shop = self._order, self._shop
        await_sweep(shop.layout, Patience(shop.settings.lock_timeout))
        looks = self._looks(progress)
        shop.sharing.write()
        if fetched := [task.done for task, _ in looks if task.done]:
            install(replace(order, files=self._belonging()), shop, fetched, self._tell)
            self._keep()
        return [row for _, row in looks]

    def _belonging(self) -> tuple[ModelFile, ...]:
        """What belonged to the version there, what could not be taken, too: that is missing until a fetch brings it.

        Files that its hub does not list no fetch would bring.
        """
        gone = [ModelFile(path) for path in self._found.gone]
        whole = self._found.whole
        listed = {file.path for file in whole.files} if whole else None
        return tuple(file for file in (*self._order.files, *gone) if listed is None or file.path in listed)

    def _looks(self, progress: Show) -> list[tuple[Task, dict[str, Any]]]:
        """Reads every file, and says how far it is."""
        order, dispatcher = self._order, self._shop.dispatcher
        sizes = {file.path: file.size for file in order.files}
        looks = []
        with shown(progress, dispatcher, order.id, sizes), Sampler(dispatcher, order.id, len(sizes)) as sampler:
            for file in order.files:
                fetch, task = FileFetch(order, file, self._shop, Control(), self._note), Task(file)
                task.begin(fetch)
                task.hear("verifying")
                sampler.follow(task)
                row = self._look(fetch, task)
                sampler.end(task)
                looks.append((task, row))
        return looks

    def _look(self, fetch: FileFetch, task: Task) -> dict[str, Any]:
        self._complaint = ""
        try:
            found = fetch.look()
            task.end(found, None if found else VerificationError(self._complaint))
        except VerificationError as error:
            task.end(None, error)
        if task.done is None:
            return self._row(task.file.path, "wrong", told(task.error), task.file.size or 0)
        if fetch.taken is None:
            return self._row(task.file.path, "here", "", task.done.size)
        return self._row(task.file.path, "taken", "", task.done.size, copied=fetch.taken.is_copy)

    def _keep(self) -> None:
        """What the hub said: which files belong to the commit, and which tags and branches meant it, unless something
        newer is known of those."""
        found, resolved = self._found, Resolved(self._shop.layout)
        if found.whole:
            resolved.save(found.ref, found.whole)
        refs = {alias: replace(found.ref, version="", revision=alias) for alias in found.aliases}
        newest = [alias for alias, at in found.aliases.items() if at >= resolved.said_at(refs[alias])]
        self._shop.registry.aliased(found.ref.id, newest, found.ref.version)
        for alias in newest if found.whole else ():
            assert found.whole is not None
            resolved.save(refs[alias], found.whole, found.aliases[alias])

    def _row(self, file: str, outcome: Outcome, reason: str, size: int = 0, *, copied: bool = False) -> dict[str, Any]:
        folder = self._shop.layout.model(self._order.id, self._order.version)
        return _row(self._order.id, self._order.version, file, outcome, reason, size, copied=copied, path=folder)

    def _note(self, kind: FactType, message: str, source: str) -> None:
        if kind == "source_failed":
            self._complaint = message
        self._shop.dispatcher.publish(Fact(kind, self._order.id, message, source=source))

    def _tell(self, kind: FactType, message: str, *, path: str, version: str) -> None:
        self._shop.dispatcher.publish(Fact(kind, self._order.id, message, version=version, path=path))


def _row(
    model: str,
    version: str,
    file: str,
    outcome: Outcome,
    reason: str,
    size: int = 0,
    *,
    copied: bool = False,
    path: str = "",
) -> dict[str, Any]:
    return {
        "model": model, "version": version, "file": file, "size": size, "outcome": outcome, "copied": copied,
        "reason": reason, "path": path,
    }  # fmt: skip
