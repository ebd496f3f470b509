"""What the crash tests share: children that are killed, and what may be seen after it.

Everything here looks at the store as a stranger would: by the paths and formats of docs and nothing of ours.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

MIB = 1 << 20
RECORD = ".manifest.json"


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "modelcache", *arguments]


def compiled(source: str, folder: Path, *flags: str) -> Path:
    """A library of these tests, to be preloaded. Skips where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    built, place = (folder / source).with_suffix(".so"), Path(__file__).resolve().parent / source
    every = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", *flags]
    subprocess.run([compiler, *every, "-o", str(built), str(place), "-ldl"], check=True)
    return built


def environment(home: Path, **more: str) -> dict[str, str]:
    return os.environ | {"MODELCACHE_HOME": str(home)} | more


def begin(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    """The command as a child that can be killed."""
    return subprocess.Popen(
        command(*arguments), env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(home: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments), env=environment(home, **more), capture_output=True, text=True, timeout=60, check=False
    )


def eventually(condition: Callable[[], bool], within_s: float = 60.0) -> bool:
    """Looks until it holds. False: it did not, in time."""
    end, pause = time.monotonic() + within_s, threading.Event()
    while not condition():
        if time.monotonic() > end:
            return False
        pause.wait(0.002)
    return True


def catches_signals(child: "subprocess.Popen[str]") -> bool:
    """Waits until the command handles signals itself, or has ended; what Python does before is not ours."""

    def handles() -> bool:
        if child.poll() is not None:
            return True
        told = Path(f"/proc/{child.pid}/status").read_text()
        caught = next((line for line in told.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

    return eventually(handles)


# -- what is visible --------------------------------------------------------------------------------------------------


def check_store(home: Path, tolerated: Collection[str] = ()) -> None:
    """Asserts I1 and I3: whatever has a name people use is right, and whatever vouches for it tells the truth.

    `tolerated`: digests of bytes that were wrong before the run began and may still be in place.
    """
    check_blobs(home, tolerated)
    for folder in (home / "models").glob("*/*"):
        check_model(home, folder, tolerated)
    check_registry(home)


def check_blobs(home: Path, tolerated: Collection[str]) -> None:
    for blob in files_below(home / "blobs"):
        if blob.name.startswith("."):
            continue  # on its way
        actual = sha256_of(blob)
        assert actual == blob.name or actual in tolerated, f"{blob} is {actual}"
        assert blob.stat().st_mode & 0o777 == 0o444, f"{blob} can be written to"


def check_model(home: Path, folder: Path, tolerated: Collection[str]) -> None:
    """The record vouches for files: one whose stamp is right must have the recorded bytes."""
    record = read_record(folder)
    recorded = {entry["path"]: entry for entry in record["files"]} if record else {}
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith("."):
            assert name == RECORD or name.endswith(".tmp"), f"what is {path}?"
            continue
        actual, entry = sha256_of(path), recorded.get(name)
        status = path.stat()
        known = (home / "blobs/sha256" / actual[:2] / actual).exists()
        assert known or actual in tolerated, f"{path} is {actual}, which is no blob"
        if entry and (entry["size"], entry["mtime_ns"], entry["inode"]) == (
            status.st_size,
            status.st_mtime_ns,
            status.st_ino,
        ):
            assert actual == entry["sha256"], f"the record vouches for {path}, wrongly"


def check_registry(home: Path) -> None:
    """Whole, and it promises no version that has no record."""
    path = home / "registry.json"
    if not path.exists():
        return
    registry = json.loads(path.read_bytes())
    assert registry["format"] == 1
    for model, entry in registry["models"].items():
        for version in entry["versions"]:
            assert read_record(home / "models" / model / version), f"{model}@{version} has no record"
        assert entry["default"] in entry["versions"]


def read_record(folder: Path) -> dict[str, list[dict[str, object]]] | None:
    path = folder / RECORD
    if not path.exists():
        return None
    record: dict[str, list[dict[str, object]]] = json.loads(path.read_bytes())
    return record


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# -- what is left -----------------------------------------------------------------------------------------------------


def partial_bytes(base: Path) -> int:
    """How many bytes the partials below a folder hold, by the sizes of their files."""
    return sum(path.stat().st_size for path in base.glob("*/data"))


def leftovers(*folders: Path) -> list[str]:
    """What a command that succeeded has no use for: partials and temporary files."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            is_temporary = path.name.startswith(".") and path.name != RECORD
            if path.is_file() and (is_temporary or "partials" in path.relative_to(folder).parts):
                found.append("/".join(path.relative_to(folder).parts[-3:]))
    return found


def locks_held(home: Path) -> list[str]:
    """Locks that somebody still has."""
    held = []
    for path in (home / "locks").glob("*.lock"):
        with path.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path.name)
    return held


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
