"""What the head of an HTTP reply promises: rules on a status and headers, no I/O.

Responsible for: believing a reply only where RFC 9110 and the request allow it (I7, I8), and naming what is wrong.
Leaves to others: sending requests and following redirects (`http`), reading the body (`body`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from modelcache.errors import NotFoundError, RangeRefusedError, SourceError, TransientError, VerificationError
from modelcache.remotes.source import Request
from modelcache.retry import is_transient, rate_limit_s, retry_after_s

REDIRECTS = frozenset((301, 302, 303, 307, 308))
LONGEST_VALIDATOR = 512
_HTML_SUFFIXES = (".html", ".htm", ".xhtml")
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_NUMBER = re.compile(r"[0-9]{1,19}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.IGNORECASE)
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,19})", re.IGNORECASE)
_REFUSALS = {
    401: ("it needs a token", 'pass --header "Authorization: Bearer …"'),
    403: ("access is not allowed", "check the token, or ask the owner for access"),
    404: ("not found", "check the address"),
    410: ("it is gone for good", ""),
}


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers; each field by its lower-case name, with all values it came with.

    is_inside: it came from this machine or a private network.
    """

    status: int
    fields: Mapping[str, list[str]]
    is_inside: bool = False

    @classmethod
    def of(cls, status: int, pairs: Mapping[str, list[str]], *, is_inside: bool = False) -> Self:
        fields = {name.lower(): [value.strip(" \t") for value in values] for name, values in pairs.items()}
        return cls(status, fields, is_inside)

    def text(self, name: str) -> str:
        """All values of a field joined as RFC 9110, 5.3 allows; empty if it is not there."""
        return ", ".join(self.fields.get(name, ()))

    @property
    def validator(self) -> str:
        """The strong ETag, else a Last-Modified that is one (RFC 9110, 8.8.2.2), else empty."""
        if etag := strong_etag(self.text("etag")):
            return etag
        modified = self.text("last-modified")
        modified_s, date_s = _time_s(modified), _time_s(self.text("date"))
        return modified if modified_s is not None and date_s is not None and modified_s + 1 <= date_s else ""


@dataclass(frozen=True, slots=True)
class Promise:
    """What a believable reply will send.

    The body begins at offset `start`; the bytes before `stop` are wanted (None: all that come). `length` is the size
    of the body on the wire, None where only its framing tells its end. `total` is the size of the whole file if the
    reply said so. `nothing_known`: neither size nor digest tells whether an empty body can be right.
    """

    start: int
    stop: int | None
    length: int | None
    chunked: bool
    total: int | None
    surplus_is_wrong: bool = True
    nothing_known: bool = False


def is_ranged(request: Request) -> bool:
    return request.start > 0 or request.stop is not None


def strong_etag(text: str) -> str:
    """The ETag itself if it is a strong one, else empty."""
    return text if len(text) <= LONGEST_VALIDATOR and _STRONG_ETAG.fullmatch(text) else ""


def promise_of(head: Head, request: Request, now_s: float) -> Promise:
    """What the reply promises for this request. NotFoundError, TransientError, RangeRefusedError, VerificationError
    or SourceError where it promises nothing that can be used."""
    if head.status not in (200, 206):
        raise refusal_of(head, request, now_s)
    length, chunked = _framing(head)
    if head.text("content-encoding").lower() not in ("", "identity"):
        wrong = f"it sent {head.text('content-encoding')[:40]!r}-coded bytes, which were not asked for"
        raise RangeRefusedError(wrong) if head.status == 206 else SourceError(wrong)
    promise = _partial(head, request, length, chunked) if head.status == 206 else _whole(request, length, chunked)
    if request.file.size is not None or request.file.digests:
        return promise
    _check_worth(head, request, promise)
    return replace(promise, nothing_known=True)


def _framing(head: Head) -> tuple[int | None, bool]:
    """Content-Length and whether the body is chunked; SourceError where the two are not plain (RFC 9112, 6.3)."""
    coding = head.text("transfer-encoding").lower()
    if coding not in ("", "chunked"):
        raise SourceError(f"it sent the transfer coding {coding[:40]!r}")
    lengths = head.fields.get("content-length", [])
    if lengths and not (len(lengths) == 1 and _NUMBER.fullmatch(lengths[0])):
        raise SourceError(f"it sent a malformed Content-Length: {', '.join(lengths)[:60]!r}")
    return (int(lengths[0]) if lengths and not coding else None), bool(coding)


def _whole(request: Request, length: int | None, chunked: bool) -> Promise:
    file = request.file
    _check_total(length, request)
    return Promise(0, file.size if file.size is not None else length, length, chunked, length)


def _partial(head: Head, request: Request, length: int | None, chunked: bool) -> Promise:
    if not is_ranged(request):
        raise SourceError("it sent a part (206) though the whole was asked for")
    if head.text("content-type").lower().startswith("multipart/"):
        raise RangeRefusedError("it sent several parts (multipart) for one range")
    match = _CONTENT_RANGE.fullmatch(head.text("content-range"))
    if not match:
        raise RangeRefusedError(f"it sent a part (206) with the Content-Range {head.text('content-range')[:60]!r}")
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    size = request.file.size
    if first != request.start:
        raise RangeRefusedError(f"it sent bytes from {first} though {request.start} was asked for")
    if last < first or (total is not None and last >= total) or (size is not None and last >= size):
        raise RangeRefusedError(f"it sent an impossible Content-Range: {match[0]!r}")
    if None not in (total, size) and total != size:
        raise RangeRefusedError(f"it has {total} bytes, {size} expected", total=total)
    if length not in (None, last - first + 1):
        raise RangeRefusedError(f"its Content-Length is {length} for a part of {last - first + 1} bytes")
    _check_same(head, request)
    _check_total(total, request)
    beyond = request.stop is not None and last >= request.stop
    stop = request.stop if beyond else last + 1
    return Promise(first, stop, length, chunked, total, surplus_is_wrong=not beyond)


def _check_same(head: Head, request: Request) -> None:
    """Two versions are never mixed: a strong validator that both sides have must be the same."""
    before, now = request.validator, head.text("etag")
    if strong_etag(before) and strong_etag(now) and before != now:
        raise RangeRefusedError("its content changed: another ETag than before")


def _check_total(total: int | None, request: Request) -> None:
    file = request.file
    if total is None:
        return
    if file.size is not None and total != file.size:
        raise VerificationError(f"{total} bytes promised, {file.size} expected")
    if total < file.least_size:
        raise VerificationError(f"{total} bytes promised, at least {file.least_size} expected")


def _check_worth(head: Head, request: Request, promise: Promise) -> None:
    """A login page or nothing at all is no model; asked only where neither size nor digest tell better."""
    is_html = head.text("content-type").lower().partition(";")[0].strip() == "text/html"
    if is_html and not request.file.path.lower().endswith(_HTML_SUFFIXES):
        raise SourceError("it sent an HTML page instead of the file")
    if promise.length == 0:
        raise SourceError("it sent an empty body")


def refusal_of(head: Head, request: Request, now_s: float) -> SourceError:
    """Why a status that is neither 200 nor 206 brings nothing."""
    refusal = _refusal(head, request, now_s)
    refusal.status = head.status
    return refusal


def _refusal(head: Head, request: Request, now_s: float) -> SourceError:
    status = head.status
    if is_ranged(request) and status == 416:
        match = _UNSATISFIED.fullmatch(head.text("content-range"))
        return RangeRefusedError("416: it does not have this range", total=int(match[1]) if match else None)
    if is_ranged(request) and status in (400, 501):
        return RangeRefusedError(f"{status}: it refuses ranges")
    if is_transient(status):
        wait_s = retry_after_s(head.text("retry-after"), head.text("date"), now_s)
        wait_s = rate_limit_s(head.text("ratelimit")) if wait_s is None else wait_s
        return TransientError(f"{status}: {_BUSY.get(status, 'it fails at the moment')}", retry_after_s=wait_s)
    if 400 <= status <= 499:
        what, advice = _REFUSALS.get(status, ("it refuses the request", ""))
        return NotFoundError(f"{status}: {what}", next_step=advice)
    return SourceError(f"{status}: {'a redirect to nowhere' if status in REDIRECTS else 'no reply that can be used'}")


_BUSY = {429: "too many requests", 503: "it is overloaded or down"}


def _time_s(text: str) -> float | None:
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(text).timestamp() if 0 < len(text) <= 64 and text.isprintable() else None
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
