"""modelcache: one verified, resumable cache for model files.

    import modelcache as mc
    model = mc.fetch("https://host/model.gguf", sha256="…")

Importing this package loads nothing else: each name is fetched from its module when it is first used.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from modelcache import jobs as jobs
    from modelcache.api import afetch, cache, fetch, on_event, path, repair, report, verify
    from modelcache.caching import Cache
    from modelcache.download import Download
    from modelcache.errors import (
        AllSourcesFailedError,
        LockedError,
        ModelCacheError,
        ModelNotAvailableError,
        NotFoundError,
        PausedError,
        StoreError,
        UsageError,
        VerificationError,
    )
    from modelcache.model import Manifest
    from modelcache.notebook.dashboard import dashboard
    from modelcache.outcome import File, Model
    from modelcache.queueing import Queue, queue

_HOMES = {
    "api": ("afetch", "cache", "fetch", "on_event", "path", "repair", "report", "verify"),
    "caching": ("Cache",),
    "download": ("Download",),
    "errors": (
        "AllSourcesFailedError", "LockedError", "ModelCacheError", "ModelNotAvailableError", "NotFoundError",
        "PausedError", "StoreError", "UsageError", "VerificationError",
    ),
    "model": ("Manifest",),
    "notebook.dashboard": ("dashboard",),
    "outcome": ("File", "Model"),
    "magics": ("load_ipython_extension", "unload_ipython_extension"),
    "queueing": ("Queue", "queue"),
}  # fmt: skip

__all__ = [
    "AllSourcesFailedError", "Cache", "Download", "File", "LockedError", "Manifest", "Model", "ModelCacheError",
    "ModelNotAvailableError", "NotFoundError", "PausedError", "Queue", "StoreError", "UsageError", "VerificationError",
    "__version__", "afetch", "cache", "dashboard", "fetch", "on_event", "path", "queue", "repair", "report",
    "verify",
]  # fmt: skip


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            value = getattr(import_module(f"modelcache.{home}"), name)
            globals()[name] = value
            return value
    if name == "jobs":
        from importlib import import_module

        return import_module("modelcache.jobs")
    raise AttributeError(f"module 'modelcache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
