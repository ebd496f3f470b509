"""What happened to each model, as JSON lines on the disk: for people who ask why, and for bug reports (product D2).

Responsible for: `<root>/logs/<model>.jsonl`, whole lines a write, so that several processes may write; turning a
full file over to `.jsonl.1`; and reading both, whatever is in them. Nothing that happens here stops a fetch: what the
disk refuses is not logged. Leaves to `cleaning`: taking away logs that are too old.
"""

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from modelcache.errors import UsageError
from modelcache.events import Fact
from modelcache.names import checked_path
from modelcache.store.disk import READ, make_folder, write_atomic
from modelcache.store.modes import mode_in
from modelcache.urls import without_secrets

MOST_BYTES = 1 << 20  # of a file; with the one before it, a model's log takes twice that
MOST_TEXT = 2000  # characters of a message or a detail
_MOST_READ = 8 << 20
_LINE, _BEFORE = ".jsonl", ".jsonl.1"
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_URL = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+")
_FIELDS = {"timestamp": str, "model_name": str, "event_type": str, "message": str, "details": dict}
_TYPES = {
    "started": "started", "manifest_pulled": "manifest_pulled", "resumed": "resumed",
    "source_failed": "source_failed", "piece_failed": "source_failed", "file_ready": "verified",
    "repaired": "verified", "completed": "completed", "paused": "paused", "error": "error", "reset": "reset",
    "partial_found": "partial_found", "partial_cleaned": "partial_cleaned",
}  # fmt: skip

Row = dict[str, Any]


class Logbook:
    """The logs below `folder`: a sink of the dispatcher. Other processes may write the same logs."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __call__(self, kept: Sequence[object]) -> None:
        """Logs the facts among them."""
        lines: dict[str, bytes] = {}
        for fact in kept:
            if isinstance(fact, Fact) and fact.type in _TYPES:
                lines[fact.model] = lines.get(fact.model, b"") + _line_of(fact)
        for model, text in lines.items():
            with suppress(OSError, UsageError):
                with suppress(FileExistsError):
                    make_folder(self._folder)  # not the root: where there is none, nothing is to be kept
                self._append(checked_path(model, parts=1), text)

    def models(self) -> list[str]:
        """Ids of the models that have a log."""
        with suppress(OSError):
            names = {name.removesuffix(".1") for name in os.listdir(self._folder) if name.endswith((_LINE, _BEFORE))}
            return sorted(name.removesuffix(_LINE) for name in names if _is_name(name))
        return []

    def read(self, model: str) -> list[Row]:
        """What is logged of a model, oldest first; lines that are garbage are left out."""
        name = checked_path(model, parts=1)
        return [row for end in (_BEFORE, _LINE) for row in _rows(os.path.join(self._folder, name + end))]

    def files(self, model: str) -> list[str]:
        """The paths of a model's log that are there."""
        paths = [os.path.join(self._folder, checked_path(model, parts=1) + end) for end in (_LINE, _BEFORE)]
        return [path for path in paths if os.path.lexists(path)]

    def _append(self, model: str, lines: bytes) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fd = _opened(folder, model)
            if (mode := mode_in(self._folder, 0o600)) != 0o600:
                with suppress(PermissionError):
                    os.fchmod(fd, mode)
            try:
                _write(fd, lines)
            finally:
                os.close(fd)
        finally:
            os.close(folder)


def export(rows: list[Row], path: str) -> None:
    """Writes rows to a file, one line of JSON each. Raises StoreError."""
    write_atomic(os.path.abspath(path), as_lines(rows))


def as_lines(rows: list[Row]) -> bytes:
    """Of JSON, without secrets."""
    return b"".join(_encoded(row) for row in rows)


def _opened(folder: int, model: str) -> int:
    """The log, open, with room for a line. OSError where it is no file of ours."""
    for _ in range(2):
        fd = os.open(model + _LINE, _APPEND, 0o600, dir_fd=folder)
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and (status.st_size < MOST_BYTES or not _turned_over(folder, model, fd)):
            return fd
        os.close(fd)
    raise OSError(f"{model}{_LINE} is no log")


def _turned_over(folder: int, model: str, fd: int) -> bool:
    """Whether the file that is open has the name of the one before now; only one process does that to a file."""
    if not _locked(fd, fcntl.LOCK_EX):
        return False
    mine, there = os.fstat(fd), os.stat(model + _LINE, dir_fd=folder, follow_symlinks=False)
    if os.path.samestat(mine, there):
        os.rename(model + _LINE, model + _BEFORE, src_dir_fd=folder, dst_dir_fd=folder)
    return True


def _write(fd: int, lines: bytes) -> None:
    """One write, at the end. What a full disk took of a line before is ended first, so that only that one is lost.

    A line that somebody writes at this moment looks torn, too: the lock tells them apart. Nobody waits for it.
    """
    _locked(fd, fcntl.LOCK_SH)
    if _is_torn(fd) and _locked(fd, fcntl.LOCK_EX) and _is_torn(fd):
        lines = b"\n" + lines
    os.write(fd, lines)


def _is_torn(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"


def _locked(fd: int, kind: int) -> bool:
    with suppress(OSError):  # somebody has it, or nothing can be locked here
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        return True
    return False


def _line_of(fact: Fact) -> bytes:
    seconds, ms = divmod(fact.timestamp, 1000)
    about = {"file": fact.file, "source": fact.source, "version": fact.version}
    details = {name: value for name, value in about.items() if value} | dict(fact.details)
    when = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ms:03}Z"
    row = {
        "timestamp": when, "model_name": fact.model, "event_type": _TYPES[fact.type], "message": fact.message,
        "details": details,
    }  # fmt: skip
    return _encoded(row)


def _encoded(row: Row) -> bytes:
    return json.dumps(_scrubbed(row)).encode() + b"\n"


def _scrubbed(value: object) -> object:
    """No text holds a query string or a password, whoever wrote it (I22); none is endless."""
    if isinstance(value, str):
        return _URL.sub(lambda found: without_secrets(found[0]), value)[:MOST_TEXT]
    if isinstance(value, dict):
        return {str(key)[:MOST_TEXT]: _scrubbed(each) for key, each in value.items()}
    return value if isinstance(value, int | float | None) else _scrubbed(str(value))


def _rows(path: str) -> Iterator[Row]:
    for line in _tail(path).split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_row(row):
            yield row


def _is_row(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != _FIELDS.keys():
        return False
    return all(isinstance(value[name], kind) for name, kind in _FIELDS.items())


def _tail(path: str) -> bytes:
    """The last bytes of a log; a line that is cut at their beginning is garbage. Empty where there is no log."""
    with suppress(OSError):
        fd = os.open(path, READ | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):  # no fifo
                return os.pread(fd, _MOST_READ, max(0, status.st_size - _MOST_READ))
        finally:
            os.close(fd)
    return b""


def _is_name(name: str) -> bool:
    with suppress(UsageError):
        return checked_path(name, parts=1) == name
    return False
