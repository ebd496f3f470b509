"""The follower: one thread that reads a partial from the disk behind the writers and hashes what it finds.

Responsible for: the proof. It starts at 0 at once, so a resume waits for no hash; it hashes the file, not the
bytes that passed by, so what is hashed is what is published (I1, I2).
Leaves to `partial`: what is written so far, and what a bad piece means.
"""

import threading
from typing import Protocol

from modelcache.model import Span
from modelcache.pieces import Checks, new_hash
from modelcache.store.disk import BUFFER, chunks_of


class Followed(Protocol):
    """What the follower needs of a partial."""

    def await_bytes(self, position: int) -> Span | None:
        """Blocks until bytes at `position` may be hashed; None: stop. The span is empty at the end of the file."""

    def needs_proof(self, span: Span) -> bytes | None:
        """The BLAKE3 that the span must have, where nobody has proved it yet in this run."""

    def refused(self, span: Span) -> None:
        """The span was read and is wrong."""

    def followed(self, position: int, error: OSError | None) -> None:
        """Everything before `position` is hashed, or reading failed there."""


class Follower:
    """Runs until the end of the file is hashed, the partial stops it, or the disk cannot be read."""

    def __init__(self, partial: Followed, fd: int, checks: Checks) -> None:
        self._partial = partial
        self._fd = fd
        self.checks = checks
        self._buffer = memoryview(bytearray(BUFFER))
        self._thread = threading.Thread(target=self._run, name="modelcache-follower", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        position = 0
        try:
            while span := self._partial.await_bytes(position):
                if span.size == 0:
                    break
                position = self._hash(span)
                self._partial.followed(position, None)
        except OSError as error:
            self._partial.followed(position, error)

    def _hash(self, span: Span) -> int:
        """Returns how far the proof reaches now: the end of the span, or its start if it was refused."""
        expected = self._partial.needs_proof(span)
        if expected is None:
            for chunk in chunks_of(self._fd, *span, self._buffer):
                self.checks.update(chunk)
            return span.stop
        self.checks.mark()
        piece = new_hash("blake3")
        for chunk in chunks_of(self._fd, *span, self._buffer):
            piece.update(chunk)
            self.checks.update(chunk)
        if piece.digest() == expected:
            return span.stop
        self.checks.back()
        self._partial.refused(span)
        return span.start
