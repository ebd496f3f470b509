"""What subscribers are told: facts as they happen, and progress as it is sampled.

Responsible for: the two kinds of event and their wire form (product H). Leaves to `dispatch`: who gets them, when.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FactType = Literal[
    "started", "waiting", "resumed", "source_tried", "source_failed", "piece_failed", "restarted", "verifying",
    "file_ready", "installed", "updated", "repaired", "removed", "completed", "paused", "error", "unverified",
    "resolving", "manifest_pulled", "newer", "stale", "partial_found", "partial_cleaned", "reset",
]  # fmt: skip


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that happened, never dropped. `message` is for people; neither it nor `details` hold secrets."""

    type: FactType
    model: str
    message: str
    file: str = ""
    source: str = ""
    version: str = ""
    path: str = ""
    timestamp: int = field(default_factory=now_ms)
    details: Mapping[str, str | int | bool] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        return {
            **self.details, "type": self.type, "modelId": self.model, "message": self.message, "file": self.file,
            "gateway": self.source, "version": self.version, "path": self.path, "timestamp": self.timestamp,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class DownloadComplete:
    """The last word on a download that succeeded."""

    download_id: str
    filepath: str

    def to_wire(self) -> dict[str, Any]:
        return {"type": "download_complete", "downloadId": self.download_id, "filepath": self.filepath}


@dataclass(frozen=True, slots=True)
class Progress:
    """A sample. Bytes are of `file`, `completed_files` and `total_files` of the model; unknown is 0 or ''."""

    model: str
    status: str
    file: str = ""
    bytes_downloaded: int = 0
    total_bytes: int = 0
    speed: float = 0.0  # bytes/s
    retry_count: int = 0
    source: str = ""
    gateway: str = ""
    completed_files: int = 0
    total_files: int = 0
    done: bool = False
    error: str = ""
    timestamp: int = field(default_factory=now_ms)

    @property
    def bytes_remaining(self) -> int:
        return max(0, self.total_bytes - self.bytes_downloaded)

    @property
    def percent(self) -> float:
        if not self.total_bytes:
            is_complete = self.status in ("success", "completed") or 0 < self.total_files == self.completed_files
            return 100.0 if is_complete else 0.0
        return round(min(100.0, 100 * self.bytes_downloaded / self.total_bytes), 2)

    @property
    def eta_s(self) -> float:
        return round(self.bytes_remaining / self.speed, 1) if self.speed else 0.0

    def to_wire(self) -> dict[str, Any]:
        """The progress event of product H: every field in every event."""
        return {
            "type": "model_download_progress", "modelId": self.model, "bytesDownloaded": self.bytes_downloaded,
            "bytesRemaining": self.bytes_remaining, "totalBytes": self.total_bytes,
            "downloadSpeed": round(self.speed), "eta": self.eta_s, "retryCount": self.retry_count,
            "currentGateway": self.gateway, "status": self.status, "percentComplete": self.percent,
            "completedFiles": self.completed_files, "totalFiles": self.total_files, "timestamp": self.timestamp,
            "file": self.file, "source": self.source, "gateway": self.gateway, "progress": self.percent,
            "started": True, "done": self.done, "downloading": not self.done and self.status == "downloading",
            "error": self.error,
        }  # fmt: skip


Event = Fact | Progress | DownloadComplete
