"""The seam between `transfer` and everything that can supply bytes.

Responsible for: the protocol (`Source`, `Body`), what is asked (`Request`) and how a request is ended
from another thread (`Abort`).
Leaves to each source: speaking its protocol, refusing malformed replies, translating foreign errors
through the last byte of the body. Leaves to `transfer`: retries, fallback, and whether a byte is right.
"""

import math
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from modelcache.errors import AbortedError
from modelcache.model import ModelFile


class Chunk(NamedTuple):
    """Bytes of a body as they arrived. `data` may be a reused buffer: it is valid until the next chunk is asked for.

    `proven` is set by a source that had to check a block to decode it.
    """

    offset: int
    data: bytes | memoryview
    proven: bool = False


class Abort:
    """Ends one request at once, in whichever phase it is, from any thread.

    The connection hands each socket over by `attach`; `fire` shuts them down, which wakes a thread that is
    blocked in connect, TLS handshake, headers or body. Only DNS cannot be woken: whoever fires must be ready to
    abandon that thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: socket.socket | None = None
        self.cause: BaseException | None = None
        self.attached = False  # a socket was handed over: DNS is done
        self.until = math.inf  # when whoever watches is to fire it (monotonic clock)

    @property
    def fired(self) -> bool:
        return self.cause is not None

    def attach(self, sock: socket.socket) -> None:
        """Takes the socket now in use instead of the one before. Raises AbortedError if already fired."""
        # survives the hand-over to TLS, which detaches the socket object it wraps; a TLS socket has no dup() of its own
        duplicate = socket.socket(fileno=os.dup(sock.fileno()))
        with self._lock:
            self._release()
            self._held, self.attached = duplicate, True
            if self.fired:
                self._shut()
        self.check()

    def release(self) -> None:
        """The request is over: its connection may go back to the pool, and firing no longer touches it."""
        with self._lock:
            self._release()

    def fire(self, cause: BaseException | None = None) -> None:
        """Ends the request; the blocked thread raises AbortedError. `cause` tells its owner why; the first counts."""
        with self._lock:
            self.cause = self.cause or cause or AbortedError("the request was ended")
            self._shut()

    def check(self) -> None:
        """Raises AbortedError once fired."""
        if self.fired:
            raise AbortedError("the request was ended")

    def _shut(self) -> None:
        if self._held is not None:
            with suppress(OSError):
                self._held.shutdown(socket.SHUT_RDWR)

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


@dataclass(frozen=True, slots=True)
class Request:
    """Bytes `start` to `stop` (None: to the end, wherever it is) of a file.

    `validator` is what the source called this content before (a strong ETag or a Last-Modified), or empty.
    """

    file: ModelFile
    start: int
    stop: int | None
    validator: str
    abort: Abort


@dataclass(frozen=True, slots=True)
class Traits:
    """What a source can do for a file, as far as it knows without asking.

    ranges: it may be asked for them. says_ranges: it has said, or shown, that it serves them.
    """

    ranges: bool = True
    says_ranges: bool = False
    most_connections: int = 8


class Body(Protocol):
    """A reply whose headers are known and checked; iterating it yields the bytes. Closing it frees the connection.

    start: offset of the first byte that will come. It differs from what was asked only when it is 0: the source
        sends the whole, and the caller decides to skip, use or leave it.
    total: size of the whole file in bytes if the reply said so, else None.
    validator: the strong validator of the content, or empty.
    host: who really answered (after redirects), without secrets.
    status: HTTP status, 0 where the source has none.
    first_byte_s: seconds from asking to the end of the headers.
    framed: whether a body that was cut short would be noticed (a length, or chunks with an end).
    """

    start: int
    total: int | None
    validator: str
    host: str
    status: int
    first_byte_s: float
    framed: bool

    def __iter__(self) -> Iterator[Chunk]: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Source(Protocol):
    """One place that may have a file.

    `open` raises NotFoundError, TransientError, RangeRefusedError, SourceError or AbortedError, and so does the
    body while it is read; never a foreign exception. A body that ends early is a TransientError after its last byte.
    """

    name: str  # for people and journals: no secrets
    kind: str  # the wire format's `source`: cache, ipfs, huggingface, http, oci, peer, object

    def traits(self, file: ModelFile) -> Traits | None:
        """None: has it not. Asks nobody."""

    def open(self, request: Request) -> Body: ...

    def close(self) -> None: ...
