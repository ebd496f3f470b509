"""One connection at work: a thread that asks one source for one span and writes what arrives.

Responsible for: admitting a reply to the partial, skipping what is here, its own pace, and reporting how it ended,
once. Leaves to `transfer`: which span, which source, enforcing deadlines, what an error means for the source.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from modelcache.errors import (
    AbortedError,
    ModelCacheError,
    RangeRefusedError,
    ShortageError,
    SourceError,
    StoreError,
    TransientError,
    VerificationError,
)
from modelcache.model import ModelFile, Span
from modelcache.plan import Standing
from modelcache.remotes.source import Abort, Body, Chunk, Request, Source
from modelcache.settings import Settings
from modelcache.store.partial import END, Partial
from modelcache.throttle import Throttle
from modelcache.transfer.hedge import Shadow
from modelcache.units import in_bytes

ASLEEP_S = 1.0
RATED_AFTER_S = 0.2  # before, a rate would be that of a buffer


class OtherSizeError(SourceError):
    """The source has a file of another size than the one that others gave, and nobody knows yet who is right."""


class Foreman(Protocol):
    """What a worker needs of its transfer."""

    file: ModelFile
    partial: Partial
    throttle: Throttle

    def claim_alone(self, worker: "Worker") -> bool:
        """Whether no other worker runs, nor will while this one does: then a reply with the whole may be used."""

    def renew(self, standing: Standing) -> None:
        """Empties the partial, for a worker that is alone: its source has another version now."""


class Sink(Protocol):
    """Where its bytes go: a writer of the partial, or memory."""

    position: int
    stop: int
    held: bool

    @property
    def left(self) -> Span: ...

    def write(self, data: memoryview) -> None: ...

    def shorten(self, stop: int) -> bool: ...

    def close(self) -> None: ...


class Pace:
    """Judges from samples whether bytes come fast enough (I23)."""

    def __init__(self, now: float) -> None:
        self.began = now
        self._last = (now, 0)  # when a byte came last, and how many there were
        self._mark = (now, 0)  # where the present window began

    @property
    def woke(self) -> float:
        """When a byte came last."""
        return self._last[0]

    def forgive(self, now: float, received: int) -> None:
        """It was not the source that made it wait."""
        self._last = self._mark = (now, received)

    def fault(self, now: float, received: int, settings: Settings) -> str:
        """What is wrong, in words; empty while all is well. Slow but steady is well."""
        if received != self._last[1]:
            self._last = (now, received)
        if now - self._last[0] >= settings.stall_timeout:
            return f"no byte for {settings.stall_timeout:g} s"
        since, before = self._mark
        if received - before >= settings.slow_rate * settings.slow_window:
            self._mark = (now, received)
        elif now - since >= settings.slow_window:
            return f"less than {settings.slow_rate:,} bytes/s for {settings.slow_window:g} s"
        return ""


class Worker:
    """Runs once. All times are monotonic; `error` and `moved` are final when it has reported."""

    def __init__(self, foreman: Foreman, source: Source, standing: Standing, writer: Sink) -> None:
        self.standing = standing
        self.abort = Abort()
        self.started = time.monotonic()
        self.received = 0  # bytes from the network, those skipped included
        self.moved = 0  # bytes that were absent before
        self.error: BaseException | None = None
        self.reply_s = 0.0  # from asking to the end of the headers
        self.abandoned = False
        self.ended_at: float | None = None
        self.pace: Pace | None = None  # once the headers are here
        self.number = 0  # how many were asked in this transfer, this one included
        self.status = 0  # of HTTP
        self._foreman = foreman
        self._source = source
        self._span = Span(writer.position, writer.stop)
        self._writer: Sink | None = writer
        self._is_whole = False  # the body goes on beyond the span
        self._is_throttled = False

    def start(self, report: Callable[["Worker"], None]) -> None:
        """Reports also where there is no thread to be had."""
        try:
            threading.Thread(target=self._run, args=(report,), name="modelcache-worker", daemon=True).start()
        except RuntimeError as error:
            self.error = ShortageError(f"no connection: {error}", next_step="end some programs")
            self._give_back()
            report(self)

    @property
    def is_held(self) -> bool:
        """Whether it waits for the disk or for the rate limit, so that slowness is not the source's."""
        return self._is_throttled or self.is_blocked

    @property
    def is_blocked(self) -> bool:
        """Whether it waits for the disk side: for bytes before its own, or for the hash."""
        writer = self._writer
        return writer is not None and writer.held

    @property
    def left(self) -> Span:
        """What it has still to bring."""
        writer = self._writer
        return writer.left if writer else Span(0, 0)

    def rate(self, now: float) -> float | None:
        """Bytes/s since its headers came; None: too early to say."""
        began = self.pace.began if self.pace else now
        return self.received / (now - began) if now - began > RATED_AFTER_S else None

    def sleeps(self, now: float) -> bool:
        """Whether nothing has come for so long that somebody else may take its place, before it counts as a stall."""
        return self.pace is not None and not self.is_held and now - self.pace.woke > ASLEEP_S

    def shorten(self, stop: int) -> bool:
        """Leaves what lies from `stop` on to others; False if it is there already."""
        writer = self._writer
        return writer is not None and writer.shorten(stop)

    def end(self, cause: BaseException | None) -> None:
        """Ends the request; the worker reports at once, unless it waits for DNS."""
        self.ended_at = self.ended_at or time.monotonic()
        self.abort.fire(cause)

    def lateness(self, now: float, settings: Settings) -> str:
        """What its source has let pass, in words; empty while all is well (I23)."""
        if self.pace is None:
            if not self.abort.attached and now - self.started > settings.connect_timeout:
                return f"the name did not resolve within {settings.connect_timeout:g} s"
            whole = settings.connect_timeout + settings.header_timeout
            return f"no complete answer within {whole:g} s" if now - self.started > whole else ""
        if self.is_held:
            self.pace.forgive(now, self.received)
        return self.pace.fault(now, self.received, settings)

    def abandon(self) -> None:
        """It does not come back in time (DNS): whatever it does later is neither written nor counted."""
        self.abandoned = True
        writer = self._writer
        if writer is not None:
            with suppress(StoreError):  # a full disk: what is not in the journal is fetched again
                writer.close()

    def _run(self, report: Callable[["Worker"], None]) -> None:
        try:
            self._fetch()
        except (SourceError, AbortedError) as error:  # after `end`, whatever the source says is our doing
            self.error = self.abort.cause or error
            if isinstance(self.error, AbortedError) and not self.abort.fired:
                self.error = TransientError(error.message)
        except BaseException as error:  # noqa: BLE001 - the foreman raises it in its own thread
            self.error = error
        finally:
            self._give_back()
            report(self)

    def _fetch(self) -> None:
        request = self._request()
        with self._source.open(request) as body:
            self.abort.check()
            self.status, self.reply_s, self.pace = body.status, body.first_byte_s, Pace(time.monotonic())
            asked_whole = request.stop is None or self._span.start > 0
            self._is_whole = body.start == 0 and (asked_whole or body.status == 200)
            self._admit(body, request.validator)
            for chunk in body:
                self.received += len(chunk.data)
                goes_on = self._put(chunk) or self._must_see_the_end(body, chunk)
                self._wait_for_rate(len(chunk.data))
                if not goes_on:
                    return
            self._end()

    def _wait_for_rate(self, count: int) -> None:
        self._is_throttled = True
        self._foreman.throttle.take(count, self.abort.check)
        self._is_throttled = False

    def _request(self) -> Request:
        partial, span = self._foreman.partial, self._span
        start, stop = (span.start, None if span.stop == partial.extent else span.stop)
        if not self.standing.ranged:
            start, stop = 0, None  # a plain request: what is here already is skipped
        validator = partial.facts.validators.get(self._source.name, "")
        return Request(self._foreman.file, start, stop, validator, self.abort)

    # -- whether these bytes belong here ------------------------------------------------------------------------------

    def _admit(self, body: Body, validator: str) -> None:
        """Decides whether these bytes belong into the partial before one of them is written."""
        partial, file = self._foreman.partial, self._foreman.file
        if body.total is not None and body.total < file.least_size:
            raise VerificationError(f"{in_bytes(body.total)}, at least {file.least_size:,} expected")
        if body.total is None and not body.framed and not file.digests and file.size is None:
            raise SourceError("does not say how long the file is: give its size or digest")
        if self._has_other_size(body) or self._has_other_version(body, validator):
            self._begin_anew()
        elif body.start < self._span.start and not self._alone():
            raise RangeRefusedError("sends only the whole file")
        if body.total is not None:
            partial.settle_size(body.total)
        partial.called(self._source.name, body.validator)

    def _has_other_size(self, body: Body) -> bool:
        """Whether the source contradicts the size it gave itself. VerificationError or OtherSizeError if that is not
        its own: the size was given, or told by another source."""
        partial, file = self._foreman.partial, self._foreman.file
        if body.total is None or body.total == partial.size:
            return False
        if file.size is not None:
            raise VerificationError(f"{in_bytes(body.total)}, {file.size:,} expected")
        if partial.size is None and body.total >= partial.missing()[-1].start:
            return False
        if partial.facts.wrote - {self._source.name}:
            raise OtherSizeError(f"its file has {body.total:,} bytes, not as many as that of another source")
        return True

    def _has_other_version(self, body: Body, validator: str) -> bool:
        """Whether the source calls its content otherwise than before (product A2)."""
        changed = bool(validator) and body.validator != validator and (self._is_whole or bool(body.validator))
        if not (self._foreman.file.digests or self._foreman.file.pieces):
            return changed
        # The digest is the judge: mirrors behind one name may differ in their validators alone. A new beginning saves
        # a second download if they do not, but only once, or they would never come to an end.
        once = changed and bool(body.validator) and body.start < self._span.start and not self.standing.renewed
        return once and not self._foreman.file.pieces

    def _begin_anew(self) -> None:
        """The reply has the whole of another version: two versions are never mixed."""
        if not self._is_whole or not self._alone():
            raise RangeRefusedError("its file is another one now")
        self._give_back()
        self._foreman.renew(self.standing)
        self._take(Span(0, END))

    def _alone(self) -> bool:
        return self._foreman.claim_alone(self)

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _put(self, chunk: Chunk) -> bool:
        """Writes what is absent of a chunk; False when nothing more is wanted of this body."""
        offset, view = chunk.offset, memoryview(chunk.data)
        while self._writer is not None:
            skipped = view[max(0, self._writer.position - offset) :]
            offset += len(view) - len(skipped)
            wanted = skipped[: self._writer.left.size]
            before = self._writer.position
            self._writer.write(wanted)
            if not isinstance(self._writer, Shadow):  # what is only in memory is no progress
                self.moved += self._writer.position - before  # less than given where the span was shortened just now
            offset, view = offset + len(wanted), skipped[len(wanted) :]
            if self._writer.left.size:
                return True
            self._next_gap(offset)
        if offset + len(view) > self._foreman.partial.extent:
            raise VerificationError(f"the body is longer than the {self._foreman.partial.extent:,} bytes expected")
        return False

    def _must_see_the_end(self, body: Body, last: Chunk) -> bool:
        """A body that did not say its length may be longer than the file: only its end tells."""
        return body.total is None and last.offset + len(last.data) >= self._foreman.partial.extent

    def _next_gap(self, offset: int) -> None:
        """The span is full: if the body goes on, takes the next absent span that it will come to."""
        self._give_back()
        if self._is_whole and self._alone():
            for gap in self._foreman.partial.unclaimed():
                if gap.start >= offset:
                    self._take(gap)
                    return

    def _take(self, span: Span) -> None:
        self._span = span
        self._writer = self._foreman.partial.writer(span, self._source.name)
        self.abort.check()  # who was abandoned meanwhile writes nothing

    def _end(self) -> None:
        """The body is over, and its framing was right."""
        if self._writer is None or not self._writer.left.size:
            return
        if self._foreman.partial.size is None:
            if self._writer.position < self._foreman.file.least_size:
                raise VerificationError(f"{self._writer.position:,} bytes, too few")
            self._foreman.partial.settle_size(self._writer.position)
            return
        raise TransientError(f"ended after {self._writer.position:,} of {self._writer.stop:,} bytes")

    def _give_back(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            try:
                writer.close()
            except ModelCacheError as error:
                self.error = self.error or error
