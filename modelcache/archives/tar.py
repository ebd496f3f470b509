"""Reads a tar file as a stream into a tree.

Responsible for: refusing everything but plain files and folders, and headers that are damaged, cut or endless.
Leaves to others: names and bounds (`tree`), the coding around it (`codings`). Python's extraction filters are not
used: they let links pass, and nothing here extracts by tarfile.
"""

import io
import stat
import tarfile
from collections.abc import Iterator
from typing import Self

from modelcache.archives.tree import CHUNK, RefusedError, Tree, pieces_of, shown

MOST_TAR_HEADER_BYTES = 2 * CHUNK  # of one entry, with all its extensions and what is read ahead
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, RecursionError)  # what tarfile raises for wrong bytes


class _Header(tarfile.TarInfo):
    """A header that is damaged in mid-archive ends the archive with an error; tarfile takes it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf.count(0) == tarfile.BLOCKSIZE:  # the end mark
                raise
            raise tarfile.ReadError(str(error)) from error


class _TarContent(io.RawIOBase):
    """What tarfile reads from. The end of the bytes is an error: the end mark comes before it."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.allow(0)

    def allow(self, content_bytes: int) -> None:
        """tarfile holds a header with all its extensions in memory: it may read this content and one header more."""
        self._left = content_bytes + MOST_TAR_HEADER_BYTES

    def read(self, _size: int = -1, /) -> bytes:
        """More or less than was asked for: tarfile keeps what it does not need yet."""
        piece = next(self._pieces, b"")
        if not piece:
            raise RefusedError("it ends too early")
        self._left -= len(piece)
        if self._left < 0:
            raise RefusedError("a tar header is too long")
        return piece


def unpack_tar(pieces: Iterator[bytes], tree: Tree) -> None:
    """Writes everything in it; RefusedError for what is damaged or not to be trusted."""
    try:
        _read_members(_TarContent(pieces), tree)
    except _DAMAGE as error:
        raise RefusedError(f"the tar file is damaged ({error})") from error
    for _ in pieces:  # to the very end: a compressed stream tells there whether it was whole
        pass


def _read_members(content: _TarContent, tree: Tree) -> None:
    with tarfile.open(fileobj=content, mode="r|", tarinfo=_Header) as archive:
        while (member := archive.next()) is not None:
            content.allow(member.size)
            _add_member(archive, member, tree)
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
            archive.pax_headers = {}  # and every global one, with nothing in them that we use


def _add_member(archive: tarfile.TarFile, member: tarfile.TarInfo, tree: Tree) -> None:
    if member.islnk() or member.issym():
        raise RefusedError(f"{shown(member.name)} is a link")
    if member.isdir():
        if member.name != ".":
            tree.add_folder(member.name)
        return
    if not member.isreg() or member.issparse() or member.size < 0:
        raise RefusedError(f"{shown(member.name)} is neither a plain file nor a folder")
    content = archive.extractfile(member)
    assert content is not None  # it is None for what was refused above
    with content:
        tree.add_file(member.name, pieces_of(content), executable=bool(member.mode & stat.S_IXUSR))
