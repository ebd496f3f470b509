"""A file behind one URL, over HTTP.

Responsible for: asking for a span (Range, If-Range), following redirects ourselves, and who may see the user's
headers (I20).
Leaves to others: connections and foreign errors (`connection`), what a reply means (`reply`), reading it (`body`),
retries, header deadline and minimum rate (`transfer`, through `Abort`).

Rules:
- All headers a user gives, and the userinfo of the URL, are secrets: they go to the origin of the source's own URL
  only, and not there either once a redirect has left it.
- The URL a redirect leads to is never kept: each `open` starts at the source's own URL. 401 or 403 from a redirected
  URL may be an expired signature and starts once more there.
- A redirect leads into a private network only if the source's own host is in one.
"""

import base64
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from modelcache import __version__
from modelcache.errors import ModelCacheError, SourceError, UsageError
from modelcache.model import ModelFile
from modelcache.remotes.body import Exchange, HttpBody
from modelcache.remotes.connection import Connector, Hop, Timeouts
from modelcache.remotes.reply import REDIRECTS, Head, is_ranged, promise_of, strong_etag
from modelcache.remotes.source import Abort, Request, Traits
from modelcache.urls import checked_url, origin_of, redirect_target, without_secrets

__all__ = ["HttpSource", "Timeouts"]

MOST_REDIRECTS = 10
MOST_CONNECTIONS = 8
USER_AGENT = f"modelcache/{__version__}"
_DEFAULT_TIMEOUTS = Timeouts()
_OURS = frozenset(
    {"accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "range"}
    | {"if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


Explain = Callable[[Head], SourceError | None]  # a refusal in the words of a service; None for the usual ones


def nothing_more(_head: Head) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply that is no redirect, and where it came from. `own`: no redirect has left the origin of the URL."""

    exchange: Exchange
    head: Head
    url: str
    redirected: bool
    own: bool


class HttpSource:
    """One URL. Threads may use it at the same time; connections are kept and shared.

    headers: sent with each request to the URL's own origin, nowhere else. UsageError for a malformed URL or header.
    connector: whose connections it shares, instead of `timeouts` and connections of its own.
    explain: what a refusal means where the URL is that of a service that says more than its status; it is asked about
        replies of the URL's own origin alone.
    """

    kind = "http"

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts = _DEFAULT_TIMEOUTS,
        connector: Connector | None = None,
        explain: Explain = nothing_more,
    ) -> None:
        self.name = without_secrets(checked_url(url))
        self._url, userinfo = _without_userinfo(url)
        self._secrets = userinfo | checked_headers(headers or {})
        self._connector = (connector or Connector(timeouts)).shared()
        self._explain = explain
        self._conditional = True
        self._ranges = True
        self._says_ranges = False

    def traits(self, file: ModelFile) -> Traits | None:  # noqa: ARG002  the seam's argument
        """What earlier replies have shown."""
        return Traits(self._ranges, self._says_ranges, MOST_CONNECTIONS)

    def open(self, request: Request) -> HttpBody:
        request.abort.check()
        began = time.monotonic()
        answer = self._settled_answer(request)
        try:
            promise = promise_of(answer.head, request, time.time())
        except ModelCacheError as error:
            answer.exchange.dismiss(plain_length(answer.head))
            raise (self._explain(answer.head) if answer.own else None) or error from error
        return HttpBody(
            answer.exchange,
            promise,
            validator=answer.head.validator,
            host=urlsplit(answer.url).netloc,
            status=answer.head.status,
            first_byte_s=time.monotonic() - began,
        )

    def close(self) -> None:
        self._connector.close()

    def _settled_answer(self, request: Request) -> Answer:
        conditions = _conditions(request, self._conditional)
        answer = self._answer(request.abort, conditions)
        self._learn(answer.head)
        if answer.head.status in (401, 403) and answer.redirected:
            answer.exchange.drop()
            answer = self._answer(request.abort, conditions)
        if answer.head.status != 200 or "Range" not in conditions:
            return answer
        etag = strong_etag(answer.head.text("etag"))
        if "If-Range" in conditions:
            if etag != request.validator:
                return answer
            # Some CDNs answer an If-Range that matches with the whole: from now on, ask without it.
            self._conditional = False
            answer.exchange.drop()
            answer = self._answer(request.abort, _conditions(request, conditional=False))
        self._ranges = self._ranges and answer.head.status != 200
        return answer

    def _learn(self, head: Head) -> None:
        """What a reply says of ranges (RFC 9110, 14.3)."""
        if head.status not in (200, 206):
            return
        said = head.text("accept-ranges").lower()
        self._says_ranges = self._says_ranges or head.status == 206 or "bytes" in said
        self._ranges = self._ranges and said != "none"

    def _answer(self, abort: Abort, conditions: dict[str, str]) -> Answer:
        return ask(self._connector, self._url, self._secrets, conditions, abort)


def ask(
    connector: Connector,
    url: str,
    secrets: Mapping[str, str],
    headers: Mapping[str, str],
    abort: Abort,
    *,
    public_only: bool = False,
) -> Answer:
    """Follows redirects; `secrets` are sent along with `headers` as long as the origin stays that of the url.

    public_only: the url is the word of somebody on the public internet, who is not followed into a private network.
    Raises TransientError, SourceError or AbortedError; whatever it raises, no connection is left behind.
    """
    origin, began_at, trusted, hop = origin_of(url), url, True, Hop(abort, public_only)
    for _ in range(MOST_REDIRECTS + 1):
        sent = {"User-Agent": USER_AGENT, "Accept": "*/*"} | (dict(secrets) if trusted else {}) | dict(headers)
        exchange, head = _exchange(connector, url, sent, hop)
        locations = set(head.fields.get("location", ()))
        if head.status not in REDIRECTS or len(locations) != 1:
            return Answer(exchange, head, url, redirected=url != began_at, own=trusted)
        exchange.dismiss(plain_length(head))
        url = redirect_target(url, locations.pop())
        trusted = trusted and origin_of(url) == origin
        hop = Hop(abort, public_only=hop.public_only or not hop.is_inside)
    raise SourceError(f"more than {MOST_REDIRECTS} redirects")


def _exchange(connector: Connector, url: str, headers: Mapping[str, str], hop: Hop) -> tuple[Exchange, Head]:
    response = connector.get(url, headers, hop)
    fields = {name: response.raw.headers.getlist(name) for name in response.raw.headers}
    return Exchange(connector, response, hop), Head.of(response.status_code, fields, is_inside=hop.is_inside)


def _conditions(request: Request, conditional: bool) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    if is_ranged(request):
        headers["Range"] = f"bytes={request.start}-{'' if request.stop is None else request.stop - 1}"
        if request.validator and conditional:
            headers["If-Range"] = request.validator
    return headers


def plain_length(head: Head) -> int | None:
    length = head.text("content-length")
    return int(length) if re.fullmatch("[0-9]{1,9}", length) and not head.text("transfer-encoding") else None


def _without_userinfo(url: str) -> tuple[str, dict[str, str]]:
    """The URL to ask, and its userinfo as the header it stands for."""
    split = urlsplit(url)
    userinfo, at, host = split.netloc.rpartition("@")
    if not at:
        return url, {}
    user, _, password = userinfo.partition(":")
    token = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    return split._replace(netloc=host).geturl(), {"Authorization": f"Basic {token}"}


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """In title case, so that one header has one key. UsageError never shows a value: it may be a secret."""
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise UsageError(f"the header {name[:40]!r} holds characters that no header may hold")
        if name.lower() in _OURS:
            raise UsageError(f"the header {name!r} cannot be set: the download itself needs it")
    return {name.title(): value.strip(" \t") for name, value in headers.items()}
