"""A small document over HTTP: what a hub or a registry says of itself, whole and bounded.

Responsible for: asking once (redirects and secrets as in `http`), the end of its time, how long it may be.
Leaves to others: what a refusal means in its protocol, and what the content is.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelcache.errors import ModelCacheError, SourceError
from modelcache.model import ModelFile
from modelcache.remotes.body import HttpBody
from modelcache.remotes.connection import Connector
from modelcache.remotes.http import Explain, ask, nothing_more, plain_length
from modelcache.remotes.reply import Head, promise_of, refusal_of
from modelcache.remotes.source import Abort, Request

MOST_BYTES = 32 << 20
MOST_S = 60.0
_PLAIN = {"Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Document:
    """The bytes of a reply with status 200, its headers, and the URL that they came from."""

    content: bytes
    head: Head
    url: str

    def json(self) -> Any:
        """SourceError where it is none."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise SourceError("its reply is not JSON") from error


def get(
    connector: Connector,
    url: str,
    abort: Abort,
    *,
    secrets: Mapping[str, str],
    accept: str = "application/json",
    explain: Explain = nothing_more,
    most_bytes: int = MOST_BYTES,
    public_only: bool = False,
) -> Document:
    """The document at a URL; `secrets` are headers for its origin alone, `public_only` as in `ask`.

    Raises what `explain` makes of a refusal, else NotFoundError, TransientError or SourceError; AbortedError.
    """
    abort.check()
    abort.until = time.monotonic() + MOST_S
    request = Request(ModelFile("document"), 0, None, "", abort)
    answer = ask(connector, url, secrets, _PLAIN | {"Accept": accept}, abort, public_only=public_only)
    try:
        if answer.head.status != 200:
            told = explain(answer.head) if answer.own else None
            raise told or refusal_of(answer.head, request, time.time())
        promise = promise_of(answer.head, request, time.time())
    except ModelCacheError:
        answer.exchange.dismiss(plain_length(answer.head))
        raise
    content = bytearray()
    with HttpBody(answer.exchange, promise, validator="", host="", status=answer.head.status, first_byte_s=0.0) as body:
        for chunk in body:
            content += chunk.data
            if len(content) > most_bytes:
                raise SourceError(f"its reply is longer than {most_bytes:,} bytes")
    return Document(bytes(content), answer.head, answer.url)
