"""registry.json: which models and versions there are, and what each id means by default.

Responsible for: reading it whatever state it is in, and changing it without losing another's change (I3, I4).
It holds nothing that a kill could make a lie: the record in each model's folder is the truth about files, and a
corrupt or missing registry is rebuilt from those. Unknown fields are kept.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Self

from modelcache.errors import ShortageError, StoreError, UsageError
from modelcache.names import checked_path
from modelcache.refs import is_alias, scheme_of_id
from modelcache.store.disk import read_small, write_atomic
from modelcache.store.installed import Installed
from modelcache.store.locks import Patience, Subject, locked

Models = dict[str, dict[str, Any]]
FORMAT = 1
PATIENCE = Patience(30.0)


class Registry:
    """`models` is the folder of the models, which tells what the registry has forgotten."""

    def __init__(self, path: str, models: str, lock: str) -> None:
        self._path = path
        self._models = models
        self._lock = lock
        self._seen: dict[str, Any] | None = None

    def as_now(self) -> Self:
        """One that is asked for many models: it is read once, and rebuilt once where it is lost. Not for changes."""
        seen = type(self)(self._path, self._models, self._lock)
        seen._seen = self._read()
        return seen

    def versions(self, model_id: str) -> dict[str, str]:
        """Status by version, oldest first."""
        return dict(self._model(model_id).get("versions", {}))

    def ids(self) -> list[str]:
        return sorted(self._read()["models"])

    def default(self, model_id: str) -> str | None:
        """The version meant when none is named: the newest that is ready."""
        model = self._model(model_id)
        chosen = model.get("default")
        return chosen if isinstance(chosen, str) and chosen in model.get("versions", {}) else None

    def first_use(self, model_id: str) -> str | None:
        """The SHA-256 that a file without a known digest had when it was first used."""
        value = self._model(model_id).get("first_use")
        return value if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef") else None

    def aliases(self, model_id: str) -> dict[str, str]:
        """The versions that tags and branches meant when they were last fetched; what can be no such name is none."""
        aliases = self._model(model_id).get("aliases")
        given = aliases if isinstance(aliases, dict) else {}
        scheme = scheme_of_id(model_id)
        return {name: said for name, said in given.items() if isinstance(said, str) and is_alias(name, scheme)}

    def aliased(self, model_id: str, names: Iterable[str], version: str) -> None:
        """These tags and branches mean that version now. What they meant already costs no write."""
        meaning = dict.fromkeys(names, version)
        if meaning.items() <= self.aliases(model_id).items():
            return

        def change(models: Models) -> None:
            model = models.get(model_id, {})
            if version in model.get("versions", {}):
                model["aliases"] = self.aliases(model_id) | meaning

        self._change(change)

    def installed(self, installed: Installed, first_use: str | None, *, is_aside: bool = False) -> None:
        """A version is ready, or lacks files; a ready one becomes the default, unless it was named beside that.

        `first_use` is the digest that it has to have next time, too.
        """

        def change(models: Models) -> None:
            model = models.setdefault(installed.id, {})
            versions = model.setdefault("versions", {})
            versions.pop(installed.version, None)
            versions[installed.version] = status_of(installed)
            if not (installed.missing or is_aside) or model.get("default") not in versions:
                model["default"] = installed.version
            model.pop("first_use", None)  # whoever gives a digest now vouches for another content
            if first_use:
                model["first_use"] = first_use

        self._change(change)

    def marked(self, model_id: str, version: str, status: str) -> None:
        """ready or error. A version that is so already costs no write: a store may be read-only."""
        if self.versions(model_id).get(version, status) == status:
            return

        def change(models: Models) -> None:
            versions = models.get(model_id, {}).get("versions", {})
            if version in versions:
                versions[version] = status

        self._change(change)

    def removed(self, model_id: str, version: str) -> None:
        def change(models: Models) -> None:
            model = models.get(model_id, {})
            model.get("versions", {}).pop(version, None)
            if str(model.get("first_use", "")).startswith(version):
                del model["first_use"]
            if isinstance(aliases := model.get("aliases"), dict):
                model["aliases"] = {name: meant for name, meant in aliases.items() if meant != version}
            left = list(model.get("versions", {}))
            if left:
                model["default"] = left[-1]
            else:
                models.pop(model_id, None)

        self._change(change)

    def _model(self, model_id: str) -> dict[str, Any]:
        model: dict[str, Any] = self._read()["models"].get(model_id, {})
        return model

    def _change(self, change: Callable[[Models], None]) -> None:
        with locked(self._lock, Subject("registry.json"), PATIENCE):
            data = self._read()
            change(data["models"])
            write_atomic(self._path, json.dumps(data, indent=1).encode())

    def _read(self) -> dict[str, Any]:
        """Raises StoreError where it is of a newer modelcache, or cannot be read only because no handle is left."""
        if self._seen is not None:
            return self._seen
        data: Any = None
        try:
            data = json.loads(read_small(self._path) or b"")
        except ShortageError:
            raise
        except (StoreError, ValueError, RecursionError):
            pass  # it is rebuilt
        if isinstance(data, dict) and isinstance(data.get("format"), int) and data["format"] > FORMAT:
            raise StoreError(f"{self._path} was written by a newer modelcache", next_step="update modelcache")
        if isinstance(data, dict) and data.get("format") == FORMAT and _are_models(data.get("models")):
            return data
        return {"format": FORMAT, "models": self._rebuilt()}

    def _rebuilt(self) -> Models:
        """From the records on the disk; the digests of first use are those of unverified files."""
        models: Models = {}
        for installed in installed_under(self._models):
            model = models.setdefault(installed.id, {"versions": {}})
            model["versions"][installed.version] = status_of(installed)
            model["default"] = installed.version
            if len(installed.files) == 1 and installed.files[0].proof == "first_use":
                model["first_use"] = installed.files[0].sha256
        return models


def status_of(installed: Installed) -> str:
    """What its record says of it: ready or error."""
    return "error" if installed.missing or any(file.is_distrusted for file in installed.files) else "ready"


def _are_models(value: object) -> bool:
    """Whether it has the shape that is ours: whatever else it may be, it is rebuilt."""
    return isinstance(value, dict) and all(
        isinstance(model, dict)
        and isinstance(versions := model.get("versions", {}), dict)
        and all(isinstance(status, str) for status in versions.values())
        for model in value.values()
    )


def installed_under(models: str) -> Iterator[Installed]:
    """Every model that has a record, whatever the registry says; oldest record first."""
    return _oldest_first(version for model in _folders(models) for version in _versions(model.path))


def versions_under(models: str, model_id: str) -> Iterator[Installed]:
    """The same for one model."""
    return _oldest_first(_versions(os.path.join(models, checked_path(model_id, parts=1))))


def _versions(folder: str) -> Iterator[tuple[int, Installed]]:
    for version in _folders(folder):
        installed = Installed.read(version.path)
        if installed and (installed.id, installed.version) == (os.path.basename(folder), version.name):
            with suppress(OSError):
                yield os.stat(version.path).st_mtime_ns, installed


def _oldest_first(found: Iterable[tuple[int, Installed]]) -> Iterator[Installed]:
    return (installed for _, installed in sorted(found, key=lambda pair: pair[0]))


def _folders(path: str) -> list[os.DirEntry[str]]:
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError:
        return []
    return [entry for entry in entries if entry.is_dir(follow_symlinks=False) and _is_name(entry.name)]


def _is_name(name: str) -> bool:
    try:
        return checked_path(name, parts=1) == name
    except UsageError:
        return False
