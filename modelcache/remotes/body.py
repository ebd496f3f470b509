"""The bytes of an HTTP reply, in the order they arrive.

Responsible for: the end of the body (counted, chunked, closed), yielding what arrived before a cut, never a byte too
many, and giving the connection back to its pool or closing it.
Leaves to others: what the head promised (`reply`), what the bytes are worth (`transfer`).
"""

import io
import re
import ssl
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, Self

import requests

from modelcache.errors import AbortedError, ModelCacheError, SourceError, TransientError, VerificationError
from modelcache.remotes.connection import FOREIGN, Connector, Hop
from modelcache.remotes.reply import Promise
from modelcache.remotes.source import Chunk

CHUNK_BYTES = 512 << 10
TLS_RECORD, GATHERED_S = 16 << 10, 0.1  # what one read of TLS brings at most, and how long records are gathered
MOST_DRAINED_BYTES = 16 << 10
DRAIN_S = 1.0  # to read what keeps a connection usable; longer than that, a new connection is cheaper
_LONGEST_LINE = 4096
_MOST_TRAILERS = 100
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")


class Framing(Protocol):
    def readinto(self, view: memoryview) -> int:
        """At most one read from the network; 0 at the end of the body as its framing tells it."""


class Reader:
    """The buffered reader that http.client read the head with.

    Its `readinto1` copies what is buffered and then waits for more where the view has room for it: a cut at that
    moment would lose what had arrived. So the first read after a line takes no more than the buffer can hold.
    """

    def __init__(self, buffered: io.BufferedReader) -> None:
        self._buffered = buffered
        self._ahead = True

    def readinto(self, view: memoryview) -> int:
        """At most one read from the network. EOFError at the end of the connection."""
        most = io.DEFAULT_BUFFER_SIZE if self._ahead else len(view)
        self._ahead = False
        count = self._buffered.readinto1(view[:most])
        if not count:
            raise EOFError
        return count

    def line(self) -> bytes:
        self._ahead = True
        line = self._buffered.readline(_LONGEST_LINE)
        if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
            raise EOFError
        return line


class Counted:
    """A body of `length` bytes."""

    def __init__(self, reader: Reader, length: int) -> None:
        self._reader = reader
        self._left = length

    def readinto(self, view: memoryview) -> int:
        if not self._left:
            return 0
        count = self._reader.readinto(view[: self._left])
        self._left -= count
        return count


class Chunked:
    """RFC 9112, 7.1. http.client's own reading of it believes `-5`, `1_0` and a chunk that does not end."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._left = 0
        self._inside = False
        self._ended = False

    def readinto(self, view: memoryview) -> int:
        if not self._left and not self._ended:
            self._next()
        if self._ended:
            return 0
        count = self._reader.readinto(view[: self._left])
        self._left -= count
        return count

    def _next(self) -> None:
        if self._inside and self._reader.line() != b"\r\n":
            raise TransientError("the chunk framing is broken")
        size = _CHUNK_SIZE.fullmatch(self._reader.line())
        if not size:
            raise TransientError("the chunk framing is broken")
        self._inside, self._left = True, int(size[1], 16)
        if not self._left:
            self._skip_trailers()
            self._ended = True

    def _skip_trailers(self) -> None:
        for _ in range(_MOST_TRAILERS + 1):
            if self._reader.line() == b"\r\n":
                return
        raise TransientError("the chunk framing is broken: too many trailers")


class UntilClosed:
    """A body that ends with its connection: only a known size or digest can tell a cut from the end."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def readinto(self, view: memoryview) -> int:
        try:
            return self._reader.readinto(view)
        except EOFError:
            return 0


class Foreign:
    """Reading through urllib3, where a response is not built the way we know (a stubbed transport)."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def readinto(self, view: memoryview) -> int:
        read = self._raw.read1(len(view), decode_content=False)
        view[: len(read)] = read
        return len(read)


class Exchange:
    """A reply whose connection is still ours: to be read, and then kept or closed."""

    def __init__(self, connector: Connector, response: requests.Response, hop: Hop) -> None:
        self._connector = connector
        self.raw: Any = response.raw
        self._hop = hop
        self._failure: Exception | None = None

    def framing(self, length: int | None, chunked: bool) -> Framing:
        buffered = getattr(getattr(self.raw, "_fp", None), "fp", None)
        if not isinstance(buffered, io.BufferedReader):
            return Foreign(self.raw)
        reader = Reader(buffered)
        if chunked:
            return Chunked(reader)
        return UntilClosed(reader) if length is None else Counted(reader, length)

    def receive(self, framing: Framing, view: memoryview) -> int:
        """Like `Framing.readinto`, with our own errors; of TLS several records at once, where they come at once.

        EOFError where the connection ends first. What arrived before an error is given; the error comes with the next
        call.
        """
        if self._failure is not None:
            raise self._failure
        self._hop.abort.check()
        try:
            with self._connector.translating(self._hop):
                count = framing.readinto(view)
        except EOFError:
            self._hop.abort.check()  # a shutdown looks like an end
            raise
        if not count:
            self._hop.abort.check()
        elif count == TLS_RECORD and isinstance(self._hop.sock, ssl.SSLSocket):
            count += self._more(framing, view[count:])
        return count

    def _more(self, framing: Framing, view: memoryview) -> int:
        """A full TLS record is mostly followed by another: what is done for each chunk is done for many at once."""
        count, end = 0, time.monotonic() + GATHERED_S
        try:
            with self._connector.translating(self._hop):
                while len(view) > count and time.monotonic() < end:
                    more = framing.readinto(view[count:])
                    count += more
                    if more != TLS_RECORD:
                        break
        except (EOFError, ModelCacheError) as error:
            self._failure = error
        return count

    def keep(self) -> None:
        """The body was read to its end: the connection goes back to the pool."""
        self._hop.abort.release()
        if getattr(self.raw, "_fp", None) is not None:
            self.raw._fp.close()
        self.raw.release_conn()

    def drop(self) -> None:
        """Closes the connection."""
        self._hop.abort.release()
        self.raw.close()
        self.raw.release_conn()

    def ends(self, framing: Framing) -> bool | None:
        """Whether the body ends here; None where that cannot be told soon."""
        try:
            self._hasten()
            return self.receive(framing, memoryview(bytearray(1))) == 0
        except (SourceError, AbortedError, EOFError, *FOREIGN):
            return None

    def dismiss(self, length: int | None) -> None:
        """Nobody wants this body: a small one is read so that the connection can be used again."""
        if length is not None and length <= MOST_DRAINED_BYTES and self._drained(length):
            self.keep()
        else:
            self.drop()

    def _drained(self, length: int) -> bool:
        framing, view = self.framing(length, chunked=False), memoryview(bytearray(length + 1))
        end = time.monotonic() + DRAIN_S
        try:
            self._hasten()
            while self.receive(framing, view):
                if time.monotonic() > end:
                    return False
        except (SourceError, AbortedError, EOFError, *FOREIGN):
            return False
        return True

    def _hasten(self) -> None:
        if self._hop.sock is not None:
            self._hop.sock.settimeout(DRAIN_S)


class HttpBody:
    """The Body of source.py. A 200 to a Range begins at 0 and goes to the end of the file, past what was asked."""

    def __init__(
        self, exchange: Exchange, promise: Promise, *, validator: str, host: str, status: int, first_byte_s: float
    ) -> None:
        self.start = promise.start
        self.total = promise.total
        self.validator = validator
        self.host = host
        self.status = status
        self.first_byte_s = first_byte_s
        self.framed = promise.stop is not None or promise.chunked
        self._exchange = exchange
        self._promise = promise
        self._open = True

    def __iter__(self) -> Iterator[Chunk]:
        try:
            yield from self._chunks()
        finally:
            self.close()

    def close(self) -> None:
        """Frees the connection; one whose body was not read to its end is closed."""
        if self._open:
            self._open = False
            self._exchange.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def _chunks(self) -> Iterator[Chunk]:
        stop = self._promise.stop
        framing = self._exchange.framing(self._promise.length, self._promise.chunked)
        buffer = memoryview(bytearray(CHUNK_BYTES))
        position, surplus = self.start, False
        if stop == position:
            surplus = self._settle(framing)
        while position != stop:
            count = self._receive(framing, buffer if stop is None else buffer[: stop - position], position)
            if not count:
                self._check_end(position)
                return
            if position + count == stop:
                surplus = self._settle(framing)
            yield Chunk(position, buffer[:count])
            position += count
        if surplus:
            raise VerificationError(f"the body is longer than the {position - self.start} bytes expected")

    def _receive(self, framing: Framing, view: memoryview, position: int) -> int:
        try:
            return self._exchange.receive(framing, view)
        except EOFError as error:
            raise TransientError(f"the connection ended after {self._progress(position)}") from error

    def _settle(self, framing: Framing) -> bool:
        """All wanted bytes are here: a slow or broken end is no fault. True if more come than were promised."""
        self._open = False
        if not self._promise.surplus_is_wrong:
            self._exchange.drop()
            return False
        ends = self._exchange.ends(framing)
        if ends:
            self._exchange.keep()
        else:
            self._exchange.drop()
        return ends is False

    def _check_end(self, position: int) -> None:
        """The framing says that the body is over before `stop`, or there was no `stop`."""
        if self._promise.stop is not None:
            raise TransientError(f"the body ended after {self._progress(position)}")
        if position == 0 and self._promise.nothing_known:
            raise SourceError("it sent an empty body")
        self._open = False
        self._exchange.keep()

    def _progress(self, position: int) -> str:
        stop = self._promise.stop
        return f"{position - self.start}{'' if stop is None else f' of {stop - self.start}'} bytes"
