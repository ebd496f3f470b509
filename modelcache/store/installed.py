"""What a folder of files is known to be: the record `.manifest.json` beside them.

Responsible for: the format, and the stamp (size, mtime_ns, inode) that makes a hit cost one stat per file.
The store's model folders and the output folders of manifests have the same record. It is written last.
Leaves to others: putting the files there, and hashing them.
"""

import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

from modelcache.errors import ShortageError, StoreError, UsageError
from modelcache.model import Digest, ModelFile
from modelcache.names import checked_path
from modelcache.store.disk import read_small, write_atomic

RECORD = ".manifest.json"
_HEX = re.compile("[0-9a-f]{64}")
_MOST = 1 << 64  # what a file system tells of a file is less
Proof = Literal["given", "listed", "cid", "first_use"]
_PROOFS = get_args(Proof)
Condition = Literal["right", "changed", "missing"]


@dataclass(frozen=True, slots=True)
class Stamp:
    """How a file looked when its bytes were last verified. `verified_at` is in ms since 1970."""

    size: int
    mtime_ns: int
    inode: int
    verified_at: int

    @classmethod
    def of(cls, path: str) -> Self:
        status = os.stat(path, follow_symlinks=False)
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, time.time_ns() // 1_000_000)

    @classmethod
    def of_open(cls, fd: int) -> Self:
        """Of a file that is open, whatever its name leads to by now."""
        status = os.fstat(fd)
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, time.time_ns() // 1_000_000)

    def judge(self, path: str) -> Condition:
        """Costs one stat."""
        try:
            now = os.stat(path, follow_symlinks=False)
        except OSError:
            return "missing"
        same = (now.st_size, now.st_mtime_ns, now.st_ino) == (self.size, self.mtime_ns, self.inode)
        return "right" if same else "changed"


NEVER = Stamp(-1, -1, -1, 0)  # looks like no file: a fetch reads it again, `path` says that it is not available


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """One file: `proof` says who vouched for the digest, `verified` by which digest (or "unverified")."""

    path: str
    sha256: str
    proof: Proof
    verified: str
    stamp: Stamp
    urls: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return self.stamp.size

    @property
    def is_distrusted(self) -> bool:
        """Its bytes were wrong, or could not be read, when they were last looked at."""
        return self.stamp.inode < 0

    def distrusted(self) -> Self:
        return replace(self, stamp=replace(NEVER, size=self.size))

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Self:
        """KeyError, TypeError, ValueError or UsageError for what could not be ours: it is about to choose paths."""
        path, sha256, proof, verified = entry["path"], entry["sha256"], entry["proof"], entry["verified"]
        numbers = entry["size"], entry["mtime_ns"], entry["inode"], entry["verified_at"]
        if checked_path(path) != path or not _HEX.fullmatch(sha256) or proof not in _PROOFS:
            raise ValueError(path)
        if not (type(verified) is str and all(type(number) is int and abs(number) < _MOST for number in numbers)):
            raise TypeError(path)
        return cls(path, sha256, proof, verified, Stamp(*numbers), tuple(map(str, entry["urls"])))

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path, "size": self.size, "sha256": self.sha256, "proof": self.proof,
            "verified": self.verified, "mtime_ns": self.stamp.mtime_ns, "inode": self.stamp.inode,
            "verified_at": self.stamp.verified_at, "urls": list(self.urls),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Installed:
    """A version of a model in a folder."""

    id: str
    version: str
    ref: str
    files: tuple[InstalledFile, ...]
    folder: str
    missing: tuple[str, ...] = ()  # files of the model that could not be had

    @classmethod
    def read(cls, folder: str) -> Self | None:
        """None where there is no record, or none that can be believed: the files are then to be looked at anew.

        Raises StoreError where no handle is left to read it: whoever wrote it anew would lose what it says.
        """
        try:
            content = read_small(os.path.join(folder, RECORD))
            data = json.loads(content or b"")
            if data["format"] != 1:
                return None
            files = tuple(InstalledFile.from_json(entry) for entry in data["files"])
            missing = tuple(checked_path(path) for path in data.get("missing", ()))
            return cls(str(data["id"]), str(data["version"]), str(data["ref"]), files, folder, missing)
        except ShortageError:
            raise
        except (StoreError, UsageError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def write(self) -> None:
        files = [file.to_json() for file in self.files]
        record = {"format": 1, "id": self.id, "version": self.version, "ref": self.ref, "files": files}
        if self.missing:
            record["missing"] = list(self.missing)
        write_atomic(os.path.join(self.folder, RECORD), json.dumps(record).encode())

    def file(self, path: str) -> InstalledFile | None:
        return next((file for file in self.files if file.path == path), None)

    def place(self, file: InstalledFile) -> str:
        return f"{self.folder}/{file.path}"

    def with_files(self, files: Iterable[InstalledFile]) -> Self:
        """The same with these files put in or replaced."""
        by_path = self.by_path() | {file.path: file for file in files}
        return replace(self, files=tuple(by_path[path] for path in sorted(by_path)))

    def by_path(self) -> dict[str, InstalledFile]:
        """For whoever asks for many files: `file` looks through all of them."""
        return {file.path: file for file in self.files}

    def wanted(self) -> tuple[ModelFile, ...]:
        """Its files, as they would be fetched again; a rotten one has no size."""
        return tuple(
            ModelFile(file.path, file.size if file.size >= 0 else None, (Digest("sha256", file.sha256),), file.urls)
            for file in self.files
        )

    def lacking(self, paths: Iterable[str]) -> Self:
        return replace(self, missing=tuple(paths))

    def only(self, path: str) -> Self:
        """As much of it as tells of one file."""
        files = tuple(file for file in self.files if file.path == path)
        return replace(self, files=files, missing=tuple(name for name in self.missing if name == path))

    @property
    def is_incomplete(self) -> bool:
        """Whether files are only absent: never fetched, and those that were are right. One stat each, no hash."""
        return bool(self.missing) and all(file.stamp.judge(self.place(file)) == "right" for file in self.files)

    def condition(self) -> Condition:
        """The worst of its files: one stat each, no hash."""
        worst: Condition = "missing" if self.missing or not self.files else "right"
        for file in self.files:
            now = file.stamp.judge(f"{self.folder}/{file.path}")
            if now == "missing":
                return now
            if now == "changed":
                worst = now
        return worst
