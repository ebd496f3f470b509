"""A server that answers with exactly the bytes it was given: for replies that no sane server would send.

Responsible for: order, pauses and the end of the connection.
Leaves to you: every byte of the reply, its head included.
"""

import threading
from collections.abc import Sequence
from enum import Enum
from typing import Final

from modelcache.testing.listener import Certificate, Connection, Listener, Server

_LONGEST_PAUSE_S = 30.0


class _Reset(Enum):
    RESET = "RST"


RESET: Final = _Reset.RESET
"""As an item of a reply: the connection ends here with a RST (the bytes before it arrive)."""

Item = bytes | threading.Event | float | _Reset
Script = bytes | Sequence[Item]


class Wire(Server):
    """Answers the i-th request with exactly the i-th reply; the last reply repeats. Ready when constructed.

    A reply is bytes, or a list of bytes, seconds to wait, Events to wait for (hangs up after 30 s) and `RESET`. An
    empty reply with `close=True` hangs up. Requests are counted over all connections, in the order their heads arrive.

    close: hang up (FIN) after each reply; else the connection waits for its next request.
    """

    def __init__(
        self, *replies: Script, close: bool = True, host: str = "127.0.0.1", tls: Certificate | None = None
    ) -> None:
        if not replies:
            raise ValueError("a Wire needs at least one reply")
        self._replies: list[Sequence[Item]] = [[reply] if isinstance(reply, bytes) else reply for reply in replies]
        self._close_each = close
        self._lock = threading.Lock()
        self._heads: list[str] = []
        self._listener = Listener(self._serve, host, tls)

    def url(self, path: str = "") -> str:
        return f"{self._listener.base}/{path.lstrip('/')}"

    @property
    def requests(self) -> list[str]:
        """The request heads so far, as text (latin-1) with their blank lines."""
        with self._lock:
            return list(self._heads)

    def _serve(self, connection: Connection) -> None:
        while head := connection.read_head():
            with self._lock:
                reply = self._replies[min(len(self._heads), len(self._replies) - 1)]
                self._heads.append(head.decode("latin-1"))
            for item in reply:
                _play(connection, item)
            if self._close_each:
                return


def _play(connection: Connection, item: Item) -> None:
    match item:
        case bytes():
            connection.send(item)
        case threading.Event():
            connection.wait_for(item, _LONGEST_PAUSE_S)
        case _Reset.RESET:
            connection.reset()
            raise ConnectionResetError("as asked")
        case _:
            connection.wait(item)
