"""How an honest HTTP/1.1 server answers, and how a reply, honest or bent by faults, goes down the connection.

Responsible for: parsing a request, Range and If-Range (RFC 9110, 13 and 14), framing, pacing, stopping at a place.
Leaves to `faults`: changing the `Offer` before it is answered and the `Reply` before it is sent.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

from modelcache.testing.content import BLOCK, Content, FileContent
from modelcache.testing.listener import Connection

_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.IGNORECASE)
_SLICES_PER_S = 50  # how finely a slow body is cut
Action = Callable[[Connection], None]


class HeaderMap(Mapping[str, str]):
    """Headers by name in any case; of repeated ones the last."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._values = {name.lower(): value for name, value in pairs}

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"HeaderMap({self._values})"


@dataclass(frozen=True, slots=True)
class Question:
    """A parsed request head. `target` is as sent, `path` decoded and without leading slash or query."""

    method: str
    target: str
    version: str
    raw_headers: list[tuple[str, str]]
    headers: HeaderMap

    @classmethod
    def parse(cls, head: bytes) -> Self:
        """Raises ValueError for what is no HTTP request."""
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, version = first.split(" ")
        pairs = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        return cls(method, target, version, pairs, HeaderMap(pairs))

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path).lstrip("/")

    @property
    def closes(self) -> bool:
        wish = self.headers.get("connection", "").lower()
        return wish == "close" or (self.version == "HTTP/1.0" and wish != "keep-alive")


@dataclass(slots=True)
class Offer:
    """What the origin would serve for a question; faults may change it. No content: 404."""

    question: Question
    content: Content | None
    etag: str | None
    last_modified: str | None
    takes_ranges: bool = True

    @classmethod
    def honest(cls, question: Question, content: Content | None) -> Self:
        offer = cls(question, None, None, None)
        if content:
            offer.present(content)
        return offer

    def present(self, content: Content) -> None:
        """Offers this content under its own validators."""
        self.content, self.etag, self.last_modified = content, content.tag, content.last_modified


@dataclass(slots=True)
class Reply:
    """A status, headers and the bytes `start` to `stop` of `body`.

    is_file: the body is a span of the file that was asked for, so offsets in the file have a meaning.
    points: what to do before the body's byte at that place (0 is its first) is sent.
    framing: `length` and `close` send the bytes as they are; they differ only in the headers.
    """

    status: int
    headers: list[tuple[str, str]]
    body: Content
    start: int
    stop: int
    is_file: bool = False
    closes: bool = False
    framing: Literal["length", "close", "chunked"] = "length"
    ends_chunks: bool = True
    surplus: int = 0
    bytes_per_s: float | None = None
    header_interval_s: float = 0
    before_head: list[Action] = field(default_factory=list)
    points: list[tuple[int, Action]] = field(default_factory=list)

    @classmethod
    def plain(cls, status: int, body: bytes = b"", *headers: tuple[str, str]) -> Self:
        return cls(status, [*headers, ("Content-Length", str(len(body)))], Content.of(body), 0, len(body))

    def put(self, name: str, value: str | None) -> None:
        """Sets a header instead of all of that name, where the first of them was; None removes them."""
        places = [i for i, (given, _) in enumerate(self.headers) if given.lower() == name.lower()]
        place = places[0] if places else len(self.headers)
        self.headers = [pair for pair in self.headers if pair[0].lower() != name.lower()]
        if value is not None:
            self.headers.insert(place, (name, value))

    def become(self, other: "Reply") -> None:
        """Turns into another, bodily; what is done on the way (pace, points) stays."""
        self.status, self.headers, self.body = other.status, other.headers, other.body
        self.start, self.stop, self.is_file = other.start, other.stop, other.is_file

    def covers(self, offset: int) -> bool:
        return self.is_file and self.start <= offset < self.stop


def answer(offer: Offer) -> Reply:
    """What an honest server replies."""
    question, content = offer.question, offer.content
    if question.method not in ("GET", "HEAD"):
        return Reply.plain(405, b"", ("Allow", "GET, HEAD"))
    if content is None:
        return Reply.plain(404, b"not here\n", ("Content-Type", "text/plain"))
    if offer.etag and question.headers.get("if-none-match") == offer.etag:
        return Reply(304, [("ETag", offer.etag)], Content.of(b""), 0, 0)
    return _file_reply(offer, content)


def _file_reply(offer: Offer, content: Content) -> Reply:
    span = _asked_span(offer, content.size)
    if span == "unsatisfiable":
        return Reply.plain(416, b"", ("Content-Range", f"bytes */{content.size}"))
    start, stop = span or (0, content.size)
    headers = [("Content-Type", "application/octet-stream"), ("Content-Length", str(stop - start))]
    if span:
        headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{content.size}"))
    if offer.takes_ranges:
        headers.append(("Accept-Ranges", "bytes"))
    validators = (("ETag", offer.etag), ("Last-Modified", offer.last_modified))
    headers += [(name, value) for name, value in validators if value]
    return Reply(206 if span else 200, headers, content, start, stop, is_file=True)


def _asked_span(offer: Offer, size: int) -> tuple[int, int] | Literal["unsatisfiable"] | None:
    """None: the whole. Several ranges and nonsense are ignored, as RFC 9110 14.2 lets a server do."""
    found = _RANGE.fullmatch(offer.question.headers.get("range", "").replace(" ", ""))
    if not offer.takes_ranges or not found or found[0].endswith("=-") or not _if_range_holds(offer):
        return None
    if not found[1]:
        start, stop = max(0, size - int(found[2])), size
    else:
        start, stop = int(found[1]), int(found[2]) + 1 if found[2] else size
        if found[2] and stop <= start:
            return None  # backwards is malformed, not unsatisfiable
    return (start, min(stop, size)) if start < size else "unsatisfiable"


def _if_range_holds(offer: Offer) -> bool:
    condition = offer.question.headers.get("if-range")
    if condition is None:
        return True
    if condition.startswith('"'):
        return condition == offer.etag
    return condition == offer.last_modified  # and a weak tag, W/"...", never holds


def send(reply: Reply, connection: Connection, *, body: bool, count: Callable[[int], None]) -> None:
    """Sends head and (unless it answers HEAD) body. `count` hears of each slice just before it goes out."""
    head = _head(reply)
    if reply.header_interval_s:
        for byte in head:
            connection.send(bytes((byte,)))
            connection.wait(reply.header_interval_s)
    else:
        connection.send(head)
    if body:
        _send_body(reply, connection, count)


def _head(reply: Reply) -> bytes:
    reason = HTTPStatus(reply.status).phrase if reply.status in HTTPStatus.__members__.values() else ""
    lines = [f"HTTP/1.1 {reply.status} {reason}", f"Date: {formatdate(usegmt=True)}"]
    lines += [f"{name}: {value}" for name, value in reply.headers]
    if reply.closes:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _send_body(reply: Reply, connection: Connection, count: Callable[[int], None]) -> None:
    place, length = 0, reply.stop - reply.start
    for point, action in sorted(reply.points, key=lambda pair: pair[0]):
        if point > length:
            break
        _send_span(reply, connection, (place, point), count)
        place = point
        action(connection)
    _send_span(reply, connection, (place, length), count)
    if reply.surplus:
        count(reply.surplus)
        _send_framed(reply, connection, memoryview(b"\0" * reply.surplus))
    if reply.framing == "chunked" and reply.ends_chunks:
        connection.send(b"0\r\n\r\n")


def _send_span(reply: Reply, connection: Connection, span: tuple[int, int], count: Callable[[int], None]) -> None:
    start, stop = reply.start + span[0], reply.start + span[1]
    step = max(1, min(BLOCK, int(reply.bytes_per_s / _SLICES_PER_S))) if reply.bytes_per_s else BLOCK
    for at in range(start, stop, step):
        end = min(at + step, stop)
        count(end - at)
        if isinstance(reply.body, FileContent) and connection.is_plain and reply.framing != "chunked":
            connection.send_file(reply.body.path, at, end)
        else:
            for view in reply.body.views(at, end):
                _send_framed(reply, connection, view)
        if reply.bytes_per_s:
            connection.wait((end - at) / reply.bytes_per_s)


def _send_framed(reply: Reply, connection: Connection, view: memoryview) -> None:
    if reply.framing == "chunked":
        connection.send(f"{len(view):x}\r\n".encode())
        connection.send(view)
        connection.send(b"\r\n")
    else:
        connection.send(view)
