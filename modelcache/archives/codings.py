"""Undoes gzip, bzip2, xz and Zstandard.

Responsible for: decoding in flat memory whatever the bytes are, to the very end, and saying so where they end early.
Leaves to others: counting what comes out (`tree.Meter`).
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from modelcache.archives.tree import CHUNK, RefusedError
from modelcache.errors import UsageError

FEED = 1 << 10  # the worst that zstd makes of it is 32 MiB: 4 bytes can stand for 128 KiB; zlib makes 1 MiB
_Bounded = bz2.BZ2Decompressor | lzma.LZMADecompressor  # can be asked for a piece: bzip2 makes 46 MB of 45 bytes


class _Decoder(Protocol):
    """What zlib, bz2, lzma and zstandard have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _decoder_for(coding: str, window_bytes: int) -> tuple[Callable[[], _Decoder], type[Exception]]:
    """Makes a decoder of one stream, and what it raises for damaged bytes."""
    if coding == "gz":
        return (lambda: zlib.decompressobj(16 + zlib.MAX_WBITS)), zlib.error
    if coding == "bz2":
        return bz2.BZ2Decompressor, OSError
    if coding == "xz":
        return (lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, window_bytes)), lzma.LZMAError
    try:
        import zstandard
    except ImportError:
        raise UsageError("unpacking .zst needs `pip install 'modelcache[zstd]'`") from None
    return (lambda: zstandard.ZstdDecompressor(max_window_size=window_bytes).decompressobj()), zstandard.ZstdError


def decoded(packed: BinaryIO, coding: str, window_bytes: int) -> Iterator[bytes]:
    """The content, at most CHUNK bytes at a time; RefusedError where it is damaged or cut.

    Streams may follow one another (`cat a.gz b.gz`), with zeros between and after them (tapes, xz's padding).
    """
    fed = iter(lambda: packed.read(FEED if coding else CHUNK), b"")
    if not coding:
        yield from fed
        return
    new_decoder, damage = _decoder_for(coding, window_bytes)
    decoder: _Decoder | None = None
    for piece in fed:
        rest = piece
        while rest := rest if decoder else rest.lstrip(b"\0"):
            decoder = decoder or new_decoder()
            try:
                yield from filter(None, _pieces(decoder, rest))  # none is empty: that would be the end
            except damage as error:
                raise RefusedError(f"its bytes are damaged ({error})") from error
            rest = decoder.unused_data if decoder.eof else b""
            decoder = None if decoder.eof else decoder
    if decoder:
        raise RefusedError("it ends too early")


def _pieces(decoder: _Decoder, packed: bytes) -> Iterator[bytes]:
    if isinstance(decoder, _Bounded):
        yield decoder.decompress(packed, CHUNK)
        while not (decoder.needs_input or decoder.eof):
            yield decoder.decompress(b"", CHUNK)
        return
    content = decoder.decompress(packed)
    yield from (content[start : start + CHUNK] for start in range(0, len(content), CHUNK))
