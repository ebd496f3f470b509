"""Sockets and threads of the test servers: accept, one daemon thread a connection, and an end within a second.

Responsible for: listening (plain or TLS), reading request heads, waits that end when the server closes, and
closing a connection politely (FIN) or rudely (RST).
Leaves to `wire` and `origin`: what is answered.

A connection ends by an OSError in its own thread, whoever caused it: the client, a fault or `Listener.close`.
"""

import os
import selectors
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

_LONGEST_HEAD = 1 << 20
_POLL_S = 0.02  # how late a wait for somebody else's event notices that the server closes


class Certificate(NamedTuple):
    """PEM files for TLS: what the client must trust, and what the server shows and holds."""

    ca: Path
    cert: Path
    key: Path


def certificate(directory: str | Path) -> Certificate:
    """A private CA and a certificate for 127.0.0.1, ::1 and localhost, written into `directory`.

    Runs the `openssl` program (3.0 or newer); raises FileNotFoundError without it.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificate(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    ca_key = folder / "ca-key.pem"
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
    root = ["-addext", "keyUsage=critical,keyCertSign,cRLSign", "-subj", "/CN=modelcache test CA"]
    _openssl(*new, *root, "-keyout", ca_key, "-out", made.ca)
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"
    leaf = ["-addext", names, "-addext", "basicConstraints=critical,CA:FALSE", "-subj", "/CN=localhost"]
    _openssl(*new, *leaf, "-CA", made.ca, "-CAkey", ca_key, "-keyout", made.key, "-out", made.cert)
    return made


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)  # noqa: S603, S607  whichever is installed


class Connection:
    """One accepted connection, used by its own thread; only `interrupt` may be called from another."""

    def __init__(self, sock: socket.socket, closing: threading.Event, kill_server: Callable[[], None]) -> None:
        self.sock = sock
        self.kill_server = kill_server
        self.number = 0  # of those the listener accepted, from 1
        self._closing = closing
        self._lock = threading.Lock()
        self._open = True
        self._ahead = bytearray()

    def start(self) -> None:
        """The TLS handshake, if there is one."""
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.do_handshake()

    def read_head(self) -> bytes:
        """The next request's line and headers with the blank line; empty when the client is done."""
        while b"\r\n\r\n" not in self._ahead:
            received = self.sock.recv(65536)
            if not received or len(self._ahead) > _LONGEST_HEAD:
                return b""
            self._ahead += received
        end = self._ahead.index(b"\r\n\r\n") + 4
        head = bytes(self._ahead[:end])
        del self._ahead[:end]
        return head

    def skip(self, size: int) -> None:
        """Reads and forgets a request body."""
        while len(self._ahead) < size:
            received = self.sock.recv(65536)
            if not received:
                raise ConnectionResetError("the client left in its own body")
            self._ahead += received
        del self._ahead[:size]

    def send(self, sent: bytes | memoryview) -> None:
        self.sock.sendall(sent)

    @property
    def is_plain(self) -> bool:
        return not isinstance(self.sock, ssl.SSLSocket)

    def send_file(self, path: Path, start: int, stop: int) -> None:
        """Sends a span of a file without it passing through this process (plain connections only)."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while start < stop:
                sent = os.sendfile(self.sock.fileno(), descriptor, start, stop - start)
                if not sent:
                    raise ConnectionAbortedError(f"{path} became shorter")
                start += sent
        finally:
            os.close(descriptor)

    def wait(self, seconds: float) -> None:
        """Deliberate slowness. Raises ConnectionAbortedError as soon as the server closes."""
        if self._closing.wait(seconds):
            raise ConnectionAbortedError("the server closes")

    def wait_for(self, event: threading.Event, limit_s: float) -> None:
        """Until `event`. Raises TimeoutError after `limit_s`, ConnectionAbortedError as soon as the server closes."""
        end = time.monotonic() + limit_s
        while not event.wait(_POLL_S):
            self.wait(0)
            if time.monotonic() > end:
                raise TimeoutError(f"nobody set the event within {limit_s} s")

    def wait_gone(self) -> None:
        """Until the client leaves or the server closes; what the client says meanwhile is ignored."""
        while self.sock.recv(65536):
            pass

    def finish(self) -> None:
        """Closes with a FIN after everything that was sent: what a polite server and a dying process do."""
        with suppress(OSError):
            self.sock.settimeout(0)
            if isinstance(self.sock, ssl.SSLSocket):
                with suppress(ssl.SSLWantReadError):  # our close_notify is out; the client's is not waited for
                    self.sock.unwrap()
        with suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
            while socket.socket.recv(self.sock, 65536):  # close() over unread bytes would be a reset
                pass
        self.close()

    def reset(self) -> None:
        """Closes with a RST, but only once the client's machine has all bytes sent so far."""
        with suppress(OSError):
            self._flush()
        with suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def interrupt(self) -> None:
        """Wakes the connection's thread, whatever it waits for; from any thread."""
        with self._lock, suppress(OSError):
            if self._open:
                # of the plain socket: SSLSocket.shutdown drops the TLS state under its owner's feet
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            self._open = False
            self.sock.close()

    def _flush(self) -> None:
        # A RST throws the send queue away. Its length is an ioctl where there is one (Linux); else the cut is earlier.
        import fcntl
        import termios

        end = time.monotonic() + 5
        while time.monotonic() < end:
            queued = struct.unpack("i", fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
            if not queued:
                return
            self.wait(0.001)


class Listener:
    """Listens on `port` of `host` (0: a free one); each connection goes to `serve` on a daemon thread of its own."""

    def __init__(
        self, serve: Callable[[Connection], None], host: str, tls: Certificate | None = None, port: int = 0
    ) -> None:
        self._serve = serve
        self._tls = _server_context(tls) if tls else None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._living: dict[threading.Thread, Connection] = {}
        self.accepted = 0
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=256)
        self._socket.setblocking(False)
        name = f"[{host}]" if ":" in host else host
        self.port: int = self._socket.getsockname()[1]
        self.base = f"{'https' if tls else 'http'}://{name}:{self.port}"
        self._waker, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._accept, name=f"test server {self.base}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Dies at once: the port is closed, all connections end. From any thread; waits for none of them."""
        with self._lock:
            if not self._closing.is_set():
                self._closing.set()
                with suppress(OSError):  # its thread has ended by itself
                    self._waker.send(b"x")
        self._thread.join()  # and with it the listening socket: nobody can come back before he has seen the end
        with self._lock:
            for connection in self._living.values():
                connection.interrupt()

    def close(self) -> None:
        """Stops and joins all threads."""
        self.stop()
        with self._lock:
            threads = list(self._living)
        for thread in threads:
            thread.join()
        self._waker.close()

    def _accept(self) -> None:
        with self._socket, self._woken, selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._closing.is_set():
                selector.select()
                with suppress(OSError):  # the client may be gone again
                    self._welcome(self._socket.accept()[0])

    def _welcome(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls:
            sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        connection = Connection(sock, self._closing, self.stop)
        thread = threading.Thread(target=self._live, args=(connection,), name="test connection", daemon=True)
        with self._lock:
            self.accepted += 1
            connection.number = self.accepted
            self._living[thread] = connection
            thread.start()  # under the lock: `close` joins only what has started
            if self._closing.is_set():
                connection.interrupt()

    def _live(self, connection: Connection) -> None:
        try:
            with suppress(OSError):
                connection.start()
                self._serve(connection)
        finally:
            connection.finish()
            with self._lock:
                self._living.pop(threading.current_thread(), None)


class Server:
    """The base of what answers: it has a listener from the start, and is closed at the end of a `with`."""

    _listener: Listener

    @property
    def connections(self) -> int:
        """How many connections were accepted so far."""
        return self._listener.accepted

    def close(self) -> None:
        """Stops and waits for all threads (well under a second, whatever the clients do)."""
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _server_context(tls: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.cert, tls.key)
    return context
