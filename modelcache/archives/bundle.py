"""The form of a bundle: one plain tar file, first manifests, then blobs, each called by its SHA-256.

    manifests/sha256/<hex>.json          product H, format 1
    blobs/sha256/<hex>

Responsible for: headers that are the same whoever writes them, and reading them strictly, once, from a file or a pipe.
Leaves to others: what the models are, and proving every byte (`exporting`, `importing`).

The rules:

1. A member is a plain file with one of these two names. There are no links, devices, folders or sparse files, and no
   header that changes the name or the size that the next one gives (PAX, GNU).
2. All manifests come before the first blob, and no member comes twice.
3. The end is two empty blocks, and nothing but zeros follows. A bundle that ends before that was cut short.
4. What a header promises is read only as far as the caller asks for it.
"""

import errno
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from modelcache.errors import VerificationError
from modelcache.model import Digest
from modelcache.store.disk import BUFFER, disk_errors

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
MOST_PADDING = 1 << 20  # after the end: tar fills its last record with zeros
_SINCE_1980 = 315_532_800  # tar warns of files from 1970
_USTAR_MOST = 8**11  # bytes; the sizes of larger files are written in base 256, which every tar of today reads
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
_NAME = re.compile("(manifest|blob)s/sha256/([0-9a-f]{64})(\\.json)?", re.ASCII)

Kind = Literal["manifest", "blob"]


class Readable(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...
    def seekable(self) -> bool: ...
    def seek(self, offset: int, whence: int = ..., /) -> int: ...


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a bundle, by what it promises to be."""

    kind: Kind
    sha256: Digest
    size: int

    @property
    def name(self) -> str:
        return f"{self.kind}s/sha256/{self.sha256.hex}" + (".json" if self.kind == "manifest" else "")

    @property
    def padding(self) -> int:
        """Zeros after its bytes, to the next block."""
        return -self.size % BLOCK

    @property
    def header(self) -> bytes:
        info = tarfile.TarInfo(self.name)
        info.size, info.mtime, info.mode = self.size, _SINCE_1980, 0o644
        return info.tobuf(tarfile.USTAR_FORMAT if self.size < _USTAR_MOST else tarfile.GNU_FORMAT, "ascii", "strict")

    @classmethod
    def of(cls, block: bytes) -> Self:
        """VerificationError for any other header."""
        try:
            info = tarfile.TarInfo.frombuf(block, "ascii", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise VerificationError("a header of it is damaged, or it is no bundle") from error
        if block[156:157] not in _PLAIN or info.type not in _PLAIN or info.size < 0:
            raise VerificationError(f"{info.name[:80]!a} is not a plain file")
        found = _NAME.fullmatch(info.name)
        if not found or (found[1] == "manifest") != bool(found[3]):
            raise VerificationError(f"{info.name[:80]!a} is neither a manifest nor a blob")
        return cls("manifest" if found[3] else "blob", Digest("sha256", found[2]), info.size)


class Bundle:
    """A bundle that is being read. `name` is what people call it.

    Methods raise VerificationError for what is not as it should be, StoreError where it cannot be read.
    """

    def __init__(self, stream: Readable, name: str) -> None:
        self.name = name
        self._stream = stream
        self._buffer = memoryview(bytearray(BUFFER))
        self._seen: set[str] = set()
        self._member: Member | None = None
        self._at = 0  # of the current member
        with disk_errors(name):
            self.can_seek = stream.seekable()

    def next(self) -> Member | None:
        """Skips what is left of the current member; None at the end of the bundle."""
        if self._member:
            self.skip_to(self._member.size)
            self._exactly(self._member.padding)
        block = self._exactly(BLOCK)
        if not any(block):
            self._check_end()
            return None
        member = Member.of(block)
        if member.name in self._seen:
            raise VerificationError(f"{member.name} is in it twice")
        if member.kind == "manifest" and self._member and self._member.kind == "blob":
            raise VerificationError(f"{member.name} comes after the first blob")
        self._seen.add(member.name)
        self._member, self._at = member, 0
        return member

    def skip_to(self, offset: int) -> None:
        """Goes to this byte of the current member; backwards only where `can_seek`."""
        if self.can_seek:
            with disk_errors(self.name):
                self._stream.seek(offset - self._at, os.SEEK_CUR)
            self._at = offset
        for _ in self.read(offset - self._at):
            pass

    def read(self, count: int) -> Iterator[memoryview]:
        """So many bytes of the current member; each view is valid until the next."""
        while count > 0:
            chunk = self._some(count)
            self._at += len(chunk)
            count -= len(chunk)
            yield chunk

    def _exactly(self, count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            content += self._some(count - len(content))
        return bytes(content)

    def _some(self, most: int) -> memoryview:
        if chunk := self._more(most):
            return chunk
        raise VerificationError("it ends too early")

    def _more(self, most: int) -> memoryview:
        with disk_errors(self.name):
            count = self._stream.readinto(self._buffer[:most])
            if count is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self._buffer[:count]

    def _check_end(self) -> None:
        left = MOST_PADDING
        if any(self._exactly(BLOCK)):
            raise VerificationError("a block in the midst of it is empty")
        while chunk := self._more(BUFFER):
            left -= len(chunk)
            if left < 0 or any(chunk):
                raise VerificationError("something comes after its end")
