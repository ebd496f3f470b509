"""One writer's way into a partial: consecutive bytes of one span, until it is fenced.

Responsible for: writing nothing after `fence`, whatever its thread does later, and telling the partial often enough
what was written. Leaves to `partial`: what that means.
"""

import os
import threading
import time
from typing import Protocol

from modelcache.errors import FencedError
from modelcache.model import Span
from modelcache.pieces import PieceHasher, Pieces
from modelcache.spans import END
from modelcache.store.disk import disk_errors, give_back, reserve, write_all

RECORD_EVERY = 1 << 20  # bytes; a kill costs at most that much per connection (I10)
RECORD_EVERY_S = 1.0
RESERVE = 64 << 20  # bytes of room asked for at once


class Written(Protocol):
    """What a writer needs of its partial. All may raise FencedError and StoreError."""

    path: str

    def record(self, writer: "SpanWriter") -> None:
        """The bytes before `position` are written."""

    def hold_back(self, writer: "SpanWriter") -> None:
        """Blocks while the writer is too far ahead."""

    def judge(self, writer: "SpanWriter", index: int, digest: bytes) -> None:
        """A piece is written and has this BLAKE3. VerificationError if it should not."""

    def release(self, writer: "SpanWriter") -> None:
        """The writer is done."""


class SpanWriter:
    """Writes consecutive bytes of one span, from one thread, through a file handle of its own.

    `position` may be read by anyone without a lock. The transfer may `shorten` the span while it is written.
    """

    def __init__(self, partial: Written, fd: int, span: Span, source: str) -> None:
        self._partial = partial
        self._fd = fd
        self._busy = threading.Lock()
        self._hasher: PieceHasher | None = None
        self.fenced = False
        self.held = False  # waits for the follower: not the source's fault
        self.source = source
        self.position = span.start
        self.recorded = span.start  # everything before is in the journal
        self.recorded_at = time.monotonic()
        self.stop = span.stop
        self._reserved = span.start  # there is room up to here, or was no use in asking

    @property
    def left(self) -> Span:
        return Span(self.position, max(self.position, self.stop))

    def write(self, data: bytes | memoryview, *, wait: bool = True) -> None:
        """Puts bytes at `position`; what lies beyond `stop` is ignored.

        It may block while the follower is a window behind, unless `wait` is False. Raises FencedError once the partial
        is closed, StoreError if the disk refuses, and VerificationError at the end of a piece that is not what it
        should be: its bytes are absent again.
        """
        if self.position - self.recorded + len(data) > RECORD_EVERY:  # it is more than the one before it
            self._partial.record(self)
        with self._busy:
            if self.fenced:
                raise FencedError("the partial was closed while this writer was away")
            view = memoryview(data)[: max(0, self.stop - self.position)]
            if self.position >= self._reserved:
                self._reserve()
            with disk_errors(self._partial.path):
                write_all(self._fd, view, self.position)
            self.position += len(view)
        self._judge(view)
        is_much = self.position - self.recorded + len(view) > RECORD_EVERY  # with the next, which is like this one
        if is_much or time.monotonic() - self.recorded_at >= RECORD_EVERY_S:
            self._partial.record(self)
            if wait:
                self._partial.hold_back(self)

    def shorten(self, stop: int) -> bool:
        """Gives back what lies from `stop` on, for another writer. False if that is not ahead of this one any more."""
        with self._busy:
            is_ahead = self.position < stop < self.stop and not self.fenced
            if is_ahead:
                self.stop = stop
            return is_ahead

    def measure(self, pieces: Pieces | None) -> None:
        """Begins (or, with None, ends) hashing pieces along the way."""
        if pieces is None:
            self._hasher = None
        elif self._hasher is None:
            self._hasher = PieceHasher(pieces, self.position)

    def close(self) -> None:
        """Gives the rest of the span back. What was written stays."""
        self._partial.release(self)

    def fence(self) -> None:
        """After this returns, this writer has written its last byte."""
        with self._busy:
            if not self.fenced:
                self.fenced = True
                if self.position < (end := min(self.stop, self._reserved)):
                    give_back(self._fd, self.position, end)  # these bytes are absent, and nobody else's before this
                with disk_errors(self._partial.path):
                    os.close(self._fd)

    def _reserve(self) -> None:
        """Room ahead of the writer: write-back, which runs beside the download, is then quick and disturbs it less."""
        self._reserved = self.position + RESERVE
        is_worth_it = self.stop - self.position >= RESERVE // 4 and self.stop != END
        if is_worth_it and not reserve(self._fd, self.position, min(self.stop, self._reserved)):
            self._reserved = END

    def _judge(self, view: memoryview) -> None:
        for index, digest in self._hasher.feed(view) if self._hasher else ():
            self._partial.judge(self, index, digest)
