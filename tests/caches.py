"""What tests of the cache share: manifests of served files, rot that leaves no trace, and the command as a process."""

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from blake3 import blake3

from modelcache.caching import Cache
from modelcache.model import Manifest
from modelcache.testing import Content, Origin

PIECE = 4 << 20


def manifest_of(
    origin: Origin, files: Mapping[str, Content], model: str = "m", version: str = "1", piece: int = 0
) -> Manifest:
    """The manifest of files that the origin serves under the same names."""
    entries = [entry_of(origin.url(path), path, content, piece) for path, content in files.items()]
    fields = {"format": 1, "id": model, "version": version, "ref": "", "files": entries}
    return Manifest.parse(json.dumps(fields).encode())


def entry_of(url: str, path: str, content: Content, piece: int = 0) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": path, "size": content.size, "sha256": content.sha256, "urls": [url]}
    if piece:
        starts = range(0, content.size, piece)
        hexes = [blake3(content.read(at, min(at + piece, content.size))).hexdigest() for at in starts]
        entry["pieces"] = {"size": piece, "blake3": hexes}
    return entry


def rot(path: str | os.PathLike[str], *offsets: int) -> None:
    """Flips bytes of a file; size, date, mode and inode stay what they were."""
    before = os.stat(path)
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        for offset in offsets:
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 0xFF]))
    os.chmod(path, before.st_mode & 0o7777)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@contextmanager
def no_handle_left() -> Iterator[None]:
    """This process can open nothing more."""
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a process, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "modelcache", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The command as a process that goes on."""
    return subprocess.Popen(
        [sys.executable, "-m", "modelcache", *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def partials(cache: Cache) -> list[Path]:
    """What is on its way in a cache."""
    folder = Path(cache.root, "partials")
    return sorted(folder.iterdir()) if folder.is_dir() else []


def written(cache: Cache) -> bytes:
    """Everything a cache has put on the disk that is not content."""
    texts = []
    for path in Path(cache.root).rglob("*"):
        if path.is_file() and not any(part in ("blobs", "quarantine", "pieces") for part in path.parts):
            texts.append(str(path).encode() + path.read_bytes())
    return b"\n".join(texts)


PROGRESS_FIELDS = {
    "type": str, "modelId": str, "bytesDownloaded": int, "bytesRemaining": int, "totalBytes": int,
    "downloadSpeed": int, "eta": float, "retryCount": int, "currentGateway": str, "status": str,
    "percentComplete": float, "completedFiles": int, "totalFiles": int, "timestamp": int, "file": str, "source": str,
    "gateway": str, "progress": float, "started": bool, "done": bool, "downloading": bool, "error": str,
}  # fmt: skip
PROGRESS_STATUSES = {"attempting", "downloading", "success", "completed", "paused", "error"}
KINDS = {"", "cache", "ipfs", "huggingface", "http", "oci", "peer", "object"}


def check_progress(events: Sequence[dict[str, Any]], model: str) -> None:
    """The progress event of product H to the letter, and that only the last of a run is the last."""
    for event in events:
        assert {name: type(value) for name, value in event.items()} == PROGRESS_FIELDS
        assert (event["type"], event["modelId"], event["started"]) == ("model_download_progress", model, True)
        assert event["status"] in PROGRESS_STATUSES
        assert event["source"] in KINDS
        assert event["bytesRemaining"] == max(0, event["totalBytes"] - event["bytesDownloaded"])
        assert event["progress"] == event["percentComplete"]
        assert 0 <= event["progress"] <= 100
        assert event["gateway"] == event["currentGateway"]
        assert event["downloading"] == (event["status"] == "downloading" and not event["done"])
        assert bool(event["error"]) == (event["status"] in ("error", "paused"))
        assert event["completedFiles"] <= event["totalFiles"]
        assert min(event["retryCount"], event["downloadSpeed"], event["eta"], event["bytesDownloaded"]) >= 0
        assert event["done"] <= (not event["file"])  # what gets its names is told of as a whole, too
    assert [event["done"] for event in events] == [False] * (len(events) - 1) + [True]
    times = [event["timestamp"] for event in events]
    assert times == sorted(times)


def check_pace(events: Sequence[dict[str, Any]]) -> None:
    """Between two events while bytes move at most 0.5 s; at most 10 in a second, the ends of files apart."""
    times = [event["timestamp"] for event in events]
    assert max((later - earlier for earlier, later in pairwise(times)), default=0) <= 500
    samples = [event["timestamp"] for event in events if event["status"] in ("attempting", "downloading")]
    assert all(sum(start <= moment < start + 1000 for moment in samples) <= 10 for start in samples)


class Events:
    """A subscriber that keeps what it is told; other threads may wait for something to be told."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []
        self._changed = threading.Condition()

    def __call__(self, event: dict[str, Any]) -> None:
        with self._changed:
            self.all.append(event)
            self._changed.notify_all()

    def of(self, *types: str) -> list[dict[str, Any]]:
        return [event for event in self.all if event["type"] in types]

    @property
    def progress(self) -> list[dict[str, Any]]:
        return self.of("model_download_progress")

    def wait_until(self, condition: Callable[["Events"], object], timeout: float = 60) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), timeout), f"not so in {timeout} s"

    def wait_for(self, kind: str, timeout: float = 60) -> dict[str, Any]:
        with self._changed:
            assert self._changed.wait_for(lambda: self.of(kind), timeout), f"no {kind} in {timeout} s"
        return self.of(kind)[0]


def nested(folder: Path, depth: int) -> None:
    """Deeper than Python calls functions within functions."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("a", dir_fd=fd)
        above, fd = fd, os.open("a", os.O_RDONLY, dir_fd=fd)
        os.close(above)
    os.close(fd)
