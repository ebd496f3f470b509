"""What the user has set: argument over environment over configuration file over default; and where the cache lives.

Responsible for: the only place where settings are read. Leaves to others: what they mean (`settings`), and what is made
of them (`wiring`). The working directory is never looked at: a cloned repository must not choose sources.
"""

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from modelcache.errors import UsageError
from modelcache.settings import Settings
from modelcache.store.disk import at_once, store_error

PREFIX = "MODELCACHE_"
JOBS = "jobs"  # the one table of the configuration file


def root_of(root: str | os.PathLike[str] | None = None) -> str:
    """Where the cache lives: the argument, MODELCACHE_HOME, else the platform's cache folder."""
    chosen = os.fspath(root) if root is not None else os.environ.get("MODELCACHE_HOME")
    if not chosen:
        import platformdirs

        chosen = platformdirs.user_cache_dir("modelcache", appauthor=False)
    return os.path.abspath(os.path.expanduser(chosen))


def fallback_for(root: str) -> str:
    """MODELCACHE_FALLBACK where it names a folder and nothing can be written to the root; else empty (product A8)."""
    fallback = os.environ.get("MODELCACHE_FALLBACK")
    if not fallback or root_of(fallback) == root:
        return ""
    place = root
    while not os.path.lexists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    if os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
        return ""
    return root_of(fallback)


def settings_for(root: str, overrides: Mapping[str, Any]) -> Settings:
    """UsageError names the setting, and where it stands, when it is wrong."""
    known = {field.name: field.type for field in fields(Settings)}
    values = _from_file(root, known) | _from_environment(known)
    return Settings(**values | checked(overrides))


def checked(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that were given, less those that are None. UsageError names the one that is wrong."""
    given = {name: value for name, value in overrides.items() if value is not None}
    unknown = set(given) - {field.name for field in fields(Settings)}
    if unknown:
        raise UsageError(f"unknown setting {sorted(unknown)[0]!r}")
    if given:
        Settings(**given)
    return given


def _from_environment(known: Mapping[str, Any]) -> dict[str, Any]:
    names = {PREFIX + name.upper(): name for name in known}
    found = {names[variable]: text for variable, text in os.environ.items() if variable in names and text}
    values = {}
    for name, text in found.items():
        try:
            values[name] = Settings.parsed(name, text)
        except UsageError as error:
            raise UsageError(f"{PREFIX}{name.upper()}: {error.message}") from error
    return values


def job_tables(root: str) -> tuple[str, dict[str, Any]]:
    """The configuration file and its table [jobs], unchecked; empty where there is none. UsageError, StoreError."""
    path, table = _configuration(root)
    jobs = table.get(JOBS, {})
    if not isinstance(jobs, dict):
        raise UsageError(f"{path}: jobs: tables [jobs.NAME] are expected")
    return path, jobs


def _from_file(root: str, known: Mapping[str, Any]) -> dict[str, Any]:
    path, table = _configuration(root)
    table.pop(JOBS, None)
    unknown = [name for name in table if name not in known]
    if unknown:
        raise UsageError(f"{path}: unknown setting {unknown[0]!r}")
    try:
        Settings(**table)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}") from error
    return table


def _configuration(root: str) -> tuple[str, dict[str, Any]]:
    """The file, and what it says."""
    path = os.environ.get("MODELCACHE_CONFIG") or os.path.join(root, "modelcache.toml")
    try:
        with open(path, "rb", opener=None if os.environ.get("MODELCACHE_CONFIG") else at_once) as stream:
            content = stream.read(1 << 20)
    except (FileNotFoundError, NotADirectoryError):
        if os.environ.get("MODELCACHE_CONFIG"):
            raise UsageError(f"MODELCACHE_CONFIG names {path}, which is not there") from None
        return path, {}
    except OSError as error:
        raise store_error(error, path) from error
    import tomllib

    try:
        return path, tomllib.loads(content.decode())
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
