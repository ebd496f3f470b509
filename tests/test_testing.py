"""The test servers do what they say: each fault is looked at from the client's side of a real socket."""

import gzip
import hashlib
import random
import re
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from modelcache import testing
from modelcache.testing import (
    RESET,
    Certificate,
    ChangedContent,
    Chunked,
    Content,
    ContentRange,
    ContentType,
    Corrupt,
    Cut,
    CutAt,
    Delay,
    DribbleHeaders,
    Encoding,
    ETag,
    ExtraBytes,
    Fault,
    Header,
    Hold,
    HugeHeader,
    IgnoreRange,
    LastModified,
    ManyHeaders,
    NeedsHeader,
    NoLength,
    Origin,
    Redirect,
    Reply,
    ShutDown,
    SilentAccept,
    Slow,
    Stall,
    Status,
    Wire,
    WrongLength,
    certificate,
)

DATA = random.Random(7).randbytes(100_000)
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


def parts(url: str, *headers: str) -> tuple[bytes, bytes, bool]:
    """Head, body and whether a reset ended it."""
    received, was_reset = raw(url, *headers)
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body, was_reset


def body_of(sock: socket.socket, size: int, *, head: bool = True) -> bytes:
    """The first `size` bytes of the body (or of what comes now)."""
    received = b""
    while head and b"\r\n\r\n" not in received:
        received += sock.recv(65536)
    body = received.partition(b"\r\n\r\n")[2]
    while len(body) < size:
        body += sock.recv(65536)
    return body


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"f": DATA}) as origin:
        yield origin


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


def test_a_reset_waits_until_the_client_has_the_bytes_before_it() -> None:
    with Wire([b"x" * 3_000_000, RESET]) as wire, closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 10_000)
        sock.connect(("127.0.0.1", urlsplit(wire.url()).port))
        sock.sendall(ask(wire.url()))
        ended = select.poll()
        ended.register(sock, select.POLLHUP)
        assert not ended.poll(100)  # whoever does not wait has reset by now
        received = 0
        with pytest.raises(ConnectionResetError):
            while data := sock.recv(65536):
                received += len(data)
        assert received == 3_000_000


def test_wire_closes_at_once_under_a_paused_reply() -> None:
    with Wire([b"a", threading.Event()]) as wire, closing(dial(wire.url())) as sock:
        sock.sendall(ask(wire.url()))
        assert sock.recv(10) == b"a"
        start = time.monotonic()
        wire.close()
        assert time.monotonic() - start < 10


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


# ---- Content


def test_generated_content_is_the_same_wherever_it_is_read_from() -> None:
    content = Content.generated(5_000_000, seed=3)
    whole = content.read()
    assert len(whole) == 5_000_000
    assert content.sha256 == hashlib.sha256(whole).hexdigest()
    for start, stop in ((0, 1), (1_048_575, 1_048_577), (999, 4_999_999), (5_000_000, 5_000_000)):
        assert content.read(start, stop) == whole[start:stop]


def test_generated_content_differs_by_seed_and_never_repeats_a_chunk() -> None:
    assert Content.generated(100, seed=1).read() != Content.generated(100, seed=2).read()
    whole = Content.generated(16 << 20).read()
    assert len({whole[at : at + 4096] for at in range(0, len(whole), 4096)}) == len(whole) // 4096


def test_a_hundred_gigabytes_are_served_without_being_made() -> None:
    content = Content.generated(100 << 30)
    with Origin({"big": content}) as origin:
        reply = requests.get(origin.url("big"), headers={"Range": "bytes=-10"})
        assert reply.content == content.read((100 << 30) - 10)
        assert reply.headers["Content-Range"] == f"bytes {(100 << 30) - 10}-{(100 << 30) - 1}/{100 << 30}"


def test_a_file_on_disk_is_served_plain_and_over_tls(tmp_path: Path, tls: Certificate) -> None:
    (tmp_path / "f").write_bytes(DATA * 30)
    with Origin({"f": tmp_path / "f"}) as plain, Origin({"f": tmp_path / "f"}, tls=tls) as secure:
        assert requests.get(plain.url("f")).content == DATA * 30
        assert requests.get(secure.url("f"), verify=str(tls.ca)).content == DATA * 30
        assert plain.requests[0].bytes_sent == secure.requests[0].bytes_sent == len(DATA) * 30


def test_content_is_made_of_bytes_a_path_or_a_content_only() -> None:
    with pytest.raises(TypeError):
        Content.of("a path?")  # type: ignore[arg-type]


# ---- an honest origin


def test_the_whole_comes_with_length_and_strong_validators(origin: Origin) -> None:
    reply = requests.get(origin.url("f"))
    assert (reply.status_code, reply.content) == (200, DATA)
    assert reply.headers["Content-Length"] == str(len(DATA))
    assert reply.headers["Accept-Ranges"] == "bytes"
    assert reply.headers["ETag"] == f'"{hashlib.sha256(DATA).hexdigest()[:32]}"'
    assert parsedate_to_datetime(reply.headers["Last-Modified"]) < parsedate_to_datetime(reply.headers["Date"])


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=10-19", 10, 20),
        ("bytes=99990-", 99_990, 100_000),
        ("bytes=0-0", 0, 1),
        ("bytes=99999-200000", 99_999, 100_000),
        ("bytes=-5", 99_995, 100_000),
        ("bytes=-200000", 0, 100_000),
    ],
)
def test_a_range_is_answered_exactly(origin: Origin, asked: str, start: int, stop: int) -> None:
    reply = requests.get(origin.url("f"), headers={"Range": asked})
    assert (reply.status_code, reply.content) == (206, DATA[start:stop])
    assert reply.headers["Content-Range"] == f"bytes {start}-{stop - 1}/100000"
    assert reply.headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize("asked", ["bytes=100000-", "bytes=200000-200001", "bytes=-0"])
def test_a_range_behind_the_end_is_416_with_the_size(origin: Origin, asked: str) -> None:
    reply = requests.get(origin.url("f"), headers={"Range": asked})
    assert (reply.status_code, reply.headers["Content-Range"]) == (416, "bytes */100000")


@pytest.mark.parametrize("asked", ["bytes=1-2,5-6", "lines=1-2", "bytes=5-2", "bytes=-", "bytes=a-b"])
def test_an_unusable_range_is_ignored(origin: Origin, asked: str) -> None:
    assert requests.get(origin.url("f"), headers={"Range": asked}).status_code == 200


def test_if_range_holds_for_the_current_validators_only(origin: Origin) -> None:
    known = requests.head(origin.url("f")).headers
    cases = {known["ETag"]: 206, known["Last-Modified"]: 206, '"old"': 200, "W/" + known["ETag"]: 200}
    for condition, status in cases.items():
        reply = requests.get(origin.url("f"), headers={"Range": "bytes=5-", "If-Range": condition})
        assert reply.status_code == status, condition


def test_head_has_the_headers_and_no_body(origin: Origin) -> None:
    head, ended = raw(origin.url("f"), "Connection: close", method="HEAD")
    assert b"Content-Length: 100000\r\n" in head and head.endswith(b"\r\n\r\n") and not ended
    assert origin.requests[0].bytes_sent == 0


def test_what_is_not_there_is_404_and_other_methods_are_405(origin: Origin) -> None:
    assert requests.get(origin.url("g")).status_code == 404
    assert requests.post(origin.url("f"), data=b"x" * 100).status_code == 405


def test_if_none_match_is_304(origin: Origin) -> None:
    etag = requests.head(origin.url("f")).headers["ETag"]
    assert requests.get(origin.url("f"), headers={"If-None-Match": etag}).status_code == 304


def test_a_connection_is_kept_for_the_next_request(origin: Origin) -> None:
    with requests.Session() as session:
        for _ in range(3):
            assert session.get(origin.url("f")).content == DATA
    assert origin.connections == 1
    assert [seen.connection for seen in origin.requests] == [1, 1, 1]


def test_a_path_is_decoded_once_and_a_query_matters_only_if_named() -> None:
    with Origin({"a b/ü%2F": b"odd", "api": b"any", "api?page=2": b"two"}) as origin:
        assert requests.get(origin.url("a b/ü%2F")).text == "odd"
        assert requests.get(origin.url("api") + "?page=1").text == "any"
        assert requests.get(origin.url("api?page=2")).text == "two"


def test_files_come_and_go_while_it_runs(origin: Origin) -> None:
    origin.put("new", b"new")
    assert requests.get(origin.url("new")).text == "new"
    origin.remove("new")
    assert requests.get(origin.url("new")).status_code == 404


def test_requests_are_recorded_with_headers_in_any_case(origin: Origin) -> None:
    requests.get(origin.url("f") + "?q=1", headers={"X-Mine": "yes", "Range": "bytes=1-4"})
    (seen,) = origin.requests
    assert (seen.method, seen.path, seen.range, seen.status) == ("GET", "/f?q=1", "bytes=1-4", 206)
    assert seen.headers["x-MINE"] == "yes" and ("X-Mine", "yes") in seen.raw_headers
    assert seen.bytes_sent == 4


def test_a_request_that_is_no_http_is_400(origin: Origin) -> None:
    with closing(dial(origin.url())) as sock:
        sock.sendall(b"nonsense\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_ipv6_is_served_too() -> None:
    try:
        origin = Origin({"f": DATA}, host="::1")
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with origin:
        assert requests.get(origin.url("f")).content == DATA


def test_many_clients_at_once_get_the_right_bytes() -> None:
    content = Content.generated(3_000_000)
    spans = [(i * 100_000, (i + 1) * 100_000) for i in range(30)]
    with Origin({"f": content}) as origin, ThreadPoolExecutor(30) as pool:

        def get(span: tuple[int, int]) -> bytes:
            return requests.get(origin.url("f"), headers={"Range": f"bytes={span[0]}-{span[1] - 1}"}).content

        assert b"".join(pool.map(get, spans)) == content.read()
        assert sum(seen.bytes_sent for seen in origin.requests) == content.size


# ---- when a fault is due


def test_a_fault_leaves_some_alone_spoils_some_and_is_over(origin: Origin) -> None:
    origin.faults(Status(503, after=1, times=2), path="f")
    assert [requests.get(origin.url("f")).status_code for _ in range(4)] == [200, 503, 503, 200]


def test_a_fault_of_a_path_leaves_others_alone_and_an_origin_wide_one_does_not(origin: Origin) -> None:
    origin.put("g", DATA)
    origin.faults(Status(503, times=1), path="g")
    assert [requests.get(origin.url(path)).status_code for path in "fg"] == [200, 503]
    origin.faults(Status(500))
    assert [requests.get(origin.url(path)).status_code for path in "fg"] == [500, 500]
    origin.heal()
    assert requests.get(origin.url("f")).status_code == 200


def test_a_fault_can_concern_only_ranges_or_a_method(origin: Origin) -> None:
    origin.faults(Status(400, only_ranged=True), Status(405, method="HEAD"))
    assert requests.get(origin.url("f")).status_code == 200
    assert requests.get(origin.url("f"), headers={"Range": "bytes=1-"}).status_code == 400
    assert requests.head(origin.url("f")).status_code == 405


def test_head_does_not_use_up_a_fault_of_the_body(origin: Origin) -> None:
    origin.faults(Cut(10, times=1))
    requests.head(origin.url("f"))
    assert raw(origin.url("f"))[1]


def test_faults_compose(origin: Origin) -> None:
    origin.faults(Corrupt(0), ETag('"x"'), NoLength(), Cut(1000, reset=False))
    head, body, was_reset = parts(origin.url("f"))
    assert b'ETag: "x"' in head and b"Content-Length" not in head and not was_reset
    assert body == bytes([DATA[0] ^ 0xFF]) + DATA[1:1000]


def test_a_fault_of_your_own_is_a_small_class(origin: Origin) -> None:
    @dataclass(frozen=True)
    class Shout(Fault):
        def shape(self, reply: Reply) -> None:
            reply.put("X-Shout", "!")

    origin.faults(Shout(times=1))
    assert "X-Shout" in requests.get(origin.url("f")).headers
    assert "X-Shout" not in requests.get(origin.url("f")).headers


# ---- the connection


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_cut_sends_so_many_bytes_and_ends_as_told(origin: Origin, size: int, reset: bool) -> None:
    origin.faults(Cut(size, reset=reset))
    head, body, was_reset = parts(origin.url("f"))
    assert b"Content-Length: 100000" in head
    assert (body, was_reset) == (DATA[:size], reset)


def test_cut_at_kills_whoever_reaches_that_offset(origin: Origin) -> None:
    origin.faults(CutAt(50_000, times=1, reset=False))
    assert parts(origin.url("f"), "Range: bytes=60000-", "Connection: close")[1] == DATA[60_000:]
    assert parts(origin.url("f"), "Range: bytes=40000-")[1] == DATA[40_000:50_000]
    assert parts(origin.url("f"), "Range: bytes=50000-", "Connection: close")[1] == DATA[50_000:]


def test_stall_sends_no_more_but_keeps_the_connection(origin: Origin) -> None:
    origin.faults(Stall(100))
    with closing(dial(origin.url("f"))) as sock:
        sock.sendall(ask(origin.url("f")))
        assert body_of(sock, 100) == DATA[:100]
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_shut_down_closes_the_port_and_every_connection(origin: Origin) -> None:
    with closing(dial(origin.url("f"))) as bystander:
        origin.faults(ShutDown(1000))
        assert parts(origin.url("f"))[1] == DATA[:1000]
        assert bystander.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        dial(origin.url("f"))
    assert origin.requests[0].status == 200


def test_an_origin_comes_back_on_its_port(origin: Origin) -> None:
    raw(origin.url("f"), "Connection: close")
    origin.close()
    with Origin({"f": b"back"}, port=origin.port) as again:
        assert requests.get(origin.url("f")).text == "back"
        assert again.url("f") == origin.url("f")


def test_silent_accept_takes_the_request_and_says_nothing(origin: Origin) -> None:
    origin.faults(SilentAccept())
    with closing(dial(origin.url("f"))) as sock:
        sock.sendall(ask(origin.url("f")))
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        assert [seen.status for seen in origin.requests] == [0]


def test_hold_stops_at_the_offset_until_released(origin: Origin) -> None:
    hold = Hold(50_000)
    origin.faults(hold)
    with closing(dial(origin.url("f"))) as sock:
        sock.sendall(ask(origin.url("f"), "Range: bytes=10000-"))
        assert hold.reached.wait(60)
        assert body_of(sock, 40_000) == DATA[10_000:50_000]
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        hold.release.set()
        sock.settimeout(10)
        assert body_of(sock, 50_000, head=False) == DATA[50_000:]


# ---- the pace


def test_slow_keeps_the_rate(origin: Origin) -> None:
    origin.faults(Slow(200_000))
    start = time.monotonic()
    assert requests.get(origin.url("f")).content == DATA
    assert time.monotonic() - start > 0.4


def test_slow_is_steady(origin: Origin) -> None:
    origin.faults(Slow(100))
    with closing(dial(origin.url("f"))) as sock:
        sock.sendall(ask(origin.url("f")))
        body_of(sock, 1)
        assert all(0 < len(sock.recv(65536)) < 20 for _ in range(5))


def test_headers_dribble_byte_by_byte(origin: Origin) -> None:
    origin.faults(DribbleHeaders(0.001))
    with closing(dial(origin.url("f"))) as sock:
        start = time.monotonic()
        sock.sendall(ask(origin.url("f")))
        first = [sock.recv(65536) for _ in range(20)]
        assert b"HTTP/1.1 200 OK".startswith(b"".join(first)[:15]) and sum(map(len, first)) < 100
        assert body_of(sock, len(DATA)) == DATA
        assert time.monotonic() - start > 0.2  # a head of some 250 bytes


def test_delay_comes_before_the_head(origin: Origin) -> None:
    origin.faults(Delay(0.2))
    assert requests.get(origin.url("f")).elapsed.total_seconds() >= 0.2


# ---- the status


def test_status_has_its_headers_and_body(origin: Origin) -> None:
    origin.faults(Status(503, {"Retry-After": "7"}, b"busy"))
    reply = requests.get(origin.url("f"))
    assert (reply.status_code, reply.headers["Retry-After"], reply.text) == (503, "7", "busy")
    assert "Retry-After: 7" in str(raw(origin.url("f"), "Connection: close", method="HEAD")[0])


def test_redirect_leads_elsewhere_from_a_path_without_a_file(origin: Origin) -> None:
    origin.faults(Redirect(origin.url("f"), 307), Header("X-Linked-Size", "100000"), path="old")
    reply = requests.get(origin.url("old"))
    assert reply.content == DATA
    assert reply.history[0].status_code == 307
    assert reply.history[0].headers["X-Linked-Size"] == "100000"


def test_a_header_can_be_demanded(origin: Origin) -> None:
    origin.faults(NeedsHeader("Authorization", "Bearer t"))
    assert requests.get(origin.url("f")).status_code == 401
    assert requests.get(origin.url("f"), headers={"Authorization": "Bearer t"}).content == DATA


def test_ignore_range_sends_the_whole(origin: Origin) -> None:
    origin.faults(IgnoreRange())
    reply = requests.get(origin.url("f"), headers={"Range": "bytes=5-"})
    assert (reply.status_code, reply.content) == (200, DATA)
    assert "Accept-Ranges" not in reply.headers


# ---- the bytes


def test_corrupt_flips_the_bytes_at_the_offsets_whatever_range_they_come_in(origin: Origin) -> None:
    honest = requests.head(origin.url("f")).headers["ETag"]
    origin.faults(Corrupt([10, 99_999]))
    bad = bytearray(DATA)
    bad[10] ^= 0xFF
    bad[99_999] ^= 0xFF
    reply = requests.get(origin.url("f"))
    assert (reply.content, reply.headers["ETag"]) == (bytes(bad), honest)
    assert requests.get(origin.url("f"), headers={"Range": "bytes=10-12"}).content == bad[10:13]
    assert requests.get(origin.url("f"), headers={"Range": "bytes=11-12"}).content == DATA[11:13]


def test_changed_content_has_other_bytes_and_validators_from_some_request_on(origin: Origin) -> None:
    origin.faults(ChangedContent(b"new", after=1))
    before, after = requests.get(origin.url("f")), requests.get(origin.url("f"))
    assert (before.content, after.content) == (DATA, b"new")
    assert all(before.headers[name] != after.headers[name] for name in ("ETag", "Last-Modified"))
    stale = {"Range": "bytes=1-", "If-Range": before.headers["ETag"]}
    assert requests.get(origin.url("f"), headers=stale).status_code == 200


def test_encoding_really_compresses(origin: Origin) -> None:
    origin.faults(Encoding("gzip"))
    head, body, _ = parts(origin.url("f"), "Connection: close")
    assert b"Content-Encoding: gzip" in head and gzip.decompress(body) == DATA


def test_extra_bytes_follow_the_promised_body(origin: Origin) -> None:
    origin.faults(ExtraBytes(5))
    head, body, _ = parts(origin.url("f"))
    assert b"Content-Length: 100000" in head and body == DATA + b"\0" * 5


# ---- the framing


def test_no_length_ends_with_the_connection(origin: Origin) -> None:
    origin.faults(NoLength())
    head, body, was_reset = parts(origin.url("f"))
    assert b"Content-Length" not in head and (body, was_reset) == (DATA, False)


@pytest.mark.parametrize("delta", [-10, 10])
def test_wrong_length_is_off_by_delta(origin: Origin, delta: int) -> None:
    origin.faults(WrongLength(delta))
    head, body, was_reset = parts(origin.url("f"))
    assert f"Content-Length: {100_000 + delta}".encode() in head and (body, was_reset) == (DATA, False)


def test_chunked_is_read_by_a_normal_client(origin: Origin) -> None:
    origin.faults(Chunked())
    reply = requests.get(origin.url("f"), headers={"Range": "bytes=7-"})
    assert (reply.status_code, reply.content) == (206, DATA[7:])
    assert "Content-Length" not in reply.headers


@pytest.mark.parametrize("fault", [Chunked(bad_framing=True), Chunked(missing_end=True)])
def test_broken_chunks_are_an_error_for_a_normal_client(origin: Origin, fault: Fault) -> None:
    origin.faults(fault)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(origin.url("f"))


# ---- the headers


def test_validators_are_sent_as_given_or_not_at_all(origin: Origin) -> None:
    origin.faults(ETag('W/"w"', times=1), LastModified("yesterday", times=1))
    first = requests.get(origin.url("f")).headers
    assert (first["ETag"], first["Last-Modified"]) == ('W/"w"', "yesterday")
    origin.faults(ETag(None), LastModified(None))
    assert not {"ETag", "Last-Modified"} & set(requests.get(origin.url("f")).headers)


def test_if_range_is_compared_with_the_pretended_etag(origin: Origin) -> None:
    origin.faults(ETag('"v2"'))
    asked = {"Range": "bytes=5-", "If-Range": '"v2"'}
    assert requests.get(origin.url("f"), headers=asked).status_code == 206


def test_content_range_lies_on_a_206_only(origin: Origin) -> None:
    origin.faults(ContentRange("bytes 0-9/10"))
    assert requests.get(origin.url("f"), headers={"Range": "bytes=5-"}).headers["Content-Range"] == "bytes 0-9/10"
    assert "Content-Range" not in requests.get(origin.url("f")).headers


def test_content_type_and_any_header_can_be_set_or_removed(origin: Origin) -> None:
    origin.faults(ContentType("text/html"), Header("X-A", "1"), Header("accept-ranges", None))
    headers = requests.get(origin.url("f")).headers
    assert (headers["Content-Type"], headers["X-A"], headers.get("Accept-Ranges")) == ("text/html", "1", None)


def test_headers_can_be_many_or_huge(origin: Origin) -> None:
    origin.faults(ManyHeaders(500), HugeHeader(200_000))
    head, body, _ = parts(origin.url("f"), "Connection: close")
    assert head.count(b"X-Filler-") == 500 and len(head) > 200_000 and body == DATA


# ---- TLS, speed and the end


def test_faults_work_over_tls(tls: Certificate) -> None:
    with Origin({"f": DATA}, faults=[Cut(1000, reset=False, after=1), Corrupt(0)], tls=tls) as origin:
        assert requests.get(origin.url("f"), verify=str(tls.ca)).content == bytes([DATA[0] ^ 0xFF]) + DATA[1:]
        with pytest.raises(requests.exceptions.ChunkedEncodingError, match="1000 bytes read"):
            requests.get(origin.url("f"), verify=str(tls.ca))


def test_the_end_of_a_tls_connection_is_announced(tls: Certificate) -> None:
    """Else a body without a length could not be told from a cut one."""
    context = ssl.create_default_context(cafile=tls.ca)
    with Origin({"f": DATA}, faults=[NoLength()], tls=tls) as origin:
        sock = context.wrap_socket(dial(origin.url("f")), server_hostname="localhost", suppress_ragged_eofs=False)
        with closing(sock):
            sock.sendall(ask(origin.url("f")))
            while sock.recv(65536):
                pass


@pytest.mark.parametrize(
    "fault", [Stall(10), SilentAccept(), Hold(10), Slow(1), DribbleHeaders(20), Delay(60), Header("X-None", None)]
)
@pytest.mark.parametrize("secure", [False, True])
def test_close_is_prompt_whatever_the_clients_do(tls: Certificate, fault: Fault, secure: bool) -> None:
    content = Content.generated(50_000_000)  # more than the sockets hold: an unspoiled send blocks
    with Origin({"f": content}, faults=[fault], tls=tls if secure else None) as origin, ExitStack() as clients:
        for _ in range(3):
            sock = clients.enter_context(closing(dial(origin.url("f"))))
            if secure:
                context = ssl.create_default_context(cafile=tls.ca)
                sock = clients.enter_context(context.wrap_socket(sock, server_hostname="localhost"))
            sock.sendall(ask(origin.url("f")))
        clients.enter_context(closing(dial(origin.url("f"))))  # one that never says a word
        wait_until(lambda: len(origin.requests) == 3)
        start = time.monotonic()
        origin.close()
        assert time.monotonic() - start < 10
    assert not threads_of_servers()


def threads_of_servers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("test ")]


def test_a_client_that_leaves_frees_its_thread(origin: Origin) -> None:
    origin.faults(Stall(0))
    before = len(threads_of_servers())
    with closing(dial(origin.url("f"))) as sock:
        sock.sendall(ask(origin.url("f")))
        body_of(sock, 0)
        assert len(threads_of_servers()) == before + 1
    wait_until(lambda: len(threads_of_servers()) == before)


def test_plain_bytes_are_served_fast() -> None:
    """The origin must not be what a benchmark measures: 1 GB/s and more; this bound only notices a disaster."""
    with Origin({"f": Content.generated(200_000_000)}) as origin, closing(dial(origin.url("f"))) as sock:
        start, left, buffer = time.monotonic(), 200_000_000, bytearray(1 << 20)
        sock.sendall(ask(origin.url("f")))
        while left > 0:
            left -= sock.recv_into(buffer)
        assert time.monotonic() - start < 4


def test_the_guide_runs() -> None:
    guide = (Path(__file__).parent.parent / "docs" / "testing.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/testing.md", "exec"), {})


def test_the_guide_names_every_fault() -> None:
    guide = (Path(__file__).parent.parent / "docs" / "testing.md").read_text()
    kinds = [kind for kind in vars(testing).values() if isinstance(kind, type) and issubclass(kind, Fault)]
    assert len(kinds) > 25
    assert not [kind.__name__ for kind in kinds if f"`{kind.__name__}" not in guide]


def test_nothing_else_of_modelcache_and_nothing_foreign_is_imported() -> None:
    code = "import sys, modelcache.testing; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    code += "; print(*[name for name in sys.modules if name.startswith('modelcache.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    roots, ours = done.stdout.splitlines()
    assert all(name.startswith("modelcache.testing") for name in ours.split())
    assert not {"requests", "urllib3", "pandas"} & set(roots.split())
