"""One exact reply per oddity of the wire, and what we make of it."""

import re
import time

import pytest

from modelcache.errors import (
    ModelCacheError,
    NotFoundError,
    RangeRefusedError,
    SourceError,
    TransientError,
    VerificationError,
)
from modelcache.model import Digest, ModelFile
from modelcache.remotes.connection import Timeouts
from modelcache.remotes.http import HttpSource
from modelcache.remotes.source import Abort, Body, Request
from modelcache.testing import RESET, Wire

ETAG = '"v1"'
SHA = Digest("sha256", "0" * 64)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


class Read:
    """What came of one request: the body's facts, its bytes, and the error that ended it."""

    def __init__(self, wire: Wire, request: Request, source: HttpSource | None = None) -> None:
        self.body: Body | None = None
        self.got = b""
        self.error: ModelCacheError | None = None
        used = source or HttpSource(wire.url("dir/f"), timeouts=Timeouts(stall_s=0.3))
        try:
            with used.open(request) as self.body:
                for chunk in self.body:
                    assert chunk.offset == self.body.start + len(self.got)
                    self.got += chunk.data
        except ModelCacheError as error:
            self.error = error
        finally:
            if source is None:
                used.close()


def ask(start=0, stop=None, validator="", **known) -> Request:
    return Request(ModelFile(known.pop("path", "f"), **known), start, stop, validator, Abort())


def reply(status: str, *fields: str, body: bytes = b"") -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", *fields, "", "")).encode("latin-1") + body


def whole(*fields: str, body: bytes = b"hello") -> bytes:
    return reply("200 OK", *fields, body=body)


def part(content_range: str, *fields: str, body: bytes = b"llo") -> bytes:
    return reply("206 Partial Content", f"Content-Range: {content_range}", *fields, body=body)


def chunked(body: bytes) -> bytes:
    return whole("Transfer-Encoding: chunked", body=body)


GOOD = {
    "counted": (whole("Content-Length: 5"), ask(), b"hello", 0, 5),
    "size known": (whole("Content-Length: 5"), ask(size=5), b"hello", 0, 5),
    "until closed": (whole(), ask(), b"hello", 0, None),
    "until closed, size known": (whole(), ask(size=5), b"hello", 0, None),
    "http/1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", ask(), b"hello", 0, None),
    "chunked": (chunked(b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), ask(), b"hello", 0, None),
    "chunk extensions and trailers": (chunked(b"5;a=b\r\nhello\r\n0;c\r\nX: y\r\n\r\n"), ask(), b"hello", 0, None),
    "chunked wins over Content-Length": (
        whole("Transfer-Encoding: chunked", "Content-Length: 3", body=b"5\r\nhello\r\n0\r\n\r\n"),
        ask(size=5),
        b"hello",
        0,
        None,
    ),
    "the last chunk never comes": (chunked(b"5\r\nhello\r\n"), ask(size=5), b"hello", 0, None),
    "identity coding": (whole("Content-Length: 5", "Content-Encoding: identity"), ask(), b"hello", 0, 5),
    "empty file, size known": (whole("Content-Length: 0", body=b""), ask(size=0), b"", 0, 0),
    "empty file, digest known": (whole("Content-Length: 0", body=b""), ask(digests=(SHA,)), b"", 0, 0),
    "html that is wanted": (whole("Content-Length: 5", "Content-Type: text/html"), ask(path="a.HTML"), b"hello", 0, 5),
    "html, size known": (whole("Content-Length: 5", "Content-Type: text/html"), ask(size=5), b"hello", 0, 5),
    "100 first": (b"HTTP/1.1 100 Continue\r\n\r\n" + whole("Content-Length: 5"), ask(), b"hello", 0, 5),
    "part": (part("bytes 2-4/5"), ask(2), b"llo", 2, 5),
    "part with length": (part("bytes 2-4/5", "Content-Length: 3"), ask(2, 5), b"llo", 2, 5),
    "part, total unknown": (part("bytes 2-4/*"), ask(2), b"llo", 2, None),
    "shorter part": (part("bytes 2-3/5", "Content-Length: 2", body=b"ll"), ask(2, 5), b"ll", 2, 5),
    "part goes on beyond the asked": (part("bytes 2-4/5", "Content-Length: 3"), ask(2, 4), b"ll", 2, 5),
    "part, same etag": (part("bytes 2-4/5", f"ETag: {ETAG}"), ask(2, validator=ETAG), b"llo", 2, 5),
    "part, weak etag now": (part("bytes 2-4/5", 'ETag: W/"v2"'), ask(2, validator=ETAG), b"llo", 2, 5),
    "range ignored": (whole("Content-Length: 5"), ask(2, 4), b"hello", 0, 5),
    "range ignored from 0": (whole("Content-Length: 5"), ask(0, 2), b"hello", 0, 5),
}


@pytest.mark.parametrize(("sent", "request_", "got", "start", "total"), GOOD.values(), ids=GOOD)
def test_a_reply_in_order_is_read(sent, request_, got, start, total):
    with Wire(sent) as wire:
        read = Read(wire, request_)
    assert read.error is None
    assert (read.got, read.body.start, read.body.total) == (got, start, total)


BAD_PARTS = {
    "no Content-Range": (reply("206 Partial Content", body=b"llo"), ask(2), "Content-Range ''"),
    "malformed Content-Range": (part("bytes 2-/5"), ask(2), "Content-Range 'bytes 2-/5'"),
    "other unit": (part("items 2-4/5"), ask(2), "Content-Range"),
    "two Content-Ranges": (part("bytes 2-4/5", "Content-Range: bytes 2-4/5"), ask(2), "Content-Range"),
    "starts later": (part("bytes 3-4/5"), ask(2), "it sent bytes from 3 though 2 was asked for"),
    "starts earlier": (part("bytes 0-4/5"), ask(2), "it sent bytes from 0 though 2 was asked for"),
    "ends before it starts": (part("bytes 2-1/5"), ask(2), "impossible"),
    "ends at the total": (part("bytes 2-5/5"), ask(2), "impossible"),
    "ends beyond the known size": (part("bytes 2-5/*"), ask(2, size=5), "impossible"),
    "other total": (part("bytes 2-4/6"), ask(2, size=5), "it has 6 bytes, 5 expected"),
    "multipart": (part("bytes 2-4/5", "Content-Type: multipart/byteranges; boundary=x"), ask(2), "multipart"),
    "length disagrees": (part("bytes 2-4/5", "Content-Length: 5"), ask(2), "Content-Length is 5 for a part of 3"),
    "coded": (part("bytes 2-4/5", "Content-Encoding: gzip"), ask(2), "'gzip'-coded"),
    "other etag": (part("bytes 2-4/5", 'ETag: "v2"'), ask(2, validator=ETAG), "its content changed"),
    "400": (reply("400 Bad Request", "Content-Length: 0"), ask(2), "400: it refuses ranges"),
    "501": (reply("501 Not Implemented", "Content-Length: 0"), ask(0, 2), "501: it refuses ranges"),
}


@pytest.mark.parametrize(("sent", "request_", "words"), BAD_PARTS.values(), ids=BAD_PARTS)
def test_a_part_that_cannot_be_believed_is_refused(sent, request_, words):
    with Wire(sent) as wire:
        read = Read(wire, request_)
    assert type(read.error) is RangeRefusedError
    assert words in read.error.line()
    assert read.got == b""


@pytest.mark.parametrize(
    ("field", "total"), [("Content-Range: bytes */5", 5), ("X: y", None), ("Content-Range: bytes 0-4/5", None)]
)
def test_416_tells_the_total_and_its_body_is_ignored(field, total):
    with Wire(reply("416 Range Not Satisfiable", field, "Content-Length: 4", body=b"oops")) as wire:
        read = Read(wire, ask(9))
    assert type(read.error) is RangeRefusedError
    assert (read.error.total, read.got) == (total, b"")


@pytest.mark.parametrize("length", [5, 12_000, 5_000_000_000])
def test_a_416_that_promises_the_whole_and_sends_a_line_holds_nobody_up(length):
    """As docker-registry 2.8 does."""
    lie = reply("416 Requested Range Not Satisfiable", f"Content-Length: {length}", body=b"oops")
    with Wire(lie, whole("Content-Length: 5"), close=False) as wire:
        source = HttpSource(wire.url("f"), timeouts=Timeouts(stall_s=10))
        began = time.monotonic()
        refused, after = Read(wire, ask(9), source), Read(wire, ask(), source)
        source.close()
    assert type(refused.error) is RangeRefusedError
    assert after.got == b"hello"
    assert time.monotonic() - began < 9


UNUSABLE = {
    "part not asked for": (part("bytes 0-4/5"), ask(), SourceError, "though the whole was asked for"),
    "larger than known": (whole("Content-Length: 6"), ask(size=5), VerificationError, "6 bytes promised, 5 expected"),
    "smaller than known": (whole("Content-Length: 4"), ask(size=5), VerificationError, "4 bytes promised, 5 expected"),
    "smaller than the least": (
        whole("Content-Length: 5"),
        ask(least_size=8),
        VerificationError,
        "5 bytes promised, at least 8 expected",
    ),
    "part of something smaller than the least": (
        part("bytes 2-4/5"),
        ask(2, least_size=8),
        VerificationError,
        "5 bytes promised, at least 8 expected",
    ),
    "whole of another size for a range": (
        whole("Content-Length: 9"),
        ask(2, size=5),
        VerificationError,
        "9 bytes promised",
    ),
    "coded": (whole("Content-Length: 5", "Content-Encoding: br"), ask(), SourceError, "'br'-coded"),
    "two lengths": (whole("Content-Length: 5", "Content-Length: 5"), ask(), SourceError, "Content-Length"),
    "lengths in conflict": (whole("Content-Length: 5, 6"), ask(), SourceError, "malformed"),
    "negative length": (whole("Content-Length: -5"), ask(), SourceError, "Content-Length: '-5'"),
    "length in words": (whole("Content-Length: five"), ask(), SourceError, "Content-Length: 'five'"),
    "length with a sign": (whole("Content-Length: +5"), ask(), SourceError, "Content-Length: '+5'"),
    "other transfer coding": (whole("Transfer-Encoding: gzip, chunked"), ask(), SourceError, "transfer coding"),
    "html page": (
        whole("Content-Type: text/html; charset=utf-8", "Content-Length: 5"),
        ask(),
        SourceError,
        "it sent an HTML page instead of the file",
    ),
    "empty": (whole("Content-Length: 0", body=b""), ask(), SourceError, "it sent an empty body"),
    "empty until closed": (whole(body=b""), ask(), SourceError, "it sent an empty body"),
    "empty chunked": (chunked(b"0\r\n\r\n"), ask(), SourceError, "it sent an empty body"),
    "204": (reply("204 No Content"), ask(), SourceError, "204"),
    "203": (reply("203 Other"), ask(), SourceError, "203"),
    "103": (reply("103 Early Hints"), ask(), SourceError, "103"),
    "304": (reply("304 Not Modified"), ask(), SourceError, "304"),
    "300": (reply("300 Multiple Choices", "Location: /b"), ask(), SourceError, "300"),
    "redirect to nowhere": (reply("302 Found"), ask(), SourceError, "302: a redirect to nowhere"),
    "redirect to two places": (
        reply("302 Found", "Location: /a", "Location: /b"),
        ask(),
        SourceError,
        "302: a redirect to nowhere",
    ),
    "redirect with a control character": (
        reply("302 Found", "Location: /a\x07b"),
        ask(),
        SourceError,
        "not followed",
    ),
    "redirect to a file": (reply("302 Found", "Location: file:///etc/passwd"), ask(), SourceError, "not followed"),
    "401": (reply("401 Unauthorized"), ask(), NotFoundError, 'pass --header "Authorization: Bearer …"'),
    "403": (reply("403 Forbidden"), ask(), NotFoundError, "403: access is not allowed"),
    "404": (reply("404 Not Found"), ask(), NotFoundError, "404: not found"),
    "410": (reply("410 Gone"), ask(), NotFoundError, "410"),
    "418": (reply("418 Teapot"), ask(), NotFoundError, "418"),
    "400 without a range": (reply("400 Bad Request"), ask(), NotFoundError, "400"),
    "416 without a range": (reply("416 Range Not Satisfiable"), ask(), NotFoundError, "416"),
    "408": (reply("408 Request Timeout"), ask(), TransientError, "408"),
    "425": (reply("425 Too Early"), ask(), TransientError, "425"),
    "429": (reply("429 Too Many Requests"), ask(2), TransientError, "429: too many requests"),
    "500": (reply("500 Oops"), ask(), TransientError, "500"),
    "503": (reply("503 Service Unavailable"), ask(2), TransientError, "503"),
    "501 without a range": (reply("501 Not Implemented"), ask(), SourceError, "501"),
    "no http": (b"SSH-2.0-OpenSSH_9.2\r\n", ask(), SourceError, "the reply is not HTTP"),
    "hung up": (b"", ask(), TransientError, "the connection was closed without a reply"),
    "reset": ([RESET], ask(), TransientError, "the connection was reset"),
    "cut in the head": (b"HTTP/1.1 200 OK\r\nContent-Le", ask(size=5), TransientError, "after 0 of 5 bytes"),
    "silent": ([30.0], ask(), TransientError, "no byte for 0.3 s"),
    "long header": (whole("X: " + "y" * 70_000), ask(), SourceError, "a header line is too long"),
    "many headers": (whole(*(f"X-{n}: y" for n in range(200))), ask(), SourceError, "too many headers"),
}


@pytest.mark.parametrize(("sent", "request_", "kind", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_reply_out_of_order_says_what_is_wrong(sent, request_, kind, words):
    with Wire(sent) as wire:
        read = Read(wire, request_)
    assert type(read.error) is kind or (kind is TransientError and isinstance(read.error, TransientError))
    assert words in read.error.line()
    assert read.got == b""
    assert not re.search(r"HTTPConnectionPool|object at 0x|host=|\n", read.error.message)


CUT = {
    "counted": (whole("Content-Length: 9"), ask(), "the connection ended after 5 of 9 bytes"),
    "counted, reset": ([whole("Content-Length: 9"), RESET], ask(), "the connection was reset"),
    "long, reset": ([whole("Content-Length: 99999"), RESET], ask(), "the connection was reset"),
    "long, silent": ([whole("Content-Length: 99999"), 30.0], ask(), "no byte for 0.3 s"),
    "long chunk, silent": ([chunked(b"fffff\r\nhello"), 30.0], ask(), "no byte for 0.3 s"),
    "until closed, silent": ([whole(), 30.0], ask(), "no byte for 0.3 s"),
    "counted, silent": ([whole("Content-Length: 9"), 30.0], ask(), "no byte for 0.3 s"),
    "part": (part("bytes 2-9/10", body=b"hello"), ask(2), "the body ended after 5 of 8 bytes"),
    "until closed, size known": (whole(), ask(size=9), "the body ended after 5 of 9 bytes"),
    "chunked, in a chunk": (chunked(b"9\r\nhello"), ask(), "the connection ended after 5 bytes"),
    "chunked, between chunks": (chunked(b"5\r\nhello\r\n"), ask(), "the connection ended after 5 bytes"),
    "chunked, in a size": (chunked(b"5\r\nhello\r\n1"), ask(size=9), "the connection ended after 5 of 9 bytes"),
    "chunked, too short": (chunked(b"5\r\nhello\r\n0\r\n\r\n"), ask(size=9), "the body ended after 5 of 9 bytes"),
    "chunk size in words": (chunked(b"5\r\nhello\r\nfive\r\n"), ask(), "the chunk framing is broken"),
    "negative chunk": (chunked(b"5\r\nhello\r\n-5\r\nhello\r\n"), ask(), "the chunk framing is broken"),
    "chunk size as in Python": (chunked(b"5\r\nhello\r\n0x5\r\nhello\r\n"), ask(), "the chunk framing is broken"),
    "chunk longer than its size": (chunked(b"5\r\nhellooo\r\n0\r\n\r\n"), ask(), "the chunk framing is broken"),
    "chunk line without end": (chunked(b"5\r\nhello\r\n" + b"1" * 9000), ask(), "the chunk framing is broken"),
    "trailers without end": (
        chunked(b"5\r\nhello\r\n0\r\n" + b"X: y\r\n" * 500),
        ask(),
        "the chunk framing is broken",
    ),
}


@pytest.mark.parametrize(("sent", "request_", "words"), CUT.values(), ids=CUT)
def test_what_arrived_before_a_cut_is_yielded_first(sent, request_, words):
    with Wire(sent) as wire:
        read = Read(wire, request_)
    assert read.got == b"hello"
    assert isinstance(read.error, TransientError)
    assert words in read.error.line()


LONGER = {
    "until closed": (whole(body=b"hello!"), ask(size=5)),
    "chunked": (chunked(b"6\r\nhello!\r\n0\r\n\r\n"), ask(size=5)),
    "next chunk": (chunked(b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"), ask(size=5)),
    "part": (part("bytes 2-6/10", body=b"hello!"), ask(2)),
}


@pytest.mark.parametrize(("sent", "request_"), LONGER.values(), ids=LONGER)
def test_a_surplus_is_an_error_and_never_yielded(sent, request_):
    with Wire(sent) as wire:
        read = Read(wire, request_)
    assert read.got == b"hello"
    assert type(read.error) is VerificationError
    assert read.error.message == "the body is longer than the 5 bytes expected"


def test_an_empty_file_with_a_surplus_is_an_error():
    with Wire(whole(body=b"x")) as wire:
        read = Read(wire, ask(size=0))
    assert (read.got, type(read.error)) == (b"", VerificationError)


FRAMED = {
    "counted": (whole("Content-Length: 5"), ask(), True),
    "chunked": (chunked(b"5\r\nhello\r\n0\r\n\r\n"), ask(), True),
    "size known": (whole(), ask(size=5), True),
    "part": (part("bytes 2-4/*"), ask(2), True),
    "until closed": (whole(), ask(), False),
}


@pytest.mark.parametrize(("sent", "request_", "framed"), FRAMED.values(), ids=FRAMED)
def test_a_body_tells_whether_a_cut_would_be_noticed(sent, request_, framed):
    with Wire(sent) as wire:
        assert Read(wire, request_).body.framed is framed


DATE = "Date: Wed, 01 Jan 2025 00:00:10 GMT"
VALIDATORS = {
    "strong etag": ((f"ETag: {ETAG}",), ETAG),
    "weak etag": (('ETag: W/"v1"',), ""),
    "unquoted etag": (("ETag: v1",), ""),
    "etag with a quote inside": (('ETag: "a"b"',), ""),
    "two etags": (('ETag: "a"', 'ETag: "b"'), ""),
    "long etag": ((f'ETag: "{"x" * 600}"',), ""),
    "date a second older": ((DATE, "Last-Modified: Wed, 01 Jan 2025 00:00:09 GMT"), "Wed, 01 Jan 2025 00:00:09 GMT"),
    "date of now": ((DATE, "Last-Modified: Wed, 01 Jan 2025 00:00:10 GMT"), ""),
    "date of nothing": ((DATE, "Last-Modified: yesterday"), ""),
    "date without a Date": (("Last-Modified: Wed, 01 Jan 2025 00:00:09 GMT",), ""),
    "weak etag, good date": (
        (DATE, 'ETag: W/"v1"', "Last-Modified: Tue, 31 Dec 2024 00:00:00 GMT"),
        "Tue, 31 Dec 2024 00:00:00 GMT",
    ),
    "none": ((), ""),
}


@pytest.mark.parametrize(("fields", "validator"), VALIDATORS.values(), ids=VALIDATORS)
def test_only_a_strong_validator_is_one(fields, validator):
    with Wire(whole("Content-Length: 5", *fields)) as wire:
        assert Read(wire, ask()).body.validator == validator


RETRY_AFTER = {"seconds": ("Retry-After: 7", 7.0), "date": ("Retry-After: Wed, 01 Jan 2025 00:00:15 GMT", 5.0)}


@pytest.mark.parametrize(("field", "wait_s"), RETRY_AFTER.values(), ids=RETRY_AFTER)
def test_retry_after_is_passed_on(field, wait_s):
    with Wire(reply("503 Service Unavailable", field, DATE)) as wire:
        assert Read(wire, ask()).error.retry_after_s == wait_s


ASKED = {
    "whole": (ask(), None, None),
    "whole with validator": (ask(validator=ETAG), None, None),
    "from": (ask(2), "bytes=2-", None),
    "span": (ask(2, 5, validator=ETAG), "bytes=2-4", ETAG),
    "head": (ask(0, 5), "bytes=0-4", None),
}


@pytest.mark.parametrize(("request_", "range_", "if_range"), ASKED.values(), ids=ASKED)
def test_the_request_is_plain(request_, range_, if_range):
    with Wire(whole("Content-Length: 5")) as wire:
        Read(wire, request_)
        line, *fields = wire.requests[0].strip().split("\r\n")
    sent = dict(field.split(": ", 1) for field in fields)
    assert line == "GET /dir/f HTTP/1.1"
    assert (sent.pop("Range", None), sent.pop("If-Range", None)) == (range_, if_range)
    assert re.fullmatch(r"modelcache/[0-9.]+", sent.pop("User-Agent"))
    assert sent.pop("Host").startswith("127.0.0.1:")
    assert sent == {"Accept": "*/*", "Accept-Encoding": "identity"}


def test_a_200_with_the_same_etag_is_asked_again_without_if_range_once_a_source():
    good = part("bytes 2-4/5", f"ETag: {ETAG}")
    with Wire(whole("Content-Length: 5", f"ETag: {ETAG}"), good) as wire:
        source = HttpSource(wire.url("f"))
        reads = [Read(wire, ask(2, validator=ETAG), source) for _ in range(2)]
        source.close()
        conditional = ["If-Range" in head for head in wire.requests]
    assert [read.got for read in reads] == [b"llo", b"llo"]
    assert conditional == [True, False, False]


def test_a_200_with_another_etag_is_the_changed_file():
    with Wire(whole("Content-Length: 5", 'ETag: "v2"')) as wire:
        read = Read(wire, ask(2, validator=ETAG))
        assert len(wire.requests) == 1
    assert (read.got, read.body.start, read.body.validator) == (b"hello", 0, '"v2"')
