"""registry.json: which models and versions there are, and what each id means by default.

Responsible for: reading it whatever state it is in, and changing it without losing another's change (I3, I4).
It holds nothing that a kill could make a lie: the record in each model's folder is the truth about files, and a
corrupt or missing registry is rebuilt from those. Unknown fields are kept.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from modelcache.errors import ModelCacheError, StoreError
from modelcache.names import checked_path
from modelcache.store.disk import read_small, write_atomic
from modelcache.store.installed import Installed
from modelcache.store.locks import locked

Models = dict[str, dict[str, Any]]


class Registry:
    """`models` is the folder of the models, which tells what the registry has forgotten."""

    def __init__(self, path: str, models: str, lock: str) -> None:
        self._path = path
        self._models = models
        self._lock = lock

    def versions(self, model_id: str) -> dict[str, str]:
        """Status by version, oldest first."""
        return dict(self._model(model_id).get("versions", {}))

    def ids(self) -> list[str]:
        return sorted(self._read()["models"])

    def default(self, model_id: str) -> str | None:
        """The version meant when none is named: the newest that is ready."""
        model = self._model(model_id)
        chosen = model.get("default")
        return chosen if chosen in model.get("versions", {}) else None

    def recorded(self, model_id: str) -> str | None:
        """The SHA-256 that a file without a known digest had when it was first used."""
        value = self._model(model_id).get("first_use")
        return value if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef") else None

    def installed(self, installed: Installed, first_use: str | None) -> None:
        """A version is ready and becomes the default."""

        def change(models: Models) -> None:
            model = models.setdefault(installed.id, {})
            versions = model.setdefault("versions", {})
            versions.pop(installed.version, None)
            versions[installed.version] = "ready"
            model["default"] = installed.version
            if first_use:
                model["first_use"] = first_use

        self._change(change)

    def marked(self, model_id: str, version: str, status: str) -> None:
        """ready or error."""

        def change(models: Models) -> None:
            versions = models.get(model_id, {}).get("versions", {})
            if version in versions:
                versions[version] = status

        self._change(change)

    def removed(self, model_id: str, version: str) -> None:
        def change(models: Models) -> None:
            model = models.get(model_id, {})
            model.get("versions", {}).pop(version, None)
            left = list(model.get("versions", {}))
            if left:
                model["default"] = left[-1]
            else:
                models.pop(model_id, None)

        self._change(change)

    def _model(self, model_id: str) -> dict[str, Any]:
        model = self._read()["models"].get(model_id, {})
        return model if isinstance(model, dict) and isinstance(model.get("versions", {}), dict) else {}

    def _change(self, change: Callable[[Models], None]) -> None:
        with locked(self._lock, "registry.json", 30.0, lambda: None, lambda: None):
            data = self._read()
            change(data["models"])
            write_atomic(self._path, json.dumps(data, indent=1).encode())

    def _read(self) -> dict[str, Any]:
        with suppress(StoreError, ValueError, RecursionError):
            data = json.loads(read_small(self._path) or b"")
            if isinstance(data, dict) and isinstance(data.get("models"), dict):
                if data.get("format") != 1:
                    raise _newer(self._path)
                return data
        return {"format": 1, "models": self._rebuilt()}

    def _rebuilt(self) -> Models:
        """From the records on the disk; the digests of first use are those of unverified files."""
        models: Models = {}
        for installed in installed_under(self._models):
            model = models.setdefault(installed.id, {"versions": {}})
            model["versions"][installed.version] = "ready"
            model["default"] = installed.version
            if len(installed.files) == 1 and installed.files[0].proof == "first_use":
                model["first_use"] = installed.files[0].sha256
        return models


def _newer(path: str) -> ModelCacheError:
    return ModelCacheError(f"{path} was written by a newer modelcache", next_step="update modelcache")


def installed_under(models: str) -> Iterator[Installed]:
    """Every model that has a record, whatever the registry says; oldest record first."""
    found = []
    for model in _folders(models):
        for version in _folders(model.path):
            installed = Installed.read(version.path)
            if installed and (installed.id, installed.version) == (model.name, version.name):
                found.append((os.stat(version.path).st_mtime_ns, installed))
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
    except ModelCacheError:
        return False
