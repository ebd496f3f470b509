"""What is installed, by what users call it.

Responsible for: finding the record that a ref means, also where the registry has forgotten it.
Leaves to others: whether its files are still what they were (`Installed.condition`).
"""

import os
from contextlib import suppress

from modelcache.catalog import Entry, find
from modelcache.errors import ModelNotAvailableError, UsageError
from modelcache.names import checked_path
from modelcache.refs import Ref
from modelcache.store.disk import disk_errors
from modelcache.store.installed import Installed
from modelcache.store.layout import Layout
from modelcache.store.marks import Marks
from modelcache.store.registry import Registry, installed_under, versions_under
from modelcache.urls import identity_of


class Shelf:
    """The models of one store."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.marks = Marks(layout)
        self.registry = Registry(layout.registry, layout.models, layout.lock("registry"))

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
            raise ModelNotAvailableError(ref.id, ref.version or ref.alias or None, "not_installed")
        return record

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
