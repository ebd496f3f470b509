"""One connection at work: a thread that asks one source for one span and writes what arrives.

Responsible for: admitting a reply to the partial, skipping what is here, and reporting how it ended, once.
Leaves to `transfer`: which span, which source, deadlines, and what an error means for the source.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

from modelcache.errors import (
    AbortedError,
    ModelCacheError,
    RangeRefusedError,
    SourceError,
    TransientError,
    VerificationError,
)
from modelcache.model import ModelFile, Span
from modelcache.plan import Standing
from modelcache.remotes.source import Abort, Body, Chunk, Request, Source
from modelcache.store.partial import END, Partial, SpanWriter


class Foreman(Protocol):
    """What a worker needs of its transfer."""

    file: ModelFile
    partial: Partial

    def claim_alone(self, worker: "Worker") -> bool:
        """Whether no other worker runs, nor will while this one does: then a reply with the whole may be used."""


class Worker:
    """Runs once. All times are monotonic; `error` and `moved` are final when it has reported."""

    def __init__(self, foreman: Foreman, source: Source, standing: Standing, span: Span) -> None:
        self.standing = standing
        self.abort = Abort()
        self.started = time.monotonic()
        self.headers_at: float | None = None
        self.received = 0  # bytes from the network, those skipped included
        self.moved = 0  # bytes that were absent before
        self.error: BaseException | None = None
        self.abandoned = False
        self.ended_at: float | None = None
        self._mark = (self.started, 0)
        self._foreman = foreman
        self._source = source
        self._span = span
        self._writer: SpanWriter | None = None

    def start(self, report: Callable[["Worker"], None]) -> None:
        threading.Thread(target=self._run, args=(report,), name="modelcache-worker", daemon=True).start()

    @property
    def is_held(self) -> bool:
        """Whether it waits for the disk side, so that slowness is not the source's."""
        return self._writer is not None and self._writer.held

    def end(self, cause: BaseException | None) -> None:
        """Ends the request; the worker reports at once, unless it waits for DNS."""
        self.ended_at = self.ended_at or time.monotonic()
        self.abort.fire(cause)

    def is_too_slow(self, now: float, window_s: float, rate: int) -> bool:
        """Whether less than `rate` bytes/s arrived over a whole window."""
        since, received = self._mark
        if self.is_held or self.received - received >= rate * window_s:
            self._mark = (now, self.received)
            return False
        return now - since >= window_s

    def abandon(self) -> None:
        """It does not come back in time (DNS): whatever it does later is neither written nor counted."""
        self.abandoned = True
        if self._writer is not None:
            self._writer.close()

    def _run(self, report: Callable[["Worker"], None]) -> None:
        try:
            self._fetch()
        except AbortedError as error:
            self.error = self.abort.cause or error
        except BaseException as error:  # noqa: BLE001 - the foreman raises it in its own thread
            self.error = error
        finally:
            self._give_back()
            report(self)

    def _fetch(self) -> None:
        partial, span = self._foreman.partial, self._span
        self._writer = partial.writer(span, self._source.name)
        start, stop = (span.start, None if span.stop == partial.extent else span.stop)
        if not self.standing.ranged:
            start, stop = 0, None  # a plain request: what is here already is skipped
        validator = partial.facts.validators.get(self._source.name, "")
        with self._source.open(Request(self._foreman.file, start, stop, validator, self.abort)) as body:
            self.headers_at = time.monotonic()
            self._admit(body, validator)
            for chunk in body:
                self.received += len(chunk.data)
                if not self._put(chunk) and not self._must_see_the_end(body, chunk):
                    return
            self._end()

    def _admit(self, body: Body, validator: str) -> None:
        """Decides whether these bytes belong into the partial before one of them is written."""
        partial, file = self._foreman.partial, self._foreman.file
        if body.total is not None:
            if body.total < file.least_size:
                raise VerificationError(f"{body.total:,} bytes, at least {file.least_size:,} expected")
            if body.start == 0 and partial.size not in (None, body.total) and file.size is None and self._alone():
                self._begin_anew()  # the size was another source's word, or an earlier version's
            partial.settle_size(body.total)
        elif not body.framed and not file.digests and file.size is None:
            raise SourceError("does not say how long the file is: give its size or digest")
        if body.start < self._span.start:
            if not self._alone():
                raise RangeRefusedError("sends only the whole file")
            if not (file.digests or file.pieces) or (validator and body.validator and validator != body.validator):
                self._begin_anew()
        partial.called(self._source.name, body.validator)

    def _alone(self) -> bool:
        return self._foreman.claim_alone(self)

    def _begin_anew(self) -> None:
        """The reply has the whole of another version: two versions are never mixed (product A2)."""
        self._give_back()
        self._foreman.partial.restart()
        self._span = Span(0, END)
        self._writer = self._foreman.partial.writer(self._span, self._source.name)

    def _put(self, chunk: Chunk) -> bool:
        """Writes what is absent of a chunk; False when nothing more is wanted of this body."""
        offset, view = chunk.offset, memoryview(chunk.data)
        if self._writer is None and view:
            raise VerificationError(f"the body is longer than the {offset:,} bytes expected")
        while self._writer is not None:
            skipped = view[max(0, self._writer.position - offset) :]
            offset += len(view) - len(skipped)
            wanted = skipped[: self._writer.left.size]
            self._write(wanted)
            offset, view = offset + len(wanted), skipped[len(wanted) :]
            if self._writer.left.size:
                return True
            self._next_gap(offset)
        return False

    def _must_see_the_end(self, body: Body, last: Chunk) -> bool:
        """A body that did not say its length may be longer than the file: only its end tells."""
        return body.total is None and last.offset + len(last.data) >= self._foreman.partial.extent

    def _write(self, view: memoryview) -> None:
        assert self._writer is not None
        self._writer.write(view)
        self.moved += len(view)

    def _next_gap(self, offset: int) -> None:
        """The span is full and the body goes on: takes the next absent span that it will come to."""
        self._give_back()
        if self._alone():
            for gap in self._foreman.partial.unclaimed():
                if gap.start >= offset:
                    self._writer = self._foreman.partial.writer(gap, self._source.name)
                    return

    def _end(self) -> None:
        """The body is over, and its framing was right."""
        if self._writer is None or not self._writer.left.size:
            return
        if self._foreman.partial.size is None:
            if self._writer.position < self._foreman.file.least_size:
                raise VerificationError(f"{self._writer.position:,} bytes, too few")
            self._foreman.partial.settle_size(self._writer.position)
            return
        here = self._writer.position
        raise TransientError(f"ended after {here:,} of {self._writer.stop:,} bytes")

    def _give_back(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            try:
                writer.close()
            except ModelCacheError as error:
                self.error = self.error or error
