"""What is installed, by what users call it.

Responsible for: finding the record that a ref means, also where the registry has forgotten it.
Leaves to others: whether its files are still what they were (`Installed.condition`).
"""

import os
import re
from contextlib import suppress
from dataclasses import replace
from typing import Self

from modelcache.catalog import Entry, find, ids
from modelcache.errors import ModelNotAvailableError, Reason, UsageError
from modelcache.names import checked_path
from modelcache.refs import Ref
from modelcache.store.disk import disk_errors
from modelcache.store.installed import Installed
from modelcache.store.layout import Layout
from modelcache.store.marks import Marks
from modelcache.store.registry import Registry, installed_under, versions_under
from modelcache.urls import identity_of

LIKENESS = 0.8  # of 1
_BEGINNING = re.compile("[0-9a-f]{7,63}")  # as git shows commits


class Shelf:
    """The models of one store."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.marks = Marks(layout)
        self.registry = Registry(layout.registry, layout.models, layout.lock("registry"))

    def as_now(self) -> Self:
        """One that is asked of many models: its registry is read once."""
        seen = type(self)(self.layout)
        seen.registry = self.registry.as_now()
        return seen

    def record(self, ref: Ref) -> Installed | None:
        """The record of the version that is named, by itself or by a tag or branch; else of the default one.

        Of a hub, that is what its default branch or tag meant; another version only where nobody knows of any branch.
        """
        named = self.named(ref)
        if named or ref.version or ref.revision or (ref.alias and self.registry.aliases(ref.id)):
            return named
        default = self.registry.default(ref.id)
        found = self.at(ref.id, default) if default else None
        if found is None:  # a kill came between record and registry, or the registry tells of what is gone
            found = next(reversed([*versions_under(self.layout.models, ref.id)]), None)
        return found

    def named(self, ref: Ref) -> Installed | None:
        """The record of just that version, tag or branch; where none is named, the default one of a hub or catalog."""
        entry = self.entry(ref)
        name = ref.version or ref.alias or (entry.default_version if entry else "")
        if not name:
            return None
        if ref.scheme and ref.version:
            return self.at(ref.id, name)  # a commit or a digest means itself, whatever calls itself so
        pinned = entry.ref_of(name) if entry else None
        version = pinned.version if pinned and pinned.version else self.registry.aliases(ref.id).get(name)
        return self.at(ref.id, name) or (self.at(ref.id, version) if version else None)

    def entry(self, ref: Ref) -> Entry | None:
        """What a catalog says of a bare id. One that is wrong says so to whoever fetches, and to nobody else."""
        with suppress(UsageError):
            return None if ref.scheme or ref.url else find(self.layout.catalogs, ref.id)
        return None

    def at(self, model_id: str, version: str) -> Installed | None:
        try:
            record = Installed.read(self.layout.model(model_id, version))
        except UsageError:  # the registry is no more to be believed than any file
            return None
        return record if record and (record.id, record.version) == (model_id, version) else None

    def present(self, ref: Ref) -> Installed:
        """Raises ModelNotAvailableError."""
        record = self.record(ref)
        if record is None:
            raise self.unknown(ref)
        return record

    def unknown(self, ref: Ref, reason: Reason = "not_installed", next_step: str = "") -> ModelNotAvailableError:
        """What to say of a ref without a record, and what may have been meant."""
        error = ModelNotAvailableError(ref.id, ref.version or ref.alias or None, reason, next_step=next_step)
        if whole := self.whole(ref):
            error.next_step = f"name the whole version: {whole}"
        elif ref.scheme and reason == "not_installed" and not next_step:
            error.next_step = f"run `modelcache fetch {ref.shown}`"
        elif near := self._near(ref):
            error.next_step = f"did you mean {near}? Else {error.next_step}"
        return error

    def whole(self, ref: Ref) -> str:
        """The ref of a version that is here and begins like the one that is named; empty where not just one does."""
        named = ref.version or ref.revision
        if not _BEGINNING.fullmatch(named):
            return ""
        found = [each for each in self.registry.versions(ref.id) if each.startswith(named)]
        return replace(ref, version=found[0], revision=found[0]).shown if len(found) == 1 else ""

    def _near(self, ref: Ref) -> str:
        """An id of a catalog, or of what is installed, that is spelt like this one."""
        from difflib import get_close_matches

        if ref.scheme or ref.url:
            return ""
        known = self.registry.ids()
        with suppress(UsageError):
            known += ids(self.layout.catalogs)
        return next(iter(get_close_matches(ref.id, {*known} - {ref.id}, 1, LIKENESS)), "")

    def remains(self, ref: Ref) -> list[Installed]:
        """The version that is named, or that the default branch or tag of a hub means; all of a bare id. Raises
        ModelNotAvailableError if there is none.

        What is left of one whose record cannot be read is a record without files.
        """
        found = []
        for version in self._named(ref):
            with suppress(UsageError):  # a folder that cannot be a version is not ours
                folder = self.layout.model(ref.id, version)
                record = self.at(ref.id, version)
                if record or os.path.isdir(folder):
                    found.append(record or Installed(ref.id, version, ref.id, (), folder))
        return found or [self.present(ref)]

    def _named(self, ref: Ref) -> list[str]:
        named, folders = ref.version or ref.alias, self._folders(ref.id)
        if not named:
            return sorted(folders)
        means_itself = named in folders or (ref.scheme and ref.version)
        return [named if means_itself else self.registry.aliases(ref.id).get(named, named)]

    def _folders(self, model_id: str) -> list[str]:
        with suppress(OSError):
            return os.listdir(os.path.join(self.layout.models, checked_path(model_id, parts=1)))
        return []

    def all(self) -> list[Installed]:
        """Oldest first."""
        return list(installed_under(self.layout.models))

    def check_readable(self) -> None:
        """StoreError where the models are there and cannot be listed: that is not the same as none."""
        with disk_errors(self.layout.models), suppress(FileNotFoundError):
            os.scandir(self.layout.models).close()

    def status(self, record: Installed) -> str:
        """ready, incomplete (files are only absent: they were never fetched) or error, from what is known without
        reading a file."""
        if record.is_incomplete:
            return "incomplete"
        known = self.registry.versions(record.id).get(record.version, "ready")
        return known if record.condition() == "right" else "error"

    def corrupt(self) -> list[Installed]:
        """What an earlier look found wrong, and what is missing or changed since."""
        return [record for record in self.all() if self.status(record) != "ready"]

    def check_ref(self, model_id: str, ref: str) -> None:
        """UsageError where the id stands for another ref already (product C1); an id alone is no ref."""
        for record in versions_under(self.layout.models, model_id):
            if not is_same_ref(record, ref):
                raise UsageError(
                    f"{model_id} is here already, from {record.ref}: one id cannot stand for {ref} as well",
                    next_step=f"remove it first (modelcache rm {model_id}), or give the other one another id",
                )


def is_same_ref(record: Installed, ref: str) -> bool:
    return record.id in (ref, record.ref) or record.ref == ref or identity_of(record.ref) == identity_of(ref)
