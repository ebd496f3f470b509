"""The test servers do what they say: each fault is looked at from the client's side of a real socket."""

import socket
import ssl
import threading
import time
from contextlib import closing
from urllib.parse import urlsplit

import pytest
import requests

from modelcache.testing import RESET, Certificate, Wire, certificate

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def dial(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def ask(url: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {urlsplit(url).path or '/'} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def raw(url: str, *headers: str, method: str = "GET") -> tuple[bytes, bool]:
    """Everything the server sends until the connection ends, and whether it ended with a reset."""
    received = b""
    with closing(dial(url)) as sock:
        sock.sendall(ask(url, *headers, method=method))
        try:
            while data := sock.recv(65536):
                received += data
        except ConnectionResetError:
            return received, True
    return received, False


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"))


# ---- Wire


def test_wire_sends_exactly_the_bytes_and_hangs_up() -> None:
    with Wire(b"what ever\x00") as wire:
        assert raw(wire.url("f")) == (b"what ever\x00", False)


def test_wire_answers_in_order_and_repeats_the_last() -> None:
    with Wire(b"1", b"2") as wire:
        assert [raw(wire.url())[0] for _ in range(3)] == [b"1", b"2", b"2"]


def test_wire_serves_a_kept_connection_in_order() -> None:
    with Wire(HELLO, HELLO.replace(b"hello", b"again"), close=False) as wire, requests.Session() as session:
        assert [session.get(wire.url("f")).text for _ in range(2)] == ["hello", "again"]
        assert wire.connections == 1


def test_wire_records_request_heads_as_text() -> None:
    with Wire(HELLO) as wire:
        raw(wire.url("a/b"), "Range: bytes=3-")
        assert wire.requests == ["GET /a/b HTTP/1.1\r\nHost: x\r\nRange: bytes=3-\r\n\r\n"]


def test_wire_waits_for_an_event_in_mid_reply() -> None:
    go = threading.Event()
    with Wire([b"before", go, b"after"]) as wire, closing(dial(wire.url())) as sock:
        sock.sendall(ask(wire.url()))
        assert sock.recv(100) == b"before"
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(100)
        go.set()
        sock.settimeout(10)
        assert sock.recv(100) == b"after"


def test_wire_resets_after_the_bytes_before_arrived() -> None:
    with Wire([b"x" * 1_000_000, RESET]) as wire:
        received, was_reset = raw(wire.url())
        assert (len(received), was_reset) == (1_000_000, True)


def test_wire_closes_at_once_under_a_paused_reply() -> None:
    with Wire([b"a", threading.Event()]) as wire, closing(dial(wire.url())) as sock:
        sock.sendall(ask(wire.url()))
        assert sock.recv(10) == b"a"
        start = time.monotonic()
        wire.close()
        assert time.monotonic() - start < 1


def test_wire_speaks_tls(tls: Certificate) -> None:
    with Wire(HELLO, tls=tls) as wire:
        assert requests.get(wire.url(), verify=str(tls.ca)).text == "hello"


def test_the_certificate_passes_strict_verification_by_name_and_address(tls: Certificate) -> None:
    context = ssl.create_default_context(cafile=tls.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with Wire(HELLO, tls=tls) as wire:
        for name in ("127.0.0.1", "localhost", "::1"):
            with context.wrap_socket(dial(wire.url()), server_hostname=name) as sock:
                assert sock.getpeercert()


def test_a_certificate_nobody_trusts_is_refused(tls: Certificate) -> None:
    with Wire(HELLO, tls=tls) as wire, pytest.raises(requests.exceptions.SSLError):
        requests.get(wire.url())
