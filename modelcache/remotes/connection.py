"""One GET over one connection: `requests` and urllib3 as we use them.

Responsible for: handing every socket to the request's `Abort` before it connects, one time budget over resolving and
connecting, refusing private addresses after a redirect, kept connections, proxies and CA bundle from the environment,
and turning foreign exceptions into ours in plain words.
Leaves to others: what is asked, redirects and secrets (`http`), what a reply means (`reply`), its body (`body`).
"""

import errno
import http.client
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Self

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import wait_for_write

from modelcache.errors import AbortedError, ModelCacheError, ShortageError, SourceError, TransientError
from modelcache.remotes.source import Abort
from modelcache.remotes.tokens import Tokens
from modelcache.remotes.unheard import unheard
from modelcache.urls import is_private

KEPT_CONNECTIONS = 16
_LOOK_S = 0.2  # how often a connect looks up, for systems where a shutdown does not wake it

FOREIGN = (OSError, ValueError, http.client.HTTPException, urllib3.exceptions.HTTPError)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """`connect_s` is for resolving and connecting together, `stall_s` for no byte at all."""

    connect_s: float = 10.0
    stall_s: float = 30.0


@dataclass(slots=True)
class Hop:
    """One exchange with one server: what the connection must obey, and what it found.

    public_only: whoever sent us here is on the public internet. peer: the address it reached, empty behind a proxy.
    fresh: connected for this exchange, not kept from an earlier one. connected: TCP, proxy and TLS are through. sock:
    what the reply arrives on.
    """

    abort: Abort
    public_only: bool = False
    peer: str = ""
    fresh: bool = False
    connected: bool = False
    sock: socket.socket | None = None

    def admit(self, address: str) -> None:
        """SourceError where somebody on the public internet sends us into a private network (I20)."""
        if self.public_only and is_private(address):
            raise SourceError("it sends us to a private address, which is not asked")
        self.peer = address

    @property
    def is_inside(self) -> bool:
        """Whether it reached somebody on this machine or in a private network; behind a proxy nobody can tell."""
        return bool(self.peer) and is_private(self.peer)

    def abandon(self) -> None:
        """Closes the socket of an exchange that failed: what urllib3 left open holds it until it is collected."""
        self.abort.release()
        if isinstance(self.sock, socket.socket):  # TLS inside TLS to a proxy is something else
            with suppress(OSError):
                os.close(self.sock.detach())
        self.sock = None


_hop: ContextVar[Hop] = ContextVar("modelcache_hop")


class _HandsOverSockets(HTTPConnection):
    """Runs in the thread that asks. Our own errors pass through urllib3 and requests untouched."""

    def _new_conn(self) -> socket.socket:
        hop, began = _hop.get(), time.monotonic()
        hop.fresh = True
        budget_s = float(self.timeout or 0) or Timeouts().connect_s
        failure: OSError = TimeoutError()
        addresses = _resolved(self._dns_host, self.port)
        for index, address in enumerate(addresses):
            if not self.proxy:
                hop.admit(str(address[4][0]))
            left_s = budget_s - (time.monotonic() - began)
            try:
                sock = _connected(address, left_s / (len(addresses) - index), hop.abort)
            except OSError as error:
                if _is_shortage(error):
                    raise _shortage() from error
                failure = error
                continue
            for option in self.socket_options or ():
                sock.setsockopt(*option)
            sock.settimeout(budget_s)
            sys.audit("http.client.connect", self, self.host, self.port)
            return sock
        reason = f"no connection within {budget_s:g} s" if isinstance(failure, TimeoutError) else _reason(failure)
        raise TransientError(f"the proxy: {reason}" if self.proxy else reason) from failure

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:
        hop = _hop.get()
        if self.sock is None:
            self.connect()
        elif not hop.fresh:
            hop.abort.attach(self.sock)
            if not self.proxy:
                hop.admit(str(self.sock.getpeername()[0]))
        hop.connected, hop.sock = True, self.sock
        super().putrequest(method, url, skip_host, skip_accept_encoding)


class _Plain(_HandsOverSockets):
    pass


class _Tls(_HandsOverSockets, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _Tls


_POOLS = {"http": _PlainPool, "https": _TlsPool}


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        if proxy.lower().startswith("socks"):
            raise SourceError("SOCKS proxies are not supported", next_step="set an http:// proxy or unset ALL_PROXY")
        manager = super().proxy_manager_for(proxy, **proxy_kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager


class _Session(requests.Session):
    """Takes proxies and the CA bundle from the environment, and nothing else: no cookies, no netrc."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: redirects are ours, and a session that sees one reads its body to the end, however long."""


class Connector:
    """Sends GETs over kept connections; up to `KEPT_CONNECTIONS` threads use one at the same time.

    Sources may share one, so that many small files need few connections; the last of them to close it closes those.
    `tokens` are what servers gave to be let in again.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self.tokens = Tokens()
        self._guard = threading.Lock()
        self._users = 0
        self._session = _Session()
        self._session.mount("https://", self._adapter())
        self._session.mount("http://", self._adapter())

    def shared(self) -> Self:
        """Itself, for one more source, which is to close it."""
        with self._guard:
            self._users += 1
        return self

    @staticmethod
    def _adapter() -> _Adapter:
        return _Adapter(KEPT_CONNECTIONS, KEPT_CONNECTIONS, max_retries=0, pool_block=False)

    def get(self, url: str, headers: Mapping[str, str], hop: Hop) -> requests.Response:
        """The reply once its headers are here, whatever its status. A kept connection that turns out to be closed
        is replaced. Raises TransientError, SourceError or AbortedError."""
        while True:
            hop.fresh = False
            try:
                with self.translating(hop):
                    return self._send(url, headers, hop)
            except ModelCacheError as error:
                was_kept = hop.sock is not None and not hop.fresh
                hop.abandon()
                if not (was_kept and isinstance(error, _DroppedError)):
                    raise

    def _send(self, url: str, headers: Mapping[str, str], hop: Hop) -> requests.Response:
        # Not Session.request, which adds netrc and cookies.
        prepared = requests.Request("GET", url, headers=dict(headers)).prepare()
        settings = self._session.merge_environment_settings(url, {}, True, None, None)
        bundle = settings["verify"] or True
        if isinstance(bundle, str) and not os.path.exists(bundle):
            raise SourceError(f"the CA bundle {bundle} does not exist", next_step="mend or unset REQUESTS_CA_BUNDLE")
        token = _hop.set(hop)
        try:
            limits = (self.timeouts.connect_s, self.timeouts.stall_s)
            proxies = settings["proxies"]
            with unheard():
                return self._session.send(
                    prepared, stream=True, timeout=limits, verify=bundle, proxies=proxies, allow_redirects=False
                )
        finally:
            _hop.reset(token)

    @contextmanager
    def translating(self, hop: Hop) -> Iterator[None]:
        """Turns foreign exceptions into ours; all of them into AbortedError once the request was ended."""
        try:
            yield
        except FOREIGN as error:
            if hop.abort.fired:
                raise _aborted() from error
            if any(_is_shortage(one) for one in _nested(error)):
                raise _shortage() from error
            raise _translated(error, hop, self.timeouts) from error
        except ModelCacheError as error:
            if hop.abort.fired and not isinstance(error, AbortedError):
                raise _aborted() from error
            raise

    def close(self) -> None:
        """For one source; after the last one it may still be shared again."""
        with self._guard:
            self._users -= 1
            if self._users <= 0:
                self._session.close()


class _DroppedError(TransientError):
    """The peer closed or reset the connection."""


def _aborted() -> AbortedError:
    return AbortedError("the request was ended")


def _is_shortage(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def _shortage() -> ShortageError:
    """Of file handles: no other source can help."""
    return ShortageError("no connection: too many open files", next_step="raise `ulimit -n`")


def _resolved(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise TransientError("the name does not resolve") from error
    except UnicodeError as error:
        raise SourceError("the host name is malformed") from error


def _connected(resolved: Any, timeout_s: float, abort: Abort) -> socket.socket:
    """A socket connected to one resolved address, in the hands of `abort` since before it connects."""
    family, kind, protocol, _, address = resolved
    sock = socket.socket(family, kind, protocol)
    try:
        abort.attach(sock)
        sock.setblocking(False)
        code = sock.connect_ex(address)
        if code in (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR):
            _wait_connected(sock, timeout_s, abort)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        abort.check()
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def _wait_connected(sock: socket.socket, timeout_s: float, abort: Abort) -> None:
    deadline = time.monotonic() + timeout_s
    while not wait_for_write(sock, timeout=max(min(_LOOK_S, deadline - time.monotonic()), 0)):
        abort.check()
        if time.monotonic() >= deadline:
            raise TimeoutError


def _translated(error: BaseException, hop: Hop, timeouts: Timeouts) -> SourceError:
    """Ours for a foreign exception: of all that are nested in it, the one that says most."""
    nested = list(_nested(error))

    def first(*kinds: type[BaseException]) -> Any:
        return next((one for one in nested if isinstance(one, kinds)), None)

    if found := first(ssl.SSLCertVerificationError):
        return SourceError(
            f"its certificate is not trusted: {found.verify_message or 'verification failed'}",
            next_step="set REQUESTS_CA_BUNDLE to the CA that signed it",
        )
    if first(TimeoutError, urllib3.exceptions.TimeoutError):
        waited = f"no byte for {timeouts.stall_s:g} s"
        return TransientError(waited if hop.connected else f"no connection within {timeouts.connect_s:g} s")
    if found := next((one for one in nested if str(one).startswith("Tunnel connection failed")), None):
        return _refused_by_proxy(str(found))
    if first(http.client.RemoteDisconnected):
        return _DroppedError("the connection was closed without a reply")
    if first(ConnectionResetError, BrokenPipeError, ConnectionAbortedError):
        return _DroppedError("the connection was reset")
    if found := first(ssl.SSLError):
        words = (found.reason or "the connection was cut").replace("_", " ").lower()
        return (_DroppedError if first(ssl.SSLEOFError) else TransientError)(f"TLS failed: {words}")
    if first(http.client.IncompleteRead, urllib3.exceptions.IncompleteRead):
        return TransientError("the connection ended early")
    if first(http.client.LineTooLong):
        return SourceError("a header line is too long")
    if first(urllib3.exceptions.InvalidHeader, requests.exceptions.InvalidHeader):
        return SourceError("a header is malformed")
    if found := first(http.client.HTTPException):
        many = "headers" in str(found)
        return SourceError("it sent too many headers" if many else "the reply is not HTTP")
    if found := next((one for one in nested if isinstance(one, OSError) and one.errno), None):
        return TransientError(_reason(found))
    return SourceError("the address or the reply is malformed")


def _refused_by_proxy(words: str) -> SourceError:
    reason = (words.partition(":")[2].split() or ["no reason given"])[0]
    return SourceError(f"the proxy refused: {reason}", next_step="check the proxy settings (HTTPS_PROXY)")


def _reason(error: OSError) -> str:
    match error:
        case ConnectionRefusedError():
            return "connection refused"
        case ConnectionResetError():
            return "the connection was reset"
        case TimeoutError():
            return "no answer in time"
    return os.strerror(error.errno).lower() if error.errno else "the connection failed"


def _nested(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or one in seen:
            continue
        seen.append(one)
        yield one
        waiting += [*one.args, getattr(one, "reason", None), one.__cause__, one.__context__]
