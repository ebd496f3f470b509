"""The public test origin: real HTTP servers on this machine that fail the way you ask them to.

    with Origin({"model.gguf": Content.generated(10_000_000)}) as origin:
        origin.faults(CutAt(5_000_000, times=1), path="model.gguf")
        my_downloader(origin.url("model.gguf"))
        assert [seen.range for seen in origin.requests] == [None, "bytes=5000000-"]

Responsible for: the names you import; docs/testing.md is the guide.
Leaves to: `origin` (files and faults), `hub` (a Hugging Face hub that is one), `faults` (what can go wrong), `reply`
(what is right), `content` (what is served), `wire` (exact bytes), `listener` (sockets, threads, TLS).
Standard library only; imports nothing else of modelcache, so that any downloader can be tested with it.
"""

from modelcache.testing.content import Content
from modelcache.testing.faults import (
    BodyFault,
    ChangedContent,
    Chunked,
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
    Placed,
    Redirect,
    ShutDown,
    SilentAccept,
    Slow,
    Stall,
    Status,
    WrongLength,
)
from modelcache.testing.hub import Hub
from modelcache.testing.listener import Certificate, certificate
from modelcache.testing.origin import Origin, Seen
from modelcache.testing.reply import Offer, Question, Reply
from modelcache.testing.wire import RESET, Script, Wire

__all__ = [
    "BodyFault",
    "Certificate",
    "ChangedContent",
    "Chunked",
    "Content",
    "ContentRange",
    "ContentType",
    "Corrupt",
    "Cut",
    "CutAt",
    "Delay",
    "DribbleHeaders",
    "ETag",
    "Encoding",
    "ExtraBytes",
    "Fault",
    "Header",
    "Hold",
    "Hub",
    "HugeHeader",
    "IgnoreRange",
    "LastModified",
    "ManyHeaders",
    "NeedsHeader",
    "NoLength",
    "Offer",
    "Origin",
    "Placed",
    "Question",
    "RESET",
    "Redirect",
    "Reply",
    "Script",
    "Seen",
    "ShutDown",
    "SilentAccept",
    "Slow",
    "Stall",
    "Status",
    "Wire",
    "WrongLength",
    "certificate",
]
