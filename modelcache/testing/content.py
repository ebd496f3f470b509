"""What an origin serves: bytes in memory, bytes made up on the way, or a file.

Responsible for: any span of the content, its size, its SHA-256 and the validators an honest server derives from it.
Leaves to `faults`: lying about any of it.
"""

import gzip
import hashlib
import os
import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from email.utils import formatdate
from functools import cached_property
from pathlib import Path

BLOCK = 1 << 20
_TURN = 514_229  # odd: blocks are equal only 2**20 blocks (1 TiB) apart, and 256 KiB chunks only 256 GiB apart
_MODIFIED = 1_735_689_600  # 2025-01-01: "unchanged for long", which makes Last-Modified a strong validator


class Content(ABC):
    """Bytes of a known size that can be read anywhere. Never changes while it is served."""

    size: int
    tag: str
    """The strong ETag, with its quotes."""
    modified_s: float = _MODIFIED

    @staticmethod
    def generated(size: int, seed: int = 0) -> "Content":
        """`size` pseudo-random bytes, the same for the same seed, needing 2 MiB of memory whatever the size."""
        return _Generated(size, seed)

    @staticmethod
    def file(path: str | Path) -> "Content":
        """A file on disk; size and ETag are those of now."""
        return FileContent(Path(path))

    @staticmethod
    def of(value: "bytes | Path | Content") -> "Content":
        """The content of bytes, of the file at a Path, or the Content itself."""
        match value:
            case Content():
                return value
            case Path():
                return FileContent(value)
            case bytes():
                return _Bytes(value)
        raise TypeError(f"bytes, a Path or a Content, not {type(value).__name__}")

    @abstractmethod
    def views(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes from `start` to `stop` in pieces of at most 1 MiB."""

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        return b"".join(self.views(start, min(self.size if stop is None else stop, self.size)))

    @cached_property
    def sha256(self) -> str:
        """In hex; computed once, when asked for."""
        digest = hashlib.sha256()
        for view in self.views(0, self.size):
            digest.update(view)
        return digest.hexdigest()

    @property
    def last_modified(self) -> str:
        return formatdate(self.modified_s, usegmt=True)


class _Bytes(Content):
    def __init__(self, held: bytes) -> None:
        self._held = memoryview(held)
        self.size = len(held)
        self.tag = _quoted(held)

    def views(self, start: int, stop: int) -> Iterator[memoryview]:
        for at in range(start, stop, BLOCK):
            yield self._held[at : min(at + BLOCK, stop)]


class _Generated(Content):
    """One random block of 1 MiB; block i is that block turned by i times an odd number, so no two are alike."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.tag = _quoted(f"generated {size} {seed}".encode())  # hashing 100 GB for an ETag would take minutes
        self._twice = memoryview(random.Random(seed).randbytes(BLOCK) * 2)  # noqa: S311  made to be repeated

    def views(self, start: int, stop: int) -> Iterator[memoryview]:
        while start < stop:
            block, inside = divmod(start, BLOCK)
            taken = min(BLOCK - inside, stop - start)
            first = block * _TURN % BLOCK + inside
            yield self._twice[first : first + taken]
            start += taken


class FileContent(Content):
    """A file on disk, opened for each piece, so that nothing stays open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = path.stat()
        self.size = found.st_size
        self.modified_s = found.st_mtime
        self.tag = _quoted(f"{found.st_ino} {found.st_size} {found.st_mtime_ns}".encode())

    def views(self, start: int, stop: int) -> Iterator[memoryview]:
        for at in range(start, stop, BLOCK):
            with self.path.open("rb", buffering=0) as file:
                yield memoryview(os.pread(file.fileno(), min(BLOCK, stop - at), at))


class Corrupted(Content):
    """Another content with all bits of the bytes at some offsets flipped, under the same name and validators."""

    def __init__(self, honest: Content, offsets: Iterable[int]) -> None:
        self._honest = honest
        self._offsets = frozenset(offsets)
        self.size, self.tag, self.modified_s = honest.size, honest.tag, honest.modified_s

    def views(self, start: int, stop: int) -> Iterator[memoryview]:
        for view in self._honest.views(start, stop):
            here = [offset - start for offset in self._offsets if start <= offset < start + len(view)]
            yield _flipped(view, here) if here else view
            start += len(view)


def coded(content: Content, coding: str) -> Content:
    """What a server sends under this Content-Encoding. Codings other than gzip and deflate change nothing."""
    match coding:
        case "gzip":
            return _Bytes(gzip.compress(content.read(), mtime=0))
        case "deflate":
            return _Bytes(zlib.compress(content.read()))
    return content


def _flipped(view: memoryview, places: Iterable[int]) -> memoryview:
    changed = bytearray(view)
    for place in places:
        changed[place] ^= 0xFF
    return memoryview(changed)


def _quoted(named: bytes) -> str:
    return f'"{hashlib.sha256(named).hexdigest()[:32]}"'
