"""A file inside its own URL (RFC 2397): what is so small, and so needed, that nobody is asked for it again.

Responsible for: writing and reading such URLs, and serving them as a source. Leaves to others: whether the bytes are
right. A manifest is kept like this: what a registry says of it later, or whether it still has it, does not matter.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterator
from types import TracebackType
from typing import Self
from urllib.parse import quote, unquote_to_bytes

from modelcache.errors import RangeRefusedError, UsageError
from modelcache.model import ModelFile
from modelcache.remotes.source import Chunk, Request, Traits

CHUNK_BYTES = 512 << 10
_BEGIN = "data:application/octet-stream;base64,"


def url_of(content: bytes) -> str:
    """The slashes of Base64 are escaped, too: two of them would look like a host and its secrets."""
    return _BEGIN + quote(b64encode(content), safe="")


class InlineSource:
    """One URL that is its content. UsageError for anything else."""

    kind = "cache"
    name = "the manifest"

    def __init__(self, url: str) -> None:
        if not url.startswith(_BEGIN):
            raise UsageError("only data: URLs of bytes in Base64 are served")
        try:
            self._content = b64decode(unquote_to_bytes(url.removeprefix(_BEGIN)), validate=True)
        except ValueError as error:
            raise UsageError("a data: URL is not Base64") from error

    def traits(self, file: ModelFile) -> Traits:  # noqa: ARG002  the seam's argument
        return Traits(says_ranges=True, most_connections=1)

    def open(self, request: Request) -> "_InlineBody":
        request.abort.check()
        size, stop = len(self._content), request.stop
        if request.start > size or (stop is not None and not request.start <= stop <= size):
            raise RangeRefusedError("it does not have this range", total=size)
        return _InlineBody(self._content, request.start, size if stop is None else stop)

    def close(self) -> None:
        pass


class _InlineBody:
    validator = ""
    host = ""
    status = 0
    first_byte_s = 0.0
    framed = True

    def __init__(self, content: bytes, start: int, stop: int) -> None:
        self.start: int = start
        self.total: int | None = len(content)
        self._span = content[start:stop]

    def __iter__(self) -> Iterator[Chunk]:
        for at in range(0, len(self._span), CHUNK_BYTES):
            yield Chunk(self.start + at, self._span[at : at + CHUNK_BYTES])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        pass
