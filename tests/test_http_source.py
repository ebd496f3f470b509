"""What the HTTP source does around a reply: redirects and secrets, kept connections, TLS, proxies, and ending early."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest
import requests
import urllib3

from modelcache.errors import (
    AbortedError,
    ModelCacheError,
    NotFoundError,
    SourceError,
    TransientError,
    UsageError,
)
from modelcache.model import ModelFile
from modelcache.remotes.connection import Timeouts
from modelcache.remotes.http import HttpSource
from modelcache.remotes.source import Abort, Request
from modelcache.testing import Certificate, Content, Cut, Hold, Origin, Redirect, Stall, Status, Wire, certificate

CONTENT = Content.generated(1_000_000).read()
TOKEN = {"Authorization": "Bearer s3cret", "X-Api-Key": "s3cret"}
SOON_S = 0.5


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "")


@pytest.fixture(scope="session")
def tls(tmp_path_factory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def trusted(tls, monkeypatch) -> Certificate:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls.ca))
    return tls


@pytest.fixture
def closing():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def source_of(closing) -> Callable[..., HttpSource]:
    def make(url: str, **options) -> HttpSource:
        source = HttpSource(url, **options)
        closing.callback(source.close)
        return source

    return make


def ask(start=0, stop=None, abort=None, validator="", **known) -> Request:
    return Request(ModelFile("f", **known), start, stop, validator, abort or Abort())


def read(source: HttpSource, request: Request | None = None) -> bytes:
    with source.open(request or ask()) as body:
        return b"".join(bytes(chunk.data) for chunk in body)


def secrets_in(origin: Origin) -> list[bool]:
    return ["s3cret" in str(seen.raw_headers) for seen in origin.requests]


# ---- the source


def test_a_whole_file_and_a_span_of_it(source_of):
    with Origin({"f": CONTENT}) as origin:
        source = source_of(origin.url("f?sig=s3cret"))
        assert read(source) == CONTENT
        with source.open(ask(10, 20)) as body:
            assert [(chunk.offset, bytes(chunk.data)) for chunk in body] == [(10, CONTENT[10:20])]
        assert (body.host, body.status, body.total) == (f"127.0.0.1:{origin.port}", 206, 1_000_000)
        assert source.name == origin.url("f")


@pytest.mark.parametrize("url", ["ftp://a/f", "http:///f", "http://a:x/f", "a/f"])
def test_what_is_no_url_is_refused_at_once(url):
    with pytest.raises(UsageError):
        HttpSource(url)


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=0-"},
        {"accept-encoding": "gzip"},
        {"HOST": "a"},
        {"If-Range": '"x"'},
        {"Content-Length": "5"},
        {"Connection": "close"},
        {"X": "a\r\nY: b"},
        {"X\n": "s3cret"},
        {"X": "s3cret\0"},
        {"X": "s3cret…"},
    ],
)
def test_a_header_that_would_break_the_request_is_refused_without_its_value(headers):
    with pytest.raises(UsageError) as caught:
        HttpSource("http://a/f", headers=headers)
    assert "s3cret" not in caught.value.line()


def test_userinfo_becomes_a_header_and_is_never_shown(source_of):
    with Origin({"f": CONTENT}) as origin:
        source = source_of(origin.url("f").replace("//", "//us%40er:s3cret@"))
        with source.open(ask()) as body:
            pass
        assert origin.requests[0].headers["authorization"] == "Basic dXNAZXI6czNjcmV0"
        assert "s3cret" not in source.name + body.host


def test_netrc_and_cookies_are_not_used(source_of, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login u password s3cret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with Wire(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 5\r\n\r\nhello") as wire:
        source = source_of(wire.url("f"))
        read(source)
        read(source)
        assert not [head for head in wire.requests if "authorization" in head.lower() or "cookie" in head.lower()]


def test_traits_learn_that_ranges_are_ignored(source_of):
    with Wire(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") as wire:
        source = source_of(wire.url("f"))
        assert source.traits(ModelFile("f")).ranges
        read(source, ask(2))
        assert not source.traits(ModelFile("f")).ranges


# ---- redirects and secrets


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed_and_the_range_goes_along(source_of, code):
    with Origin({"g": CONTENT}) as cdn, Origin() as origin:
        origin.faults(Redirect(cdn.url("g?sig=s3cret"), code), path="f")
        source = source_of(origin.url("f"))
        with source.open(ask(5, 9)) as body:
            assert b"".join(bytes(chunk.data) for chunk in body) == CONTENT[5:9]
        assert cdn.requests[0].range == "bytes=5-8"
        assert body.host == f"127.0.0.1:{cdn.port}"
        assert len(origin.requests) == 1


def test_headers_of_the_user_stay_with_their_origin(source_of):
    with Origin({"g": CONTENT}) as cdn, Origin() as origin:
        origin.faults(Redirect("/here"), path="f")
        origin.faults(Redirect(cdn.url("g")), path="here")
        read(source_of(origin.url("f"), headers=TOKEN))
        assert secrets_in(origin) == [True, True]
        assert secrets_in(cdn) == [False]


def test_headers_of_the_user_do_not_come_back_after_a_foreign_hop(source_of):
    with Origin() as foreign, Origin({"g": CONTENT}) as origin:
        origin.faults(Redirect(foreign.url("x")), path="f")
        foreign.faults(Redirect(origin.url("g")), path="x")
        read(source_of(origin.url("f"), headers=TOKEN))
        assert secrets_in(origin) == [True, False]
        assert secrets_in(foreign) == [False]


def test_another_scheme_on_the_same_host_is_another_origin(source_of, trusted):
    with Origin({"g": CONTENT}, tls=trusted) as secure, Origin() as plain:
        plain.faults(Redirect(secure.url("g")), path="f")
        read(source_of(plain.url("f"), headers=TOKEN))
        assert (secrets_in(plain), secrets_in(secure)) == ([True], [False])


def test_https_never_leads_to_http(source_of, trusted):
    with Origin({"g": CONTENT}) as plain, Origin(tls=trusted) as secure:
        secure.faults(Redirect(plain.url("g")), path="f")
        with pytest.raises(SourceError, match="from https to http"):
            read(source_of(secure.url("f")))
        assert plain.requests == []


def test_a_circle_of_redirects_ends(source_of):
    with Origin() as origin:
        origin.faults(Redirect("/f"), path="f")
        with pytest.raises(SourceError, match="more than 10 redirects"):
            read(source_of(origin.url("f")))
        assert len(origin.requests) == 11


@pytest.mark.parametrize("code", [401, 403])
def test_an_expired_redirect_starts_once_more_at_the_origin(source_of, code):
    with Origin({"g": CONTENT}) as cdn, Origin() as origin:
        origin.faults(Redirect(cdn.url("g")), path="f")
        cdn.faults(Status(code, times=1))
        assert read(source_of(origin.url("f"))) == CONTENT
        assert (len(origin.requests), len(cdn.requests)) == (2, 2)


def test_a_redirect_that_stays_forbidden_is_not_found(source_of):
    with Origin() as cdn, Origin() as origin:
        origin.faults(Redirect(cdn.url("g")), path="f")
        cdn.faults(Status(403))
        with pytest.raises(NotFoundError, match="403"):
            read(source_of(origin.url("f")))
        assert (len(origin.requests), len(cdn.requests)) == (2, 2)


def test_forbidden_by_the_origin_itself_is_not_asked_twice(source_of):
    with Origin(faults=[Status(401)]) as origin:
        with pytest.raises(NotFoundError, match="401"):
            read(source_of(origin.url("f")))
        assert len(origin.requests) == 1


def test_a_redirect_from_outside_into_a_private_network_is_refused(source_of, monkeypatch):
    with Origin({"g": CONTENT}) as inside:
        head = f"HTTP/1.1 302 Found\r\nLocation: {inside.url('g')}\r\nContent-Length: 0\r\n\r\n"
        with Wire(head.encode()) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url())
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            with pytest.raises(SourceError, match="private address"):
                read(source_of("http://models.example/f"))
        assert inside.connections == 0


@pytest.mark.parametrize("size", [100, 10**9])
def test_the_body_of_a_redirect_is_not_waited_for(source_of, size):
    head = f"HTTP/1.1 302 Found\r\nLocation: /g\r\nContent-Length: {size}\r\n\r\nmoved"
    with Wire([head.encode(), 30.0], b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") as wire:
        assert read(source_of(wire.url("f"), timeouts=Timeouts(stall_s=5))) == b"hello"


# ---- connections


def test_a_body_read_to_its_end_keeps_its_connection(source_of):
    with Origin({"f": CONTENT}) as origin:
        source = source_of(origin.url("f"))
        for start in (0, 10, 900_000):
            assert read(source, ask(start)) == CONTENT[start:]
        with pytest.raises(SourceError):
            read(source, ask(2_000_000))
        assert read(source, ask(5, 7)) == CONTENT[5:7]
        assert origin.connections == 1


@pytest.mark.parametrize("ending", [b"5\r\nhello\r\n0\r\n\r\n", b"2\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n"])
def test_a_chunked_body_keeps_its_connection(source_of, ending):
    with Wire(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + ending, close=False) as wire:
        source = source_of(wire.url("f"))
        assert [read(source), read(source, ask(size=5))] == [b"hello", b"hello"]
        assert wire.connections == 1


def test_redirects_and_refusals_keep_their_connection(source_of):
    with Origin({"g": CONTENT}) as origin:
        origin.faults(Status(503, body=b"busy" * 100, times=1), Redirect("/g", after=1), path="f")
        source = source_of(origin.url("f"))
        with pytest.raises(TransientError):
            read(source)
        read(source)
        assert (origin.connections, len(origin.requests)) == (1, 3)


def test_a_body_left_early_closes_its_connection(source_of):
    with Origin({"f": CONTENT}) as origin:
        source = source_of(origin.url("f"))
        with source.open(ask()) as body:
            next(iter(body))
        read(source)
        assert origin.connections == 2


def test_a_body_with_more_than_was_asked_closes_its_connection(source_of):
    sent = b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 2-4/5\r\nContent-Length: 3\r\n\r\nllo"
    with Wire(sent, close=False) as wire:
        source = source_of(wire.url("f"))
        assert [read(source, ask(2, 4)) for _ in range(2)] == [b"ll", b"ll"]
        assert wire.connections == 2


def test_a_kept_connection_that_died_meanwhile_is_replaced(source_of):
    """The server hangs up on the second request, after taking it: what a race with its idle timeout looks like."""
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    accepted = []

    def serve(peer: socket.socket, reached: threading.Event) -> None:
        accepted.append(peer)
        peer.recv(65536)
        peer.sendall(good)
        peer.recv(65536)

    with Raw(serve, serve) as raw:
        source = source_of(raw.url)
        assert [read(source), read(source)] == [b"hello", b"hello"]
    assert len(accepted) == 2


def test_sixteen_threads_share_a_source_and_its_connections(source_of):
    with Origin({"f": CONTENT}) as origin:
        source, results = source_of(origin.url("f")), []

        def work(number: int) -> None:
            results.extend(read(source, ask(n, n + 999)) == CONTENT[n : n + 999] for n in range(number, 200, 16))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [True] * 200
        assert origin.connections <= 16


def test_a_name_that_does_not_resolve(source_of):
    with pytest.raises(TransientError, match=r"^the name does not resolve$"):
        read(source_of("http://does-not-exist.invalid/f"))


def test_a_connection_that_is_refused(source_of):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TransientError, match=r"^connection refused$"):
        read(source_of(f"http://127.0.0.1:{port}/f?sig=s3cret"))


def test_a_host_that_takes_no_connection_costs_the_connect_time_only(source_of, full_listener):
    source = source_of(f"http://127.0.0.1:{full_listener}/f", timeouts=Timeouts(connect_s=0.3))
    began = time.monotonic()
    with pytest.raises(TransientError, match=r"^no connection within 0\.3 s$"):
        read(source)
    assert time.monotonic() - began < 0.3 + SOON_S


def test_silence_is_a_stall(source_of):
    with Origin({"f": CONTENT}, faults=[Stall(1000)]) as origin:
        got = bytearray()
        source = source_of(origin.url("f"), timeouts=Timeouts(stall_s=0.2))
        with source.open(ask()) as body, pytest.raises(TransientError, match=r"^no byte for 0\.2 s$"):
            for chunk in body:
                got += chunk.data
        assert bytes(got) == CONTENT[:1000]


@pytest.mark.parametrize("url", ["http://a..b/f", "http://" + "a" * 70 + ".example/f", "http://[::1%25x]/f"])
def test_a_host_that_cannot_be_is_our_error(source_of, url):
    with pytest.raises(ModelCacheError):
        read(source_of(url))


def test_what_a_program_logs_of_all_libraries_has_nothing_of_our_requests(source_of, caplog):
    caplog.set_level("DEBUG")
    with Origin({"f": CONTENT}) as origin, Origin({"g": CONTENT}) as cdn:
        origin.faults(Redirect(cdn.url("g?sig=s3cret"), 302), path="f")
        assert read(source_of(origin.url("f?sig=s3cret"))) == CONTENT
        assert "sig" not in caplog.text
        requests.get(cdn.url("g?of=another"), timeout=20)
    assert "of=another" in caplog.text  # what the program itself asks is heard


def test_a_secret_query_is_in_no_error_and_no_log(source_of, caplog):
    caplog.set_level("DEBUG")
    with Wire(b"HTTP/1.1 500 Oops\r\nno colon here\r\nX: y\r\n\r\n") as wire, pytest.raises(TransientError) as caught:
        read(source_of(wire.url("f?sig=s3cret")))
    assert "s3cret" not in caught.value.line() + caplog.text


# ---- TLS


def test_tls_under_a_private_ca(source_of, trusted):
    with Origin({"f": CONTENT}, tls=trusted) as origin:
        source = source_of(origin.url("f"))
        assert [read(source), read(source, ask(9))] == [CONTENT, CONTENT[9:]]
        assert origin.connections == 1


def test_a_certificate_nobody_vouches_for_is_refused(source_of, tls):
    with Origin({"f": CONTENT}, tls=tls) as origin:
        with pytest.raises(SourceError, match=r"^its certificate is not trusted: "):
            read(source_of(origin.url("f")))
        assert origin.requests == []


def test_a_bundle_that_is_not_there_is_named(source_of, tls, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")
    with Origin(tls=tls) as origin, pytest.raises(SourceError, match=r"/no/such/bundle.pem"):
        read(source_of(origin.url("f")))


def test_tls_with_a_server_that_speaks_none(source_of):
    def serve(peer: socket.socket, reached: threading.Event) -> None:
        peer.recv(65536)
        peer.sendall(b"HTTP/1.1 400 plain\r\n\r\n")

    with Raw(serve) as raw, pytest.raises(TransientError, match=r"^TLS failed: "):
        read(source_of(raw.url.replace("http:", "https:")))


# ---- proxies


def test_a_forward_proxy_is_used(source_of, monkeypatch):
    with Wire(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") as proxy:
        monkeypatch.setenv("http_proxy", proxy.url().replace("//", "//me:s3cret@"))
        assert read(source_of("http://models.example/f")) == b"hello"
        head = proxy.requests[0]
    assert head.startswith("GET http://models.example/f HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic bWU6czNjcmV0\r\n" in head


def test_a_tunnel_is_used_for_https_and_kept(source_of, trusted, monkeypatch):
    with Origin({"f": CONTENT}, tls=trusted) as origin, Tunnel() as tunnel:
        monkeypatch.setenv("https_proxy", tunnel.url)
        source = source_of(origin.url("f"), headers=TOKEN)
        assert [read(source), read(source, ask(9))] == [CONTENT, CONTENT[9:]]
        assert origin.connections == 1
        assert (len(tunnel.heads), b"s3cret" in tunnel.heads[0]) == (1, False)


def test_a_proxy_that_refuses_is_named(source_of, monkeypatch):
    with Wire(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as proxy:
        monkeypatch.setenv("https_proxy", proxy.url())
        with pytest.raises(SourceError, match=r"^the proxy refused: 407"):
            read(source_of("https://models.example/f"))


def test_a_proxy_that_is_not_there_is_named(source_of, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
    with pytest.raises(TransientError, match=r"^the proxy: connection refused$"):
        read(source_of("https://models.example/f"))


def test_a_socks_proxy_is_refused_in_words(source_of, monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(SourceError, match="SOCKS"):
        read(source_of("http://models.example/f"))


# ---- ending a request


class Ended:
    """Reads in a thread until `reached`, or until `size` bytes are here; ends it and notes how it ended, how fast."""

    def __init__(
        self, source: HttpSource, reached: threading.Event | None = None, abort: Abort | None = None, size: int = 5
    ) -> None:
        self._reading, self._size = threading.Event(), size
        self.error: ModelCacheError | None = None
        self.got = b""
        self._source, self._abort = source, abort or Abort()
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        assert (reached or self._reading).wait(5)
        began = time.monotonic()
        self._abort.fire()
        thread.join(5)
        self.took_s = time.monotonic() - began

    def _work(self) -> None:
        try:
            with self._source.open(ask(abort=self._abort)) as body:
                for chunk in body:
                    self.got += chunk.data
                    if len(self.got) >= self._size:
                        self._reading.set()
        except ModelCacheError as error:
            self.error = error

    def assert_at_once(self) -> None:
        assert isinstance(self.error, AbortedError)
        assert self.took_s < SOON_S


class Watched(Abort):
    """Tells when a socket was handed over."""

    def __init__(self) -> None:
        super().__init__()
        self.handed_over = threading.Event()

    def attach(self, sock: socket.socket) -> None:
        super().attach(sock)
        self.handed_over.set()


class Raw:
    """A server that runs one function per connection, in the order they come."""

    def __init__(self, *serve: Callable[[socket.socket, threading.Event], None]) -> None:
        self.reached = threading.Event()
        self._listener = self._peer = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/f"
        self._thread = threading.Thread(target=self._work, args=(serve,), daemon=True)
        self._thread.start()

    def _work(self, serve: tuple[Callable[[socket.socket, threading.Event], None], ...]) -> None:
        for one in serve:
            with suppress(OSError), self._listener.accept()[0] as self._peer:
                one(self._peer, self.reached)

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        for ours in (self._listener, self._peer):
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._listener.close()


class Tunnel:
    """A CONNECT proxy for one tunnel."""

    def __init__(self, silent: bool = False) -> None:
        self.heads: list[bytes] = []
        self.silent = silent
        self._raw = Raw(self._serve)
        self.url, self.reached = self._raw.url, self._raw.reached

    def _serve(self, peer: socket.socket, reached: threading.Event) -> None:
        self.heads.append(peer.recv(65536))
        reached.set()
        if self.silent:
            peer.recv(1)
            return
        host, port = self.heads[0].split()[1].decode().rsplit(":", 1)
        with socket.create_connection((host, int(port))) as target:
            peer.sendall(b"HTTP/1.1 200 Established\r\n\r\n")
            back = threading.Thread(target=self._pump, args=(target, peer), daemon=True)
            back.start()
            self._pump(peer, target)
            back.join(5)

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while got := source.recv(65536):
                target.sendall(got)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def __enter__(self) -> "Tunnel":
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.__exit__()


@pytest.fixture
def full_listener():
    """The port of a listener whose queue is full: the kernel drops further connects, as a dead host would."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_an_abort_fired_before_asks_nobody(source_of):
    abort = Abort()
    abort.fire()
    with Origin({"f": CONTENT}) as origin:
        with pytest.raises(AbortedError):
            read(source_of(origin.url("f")), ask(abort=abort))
        assert origin.connections == 0


def test_an_abort_fired_before_shuts_what_it_is_given():
    abort = Abort()
    abort.fire()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(AbortedError):
            abort.attach(ours)
        abort.release()
        assert theirs.recv(1) == b""


def test_an_abort_ends_a_connect(source_of, full_listener):
    abort = Watched()
    Ended(source_of(f"http://127.0.0.1:{full_listener}/f"), abort.handed_over, abort).assert_at_once()


def greets_nobody(peer: socket.socket, reached: threading.Event) -> None:
    peer.recv(65536)
    reached.set()
    peer.recv(1)


def dribbles(peer: socket.socket, reached: threading.Event) -> None:
    peer.recv(65536)
    peer.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    reached.set()
    pause = threading.Event()
    while not pause.wait(0.01):
        peer.sendall(b"y")


def sends_a_little(peer: socket.socket, reached: threading.Event) -> None:
    peer.recv(65536)
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello")
    peer.recv(1)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_abort_ends_waiting_for_headers_or_a_handshake(source_of, scheme):
    with Raw(greets_nobody) as raw:
        Ended(source_of(raw.url.replace("http", scheme, 1)), raw.reached).assert_at_once()


def test_an_abort_ends_dribbling_headers(source_of):
    with Raw(dribbles) as raw:
        Ended(source_of(raw.url), raw.reached).assert_at_once()


def test_an_abort_ends_a_body(source_of):
    with Raw(sends_a_little) as raw:
        ended = Ended(source_of(raw.url))
        ended.assert_at_once()
    assert ended.got == b"hello"


def test_an_abort_ends_a_body_that_only_its_end_would_delimit(source_of):
    def serve(peer: socket.socket, reached: threading.Event) -> None:
        peer.recv(65536)
        peer.sendall(b"HTTP/1.1 200 OK\r\n\r\nhello")
        peer.recv(1)

    with Raw(serve) as raw:
        Ended(source_of(raw.url)).assert_at_once()


@pytest.mark.parametrize("secure", [False, True])
def test_an_abort_ends_a_body_on_a_kept_connection(source_of, trusted, secure):
    with Origin({"f": CONTENT}, tls=trusted if secure else None) as origin:
        source = source_of(origin.url("f"))
        read(source, ask(0, 10))
        origin.faults(Hold(500_000))
        Ended(source, size=500_000).assert_at_once()
        assert origin.connections == 1


def test_an_abort_ends_a_proxy_that_does_not_answer(source_of, monkeypatch):
    with Tunnel(silent=True) as tunnel:
        monkeypatch.setenv("https_proxy", tunnel.url)
        Ended(source_of("https://models.example/f"), tunnel.reached).assert_at_once()


def test_an_abort_fired_after_the_body_leaves_the_kept_connection_alone(source_of):
    abort = Abort()
    with Origin({"f": CONTENT}) as origin:
        source = source_of(origin.url("f"))
        read(source, ask(abort=abort))
        abort.fire()
        assert read(source) == CONTENT
        assert origin.connections == 1


# ---- a stubbed transport


def test_it_works_over_a_transport_that_is_not_a_socket(requests_mock, source_of):
    requests_mock.get("http://models.example/f", content=b"hello", headers={"Content-Length": "5"})
    assert read(source_of("http://models.example/f")) == b"hello"


@pytest.mark.parametrize(
    "foreign",
    [
        requests.exceptions.ConnectTimeout("host='x' s3cret"),
        requests.exceptions.ChunkedEncodingError("s3cret"),
        urllib3.exceptions.ProtocolError("s3cret", ConnectionResetError(104, "x")),
        urllib3.exceptions.LocationParseError("s3cret"),
        OSError(113, "s3cret"),
        ValueError("s3cret"),
    ],
)
def test_every_foreign_exception_becomes_ours(requests_mock, source_of, foreign):
    requests_mock.get("http://models.example/f", exc=foreign)
    with pytest.raises(SourceError) as caught:
        read(source_of("http://models.example/f"))
    assert caught.value.__cause__ is foreign
    assert "s3cret" not in caught.value.line()


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("size", [16_384, 327_680, 400_000])
def test_what_arrived_before_a_cut_is_given_before_the_error(source_of, trusted, secure, size):
    """Records of TLS are gathered: a cut, or a silence, costs none of them."""
    with Origin({"f": CONTENT}, tls=trusted if secure else None, faults=[Cut(size)]) as origin:
        got = b""
        with source_of(origin.url("f")).open(ask()) as body, pytest.raises(TransientError, match=r"reset|ended"):
            for chunk in body:
                got += bytes(chunk.data)
    assert got == CONTENT[:size]


def test_records_that_come_at_once_are_one_chunk(source_of, trusted):
    with Origin({"f": CONTENT}, tls=trusted) as origin, source_of(origin.url("f")).open(ask()) as body:
        sizes = [len(chunk.data) for chunk in body]
    assert sum(sizes) == len(CONTENT)
    assert max(sizes) > 16 << 10
