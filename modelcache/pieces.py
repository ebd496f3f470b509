"""The one idea as values: a file is a list of verifiable pieces.

Responsible for: where pieces lie, and running a hash along bytes that pass by.
Leaves to others: which bytes are on the disk (`store`), and whom to blame for a bad one (`transfer`).
Blake3 is imported when the first piece is hashed: a cache hit needs none.
"""

import hashlib
from collections.abc import Iterable
from typing import Protocol

from modelcache.model import GIT, Digest, PieceDigests, Span


class Hash(Protocol):
    """What hashlib's and blake3's objects share."""

    def update(self, data: bytes | memoryview, /) -> object: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...

    def copy(self) -> "Hash": ...


def new_hash(algorithm: str, size: int | None = None) -> Hash:
    """`size` is that of the whole file in bytes: a git blob's hash begins with it."""
    if algorithm == "blake3":
        from blake3 import blake3

        return blake3()
    if algorithm == GIT:
        assert size is not None
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return hashlib.new(algorithm, usedforsecurity=False)


class Pieces:
    """The pieces of a file of `size` bytes: equal ones of `length`, the last one shorter.

    `digests` is what they must be, or None where nobody told.
    """

    def __init__(self, size: int, length: int, digests: PieceDigests | None = None) -> None:
        self.size = size
        self.length = length
        self.digests = digests

    def __len__(self) -> int:
        return -(-self.size // self.length)

    def at(self, offset: int) -> int:
        """The index of the piece that holds the byte at `offset`."""
        return offset // self.length

    def span(self, index: int) -> Span:
        return Span(index * self.length, min((index + 1) * self.length, self.size))

    def matches(self, index: int, digest: bytes) -> bool:
        """Whether the piece is right, as far as anybody told what right is."""
        return self.digests is None or self.digests[index] == digest


class PieceHasher:
    """Hashes pieces as consecutive bytes pass by, beginning anywhere.

    A piece whose first bytes did not pass is not judged here: the follower does that from the file.
    """

    def __init__(self, pieces: Pieces, start: int) -> None:
        self._pieces = pieces
        self._offset = start
        self._hash: Hash | None = None
        if start % pieces.length == 0:
            self._hash = new_hash("blake3")

    def feed(self, data: memoryview) -> list[tuple[int, bytes]]:
        """Returns (index, BLAKE3) of each piece that these bytes complete."""
        done = []
        while data and self._offset < self._pieces.size:
            index = self._pieces.at(self._offset)
            room = self._pieces.span(index).stop - self._offset
            if self._hash is not None:
                self._hash.update(data[:room])
            self._offset += min(room, len(data))
            if len(data) >= room:
                if self._hash is not None:
                    done.append((index, self._hash.digest()))
                self._hash = new_hash("blake3")
            data = data[room:]
        return done


class Measure:
    """The BLAKE3 of each `length` bytes, of a file whose bytes are fed in order."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._digests = bytearray()
        self._hash = new_hash("blake3")
        self._here = 0  # bytes of the piece that is begun

    def update(self, view: memoryview) -> None:
        while view:
            part = view[: self._length - self._here]
            self._hash.update(part)
            self._here += len(part)
            if self._here == self._length:
                self._digests += self._hash.digest()
                self._hash, self._here = new_hash("blake3"), 0
            view = view[len(part) :]

    def result(self) -> PieceDigests:
        rest = self._hash.digest() if self._here else b""
        return PieceDigests(self._length, bytes(self._digests) + rest)


class Checks:
    """SHA-256, which names the blob, and each further digest that is expected, computed in one pass.

    Fed with all bytes of a file of `size` in order; `mark` and `back` take a stretch back that proved wrong.
    """

    def __init__(self, expected: Iterable[Digest], size: int | None = None) -> None:
        self.expected = tuple(expected)
        names = {"sha256", *(digest.algorithm for digest in self.expected)}
        self._hashes = {name: new_hash(name, size) for name in names}
        self._marked: dict[str, Hash] = {}

    def update(self, view: memoryview) -> None:
        for running in self._hashes.values():
            running.update(view)

    def mark(self) -> None:
        self._marked = {name: running.copy() for name, running in self._hashes.items()}

    def back(self) -> None:
        self._hashes = self._marked
        self.mark()

    def result(self) -> dict[str, Digest]:
        """What the bytes are, by algorithm."""
        return {name: Digest(name, running.hexdigest()) for name, running in self._hashes.items()}

    def wrong(self) -> Digest | None:
        """The first expected digest that the bytes do not have; None when all are right."""
        result = self.result()
        return next((digest for digest in self.expected if result[digest.algorithm] != digest), None)
