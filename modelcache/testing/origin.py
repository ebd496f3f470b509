"""The origin: a real HTTP/1.1 server on this machine that serves files well, except for the faults it is given.

Responsible for: its files, which fault is due for which request, and the record of what it saw.
Leaves to `reply`: what an honest server says; to `faults`: how to be dishonest; to `listener`: sockets and threads.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from modelcache.testing.content import Content
from modelcache.testing.faults import Fault, Placed
from modelcache.testing.listener import Certificate, Connection, Listener, Server
from modelcache.testing.reply import HeaderMap, Offer, Question, Reply, answer, send


@dataclass(slots=True)
class Seen:
    """A request as the origin saw it, and how far the reply had got when you looked.

    path: the request target as it was sent, query included.
    range: the Range header, if there was one.
    status: what was answered; 0 before the head goes out.
    bytes_sent: bytes of the body, counted when they are handed to the system (the last slice of a broken
        connection, at most 1 MiB, counts as sent).
    connection: the number of the connection it came on, from 1.
    at_s: when it came (`time.monotonic`).
    """

    method: str
    path: str
    headers: HeaderMap
    raw_headers: list[tuple[str, str]]
    connection: int
    at_s: float
    status: int = 0
    bytes_sent: int = 0

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass(slots=True)
class _Installed:
    """A fault at its place, and how many requests it has concerned."""

    fault: Fault
    path: str | None
    concerned: int = 0

    def strikes(self) -> bool:
        self.concerned += 1
        return self.fault.is_due(self.concerned - 1)


class Origin(Server):
    """Serves `files` (path to bytes, Path or Content) on a port of this machine. Ready when constructed.

    A path may hold a query (`"api?page=2"`), which then has to match; else the query is ignored.

    faults: origin-wide ones, from the start.
    host: `127.0.0.1` or `::1`.
    tls: speak https with this certificate (see `certificate`).
    port: 0 takes a free one; the port of an origin that is closed brings it back to life.
    """

    def __init__(
        self,
        files: Mapping[str, bytes | Path | Content] | None = None,
        *,
        faults: Iterable[Fault] = (),
        host: str = "127.0.0.1",
        tls: Certificate | None = None,
        port: int = 0,
    ) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, Content] = {}
        self._installed: list[_Installed] = []
        self._seen: list[Seen] = []
        for path, content in (files or {}).items():
            self.put(path, content)
        self.faults(*faults)
        self._listener = Listener(self._serve, host, tls, port)

    def url(self, path: str = "") -> str:
        return f"{self._listener.base}/{quote(path.lstrip('/'), safe='/?&=+:@!$,;~()')}"

    @property
    def port(self) -> int:
        return self._listener.port

    def put(self, path: str, content: bytes | Path | Content) -> Content:
        """Serves this content under the path from now on."""
        given = Content.of(content)
        with self._lock:
            self._files[path.lstrip("/")] = given
        return given

    def remove(self, path: str) -> None:
        """404 from now on."""
        with self._lock:
            del self._files[path.lstrip("/")]

    def faults(self, *faults: Fault, path: str | None = None) -> None:
        """Adds faults, for one path (which need not have a file) or origin-wide. Each counts its requests from now."""
        place = path if path is None else path.lstrip("/")
        with self._lock:
            self._installed += [_Installed(fault, place) for fault in faults]

    def heal(self) -> None:
        """Removes all faults; replies under way keep theirs."""
        with self._lock:
            self._installed.clear()

    @property
    def requests(self) -> list[Seen]:
        """What was asked so far, in order of arrival: a copy that does not change any more."""
        with self._lock:
            return [replace(seen) for seen in self._seen]

    def stop(self) -> None:
        """Dies at once, like `ShutDown`: the port is closed, all connections end. What was seen stays."""
        self._listener.stop()

    def _serve(self, connection: Connection) -> None:
        while head := connection.read_head():
            try:
                question = Question.parse(head)
                connection.skip(int(question.headers.get("content-length", "0")))
            except ValueError:
                connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            if self._answer(question, connection).closes:
                return

    def _answer(self, question: Question, connection: Connection) -> Reply:
        seen = self._note(question, connection)
        reply = self._reply(question)
        reply.closes |= question.closes
        for action in reply.before_head:
            action(connection)
        seen.status = reply.status

        def count(size: int) -> None:
            with self._lock:
                seen.bytes_sent += size

        send(reply, connection, body=question.method != "HEAD", count=count)
        return reply

    def _note(self, question: Question, connection: Connection) -> Seen:
        seen = Seen(
            question.method,
            question.target,
            question.headers,
            question.raw_headers,
            connection.number,
            time.monotonic(),
        )
        with self._lock:
            self._seen.append(seen)
        return seen

    def _reply(self, question: Question) -> Reply:
        """The honest answer, spoiled by the faults that are due."""
        with self._lock:
            concerned = [it for it in self._installed if _concerns(it, question)]
            due = [it.fault for it in concerned if not isinstance(it.fault, Placed) and it.strikes()]
        offer = self.offer(question)
        for fault in due:
            fault.prepare(offer)
        reply = self.reply(offer)
        for fault in due:
            fault.shape(reply)
        for fault in self._placed(concerned, reply):
            fault.shape(reply)
        return reply

    def offer(self, question: Question) -> Offer:
        """What would be served without faults."""
        with self._lock:
            content = self._files.get(question.target.lstrip("/")) or self._files.get(question.path)
        return Offer.honest(question, content)

    def reply(self, offer: Offer) -> Reply:
        """How that is served without faults."""
        return answer(offer)

    def _placed(self, concerned: list[_Installed], reply: Reply) -> list[Fault]:
        """Faults at an offset count only the replies that send it, so they come when the span is known."""
        with self._lock:
            return [
                it.fault
                for it in concerned
                if isinstance(it.fault, Placed) and reply.covers(it.fault.place()) and it.strikes()
            ]


def _concerns(installed: _Installed, question: Question) -> bool:
    return installed.path in (None, question.path, question.target.lstrip("/")) and installed.fault.concerns(question)
