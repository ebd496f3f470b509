"""What is remembered of downloads: the values that go from where they happen to whoever keeps them.

Responsible for: a try of a source, the record of a download, a request that needed no download (product A10, E4, H).
Leaves to others: making them (`transfer`, `account`, `runtime`), keeping them (`state`).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from modelcache.errors import VerificationError
from modelcache.events import now_ms

AttemptStatus = Literal["hit", "success", "error"]
UNFINISHED = ("pending", "in_progress", "resuming")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One source at work for one file, from being asked to its end: a row of the metrics (product H, CSV).

    `layer` is the kind of source, `gateway` its host; of the layer `cache`, the kind of tier or nothing. `latency_ms`
    is the time to the first byte, `duration_ms` that to the end; `resumed_bytes` were here before. No field holds a
    secret.
    """

    layer: str
    gateway: str
    status: AttemptStatus
    file: str = ""
    model: str = ""
    latency_ms: int = 0
    duration_ms: int = 0
    bytes: int = 0
    resumed_bytes: int = 0
    attempt: int = 1
    error_type: str = ""
    error_message: str = ""
    http_status: int = 0
    timestamp: int = field(default_factory=now_ms)

    def to_row(self, host: str) -> dict[str, Any]:
        """With the names and the order of the CSV's columns, but the time in ms since 1970."""
        return {
            "timestamp": self.timestamp, "host": host, "model": self.model, "file": self.file, "layer": self.layer,
            "gateway": self.gateway, "status": self.status, "latency_ms": self.latency_ms, "bytes": self.bytes,
            "resumed_bytes": self.resumed_bytes, "attempt": self.attempt, "error_type": self.error_type,
            "error_message": self.error_message, "http_status": self.http_status,
        }  # fmt: skip


def rotten(file: str, model: str) -> Attempt:
    """A file of the store was found to have rotted: the cache, as a source of it, has failed."""
    kind, message = VerificationError.kind, "the bytes are not what they were"
    return Attempt("cache", "", "error", file, model, error_type=kind, error_message=message)


@dataclass(frozen=True, slots=True)
class DownloadRecord:
    """How a download stands (product A10). Times are in ms since 1970, 0 where there is none yet.

    The id is the same each time the same is fetched to the same place. `attempts` counts how often it was begun.
    `hash` is the SHA-256 of the file, or that of the list of a model's files.
    """

    id: str
    model: str
    version: str
    source: str
    path: str
    status: str
    downloaded_bytes: int = 0
    total_bytes: int = 0
    error_message: str = ""
    started_at: int = 0
    completed_at: int = 0
    attempts: int = 0
    last_attempt: int = 0
    hash: str = ""

    def to_row(self) -> dict[str, Any]:
        """The record of product H, with model, version and source besides."""
        return {
            "id": self.id, "cidId": None, "downloadPath": self.path, "status": self.status,
            "downloaded_bytes": self.downloaded_bytes, "total_bytes": self.total_bytes,
            "error_message": self.error_message, "started_at": self.started_at, "completed_at": self.completed_at,
            "attempts": self.attempts, "lastAttempt": self.last_attempt, "currentSize": self.downloaded_bytes,
            "hash": self.hash, "model": self.model, "version": self.version, "source": self.source,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Standing:
    """A change of a record. `request` is what was asked, as text that can be asked again; it may hold secrets.

    With `begins` the download is under way once more: that is one more attempt, and a new owner. When it `is_over`
    (complete, cancelled, or failed for good with a URL that may hold a secret), what was asked is forgotten.
    """

    record: DownloadRecord
    begins: bool = False
    is_over: bool = False
    request: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Use:
    """A model was asked for. `saved_bytes` were all here already; 0 where it was downloaded."""

    model: str
    file: str = ""
    saved_bytes: int = 0
    is_hit: bool = False
    count: int = 1
    timestamp: int = field(default_factory=now_ms)


Note = Attempt | Standing | Use
