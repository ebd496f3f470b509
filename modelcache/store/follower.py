"""The follower: one thread that reads a partial from the disk behind the writers and hashes what it finds.

Responsible for: the proof. It starts at 0 at once, so a resume waits for no hash; it hashes the file, not the
bytes that passed by, so what is hashed is what is published (I1, I2).
Leaves to `partial`: what is written so far, and what a bad piece means.
"""

import threading
from typing import Protocol

from modelcache.errors import StoreError
from modelcache.model import Span
from modelcache.pieces import Checks, Measure, new_hash
from modelcache.store.disk import BUFFER, chunks_of


class Followed(Protocol):
    """What the follower needs of a partial."""

    def await_bytes(self, position: int) -> Span | None:
        """Blocks until bytes at `position` may be hashed; None: stop. The span is empty at the end of the file."""

    def needs_proof(self, span: Span) -> bytes | None:
        """The BLAKE3 that the span must have, where nobody has proved it yet in this run."""

    def refused(self, span: Span) -> None:
        """The span was read and is wrong."""

    def followed(self, position: int) -> None:
        """Everything before `position` is hashed."""

    def failed(self, error: OSError | StoreError) -> None:
        """The disk refused: the file will not be proven."""


class Follower:
    """Runs until the end of the file is hashed, the partial stops it, or the disk refuses."""

    def __init__(self, partial: Followed, fd: int, checks: Checks, measure: Measure | None) -> None:
        self._partial = partial
        self._fd = fd
        self.checks = checks
        self.measure = measure
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="modelcache-follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended, however much is left to hash. `await_bytes` must return None by now."""
        self._stopping = True
        self._thread.join()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        position = 0
        buffer = memoryview(bytearray(BUFFER))  # goes with the thread: thousands of files may have been fetched
        try:
            while (span := self._partial.await_bytes(position)) is not None and span.size:
                position = self._hash(span, buffer)
                if self._stopping:
                    return
                self._partial.followed(position)
        except (OSError, StoreError) as error:
            self._partial.failed(error)

    def _hash(self, span: Span, buffer: memoryview) -> int:
        """Returns how far the proof reaches now: the end of the span, or its start if it was refused."""
        expected = self._partial.needs_proof(span)
        piece = new_hash("blake3") if expected is not None else None
        if piece is not None:
            self.checks.mark()
        position = span.start
        for chunk in chunks_of(self._fd, *span, buffer):
            if self._stopping:
                return position
            if piece is not None:
                piece.update(chunk)
            elif self.measure is not None:
                self.measure.update(chunk)
            self.checks.update(chunk)
            position += len(chunk)
        if position < span.stop:
            raise OSError(0, "somebody made it shorter")
        if piece is None or piece.digest() == expected:
            return span.stop
        self.checks.back()
        self._partial.refused(span)
        return span.start
