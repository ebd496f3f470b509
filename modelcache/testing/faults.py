"""The faults an origin can have. Each is a small value; several together make a bad day.

Responsible for: what each fault does to the offer (before it is answered) or to the reply (before it is sent).
Leaves to `origin`: which requests a fault is due for; to `reply`: the order on the wire.

Rules:
- A fault is due for every request it concerns, or for `times` of them after leaving the first `after` alone.
- A fault of the body leaves HEAD requests alone and does not count them.
- A fault at an offset of the file concerns only replies that send that offset.
- Faults of one request apply in the order they were given, origin-wide ones first.
"""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from modelcache.testing.content import Content, Corrupted, coded
from modelcache.testing.listener import Connection
from modelcache.testing.reply import Offer, Question, Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The base. A fault of your own is a frozen dataclass that overrides `prepare` or `shape`.

    times: how many requests it spoils; None: all.
    after: how many it leaves alone first.
    only_ranged: concerns only requests with a Range header.
    method: concerns only requests of this method; empty: any.
    """

    of_body: ClassVar[bool] = False
    times: int | None = None
    after: int = 0
    only_ranged: bool = False
    method: str = ""

    def concerns(self, question: Question) -> bool:
        if (self.of_body and question.method == "HEAD") or (self.method and question.method != self.method):
            return False
        return not self.only_ranged or "range" in question.headers

    def is_due(self, earlier: int) -> bool:
        """Whether it spoils a request that it concerns, after so many `earlier` ones."""
        return earlier >= self.after and (self.times is None or earlier < self.after + self.times)

    def prepare(self, offer: Offer) -> None:
        """Changes what would be served."""

    def shape(self, reply: Reply) -> None:
        """Changes how it is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyFault(Fault):
    """The base of faults that need a body to show."""

    of_body: ClassVar[bool] = True


# ---- the connection


@dataclass(frozen=True, slots=True)
class Cut(BodyFault):
    """The connection dies after so many bytes of the body: RST, or FIN with `reset=False`."""

    after_bytes: int
    reset: bool = True

    def shape(self, reply: Reply) -> None:
        reply.points.append((self.after_bytes, _reset if self.reset else _hang_up))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed(BodyFault):
    """The base of faults at an offset of the file; concerns only replies that send the byte at that offset."""

    def place(self) -> int:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class CutAt(Placed):
    """The connection dies when it is the turn of this offset of the file; a resume there gets no byte."""

    offset: int
    reset: bool = True

    def place(self) -> int:
        return self.offset

    def shape(self, reply: Reply) -> None:
        reply.points.append((self.offset - reply.start, _reset if self.reset else _hang_up))


@dataclass(frozen=True, slots=True)
class Hold(Placed):
    """Stops before this offset of the file, sets `reached` and goes on when you set `release`.

    Nobody sets it within `most_s` seconds: the connection is cut.
    """

    offset: int
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    most_s: float = 30.0

    def place(self) -> int:
        return self.offset

    def shape(self, reply: Reply) -> None:
        reply.points.append((self.offset - reply.start, self._hold))

    def _hold(self, connection: Connection) -> None:
        self.reached.set()
        connection.wait_for(self.release, self.most_s)


@dataclass(frozen=True, slots=True)
class Stall(BodyFault):
    """No more bytes after so many of the body, until the client leaves or the origin closes."""

    after_bytes: int = 0

    def shape(self, reply: Reply) -> None:
        reply.points.append((self.after_bytes, _be_silent))


@dataclass(frozen=True, slots=True)
class ShutDown(BodyFault):
    """The origin dies after so many bytes of the body: the port is closed, all connections end."""

    after_bytes: int = 0

    def shape(self, reply: Reply) -> None:
        reply.points.append((self.after_bytes, _die))


@dataclass(frozen=True, slots=True)
class SilentAccept(Fault):
    """The request is taken and never answered."""

    def shape(self, reply: Reply) -> None:
        reply.before_head.append(_be_silent)


# ---- the pace


@dataclass(frozen=True, slots=True)
class Delay(Fault):
    """So many seconds pass before the head."""

    seconds: float

    def shape(self, reply: Reply) -> None:
        reply.before_head.append(lambda connection: connection.wait(self.seconds))


@dataclass(frozen=True, slots=True)
class DribbleHeaders(Fault):
    """One byte of the head in each interval."""

    interval_s: float

    def shape(self, reply: Reply) -> None:
        reply.header_interval_s = self.interval_s


@dataclass(frozen=True, slots=True)
class Slow(BodyFault):
    """The body comes steadily at this rate, on each connection."""

    bytes_per_s: float

    def shape(self, reply: Reply) -> None:
        reply.bytes_per_s = self.bytes_per_s


# ---- the status


@dataclass(frozen=True, slots=True)
class Status(Fault):
    """This status instead of the file: `Status(503, {"Retry-After": "1"}, times=2)`."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def shape(self, reply: Reply) -> None:
        reply.become(Reply.plain(self.code, self.body, *self.headers.items()))


@dataclass(frozen=True, slots=True)
class Redirect(Fault):
    """Elsewhere."""

    url: str
    code: int = 302

    def shape(self, reply: Reply) -> None:
        reply.become(Reply.plain(self.code, b"", ("Location", self.url)))


@dataclass(frozen=True, slots=True)
class NeedsHeader(Fault):
    """401 (or `code`) unless the request has this header with this value."""

    name: str
    value: str
    code: int = 401

    def concerns(self, question: Question) -> bool:
        return question.headers.get(self.name) != self.value and Fault.concerns(self, question)

    def shape(self, reply: Reply) -> None:
        reply.become(Reply.plain(self.code))


@dataclass(frozen=True, slots=True)
class IgnoreRange(Fault):
    """Ranges are not known here: 200 with the whole, and no Accept-Ranges."""

    def prepare(self, offer: Offer) -> None:
        offer.takes_ranges = False


# ---- the bytes


@dataclass(frozen=True, slots=True)
class Corrupt(BodyFault):
    """A liar: the bytes at these offsets of the file are wrong, everything else looks right."""

    offsets: int | Collection[int]

    def prepare(self, offer: Offer) -> None:
        if offer.content:
            offsets = (self.offsets,) if isinstance(self.offsets, int) else self.offsets
            offer.content = Corrupted(offer.content, offsets)


@dataclass(frozen=True, slots=True)
class ChangedContent(Fault):
    """Another file under the same name, with its own ETag and a later Last-Modified; `after=1`: from the second on."""

    content: bytes | Path | Content

    def prepare(self, offer: Offer) -> None:
        before = offer.last_modified
        offer.present(Content.of(self.content))
        if offer.content and offer.last_modified == before:
            offer.last_modified = "Thu, 02 Jan 2025 00:00:00 GMT"


@dataclass(frozen=True, slots=True)
class Encoding(Fault):
    """The file under a Content-Encoding; gzip and deflate are really done, other names are only said."""

    coding: str = "gzip"

    def prepare(self, offer: Offer) -> None:
        if offer.content:
            offer.content = coded(offer.content, self.coding)

    def shape(self, reply: Reply) -> None:
        if reply.is_file:
            reply.put("Content-Encoding", self.coding)


@dataclass(frozen=True, slots=True)
class ExtraBytes(BodyFault):
    """So many zero bytes more than the head promises."""

    count: int

    def shape(self, reply: Reply) -> None:
        reply.surplus = self.count
        reply.closes = True


# ---- the framing


@dataclass(frozen=True, slots=True)
class NoLength(Fault):
    """No Content-Length: the end of the connection is the end of the body."""

    def shape(self, reply: Reply) -> None:
        reply.put("Content-Length", None)
        reply.framing = "close"
        reply.closes = True


@dataclass(frozen=True, slots=True)
class WrongLength(BodyFault):
    """Content-Length is off by `delta`; then the connection ends (FIN)."""

    delta: int

    def shape(self, reply: Reply) -> None:
        reply.put("Content-Length", str(reply.stop - reply.start + self.delta))
        reply.closes = True


@dataclass(frozen=True, slots=True)
class Chunked(BodyFault):
    """Transfer-Encoding: chunked. Not a fault unless its framing breaks in the middle or its end is missing."""

    bad_framing: bool = False
    missing_end: bool = False

    def shape(self, reply: Reply) -> None:
        reply.put("Content-Length", None)
        reply.put("Transfer-Encoding", "chunked")
        reply.framing = "chunked"
        reply.ends_chunks = not self.missing_end
        reply.closes |= self.missing_end
        if self.bad_framing:
            reply.points.append(((reply.stop - reply.start) // 2, _break_framing))


# ---- the headers


@dataclass(frozen=True, slots=True)
class Header(Fault):
    """A header more, or instead of one; None removes it."""

    name: str
    value: str | None

    def shape(self, reply: Reply) -> None:
        reply.put(self.name, self.value)


@dataclass(frozen=True, slots=True)
class ETag(Fault):
    """Another ETag, as it stands (`'"v2"'`, `'W/"v2"'`, `'unquoted'`); None: none. If-Range is compared with it."""

    value: str | None

    def prepare(self, offer: Offer) -> None:
        offer.etag = self.value


@dataclass(frozen=True, slots=True)
class LastModified(Fault):
    """Another Last-Modified, as it stands; None: none. If-Range is compared with it."""

    value: str | None

    def prepare(self, offer: Offer) -> None:
        offer.last_modified = self.value


@dataclass(frozen=True, slots=True)
class ContentRange(Fault):
    """Another Content-Range on every 206, as it stands; None: none."""

    value: str | None

    def shape(self, reply: Reply) -> None:
        if reply.status == 206:
            reply.put("Content-Range", self.value)


@dataclass(frozen=True, slots=True)
class ContentType(Fault):
    """Another Content-Type."""

    value: str

    def shape(self, reply: Reply) -> None:
        reply.put("Content-Type", self.value)


@dataclass(frozen=True, slots=True)
class ManyHeaders(Fault):
    """So many headers more."""

    count: int

    def shape(self, reply: Reply) -> None:
        reply.headers += [(f"X-Filler-{i}", str(i)) for i in range(self.count)]


@dataclass(frozen=True, slots=True)
class HugeHeader(Fault):
    """One more header whose value has so many bytes."""

    size: int

    def shape(self, reply: Reply) -> None:
        reply.headers.append(("X-Huge", "x" * self.size))


def _reset(connection: Connection) -> None:
    connection.reset()
    raise ConnectionResetError("as asked")


def _hang_up(_: Connection) -> None:
    raise ConnectionAbortedError("as asked")


def _be_silent(connection: Connection) -> None:
    connection.wait_gone()
    raise ConnectionAbortedError("the client left")


def _die(connection: Connection) -> None:
    connection.kill_server()
    raise ConnectionAbortedError("as asked")


def _break_framing(connection: Connection) -> None:
    connection.send(b"not a size\r\n")
    raise ConnectionAbortedError("as asked")
